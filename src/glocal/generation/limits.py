"""Limits of generated texts: how long they are, which tokens they contain, and what ends them."""

import math

import torch
from jaxtyping import Int
from torch import Tensor

from glocal.data.tokenizer import Tokenizer
from glocal.errors import GlocalError
from glocal.generation.config import DecodingConfig
from glocal.models.generative import Generative


def max_length_of(model: Generative) -> int | float:
    """Return the tokens of the longest text that a model takes; inf for an LSTM."""
    return getattr(model.config, "max_length", math.inf)


def limit_of(prompt: int, extra: int, longest: int | float) -> int:
    """Return how many tokens may follow a prompt of so many, in a model that takes `longest` of both together.

    Raises GlocalError if none may.
    """
    limit = min(extra, longest - prompt)
    if limit < 1:
        raise GlocalError(
            f"a prompt of {prompt} tokens and extra_length {extra}; the model takes {longest} tokens, prompt and text "
            "together: shorten the prompt, or raise decoding.extra_length above 0"
        )
    return int(limit)


def check_stop(config: DecodingConfig, tokenizer: Tokenizer | None) -> None:
    """Raise GlocalError if there are strings to stop at and nothing that decodes a text."""
    if config.stop and tokenizer is None:
        raise GlocalError(f"stop {list(config.stop)} needs the text that is generated; give a tokenizer")


def never_generated(model: Generative) -> Int[Tensor, " ids"]:
    """Return the special tokens that no text contains: those of padding and of a beginning, unless they end a text."""
    special = model.config
    return torch.tensor(list({special.pad_id, special.bos_id} - {special.eos_id, None}), dtype=torch.long)
