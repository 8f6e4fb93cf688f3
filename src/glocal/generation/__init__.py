"""Decoding: greedy search, beam search and sampling, over any model that generates text."""

from glocal.generation.config import DecodingConfig
from glocal.generation.continuous import ContinuousBatch, Progress
from glocal.generation.decoding import Hypothesis, generate, stream
from glocal.generation.limits import max_length_of
from glocal.generation.output import GenerationOutput, cut_at_stop, stable_length
from glocal.generation.probabilities import TokenLogprob, token_logprobs

__all__ = [
    "ContinuousBatch",
    "DecodingConfig",
    "GenerationOutput",
    "Hypothesis",
    "Progress",
    "TokenLogprob",
    "cut_at_stop",
    "generate",
    "max_length_of",
    "stable_length",
    "stream",
    "token_logprobs",
]
