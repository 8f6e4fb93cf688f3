"""Names of classes, and numbers, from labels in any format: texts of a CSV, JSON, columns of Parquet, folders."""

import math
import re
import unicodedata
import warnings
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from typing import SupportsFloat

import numpy as np

from glocal.data.files import compose, named_class
from glocal.errors import GlocalError

NUMBER = re.compile(r"[+-]?(\d+\.\d*|\.\d+|\d+(?=[eE]))([eE][+-]?\d+)?")
"""A number in a text file that is not written as a whole number."""
MISSING = ("nan", "NaN", "NAN")
"""Missing values in text files."""
UNPRINTABLE = ("Cc", "Cs", "Zl", "Zp")
"""Unicode's categories of control characters, halves of characters, and ends of lines."""
INVISIBLE = (*UNPRINTABLE, "Cf", "Zs")
"""Those, and the categories of spaces, joiners and marks of direction."""


def class_name(label: object, where: str) -> str | None:
    """Return the name of the class that a label stands for; None where there is no label.

    A text is its own name, without the spaces around it and with composed accents (Unicode NFC). 1, 1.0 and "1.0" are
    the class 1, and True, "TRUE" and "true" the class true. None, NaN and a text without visible characters are no
    label.

    Raises GlocalError, with `where`, for a fraction, for a list or another value of several parts, and for a name that
    cannot be printed on one line.
    """
    if label is None or label != label:
        return None
    if isinstance(label, bool):
        return str(label).lower()
    if isinstance(label, (int, float, Decimal)):
        return _whole(str(label) if isinstance(label, float) else label, label, where)
    if not isinstance(label, str):
        raise GlocalError(
            f"{where} has a label of kind {type(label).__name__}; expected one name or one whole number an example"
        )
    name = compose(label).strip()
    if name in MISSING or not is_visible(name):
        return None
    if name.lower() in ("true", "false"):
        return name.lower()
    if NUMBER.fullmatch(name):
        return _whole(name, label, where)
    if any(unicodedata.category(letter) in UNPRINTABLE for letter in name):
        raise GlocalError(f"{where} has label {name[:40]!r}, which cannot be printed on one line; rename it")
    return name


LARGEST = float(np.finfo(np.float32).max)
"""The largest label that is a number, since batches hold float32."""
SEPARATOR = "\x1f"
"""Separates the classes of an example that has several (Unicode's unit separator, which no class name holds)."""


def class_names(labels: object, where: str, separator: str) -> str | None:
    """Return the classes of a list or of a separated text, sorted, with `SEPARATOR` between them.

    "" stands for an example of no class, and None for a row without labels. Raises GlocalError as `class_name` does.
    """
    if labels is None or labels != labels:
        return None
    parts = labels.split(separator) if isinstance(labels, str) else labels
    if not isinstance(parts, list | tuple):
        parts = [parts]
    return SEPARATOR.join(sorted({name for part in parts if (name := class_name(part, where)) is not None}))


def multi_hot(names: str, numbers: Mapping[str, int], where: str) -> np.ndarray:
    """Return 1 at the numbers of the classes in a text of `class_names`, else 0: uint8 (K,).

    Raises GlocalError, with `where`, for a class without a number.
    """
    row = np.zeros(len(numbers), dtype=np.uint8)
    for name in filter(None, names.split(SEPARATOR)):
        if name not in numbers:
            raise GlocalError(f"class {name!r} of {where} is not one of the training classes: {', '.join(numbers)}")
        row[numbers[name]] = 1
    return row


def names_of_classes(feature: object) -> list[str] | None:
    """Return the class names that a column of the hub declares for its numbers, or lists of numbers; None without
    any.
    """
    names = getattr(feature, "names", None) or getattr(getattr(feature, "feature", None), "names", None)
    return list(names) if names else None


def with_class_names(label: object, names: Sequence[str]) -> object:
    """Return the names of a label of the hub, a number or a list of them; -1 is None. Raises GlocalError for others."""
    if isinstance(label, list | tuple):
        return [named_class(names, each) for each in label]
    return named_class(names, label)


def number(label: object, where: str) -> str | None:
    """Return a number as a text that `float` reads; None where there is no label. Raises GlocalError for another label.

    Numbers may be written as texts, with a point before the fraction. None, NaN, "nan" and a text without visible
    characters are no label.
    """
    if label is None or label != label:
        return None
    if isinstance(label, str) and (label.strip() in MISSING or not is_visible(label)):
        return None
    unreadable = isinstance(label, bool) or (isinstance(label, str) and "_" in label)  # Python would read 1_000
    try:
        value = float(label) if isinstance(label, SupportsFloat | str) and not unreadable else math.nan
    except ValueError:
        value = math.nan
    except OverflowError:  # a whole number of hundreds of digits
        raise GlocalError(f"{where} has a label beyond all fractions; expected numbers up to {LARGEST:.2g}") from None
    if not math.isfinite(value):
        raise GlocalError(f"{where} has label {str(label)[:40]!r}; expected a number")
    if abs(value) > LARGEST:
        raise GlocalError(f"{where} has label {value}; expected numbers up to {LARGEST:.2g}")
    return repr(value)


def in_order(names: Iterable[str]) -> list[str]:
    """Return each class once, in the order of numbers if all are whole numbers, else in that of texts."""
    found = set(names)
    return sorted(found, key=int) if all(re.fullmatch(r"-?[0-9]{1,99}", name) for name in found) else sorted(found)


def warn_of_alike(name: str, classes: Iterable[str]) -> None:
    """Warn of the first two classes whose names differ in case, spaces, quotation marks or width alone."""
    seen: dict[str, str] = {}
    for each in classes:
        letters = unicodedata.normalize("NFKC", each).casefold().strip("\"'“”‘’ ")
        plain = "".join(letter for letter in letters if unicodedata.category(letter) not in INVISIBLE)
        other = seen.setdefault(plain, each)
        if other != each and len(plain) > 1:  # single letters may well be classes in both cases
            warnings.warn(
                f"{name} has the classes {other!r} and {each!r}, which are written alike; if they are one class, give "
                "them one name",
                stacklevel=2,
            )
            return


def is_visible(text: str) -> bool:
    """Whether a text holds anything but spaces, control characters and other invisible characters."""
    return any(unicodedata.category(letter) not in INVISIBLE for letter in text)


def _whole(number: str | int | Decimal, label: object, where: str) -> str:
    try:
        exact = Decimal(number)
        if exact.is_finite() and abs(exact) < 10**40 and exact == exact.to_integral_value():
            return str(int(exact))
    except ArithmeticError:
        pass
    raise GlocalError(f"{where} has label {str(label)[:40]}; expected a name or a whole number")
