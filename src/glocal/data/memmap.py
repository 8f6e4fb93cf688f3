"""Columns of numbers in files: written once, part by part, then mapped into memory."""

import json
import zlib
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from glocal.files import replacing, write_json

Part = tuple[str, ArrayLike]
"""The name of a column, and numbers to append to it."""

INDEX = "columns.json"
"""The file beside the columns that holds their key, lengths and checksums."""
CHUNK = 2**24
"""Bytes that a checksum reads at a time."""


def keep(folder: Path, key: str, kinds: Mapping[str, DTypeLike], content: Iterable[Part]) -> dict[str, np.ndarray]:
    """Return the columns in `folder`, mapped into memory; where they are missing, they are written from `content`.

    Columns with another `key`, or damaged ones, are written anew. `kinds` maps the names of the columns to their types.
    """
    if read_index(folder) != measure_columns(folder, key, kinds):
        with replacing(folder) as draft:
            write_columns(draft, kinds, content)
            write_json(draft / INDEX, measure_columns(draft, key, kinds))
    return {name: map_column(folder / f"{name}.bin", kind) for name, kind in kinds.items()}


def read_index(folder: Path) -> object:
    """Return the index that was written with the columns, or None where there is none."""
    try:
        return json.loads((folder / INDEX).read_bytes())
    except (OSError, ValueError, RecursionError):
        return None


def measure_columns(folder: Path, key: str, kinds: Mapping[str, DTypeLike]) -> dict[str, object]:
    """Return the index that the columns should have: the key, and the length and checksum of each file."""
    return {"key": key, "columns": {name: measure(folder / f"{name}.bin") for name in kinds}}


def measure(path: Path) -> list[int]:
    """Return a file's length in bytes and its CRC-32; an empty list where there is no file."""
    if not path.is_file():
        return []
    checksum = 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            checksum = zlib.crc32(chunk, checksum)
    return [path.stat().st_size, checksum]


def write_columns(folder: Path, kinds: Mapping[str, DTypeLike], content: Iterable[Part]) -> None:
    """Write the columns into a new folder."""
    folder.mkdir()
    with ExitStack() as stack:
        files = {name: stack.enter_context((folder / f"{name}.bin").open("wb")) for name in kinds}
        for name, numbers in content:
            files[name].write(np.asarray(numbers, dtype=kinds[name]).tobytes())


def map_column(path: Path, kind: DTypeLike) -> np.ndarray:
    """Map a column into memory; an empty file, which cannot be mapped, becomes an empty array."""
    return np.asarray(np.memmap(path, kind, "r")) if path.stat().st_size else np.empty(0, kind)
