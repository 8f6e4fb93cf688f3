"""Numbers kept on disk: written once, part by part, then mapped into memory, where they take no room of their own."""

import os
import shutil
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

Part = tuple[str, ArrayLike]
"""The name of a column, and numbers to put behind those that it holds."""


def keep(folder: Path, key: str, kinds: Mapping[str, DTypeLike], content: Iterable[Part]) -> dict[str, np.ndarray]:
    """Map the columns that `folder` keeps, of these names and kinds of numbers, written from `content` if need be.

    `key` tells the content: what is kept under another is written anew.
    """
    label = folder / "key.txt"
    if not label.exists() or label.read_text() != key:
        _write(folder, key, kinds, content)
    return {name: _map(folder / f"{name}.bin", kind) for name, kind in kinds.items()}


def _write(folder: Path, key: str, kinds: Mapping[str, DTypeLike], content: Iterable[Part]) -> None:
    draft = folder.with_name(f"{folder.name}.{os.getpid()}.tmp")  # a kill leaves no half of it under its name
    draft.mkdir(parents=True)
    try:
        with ExitStack() as stack:
            files = {name: stack.enter_context((draft / f"{name}.bin").open("wb")) for name in kinds}
            for name, numbers in content:
                files[name].write(np.asarray(numbers, dtype=kinds[name]).tobytes())
        (draft / "key.txt").write_text(key)
        shutil.rmtree(folder, ignore_errors=True)
        draft.rename(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _map(path: Path, kind: DTypeLike) -> np.ndarray:
    empty = not path.stat().st_size  # nothing cannot be mapped
    return np.empty(0, kind) if empty else np.asarray(np.memmap(path, kind, "r"))
