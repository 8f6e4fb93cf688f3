"""CTranslate2's layout of the Transformer and of GPT: model.bin, config.json, its vocabularies, and our tokenizer.

https://opennmt.net/CTranslate2

The model is described by CTranslate2's own specifications. Its converter of Marian's models is not used: it begins each
translation with a vector of zeros, which holds for Marian's own models alone.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from glocal.data.marian import Marian
from glocal.data.tokenizer import Subwords, Tokenizer
from glocal.export.format import Exported, Format, Precision, Settings, misfit
from glocal.layers.block import BlockConfig
from glocal.layers.slicing import StateDict
from glocal.models import GPT, Transformer

Spec = Any
"""A part of CTranslate2's specifications, which declare no types, and are imported late."""
PLAIN: dict[str, object] = {"local_heads": 0, "qkv_ratio": 1.0}
"""What all of its blocks have."""
ACTIVATIONS = {"relu": "RELU", "gelu": "GELU", "gelu_tanh": "GELUTanh", "silu": "SWISH"}
"""Ours, CTranslate2's."""
QUANTIZATION: dict[Precision, str] = {
    "float32": "float32",
    "fp16": "float16",
    "bf16": "bfloat16",
    "int8": "int8_float32",
}
"""CTranslate2's names of precisions."""
NEVER = -1e4
"""Added to the logits of tokens that no text has, of padding and of its beginning, as our decoding leaves them out."""


def refusal(exported: Exported) -> str | None:
    """Return why CTranslate2 has no such model."""
    model = exported.model
    if isinstance(model, GPT) and model.config.head != "language":
        return f"CTranslate2's GPT writes text, and this one is for {model.config.head}"
    if not isinstance(model, GPT | Transformer):
        return f"CTranslate2's models write text, and this is a {model.family}"
    for blocks in stacks(model):
        if reason := misfit(blocks, PLAIN, "CTranslate2's"):
            return reason
    if len({blocks[0].norm_eps for blocks in stacks(model)}) > 1:
        return "its encoder and its decoder differ in norm_eps, of which CTranslate2 has one"
    if exported.tokenizer is None:
        return "CTranslate2's layout holds a vocabulary, and there is no tokenizer beside this model"
    return None


def stacks(model: GPT | Transformer) -> list[tuple[BlockConfig, ...]]:
    """Return the blocks of a GPT, or of the encoder and the decoder."""
    return [model.config.blocks] if isinstance(model, GPT) else [model.config.encoder, model.config.decoder]


def write(exported: Exported, folder: Path, settings: Settings) -> None:
    """Write what ctranslate2.Generator or ctranslate2.Translator reads."""
    assert exported.tokenizer is not None
    if isinstance(exported.model, Transformer):
        spec = translator(exported.model, exported.tokenizer)
    else:
        assert isinstance(exported.model, GPT)
        spec = generator(exported.model, exported.tokenizer)
    spec.validate()
    spec.optimize(QUANTIZATION[settings.precision])
    spec.save(str(folder))
    exported.tokenizer.save(folder)


def translator(model: Transformer, tokenizer: Tokenizer) -> Spec:
    """Return the specification of a Transformer."""
    from ctranslate2.specs import TransformerSpec, transformer_spec

    config, state = model.config, model.state_dict()
    encoder = transformer_spec.TransformerEncoderSpec(len(config.encoder), **fields(config.encoder[0]))
    decoder = transformer_spec.TransformerDecoderSpec(len(config.decoder), **fields(config.decoder[0]))
    encoder.embeddings[0].weight = state["embedding.weight"]
    for side, spec in (("encoder", encoder), ("decoder", decoder)):
        spec.scale_embeddings = True
        spec.position_encodings.encodings = model.positions
        fill_stack(spec, state, side, f"{side}_norm")
    decoder.embeddings.weight = state["embedding.weight"]
    fill_projection(decoder, model, state.get("logit_bias"))
    found = TransformerSpec(encoder, decoder)
    words = vocabulary(tokenizer, config.vocab_size)
    found.register_source_vocabulary(words)
    found.register_target_vocabulary(words)
    found.config.decoder_start_token = words[config.bos_id]
    name_tokens(found.config, words, model, tokenizer)
    found.config.layer_norm_epsilon = config.decoder[0].norm_eps
    return found


def generator(model: GPT, tokenizer: Tokenizer) -> Spec:
    """Return the specification of a GPT."""
    from ctranslate2.specs import transformer_spec

    config, state = model.config, model.state_dict()
    decoder = transformer_spec.TransformerDecoderSpec(
        len(config.blocks), **fields(config.blocks[0]), with_encoder_attention=False
    )
    decoder.scale_embeddings = False
    decoder.embeddings.weight = state["embedding.weight"]
    decoder.position_encodings.encodings = state["pos_embed"]
    fill_stack(decoder, state, "blocks", "norm")
    fill_projection(decoder, model, None)
    found = transformer_spec.TransformerDecoderModelSpec(decoder)
    words = vocabulary(tokenizer, config.vocab_size)
    found.register_vocabulary(words)
    name_tokens(found.config, words, model, tokenizer)
    found.config.layer_norm_epsilon = config.blocks[0].norm_eps
    return found


def fields(block: BlockConfig) -> dict[str, object]:
    """Return what a specification is given of a stack, by one of its blocks."""
    from ctranslate2.specs import Activation

    return {
        "num_heads": block.num_heads,
        "pre_norm": block.norm == "pre",
        "activation": Activation[ACTIVATIONS[block.activation]],
    }


def fill_stack(spec: Spec, state: StateDict, prefix: str, norm: str) -> None:
    """Give a stack of blocks its weights; `prefix` and `norm` are our names of it and of the norm behind it."""
    for number, layer in enumerate(spec.layer):
        block = {
            name.removeprefix(f"{prefix}.{number}."): tensor
            for name, tensor in state.items()
            if name.startswith(f"{prefix}.{number}.")
        }
        fill(layer.self_attention.linear[0], block, "mixer.attention.qkv")
        fill(layer.self_attention.linear[1], block, "mixer.attention.proj")
        fill_norm(layer.self_attention.layer_norm, block, "norm1")
        if "norm_cross.weight" in block:
            for linear, part in zip(layer.attention.linear, ("q", "kv", "proj"), strict=True):
                fill(linear, block, f"cross.{part}")
            fill_norm(layer.attention.layer_norm, block, "norm_cross")
        fill(layer.ffn.linear_0, block, "mlp.fc1")
        fill(layer.ffn.linear_1, block, "mlp.fc2")
        fill_norm(layer.ffn.layer_norm, block, "norm2")
    if f"{norm}.weight" in state:
        fill_norm(spec.layer_norm, state, norm)


def fill(linear: Spec, state: StateDict, name: str) -> None:
    """Give a linear layer its weights."""
    linear.weight = state[f"{name}.weight"]
    if f"{name}.bias" in state:
        linear.bias = state[f"{name}.bias"]


def fill_norm(norm: Spec, state: StateDict, name: str) -> None:
    """Give a LayerNorm its weights."""
    norm.gamma, norm.beta = state[f"{name}.weight"], state[f"{name}.bias"]


def fill_projection(decoder: Spec, model: GPT | Transformer, bias: Tensor | None) -> None:
    """Give the output layer, which is tied to the embeddings, its weights; tokens that are never written get a bias."""
    config = model.config
    decoder.projection.weight = model.embedding.weight.detach()
    never = {config.pad_id, config.bos_id} - {config.eos_id, None}
    if bias is None and not never:
        return
    bias = torch.zeros(config.vocab_size) if bias is None else bias.clone()
    bias[list(never)] = NEVER
    decoder.projection.bias = bias


def vocabulary(tokenizer: Tokenizer, size: int) -> list[str]:
    """Return the tokens in the order of their numbers; embeddings without a token get a name."""
    words = [f"<unused{number}>" for number in range(size)]
    ids = tokenizer.ids if isinstance(tokenizer, Marian) else {}
    if isinstance(tokenizer, Subwords):
        ids = tokenizer.inner.get_vocab()
    for word, number in ids.items():
        words[number] = word
    return words


def name_tokens(config: Spec, words: Sequence[str], model: GPT | Transformer, tokenizer: Tokenizer) -> None:
    """Write down which tokens begin and end a text, and which one stands for unknown ones."""
    end = tokenizer.eos_id if model.config.eos_id is None else model.config.eos_id
    config.eos_token = words[end]
    config.bos_token = words[end if model.config.bos_id is None else model.config.bos_id]
    config.unk_token = words[end if tokenizer.unk_id is None else tokenizer.unk_id]


def usage(exported: Exported) -> str:
    """Return the lines that translate a sentence, or continue a prompt."""
    if isinstance(exported.tokenizer, Marian):
        return (
            'import ctranslate2\nimport sentencepiece as spm\n\ntranslator = ctranslate2.Translator("FOLDER")\n'
            'source, target = (spm.SentencePieceProcessor(f"FOLDER/{side}.spm") for side in ("source", "target"))\n'
            'tokens = source.encode("A sentence.", out_type=str) + ["</s>"]\n'
            "[result] = translator.translate_batch([tokens])\nprint(target.decode(result.hypotheses[0]))"
        )
    opening = "import ctranslate2\nfrom tokenizers import Tokenizer\n\n" + (
        'tokenizer = Tokenizer.from_file("FOLDER/tokenizer.json")\n'
    )
    if isinstance(exported.model, Transformer):
        return opening + (
            'translator = ctranslate2.Translator("FOLDER")\n'
            '[result] = translator.translate_batch([tokenizer.encode("A sentence.").tokens])\n'
            "print(tokenizer.decode([tokenizer.token_to_id(token) for token in result.hypotheses[0]]))"
        )
    return opening + (
        'generator = ctranslate2.Generator("FOLDER")\n'
        'tokens = tokenizer.encode("Once", add_special_tokens=False).tokens\n'
        "[result] = generator.generate_batch([tokens], max_length=50)\n"
        "print(tokenizer.decode(result.sequences_ids[0]))"
    )


FORMAT = Format(
    name="ctranslate2",
    reader="CTranslate2",
    refusal=refusal,
    write=write,
    usage=usage,
    library="ctranslate2",
    packages=("ctranslate2",),
    precisions=("float32", "fp16", "bf16", "int8"),
)
