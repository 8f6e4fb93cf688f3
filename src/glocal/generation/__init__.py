"""Decoding: greedy search, beam search and sampling, over any model that generates text."""

from glocal.generation.config import DecodingConfig
from glocal.generation.decoding import Hypothesis, generate, max_length_of, stream
from glocal.generation.output import GenerationOutput, cut_at_stop, stable_length

__all__ = [
    "DecodingConfig",
    "GenerationOutput",
    "Hypothesis",
    "cut_at_stop",
    "generate",
    "max_length_of",
    "stable_length",
    "stream",
]
