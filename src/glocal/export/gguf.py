"""GGUF, the format of llama.cpp: one file with a GPT-2 and its tokenizer.

https://github.com/ggml-org/ggml/blob/master/docs/gguf.md

llama.cpp cuts texts as GPT-2 does: into bytes, each written as one visible character, which merges then join. A
byte-level vocabulary is that already. A vocabulary of characters is so too, with merges that join the bytes of each
character; what a character is that it lacks, llama.cpp leaves out, where glocal reads the token of unknown characters.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tokenizers import pre_tokenizers

from glocal.data.tokenizer import Subwords, Tokenizer
from glocal.errors import GlocalError
from glocal.export.format import Exported, Format, Precision, Settings, misfit
from glocal.files import JSONObject
from glocal.models import GPT

FILE = "model.gguf"
PLAIN = {
    "norm": "pre",
    "activation": "gelu_tanh",
    "local_heads": 0,
    "qkv_ratio": 1.0,
    "qkv_bias": True,
    "causal": True,
    "cross": False,
}
"""What llama.cpp's GPT-2 has in each of its blocks."""
TYPES: dict[Precision, str] = {"float32": "F32", "fp16": "F16", "int8": "Q8_0"}
"""llama.cpp's names of what matrices are written in; vectors and positions stay float32."""
FILE_TYPES: dict[Precision, str] = {"float32": "ALL_F32", "fp16": "MOSTLY_F16", "int8": "MOSTLY_Q8_0"}
GROUP = 32
"""Weights of a row that share a scale in Q8_0."""
NAMES = {  # ours, llama.cpp's
    "embedding": "token_embd",
    "norm": "output_norm",
    "norm1": "attn_norm",
    "mixer.attention.qkv": "attn_qkv",
    "mixer.attention.proj": "attn_output",
    "norm2": "ffn_norm",
    "mlp.fc1": "ffn_up",
    "mlp.fc2": "ffn_down",
}
NORMAL, CONTROL, UNUSED = 1, 3, 5
"""Kinds of tokens (`gguf.TokenType`)."""


class Vocabulary(NamedTuple):
    """A tokenizer as llama.cpp reads it."""

    tokens: list[str]
    """The text of each token, in the order of their numbers; of bytes, GPT-2's character for each."""
    types: list[int]
    """The kind of each token."""
    merges: list[str]
    """Pairs to join, the first one first, each with a space between its parts."""
    bos_id: int
    eos_id: int


# ------------------------------------------------------------------------------------------------------------ tokenizer


def vocabulary_of(tokenizer: Tokenizer, model: GPT) -> Vocabulary:
    """Return a tokenizer as llama.cpp reads it. Raises ValueError for one that cuts texts otherwise."""
    if not isinstance(tokenizer, Subwords):
        raise ValueError("its tokenizer is sentencepiece's, and llama.cpp's GPT-2 has a byte-level one")
    described = json.loads(tokenizer.inner.to_str())
    if is_byte_level(described):
        spelled = {token: token for token in tokenizer.inner.get_vocab()}
        merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in described["model"]["merges"]]
    elif is_of_characters(described):
        spelled = {token: as_bytes(token) for token in tokenizer.inner.get_vocab()}
        merges = sorted({merge for token in spelled.values() for merge in merges_of(token)}, key=len)
    else:
        raise ValueError(
            f"its tokenizer is a {described['model']['type']} that llama.cpp's GPT-2 cannot follow; it can byte-level "
            "ones and vocabularies of characters (data.tokenizer.kind byte-bpe, characters)"
        )
    special = set(tokenizer.special.values())
    tokens = [f"[unused{number}]" for number in range(model.config.vocab_size)]
    types = [UNUSED] * len(tokens)
    for token, number in tokenizer.inner.get_vocab().items():
        is_control = token in special and len(token) > 1
        tokens[number] = token if is_control else spelled[token]
        types[number] = CONTROL if is_control else NORMAL
    bos_id, eos_id = model.config.bos_id, model.config.eos_id
    end = tokenizer.eos_id  # llama.cpp loads no model without these two
    return Vocabulary(tokens, types, merges, end if bos_id is None else bos_id, end if eos_id is None else eos_id)


def is_byte_level(described: JSONObject) -> bool:
    """Whether a tokenizer cuts texts as GPT-2's does, by its tokenizer.json."""
    model, cutter = described["model"], described["pre_tokenizer"] or {}
    return (
        model["type"] == "BPE"
        and described["normalizer"] is None
        and cutter.get("type") == "ByteLevel"
        and not cutter.get("add_prefix_space")
        and cutter.get("use_regex", True)
        and not model.get("byte_fallback")
        and not model.get("ignore_merges")
        and not model.get("continuing_subword_prefix")
        and not model.get("end_of_word_suffix")
    )


def is_of_characters(described: JSONObject) -> bool:
    """Whether a tokenizer has characters for tokens, besides the special ones, by its tokenizer.json."""
    model = described["model"]
    special = {token["content"] for token in described["added_tokens"]}
    return (
        model["type"] == "WordLevel"
        and described["normalizer"] is None
        and all(len(token) == 1 for token in model["vocab"] if token not in special)
    )


def as_bytes(text: str) -> str:
    """Return the bytes of a text in UTF-8, as GPT-2's vocabulary writes them (Radford et al. 2019, section 2.2)."""
    ((written, _),) = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text)
    return written


def merges_of(token: str) -> Iterator[str]:
    """Yield the merges that join the bytes of a character one after the other."""
    for end in range(1, len(token)):
        yield f"{token[:end]} {token[end]}"


# ---------------------------------------------------------------------------------------------------------------- model


def refusal(exported: Exported) -> str | None:
    """Return why llama.cpp has no such model."""
    model = exported.model
    if not isinstance(model, GPT) or model.config.head != "language":
        head = getattr(model.config, "head", None)
        return f"llama.cpp's GPT-2 writes text, and this is a {model.family}" + (f" for {head}" if head else "")
    if reason := misfit(model.config.blocks, PLAIN, "llama.cpp's"):
        return reason
    if exported.tokenizer is None:
        return "a GGUF file holds a tokenizer, and there is none beside this model"
    try:
        vocabulary_of(exported.tokenizer, model)
    except ValueError as error:
        return str(error)
    return None


def write(exported: Exported, folder: Path, settings: Settings) -> None:
    """Write model.gguf."""
    assert isinstance(exported.model, GPT)
    assert exported.tokenizer is not None
    vocabulary = vocabulary_of(exported.tokenizer, exported.model)
    write_gguf(exported.model, vocabulary, folder / FILE, settings.precision, exported.name)


def write_gguf(
    model: GPT, vocabulary: Vocabulary, path: Path, precision: Precision = "float32", name: str = "gpt"
) -> None:
    """Write a GPT-2 of ours and a vocabulary as a GGUF file. Raises GlocalError for int8 of rows that are no groups."""
    import gguf

    check_groups(model, precision)
    config, block = model.config, model.config.blocks[0]
    writer = gguf.GGUFWriter(path, "gpt2")
    writer.add_name(name)
    writer.add_file_type(gguf.LlamaFileType[FILE_TYPES[precision]])
    writer.add_context_length(config.max_length)
    writer.add_block_count(len(config.blocks))
    writer.add_embedding_length(block.embed_dim)
    writer.add_feed_forward_length(block.hidden_dim)
    writer.add_head_count(block.num_heads)
    writer.add_layer_norm_eps(block.norm_eps)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    writer.add_token_merges(vocabulary.merges or ["0 0"])  # llama.cpp loads no vocabulary without merges
    writer.add_bos_token_id(vocabulary.bos_id)
    writer.add_eos_token_id(vocabulary.eos_id)
    writer.add_add_bos_token(False)
    for tensor_name, tensor in model.state_dict().items():
        kind = gguf.GGMLQuantizationType[TYPES[precision] if is_matrix(tensor_name, tensor.ndim) else "F32"]
        weights = gguf.quants.quantize(tensor.float().numpy().astype(np.float32), kind)
        writer.add_tensor(theirs(tensor_name), weights, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def check_groups(model: GPT, precision: Precision) -> None:
    """Raise GlocalError if Q8_0 cannot group the rows of a matrix."""
    for name, tensor in model.state_dict().items():
        if precision == "int8" and is_matrix(name, tensor.ndim) and tensor.shape[1] % GROUP:
            raise GlocalError(
                f"gguf in int8 of rows of {tensor.shape[1]} weights ({name}); Q8_0 takes groups of {GROUP}: choose "
                "fp16, or a model whose widths are multiples"
            )


def is_matrix(name: str, ndim: int) -> bool:
    """Whether a tensor is written at the precision; positions are read one by one, and stay float32."""
    return ndim == 2 and name != "pos_embed"


def theirs(name: str) -> str:
    """Return llama.cpp's name of a tensor of ours."""
    if name == "pos_embed":
        return "position_embd.weight"
    module, _, kind = name.rpartition(".")
    if not module.startswith("blocks."):
        return f"{NAMES[module]}.{kind}"
    _, number, part = module.split(".", maxsplit=2)
    return f"blk.{number}.{NAMES[part]}.{kind}"


def usage(exported: Exported) -> str:
    """Return the lines that load the file with the package llama-cpp-python, and the command of llama.cpp."""
    return (
        f'# llama-cli -m FOLDER/{FILE} -p "Once" --temp 0\nfrom llama_cpp import Llama\n\n'
        f'model = Llama("FOLDER/{FILE}")\nmodel("Once", max_tokens=50, temperature=0)'
    )


FORMAT = Format(
    name="gguf",
    reader="llama.cpp",
    refusal=refusal,
    write=write,
    usage=usage,
    library="gguf",
    packages=("gguf",),
    precisions=("float32", "fp16", "int8"),
)
