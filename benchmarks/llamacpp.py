"""llama.cpp with the weights of a GPT of ours: a GGUF file, and the text that is written with it.

A GGUF file must have a tokenizer. The prompt and the text are token ids here, so any tokenizer of the right size will
do: `vocabulary` makes one of bytes and of pairs of bytes.
"""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
import xllamacpp
from gguf.quants import quantize

from glocal.models import GPT

TYPES = {"f16": gguf.GGMLQuantizationType.F16, "q8_0": gguf.GGMLQuantizationType.Q8_0}
"""What matrices are written as; vectors, and the embeddings of positions, stay float32."""

DIGITS = 6
"""Digits of a token's number, which is what it reads as."""

NAMES = {  # ours, llama.cpp's
    "embedding": "token_embd",
    "pos_embed": "position_embd.weight",
    "norm": "output_norm",
    "norm1": "attn_norm",
    "mixer.attention.qkv": "attn_qkv",
    "mixer.attention.proj": "attn_output",
    "norm2": "ffn_norm",
    "mlp.fc1": "ffn_up",
    "mlp.fc2": "ffn_down",
}


def write_gguf(model: GPT, path: Path, kind: str) -> None:
    """Write a GPT-2 of ours as a GGUF file; `kind` is that of its matrices, f16 or q8_0."""
    config, block = model.config, model.config.blocks[0]
    writer = gguf.GGUFWriter(path, "gpt2")
    writer.add_context_length(config.max_length)
    writer.add_block_count(len(config.blocks))
    writer.add_embedding_length(block.embed_dim)
    writer.add_feed_forward_length(round(block.embed_dim * block.mlp_ratio))
    writer.add_head_count(block.num_heads)
    writer.add_layer_norm_eps(block.norm_eps)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([f"{token:0{DIGITS}}" for token in range(config.vocab_size)])
    writer.add_token_merges(["0 0"])
    for add_token_id in (writer.add_bos_token_id, writer.add_eos_token_id):  # llama.cpp has no model without them
        add_token_id(config.vocab_size - 1)
    for name, tensor in model.state_dict().items():
        weights = tensor.float().numpy()
        if weights.ndim == 2 and name != "pos_embed":
            writer.add_tensor(theirs(name), quantize(weights, TYPES[kind]), raw_dtype=TYPES[kind])
        else:
            writer.add_tensor(theirs(name), weights.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def theirs(name: str) -> str:
    """Return llama.cpp's name of a tensor of ours."""
    if name == "pos_embed":
        return NAMES[name]
    module, _, kind = name.rpartition(".")
    if not module.startswith("blocks."):
        return f"{NAMES[module]}.{kind}"
    _, number, part = module.split(".", maxsplit=2)
    return f"blk.{number}.{NAMES[part]}.{kind}"


class Writer:
    """llama.cpp with one model, on as many threads as torch uses."""

    def __init__(self, path: Path, length: int) -> None:
        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        params.n_ctx = length
        params.cpuparams.n_threads = torch.get_num_threads()
        params.cpuparams_batch.n_threads = torch.get_num_threads()
        params.n_gpu_layers = 0
        params.verbosity = -1
        self.server = xllamacpp.Server(params)

    def write(self, prompt: list[int], count: int) -> list[int]:
        """Return the `count` tokens that greedy search adds to a prompt, which is read anew each time."""
        request: dict[str, Any] = {"prompt": prompt, "n_predict": count, "temperature": 0.0, "ignore_eos": True}
        answer = self.server.handle_completions(request | {"cache_prompt": False})
        text = answer["choices"][0]["text"]

        return [int(text[i : i + DIGITS]) for i in range(0, len(text), DIGITS)]
