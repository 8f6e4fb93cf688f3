"""Data sets of encoded texts: each example is encoded once, mapped into memory, and returned in batches.

A batch is a pure function of (seed, epoch, its number), so that there is no state to save.
"""

import hashlib
import json
import shutil
import tempfile
import warnings
import weakref
from collections.abc import Callable, Sequence
from copy import copy
from functools import cached_property
from itertools import chain, pairwise
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np

from glocal.data.columns import COUNT, Encode, column_kinds, columns_of, encode_chunks, is_value
from glocal.data.encoding import Batch, Batches, Row, collate
from glocal.data.labels import warn_of_alike
from glocal.data.memmap import keep
from glocal.data.splits import (
    Splits,
    cut_off,
    cut_splits,
    describe_splits,
    in_training,
    load_splits,
    no_examples,
    share_of,
)
from glocal.data.text_config import TextDataConfig
from glocal.data.text_sources import Examples
from glocal.data.tokenizer import Tokenizer
from glocal.errors import GlocalError

E = TypeVar("E")

POOL = 50
"""Batches whose rows are drawn together and sorted by length."""
LEFT_OUT = ("empty", "unlabelled", "misaligned", "mismatched", "mismatched_questions")
"""Reasons for leaving out examples of which a warning is printed."""


def open_splits(examples: Examples[E], config: TextDataConfig, folder: Path | None) -> Splits:
    """Return the splits in `folder`/splits.json, which is written where missing; data opened for testing has one split.

    Raises GlocalError if the data is not that of `folder`.
    """
    if not len(examples.splits["train"]):
        return {"train": [], "val": [], "test": examples.splits["test"].tolist()}

    def cut() -> Splits:
        usable = np.ones(len(examples.labels), dtype=bool)
        return cut_splits(examples, usable, config.val_fraction, config.test_fraction, config.seed)

    return load_splits(None if folder is None else folder / "splits.json", examples, cut)


class TokenDataset(Generic[E]):
    """The rows of a source's examples, and the splits.

    Args:
        config: the recipe's section `data`.
        examples: the source.
        splits: numbers of the examples in train, val and test.
        tokenizer: encodes the examples, and pads batches.
        encode: turns examples into rows.
        folder: the folder whose `tokens/rows` stores the rows; by default, a temporary one.
        unit: the name of examples in messages.
        labels: names of the classes, in the order of their numbers; none where the task has no classes.
        collate: makes a batch of rows; by default, pads them.
        batch_of_tokens: `batch_size` counts the tokens of the longest side, padding included, and not rows.
    """

    def __init__(
        self,
        config: TextDataConfig,
        examples: Examples[E],
        splits: Splits,
        tokenizer: Tokenizer,
        encode: Encode[E],
        folder: Path | None = None,
        *,
        unit: str = "examples",
        labels: Sequence[str] = (),
        collate: Callable[[Sequence[Row], int], Batch] = collate,
        batch_of_tokens: bool = False,
    ) -> None:
        self.config = config
        self.source = examples
        self.splits = splits
        self.tokenizer = tokenizer
        self.unit = unit
        self.labels = list(labels)
        warn_of_alike(examples.name, self.labels)
        self._collate = collate
        self._batch_of_tokens = batch_of_tokens
        if folder is None:
            folder = Path(tempfile.mkdtemp(prefix="glocal-"))
            weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        self._columns = self._keep(folder / "tokens" / "rows", encode)
        report = self.report
        left_out = [f"{report[reason]} {reason.replace('_', ' ')}" for reason in LEFT_OUT if report.get(reason)]
        if left_out:
            warnings.warn(f"{examples.name}: {', '.join(left_out)} left out", stacklevel=2)

    @property
    def report(self) -> dict[str, int]:
        """How many examples were read, and how many were left out, shortened, cut or in training, too, by reason."""
        counts = {name: int(self._columns[name].sum()) for name in self._columns if name.startswith(COUNT)}
        repeated = {f"{split}_in_training": count for split, count in self.repeated.items()}
        return self.source.counts | {name.removeprefix(COUNT): count for name, count in counts.items()} | repeated

    @property
    def repeated(self) -> dict[str, int]:
        """How many examples of val and test are training examples, too."""
        return in_training(self.source.digests, self.splits)

    def describe(self) -> str:
        """Return a line with the numbers of examples and classes."""
        sizes = {split: len(numbers) for split, numbers in self.splits.items()}
        classes = f", in {len(self.labels)} classes" if self.labels else ""
        return f"{self.config.source}: {describe_splits(sizes, self.unit, self.repeated)}{classes}"

    def examples(self, split: str) -> list[E]:
        """Return every example of a split, in the order of the source."""
        self._check(split)
        return list(self.source.read(self.splits[split]))

    def hold_out(self, fraction: float) -> "TokenDataset[E]":
        """Return the training examples alone, a share of them, even over the classes, as `val`; no others are there."""
        held = copy(self)
        splits = {"train": np.array(self.splits["train"], dtype=int)}
        rng = np.random.default_rng(self.config.seed)
        cut_off(splits, "val", share_of(fraction, len(splits["train"])), self.source.labels, rng)
        held.splits = {name: numbers.tolist() for name, numbers in splits.items()}
        return held

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self._columns["owner"])

    def row(self, number: int) -> Row:
        """Return a copy of a row's columns, each a list of numbers or a single number."""
        row = {}
        for name, values in self._values.items():
            ends = self._columns.get(f"{name}.ends")
            place = number if ends is None else slice(ends[number - 1] if number else 0, ends[number])
            row[name] = np.array(values[place])
        return row

    @property
    def owners(self) -> np.ndarray:
        """The number of each row's example."""
        return self._columns["owner"]

    @cached_property
    def lengths(self) -> np.ndarray:
        """Tokens of each row; with a source and a target, those of the longer one."""
        sides = ("input_ids", "labels") if self._batch_of_tokens else ("input_ids",)
        return np.maximum.reduce([np.diff(self._columns[f"{side}.ends"], prepend=0) for side in sides])

    def train_batches(self, batch_size: int, epoch: int, start: int = 0, rank: int = 0, world_size: int = 1) -> Batches:
        """Return the batches `start` and later of an epoch, in random order, each of rows of like length.

        Without `batch_of_tokens`, the epoch's rows are cut into pools of 50 batches, and the rows of a pool, sorted by
        length, into batches. With it, all rows are sorted by the length of their longer side and cut into batches
        (Vaswani et al. 2017, section 5.1). Every epoch has the same number of batches. The processes together get each
        row once, except for a remainder of fewer rows than processes.
        """
        rng = np.random.default_rng((self.config.seed, epoch))
        drawn = rng.permutation(self._rows_of("train"))
        if self._batch_of_tokens:
            self._check_fits("train", batch_size)
            drawn = self._longest_first(drawn)
        drawn = drawn[: len(drawn) // world_size * world_size]
        if not len(drawn):
            raise GlocalError(
                f"{self.source.name} has too few training {self.unit} for {world_size} processes; expected one or more "
                "each"
            )
        if self._batch_of_tokens:
            batches = self._cut_tokens(drawn, batch_size, world_size)
        else:
            size = batch_size * world_size
            pools = (drawn[first : first + POOL * size] for first in range(0, len(drawn), POOL * size))
            batches = [batch for pool in pools for batch in _cut_rows(self._longest_first(pool), size)]
        order = rng.permutation(len(batches))[start:]
        return Batches(self.batch, [batches[number][rank::world_size] for number in order])

    def eval_batches(self, split: str, batch_size: int, rank: int = 0, world_size: int = 1) -> Batches:
        """Return the batches of a split, longest first; the processes together get every row exactly once."""
        ordered = self._longest_first(self._rows_of(split))[rank::world_size]
        if not self._batch_of_tokens:
            return Batches(self.batch, _cut_rows(ordered, batch_size))
        self._check_fits(split, batch_size)
        return Batches(self.batch, self._cut_tokens(ordered, batch_size))

    def batch(self, numbers: np.ndarray) -> Batch:
        """Return some rows as a batch."""
        return self._collate([self.row(number) for number in numbers.tolist()], self.tokenizer.pad_id)

    @cached_property
    def _values(self) -> dict[str, np.ndarray]:
        """The columns that rows consist of."""
        return {name: column for name, column in self._columns.items() if is_value(name)}

    def _check(self, split: str) -> None:
        if not self.splits.get(split):
            raise no_examples(self.source.name, self.unit, split)

    def _rows_of(self, split: str) -> np.ndarray:
        """Return the numbers of a split's rows. Raises GlocalError if it has none."""
        self._check(split)
        rows = np.flatnonzero(np.isin(self.owners, self.splits[split]))
        if not len(rows):
            raise GlocalError(
                f"all {len(self.splits[split])} {split} {self.unit} of {self.source.name} have more than "
                f"{self.config.max_length} tokens; raise data.max_length"
            )
        return rows

    def _check_fits(self, split: str, batch_size: int) -> None:
        longest = self.lengths[self._rows_of(split)].max()
        if longest > batch_size:
            raise GlocalError(
                f"batch_size {batch_size} counts tokens, and one of the {split} {self.unit} has {longest}; raise "
                "train.batch_size or lower data.max_length"
            )

    def _longest_first(self, rows: np.ndarray) -> np.ndarray:
        """Return rows sorted by length; rows of one length keep their order."""
        return rows[np.argsort(-self.lengths[rows], kind="stable")]

    def _cut_tokens(self, ordered: np.ndarray, batch_size: int, world_size: int = 1) -> list[np.ndarray]:
        """Cut rows, longest first, into batches for `world_size` processes, each as large as its longest row allows.

        The cuts depend on the lengths alone, so that every epoch has the same number of batches.
        """
        ends = [0]
        while ends[-1] < len(ordered):
            ends.append(ends[-1] + batch_size // int(self.lengths[ordered[ends[-1]]]) * world_size)
        return [ordered[start:end] for start, end in pairwise(ends)]

    def _keep(self, folder: Path, encode: Encode[E]) -> dict[str, np.ndarray]:
        """Return the stored columns; examples are encoded unless they were with this vocabulary and these settings."""
        tokens = self.tokenizer.tokens(range(self.tokenizer.vocab_size))
        settings = [self.config.max_length, getattr(self.config, "stride", None), self.labels]
        content = [self.source.fingerprint(), settings, tokens]
        key = hashlib.sha256(json.dumps(content).encode()).hexdigest()
        chunks = encode_chunks(self.source, encode)
        begun = [next(chunks)]
        while not begun[-1].owners and (chunk := next(chunks, None)):  # the first row decides the columns
            begun.append(chunk)
        kinds = column_kinds(begun[-1], self.tokenizer.vocab_size)
        return keep(folder, key, kinds, columns_of(chain(begun, chunks), kinds))


def _cut_rows(rows: np.ndarray, size: int) -> list[np.ndarray]:
    return [rows[first : first + size] for first in range(0, len(rows), size)]
