"""GlocalError, the error of bad input: what was given, what was expected, what to do."""

import errno
import math
import re
from pathlib import Path

CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters, characters that change the direction of writing, and lone surrogates."""


class GlocalError(ValueError):
    """Bad input. Its text is one line; the command line prints it alone and exits with 2."""

    def __str__(self) -> str:
        return printable(re.sub(r"\s*\n\s*", " ", super().__str__().strip()))


def check_range(
    name: str,
    value: float | int | None,
    least: float | int = -math.inf,
    most: float | int = math.inf,
    above: float | int = -math.inf,
    below: float | int = math.inf,
) -> None:
    """Raise GlocalError if a number is not finite or out of its range; None is a number that was not given."""
    if value is None or (-math.inf < value < math.inf and least <= value <= most and above < value < below):
        return
    words = {"or more": least, "at most": most, "above": above, "below": below}
    bounds = [
        f"{bound} {word}" if word == "or more" else f"{word} {bound}"
        for word, bound in words.items()
        if abs(bound) < math.inf
    ]
    raise GlocalError(f"{name} is {value}; expected a number, {' and '.join(bounds) or 'no infinity'}")


def check_path(value: object, expected: str) -> None:
    """Raise GlocalError if a value cannot be the name of a file or folder, existing or not."""
    if isinstance(value, str | Path):
        try:
            Path(value).stat()
            return
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:
                return
        except ValueError:  # it holds a NUL, or half of a character
            pass
    raise GlocalError(f"{value!r:.80} was given; expected {expected}")


def printable(text: str) -> str:
    """Return a text on one line that cannot control a terminal: control characters are escaped, as `\\x1b`."""
    return CONTROLS.sub(lambda sign: sign[0].encode("unicode_escape").decode(), text)


def showable(text: str) -> str:
    """Return a text of several lines that cannot control a terminal; new lines and tabs are kept."""
    return "\n".join("\t".join(map(printable, line.split("\t"))) for line in text.split("\n"))


def shortened(text: str, length: int) -> str:
    """Return a printable text of at most `length` characters; a longer one has an ellipsis in its middle."""
    text = printable(text)
    if len(text) <= length:
        return text
    return text[: length // 2] + "…" + text[len(text) - (length - length // 2 - 1) :]
