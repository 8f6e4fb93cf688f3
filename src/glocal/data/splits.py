"""Who trains, who validates, who tests: cut once by a seed, then kept in a file."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from glocal.errors import GlocalError

Splits = dict[str, list[int]]
"""Indices of the examples of `train`, `val` and `test`."""


@runtime_checkable
class Known(Protocol):
    """Data that is known again."""

    @property
    def name(self) -> str:
        """As the user gave it."""
        ...

    def fingerprint(self) -> str:
        """Tell this data from other data."""
        ...


@runtime_checkable
class Source(Known, Protocol):
    """What splits are cut from: images or sentence pairs."""

    @property
    def labels(self) -> np.ndarray:
        """int64, the class of each example, over which a cut is even."""
        ...

    @property
    def splits(self) -> dict[str, np.ndarray]:
        """Indices of the examples, for each split that the source names; `train` is always there."""
        ...


def cut_splits(source: Source, usable: np.ndarray, val_fraction: float, test_fraction: float, seed: int) -> Splits:
    """Keep the splits that the source names, and cut those it lacks from its training examples.

    `usable` is a mask over the examples; the others are left out. A cut takes its share of every class to within one
    example, and leaves every class at least one to train on.
    """
    splits = {name: indices[usable[indices]] for name, indices in source.splits.items()}
    size = len(splits["train"])
    rng = np.random.default_rng(seed)
    for name, fraction in {"test": test_fraction, "val": val_fraction}.items():
        if name not in splits:
            cut_off(splits, name, round(fraction * size), source.labels, rng)
    return {name: splits[name].tolist() for name in ("train", "val", "test")}


def cut_off(splits: dict[str, np.ndarray], name: str, count: int, labels: np.ndarray, rng: np.random.Generator) -> None:
    """Make `count` training examples a split of their own."""
    splits[name] = _sample(splits["train"], labels, count, rng)
    splits["train"] = np.setdiff1d(splits["train"], splits[name])


def _sample(indices: np.ndarray, labels: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Draw `count` of `indices`, evenly from the classes: every k-th of a list shuffled, then sorted by class."""
    shuffled = rng.permutation(indices)
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    first_of_class = np.unique(labels[by_class], return_index=True)[1]
    candidates = np.delete(by_class, first_of_class)
    count = min(count, len(candidates))
    return np.sort(candidates[np.linspace(0, len(candidates), count, endpoint=False).astype(int)])


def write_splits(path: Path, source: Known, splits: Splits, skipped: list[str]) -> None:
    """Store the splits as JSON, with what tells whether the data is still the same."""
    content = {"source": source.name, "fingerprint": source.fingerprint(), "skipped": skipped, "splits": splits}
    draft = path.with_suffix(f".{os.getpid()}.tmp")  # ranks write the same content at the same time
    draft.write_text(json.dumps(content))
    draft.replace(path)


def read_splits(path: Path, source: Known) -> tuple[Splits, list[str]]:
    """Return the stored splits and the names of the examples that were skipped when they were cut."""
    try:
        content = json.loads(path.read_text())
        fingerprint, splits, skipped = content["fingerprint"], content["splits"], content["skipped"]
    except (ValueError, KeyError, TypeError):
        raise GlocalError(f"{path} is no split file; remove it to cut the splits anew") from None
    if fingerprint != source.fingerprint():
        raise GlocalError(
            f"{source.name} is not the data that {path} was cut from; give that data, or start a new run with this one"
        )
    return splits, skipped


def describe_splits(sizes: Mapping[str, int], unit: str) -> str:
    """Say how much of a data set each split holds."""
    return f"{sizes['train']:,} {unit} to train on, {sizes['val']:,} to validate, {sizes['test']:,} to test"
