"""The boundary to files that others wrote: JSON of a checked size and depth, and errors that name the file."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from glocal.errors import GlocalError

LARGEST = 2**28
"""Bytes of the largest text file that is read whole; the largest published vocabularies have some 30 million."""


@contextmanager
def foreign(file: str | Path, problem: str) -> Iterator[None]:
    """Turn whatever a library raises while it reads a foreign file into one GlocalError: the file, the problem, why.

    Damaged files make libraries raise nearly anything, and the tokenizers library panics, which is no Exception.
    """
    try:
        yield
    except GlocalError as error:
        message = str(error)
        if str(file) in message:
            raise
        raise GlocalError(f"{file} {problem}: {message}") from None
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise GlocalError(f"{file} {problem}: {reason(error)}") from error


def reason(error: BaseException) -> str:
    """Say in one line what an error says."""
    if isinstance(error, OSError) and error.strerror:
        name = f"{Path(error.filename).name}: " if isinstance(error.filename, str | Path) else ""
        return name + error.strerror.lower()
    said = " ".join(str(error).split())
    said = said if len(said) <= 300 else f"{said[:300]} ..."
    return said if isinstance(error, ValueError | RuntimeError) and said else f"{type(error).__name__} {said}".strip()


def read_text(file: Path) -> str:
    """Read a file of UTF-8. Raises GlocalError where it is missing, too large or no text."""
    try:
        if (size := file.stat().st_size) > LARGEST:
            raise GlocalError(f"{file} has {size:,} bytes; expected {LARGEST:,} at most")
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise GlocalError(f"{file} is no text in UTF-8: byte {error.start} is {error.object[error.start]:#x}") from None
    except OSError as error:
        raise GlocalError(f"{file} cannot be read: {(error.strerror or str(error)).lower()}") from None


def read_json(file: Path) -> Any:
    """Read a file of JSON. Raises GlocalError where it cannot be read, is damaged, or is nested too deeply."""
    text = read_text(file)
    try:
        return json.loads(text)
    except RecursionError:
        raise GlocalError(f"{file} is nested too deeply") from None
    except ValueError as error:
        raise GlocalError(f"{file} is no JSON: {error}") from None


def read_object(file: Path) -> dict[str, Any]:
    """Read a file of JSON that holds an object, such as a config.json."""
    value = read_json(file)
    if not isinstance(value, dict):
        raise GlocalError(f"{file} holds {short(value)}; expected a JSON object of names and values")
    return value


def short(value: object, length: int = 60) -> str:
    """Write a value for an error, cut where it is long."""
    written = repr(value)
    return written if len(written) <= length else f"{written[:length]} ..."
