"""Numbers kept on disk: written once, part by part, then mapped into memory, where they take no room of their own."""

import json
import zlib
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from glocal.files import replacing, write_json

Part = tuple[str, ArrayLike]
"""The name of a column, and numbers to put behind those that it holds."""

LABEL = "columns.json"
"""The file beside the columns that says what they are."""
CHUNK = 2**24
"""Bytes of which a checksum is taken at a time."""


def keep(folder: Path, key: str, kinds: Mapping[str, DTypeLike], content: Iterable[Part]) -> dict[str, np.ndarray]:
    """Map the columns that `folder` keeps, of these names and kinds of numbers, written from `content` if need be.

    `key` tells the content: what is kept under another is written anew, and so is what is no longer as it was written.
    """
    if read_label(folder) != label(folder, key, kinds):
        with replacing(folder) as draft:
            write_columns(draft, kinds, content)
            write_json(draft / LABEL, label(draft, key, kinds))
    return {name: map_column(folder / f"{name}.bin", kind) for name, kind in kinds.items()}


def read_label(folder: Path) -> object:
    """Read what the columns were when they were written; None where that is not known."""
    try:
        return json.loads((folder / LABEL).read_bytes())
    except (OSError, ValueError, RecursionError):
        return None


def label(folder: Path, key: str, kinds: Mapping[str, DTypeLike]) -> dict[str, object]:
    """Say what the columns are: their key, and the length and the checksum of each."""
    return {"key": key, "columns": {name: measure(folder / f"{name}.bin") for name in kinds}}


def measure(path: Path) -> list[int]:
    """Return a file's length and checksum; nothing where there is no file."""
    if not path.is_file():
        return []
    checksum = 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            checksum = zlib.crc32(chunk, checksum)
    return [path.stat().st_size, checksum]


def write_columns(folder: Path, kinds: Mapping[str, DTypeLike], content: Iterable[Part]) -> None:
    """Write the columns into a folder that is new."""
    folder.mkdir()
    with ExitStack() as stack:
        files = {name: stack.enter_context((folder / f"{name}.bin").open("wb")) for name in kinds}
        for name, numbers in content:
            files[name].write(np.asarray(numbers, dtype=kinds[name]).tobytes())


def map_column(path: Path, kind: DTypeLike) -> np.ndarray:
    """Map a column into memory."""
    empty = not path.stat().st_size  # nothing cannot be mapped
    return np.empty(0, kind) if empty else np.asarray(np.memmap(path, kind, "r"))
