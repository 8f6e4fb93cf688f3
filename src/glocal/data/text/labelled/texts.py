"""What all labelled texts share: where they come from, their splits, and their batches.

A batch is a pure function of (seed, epoch, its number): nothing to save.
"""

import hashlib
import json
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Generic, TypeVar

import numpy as np

from glocal.data.files import Record, entries, kind_of, source_path
from glocal.data.progress import progress
from glocal.data.splits import Splits, cut_splits, no_examples, read_splits, write_splits
from glocal.data.text.config import TextsConfig
from glocal.data.text.encoding import Batch, Batches, Row, collate
from glocal.data.text.parts import chained, for_testing, is_hub_name, load_hub, reading
from glocal.data.text.tokenizer import Tokenizer
from glocal.errors import GlocalError

E = TypeVar("E")
R = TypeVar("R")

LEFT_OUT = ("empty", "unlabelled", "misaligned", "mismatched")
"""What a report calls the examples that nothing can be learned from."""
POOL = 50
"""Batches that are drawn together, and cut from their examples in the order of length."""


@dataclass(frozen=True)
class Examples(Generic[E]):
    """All examples of a source, as they were read."""

    name: str
    """As the user gave it."""
    items: list[E]
    splits: dict[str, np.ndarray]
    """Indices into `items`, for each of train, val and test that the source names; `train` is always there."""
    labels: np.ndarray
    """int64, the class of each example, over which a cut is even; all 0 where there are no classes."""

    def fingerprint(self) -> str:
        """Tell this data from data of other texts, labels or splits."""
        digest = hashlib.sha256(json.dumps({name: len(part) for name, part in self.splits.items()}).encode())
        for item in self.items:
            digest.update(repr(item).encode())
        return digest.hexdigest()[:16]


def read_source(
    name: str,
    kinds: Sequence[str],
    read: Callable[[Path], Iterable[E]],
    hub: Callable[[str, Iterable[Record]], Iterable[E]] | None = None,
    testing: bool = False,
    counts: Mapping[str, int] = MappingProxyType({}),
) -> Examples[E]:
    """Read a file, a folder of files of these kinds, each named after its split, or a data set of the hub.

    `hub` makes examples of a named table of the hub, where a source can be one. For `testing` only the test split is
    read; where the source names none, all of it is. `counts` are what `read` counts, for the error.

    Raises GlocalError where nothing is there to be read, or none of it is an example.
    """
    path = source_path(name)
    expected = f"a file of .{', .'.join(kinds)}, also with .gz, or a folder of such files named after their splits"
    with reading(name):
        if name and path.is_file():
            parts = {"train": read(path)}
        elif name and path.is_dir():
            files = [Path(entry) for entry in entries(path) if entry.is_file() and kind_of(Path(entry)) in kinds]
            parts = chained(name, {file.name: read(file) for file in files}, f"train.{kinds[0]}")
        elif name and hub is not None and is_hub_name(name):
            tables = load_hub(name, "labelled texts")
            parts = chained(name, {split: hub(f"{name} {split}", table) for split, table in tables.items()}, "train")
        else:
            hint = ", or OWNER/NAME of a data set of the hub" if hub is not None else ""
            raise GlocalError(f"data.source {name!r} is no folder or file; expected {expected}{hint}")
        items: list[E] = []
        splits = {"train": np.arange(0)}
        for split, part in (for_testing(parts) if testing else parts).items():
            first = len(items)
            items += progress(part, f"Reading {split}")
            splits[split] = np.arange(first, len(items))
    wanted = "test" if testing else "train"
    if not len(splits[wanted]):
        found = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
        raise GlocalError(f"{name} holds no {wanted} examples{found and f', of {found}'}; expected {expected}")
    # A split without a single label to compare with, as the hub's benchmarks publish their tests, is none.
    splits = {split: part for split, part in splits.items() if len(part) or split == "train"}
    return Examples(name, items, splits, np.zeros(len(items), dtype=np.int64))


def settle_splits(examples: Examples, config: TextsConfig, folder: Path | None) -> Splits:
    """Return the splits of splits.json in `folder`, written where missing; of examples to test on there is but one.

    Raises GlocalError where the data is not that of `folder`.
    """
    if not len(examples.splits["train"]):
        return {"train": [], "val": [], "test": examples.splits["test"].tolist()}
    file = None if folder is None else folder / "splits.json"
    if file is not None and file.exists():
        return read_splits(file, examples)[0]
    everything = np.ones(len(examples.items), dtype=bool)
    splits = cut_splits(examples, everything, config.val_fraction, config.test_fraction, config.seed)
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_splits(file, examples, splits, [])
    return splits


def encode_all(items: Sequence[E], encode: Callable[[Sequence[E]], list[R]]) -> list[R]:
    """Encode by the thousand: the tokenizer takes many at once, and what it gives is many times as large as rows."""
    encoded: list[R] = []
    for first in progress(range(0, len(items), 1000), "Encoding texts"):
        encoded += encode(items[first : first + 1000])
    return encoded


class Texts(Generic[E]):
    """Labelled texts that are ready to learn from: their splits, and batches of rows, one or several an example."""

    def __init__(
        self,
        config: TextsConfig,
        examples: Examples[E],
        splits: Splits,
        tokenizer: Tokenizer,
        rows: list[Row],
        owners: Sequence[int],
        report: dict[str, int],
        labels: Sequence[str] = (),
    ) -> None:
        self.config = config
        self.source = examples
        self.splits = splits
        """Indices into the examples."""
        self.tokenizer = tokenizer
        self.rows = rows
        """What batches are made of."""
        self.owners = np.array(owners, dtype=np.int64)
        """The example that each row is of, or is a part of."""
        self.report = report
        """How many examples were read, and how many were left out, shortened or cut, by why."""
        self.labels = list(labels)
        """Names of the classes, in the order of their numbers; none where the answers are no classes."""
        self._lengths = np.array([len(row["input_ids"]) for row in rows])
        left_out = [f"{report[what]} {what}" for what in LEFT_OUT if report.get(what)]
        if left_out:
            warnings.warn(f"{examples.name}: {', '.join(left_out)} left out", stacklevel=2)

    def examples(self, split: str) -> list[E]:
        """Every example of a split, as it was read, in the order of the data."""
        self._check(split)
        return [self.source.items[index] for index in self.splits[split]]

    def train_batches(self, batch_size: int, epoch: int, start: int = 0, rank: int = 0, world: int = 1) -> "Batches":
        """Batches `start` and later of an epoch: `batch_size` rows a process, of like length, in random order.

        The epoch's order is cut into pools of 50 batches, and the rows of each, sorted by length, into batches, so that
        little of one is padding; then all batches are shuffled. Each row comes once over the processes, but for fewer
        than there are processes: they wait for another epoch.
        """
        rng = np.random.default_rng((self.config.seed, epoch))
        drawn = rng.permutation(self._rows_of("train"))
        drawn = drawn[: len(drawn) // world * world]
        if not len(drawn):
            raise GlocalError(f"{self.source.name} has too few training rows for {world} processes; expected as many")
        size = batch_size * world
        pools = (drawn[first : first + POOL * size] for first in range(0, len(drawn), POOL * size))
        batches = [batch for pool in pools for batch in _cut(self._longest_first(pool), size)]
        order = rng.permutation(len(batches))[start:]
        return Batches(self.batch, [batches[number][rank::world] for number in order])

    def eval_batches(self, split: str, batch_size: int, rank: int = 0, world: int = 1) -> "Batches":
        """Batches of a split, longest first, the same each time; over the processes every row comes exactly once."""
        ordered = self._longest_first(self._rows_of(split))
        return Batches(self.batch, _cut(ordered[rank::world], batch_size))

    def batch(self, chosen: np.ndarray) -> Batch:
        """Pad some rows to a batch."""
        return collate([self.rows[number] for number in chosen], self.tokenizer.pad_id)

    def _check(self, split: str) -> None:
        if not self.splits.get(split):
            raise no_examples(self.source.name, "examples", split)

    def _rows_of(self, split: str) -> np.ndarray:
        self._check(split)
        return np.flatnonzero(np.isin(self.owners, self.splits[split]))

    def _longest_first(self, rows: np.ndarray) -> np.ndarray:
        """Sort; rows of one length keep their order."""
        return rows[np.argsort(-self._lengths[rows], kind="stable")]


def _cut(rows: np.ndarray, size: int) -> list[np.ndarray]:
    return [rows[first : first + size] for first in range(0, len(rows), size)]
