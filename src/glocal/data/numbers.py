"""Built-in sentence pairs: numbers below a million, written out in two languages by num2words."""

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
from num2words import CONVERTER_CLASSES, num2words

from glocal.errors import GlocalError

PREFIX = "numbers-"
SMALL = 1_000
"""All numbers below this are written, because the words of larger ones consist of theirs."""
COUNT = 50_000
"""Number of pairs."""
LIMIT = 1_000_000
"""All numbers are below this."""


def read_name(name: str) -> tuple[str, str]:
    """Return the two languages of `numbers-XX-YY`. Raises GlocalError if num2words does not know one."""
    languages = name.removeprefix(PREFIX).split("-")
    if len(languages) != 2 or not set(languages) <= CONVERTER_CLASSES.keys():
        raise GlocalError(
            f"{name!r} does not name two languages of num2words; expected numbers-XX-YY, of "
            f"{', '.join(sorted(CONVERTER_CLASSES))}"
        )
    return languages[0], languages[1]


def write_numbers(languages: tuple[str, str], seed: int) -> Iterator[tuple[str, str]]:
    """Yield all small numbers, then random ones without repetition."""
    drawn = np.random.default_rng(seed).permutation(np.arange(SMALL, LIMIT))[: COUNT - SMALL]
    for number in [*range(SMALL), *drawn.tolist()]:
        yield _write(number, languages[0]), _write(number, languages[1])


@lru_cache(maxsize=2 * COUNT)  # num2words takes seconds for all of them, in training and in testing
def _write(number: int, language: str) -> str:
    try:
        return num2words(number, lang=language)
    except Exception as error:  # languages raise different errors for numbers that they do not cover
        raise GlocalError(f"num2words cannot write {number} in {language!r} ({error}); take another language") from None
