"""The training, validation and test split: cut once by a seed, then stored in a file."""

import json
import re
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from glocal.errors import GlocalError
from glocal.files import write_text

Splits = dict[str, list[int]]
"""Indices of the examples of `train`, `val` and `test`."""

SPLITS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev", "devel", "development", "eval", "evaluation"),
    "test": ("test", "testing", "tst"),
}
"""Usual names of the three splits."""
SHARD = re.compile(r"-\d{5}-of-\d{5}")
"""The hub's ending of the parts of a large file: train-00000-of-00003.parquet."""


def split_of(name: str) -> str | None:
    """Return the split that a name begins with: test_2016_flickr is test, and so is tst2012."""
    begins = re.split("[^a-z]", name.lower(), maxsplit=1)[0]
    return next((split for split, names in SPLITS.items() if begins in names), None)


def by_split(name: str, parts: Iterable[str], expected: str) -> dict[str, list[str]]:
    """Group the parts of a source by the split that their names begin with; the shards of a part count as one part.

    Other parts are left out, with a warning. Raises GlocalError if a split has several parts, or no part is named
    after a split; `expected` is an example of such a name.
    """
    found: dict[str | None, dict[str, list[str]]] = {}
    for part in parts:
        found.setdefault(split_of(part), {}).setdefault(SHARD.sub("", part), []).append(part)
    others = found.pop(None, {})
    if not found:
        raise GlocalError(f"{name} holds no part named after train, val or test; expected such as {expected}")
    for split, several in found.items():
        if len(several) > 1:
            raise GlocalError(f"{name} has several {split} sets: {', '.join(several)}; keep one, or rename the others")
    if others:
        warnings.warn(f"{name}: {', '.join(others)} named after no split, and left out", stacklevel=2)
    return {str(split): shards for split, several in found.items() for shards in several.values()}


def warn_of_unread_splits(name: str, parts: Iterable[str], read: Collection[str]) -> None:
    """Warn of parts of a folder that are named after a split and are not read, such as test.xlsx beside train.csv."""
    if unread := [part for part in parts if split_of(part) is not None and part not in read]:
        warnings.warn(f"{name}: {', '.join(unread)} named after a split, but not read, and left out", stacklevel=2)


@runtime_checkable
class Fingerprinted(Protocol):
    """Data that can be recognised."""

    @property
    def name(self) -> str:
        """The name that the user gave."""
        ...

    def fingerprint(self) -> str:
        """Return a hash of the data."""
        ...


@runtime_checkable
class Source(Fingerprinted, Protocol):
    """Data that splits are cut from: images or texts."""

    @property
    def labels(self) -> np.ndarray:
        """int64, the class of each example; a cut takes an equal share of each class."""
        ...

    @property
    def splits(self) -> dict[str, np.ndarray]:
        """Indices of the examples, for `train` and for each other split that the source names."""
        ...


def cut_splits(source: Source, usable: np.ndarray, val_fraction: float, test_fraction: float, seed: int) -> Splits:
    """Keep the splits that the source names, and cut those it lacks from its training examples.

    `usable` is a mask over the examples; the others are left out. A cut takes its share of every class to within one
    example, and leaves every class at least one training example. As far as these allow, a fraction above 0 gets at
    least one example, validation before test.
    """
    splits = {name: indices[usable[indices]] for name, indices in source.splits.items()}
    size = len(splits["train"])
    spare = size - len(np.unique(source.labels[splits["train"]]))
    rng = np.random.default_rng(seed)
    kept = 1 if "val" not in splits and val_fraction > 0 else 0
    for name, fraction in {"test": test_fraction, "val": val_fraction}.items():
        if name not in splits:
            cut_off(splits, name, min(share_of(fraction, size), spare - kept), source.labels, rng)
            spare -= len(splits[name])
            kept = 0
    return {name: splits[name].tolist() for name in ("train", "val", "test")}


def share_of(fraction: float, size: int) -> int:
    """Return the number of examples that a fraction of `size` is, at least one unless the fraction is 0."""
    return max(round(fraction * size), int(fraction > 0))


def cut_off(splits: dict[str, np.ndarray], name: str, count: int, labels: np.ndarray, rng: np.random.Generator) -> None:
    """Move `count` training examples to a new split, or as many as leave each class one."""
    splits[name] = _sample(splits["train"], labels, max(count, 0), rng)
    splits["train"] = np.setdiff1d(splits["train"], splits[name])


def _sample(indices: np.ndarray, labels: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Draw `count` of `indices`, an equal share of each class: every k-th of them, shuffled and sorted by class."""
    shuffled = rng.permutation(indices)
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    first_of_class = np.unique(labels[by_class], return_index=True)[1]
    candidates = np.delete(by_class, first_of_class)
    count = min(count, len(candidates))
    return np.sort(candidates[np.linspace(0, len(candidates), count, endpoint=False).astype(int)])


def no_examples(name: str, what: str, split: str) -> GlocalError:
    """Return the error of a source without examples in a split."""
    return GlocalError(
        f"{name} has no {split} {what}; name a {split} set in it, or set data.{split}_fraction above 0 and give it "
        "more of each class"
    )


def load_splits(path: Path | None, source: Fingerprinted, cut: Callable[[], Splits]) -> Splits:
    """Return the splits stored in `path`; without such a file, cut and store them.

    Raises GlocalError if they were cut from other data.
    """
    if path is not None and path.exists():
        return read_splits(path, source)[0]
    splits = cut()
    if path is not None:
        write_splits(path, source, splits, [])
    return splits


def write_splits(path: Path, source: Fingerprinted, splits: Splits, skipped: list[str]) -> None:
    """Store the splits as JSON, with the fingerprint of the data."""
    content = {"source": source.name, "fingerprint": source.fingerprint(), "skipped": skipped, "splits": splits}
    write_text(path, json.dumps(content))


def read_splits(path: Path, source: Fingerprinted) -> tuple[Splits, list[str]]:
    """Return the stored splits and the names of the examples that were skipped when they were cut."""
    try:
        content = json.loads(path.read_text())
        fingerprint, splits, skipped = content["fingerprint"], content["splits"], content["skipped"]
        if any(type(index) is not int for name in ("train", "val", "test") for index in splits[name]):
            raise TypeError("a split is no list of numbers")
    except (ValueError, KeyError, TypeError, RecursionError):
        raise GlocalError(f"{path} is not a split file; remove it to cut the splits anew") from None
    if fingerprint != source.fingerprint():
        raise GlocalError(
            f"{source.name} is not the data that {path} was cut from; give that data, or start a new run with this one"
        )
    return splits, skipped


def in_training(digests: np.ndarray, splits: Mapping[str, Sequence[int]]) -> dict[str, int]:
    """Count the examples of val and test that are training examples, too, by hashes of all examples.

    A split without such examples is left out.
    """
    train = digests[splits["train"]]
    counts = {name: int(np.isin(digests[splits.get(name, [])], train).sum()) for name in ("val", "test")}
    return {name: count for name, count in counts.items() if count}


def describe_splits(sizes: Mapping[str, int], unit: str, repeated: Mapping[str, int] | None = None) -> str:
    """Return the sizes of the splits as a text, with the numbers of `in_training`."""
    known = {name: f" ({count:,} of them in training, too)" for name, count in (repeated or {}).items()}
    return (
        f"{sizes['train']:,} {unit} to train on, {sizes['val']:,} to validate{known.get('val', '')}, "
        f"{sizes['test']:,} to test{known.get('test', '')}"
    )
