"""The one kind of error that is the user's to mend: what was given, what was expected, what to do."""

import math


class GlocalError(ValueError):
    """Bad input. Its text is one line; the command line prints it alone and exits with 2."""


def check_range(
    name: str,
    value: float | int | None,
    least: float | int = -math.inf,
    most: float | int = math.inf,
    above: float | int = -math.inf,
    below: float | int = math.inf,
) -> None:
    """Raise GlocalError where a number is not finite or out of its range; None stands for one that is not given."""
    if value is None or (-math.inf < value < math.inf and least <= value <= most and above < value < below):
        return
    words = {"or more": least, "at most": most, "above": above, "below": below}
    bounds = [
        f"{bound} {word}" if word == "or more" else f"{word} {bound}"
        for word, bound in words.items()
        if abs(bound) < math.inf
    ]
    raise GlocalError(f"{name} is {value}; expected a number, {' and '.join(bounds) or 'no infinity'}")
