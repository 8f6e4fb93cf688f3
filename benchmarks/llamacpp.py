"""llama.cpp with the weights of a GPT of ours: a GGUF file, and the text that is written with it.

A GGUF file must have a tokenizer. The prompt and the text are token ids here, so any tokenizer of the right size will
do: each token reads as its number.
"""

from pathlib import Path
from typing import Any

import torch
import xllamacpp

from glocal.export.format import Precision
from glocal.export.gguf import Vocabulary
from glocal.export.gguf import write_gguf as write
from glocal.models import GPT

PRECISIONS: dict[str, Precision] = {"f16": "fp16", "q8_0": "int8"}
"""llama.cpp's names of what matrices are written as, and ours."""

DIGITS = 6
"""Digits of a token's number, which is what it reads as."""


def write_gguf(model: GPT, path: Path, kind: str) -> None:
    """Write a GPT-2 of ours as a GGUF file; `kind` is that of its matrices, f16 or q8_0."""
    size = model.config.vocab_size
    numbers = [f"{token:0{DIGITS}}" for token in range(size)]
    normal = [1] * size
    write(model, Vocabulary(numbers, normal, ["0 0"], bos_id=size - 1, eos_id=size - 1), path, PRECISIONS[kind])


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
