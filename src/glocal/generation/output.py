"""Generated text: the result, and where it stops."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class GenerationOutput:
    """A generated text: a translation, or the continuation of a prompt, without the prompt."""

    text: str
    """The best text that was found."""
    score: float | None
    """Its log probability over the length penalty (see DecodingConfig); None after a greedy search."""
    nbest: list[tuple[str, float | None]]
    """The requested number of texts, the best first, with their scores."""


def cut_at_stop(text: str, stop: Sequence[str]) -> str:
    """Cut a text where the first of the stop strings begins."""
    return text[: min((text.index(each) for each in stop if each in text), default=None)]


def stable_length(text: str, stop: Sequence[str]) -> int:
    """Return how many characters of an unfinished text will stay, whatever follows.

    The text may end in a character whose last bytes are missing, which reads as �, or in the beginning of a stop
    string.
    """
    whole = text.rstrip("\N{REPLACEMENT CHARACTER}")
    begun = [length for each in stop for length in range(1, len(each)) if whole.endswith(each[:length])]
    return len(whole) - max(begun, default=0)
