"""Sources of texts: a file, a folder of files named after their splits, or a data set of the hub.

A source is opened as its splits, each an iterable of examples. It is read twice, once by `survey` and once to be
encoded, and is never held in memory whole.
"""

import hashlib
import json
import warnings
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import chain, compress, islice
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

import numpy as np

from glocal.data.files import Record, entries, kind_of, source_path
from glocal.data.hub import is_hub_name, load_hub
from glocal.data.memmap import Part, keep
from glocal.data.progress import progress
from glocal.data.splits import by_split, warn_of_unread_splits
from glocal.errors import GlocalError
from glocal.files import JSONObject

T = TypeVar("T")
E = TypeVar("E")

VOCABULARY = 2**26
"""Most characters that a vocabulary is learned from; of a larger source, it is an evenly spaced sample."""


class LeftOut(str):
    """The reason why an example is left out, which takes its place in a source: `empty`, `unlabelled`, ..."""

    __slots__ = ()


Parts = dict[str, Iterable[E | LeftOut]]
"""The examples of each split that a source names; `train` alone where it names none."""


@dataclass(frozen=True)
class Examples(Generic[E]):
    """A source of examples that can be read again, and what the first reading found."""

    name: str
    """The name that the user gave."""
    open: Callable[[], Parts[E]]
    """Opens the source again, with its splits in the same order."""
    splits: dict[str, np.ndarray]
    """Numbers of the examples, for `train` and for each other split that the source names."""
    labels: np.ndarray
    """int64, the class of each example; all 0 where there are no classes."""
    classes: list[str]
    """Names of the classes, in the order of their first examples."""
    sizes: np.ndarray
    """int64, characters of each example."""
    digests: np.ndarray
    """uint64, a hash of each example."""
    dropped: np.ndarray
    """bool, for all that the source yields but `LeftOut`: whether it is no example, being empty or a duplicate."""
    counts: dict[str, int]
    """How many examples were read, and how many were left out, by reason."""

    def fingerprint(self) -> str:
        """Return a hash of the examples and their splits."""
        sizes = {name: len(numbers) for name, numbers in self.splits.items()}
        return hashlib.sha256(repr(sizes).encode() + self.digests.tobytes()).hexdigest()[:16]

    def read(self, numbers: np.ndarray | Sequence[int] | None = None) -> Iterator[E]:
        """Yield the examples of these numbers, or all, in the order of the source."""
        wanted = np.ones(len(self.digests), bool) if numbers is None else np.isin(np.arange(len(self.digests)), numbers)
        left = int(wanted.sum())
        items = (item for item in chain.from_iterable(self.open().values()) if not isinstance(item, LeftOut))
        return islice(compress(compress(items, ~self.dropped), wanted), left)

    def sample(self, numbers: Sequence[int]) -> Iterator[E]:
        """Yield some of these examples, evenly spaced, of at most `VOCABULARY` characters in total."""
        step = -(-int(self.sizes[numbers].sum()) // VOCABULARY)
        spaced = np.array(numbers, dtype=np.int64)[:: max(step, 1)]
        fit = int((np.cumsum(self.sizes[spaced]) <= VOCABULARY).sum())
        return self.read(spaced[: max(fit, 1)])


class FirstReading(NamedTuple):
    """The result of reading a source once, for everything that it yields but `LeftOut`."""

    sizes: np.ndarray
    """int64, characters; 0 for an empty example."""
    digests: np.ndarray
    """uint64, hashes."""
    labels: np.ndarray
    """int64, classes in the order of their first examples."""
    meta: JSONObject
    """`ends`, the end of each split; `classes`, their names; `left_out`, the number of `LeftOut` by reason."""


@dataclass(frozen=True)
class ReadingCache:
    """A folder that stores the first reading of a source, so that a second start does not read it again."""

    folder: Path
    key: str
    """A hash of the config, and of the sizes and times of the source's files."""

    @classmethod
    def of(cls, run: Path | None, source: str, config: object) -> "ReadingCache | None":
        """Return the folder within a run; None without a run, and for a source that is not in local files."""
        with reading(source):
            files = [file for name in source.split(",") for file in local_files(name.strip())]
            if run is None or not files:
                return None
            stamps = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
        return cls(run / "tokens" / "survey", hashlib.sha256(repr((stamps, config)).encode()).hexdigest())


def local_files(name: str) -> list[Path]:
    """Return the files of a source: the file of this name, those in the folder of this name, or none."""
    path = source_path(name)
    if name and path.is_dir():
        return [Path(entry) for entry in entries(path) if entry.is_file()]
    return [path] if path.is_file() else []


def measure_item(item: object) -> tuple[int, int]:
    """Return the characters of an example as Python shows it, and a hash of 64 bits."""
    text = repr(item)
    return len(text), int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())


def survey(
    name: str,
    open_parts: Callable[[], Parts[E]],
    unit: str,
    expected: str,
    testing: bool = False,
    reasons: Sequence[str] = (),
    unique: bool = False,
    label_of: Callable[[E], str] | None = None,
    reading_cache: ReadingCache | None = None,
    measure: Callable[[E], tuple[int, int]] = measure_item,
) -> Examples[E]:
    """Read a source once and describe it.

    Args:
        name: the source as the user gave it, for errors.
        open_parts: opens the source.
        unit: the name of examples in `counts`.
        expected: what the error for a source without examples asks for.
        testing: only the test split is needed.
        reasons: the reasons of `LeftOut`; `counts` has each, also with 0.
        unique: drop training examples that are in training, val or test already. `open_parts` has to open training
            last.
        label_of: returns the class of an example, if there are classes.
        reading_cache: where the first reading is stored; without it, or if the source has changed, the source is read.
        measure: returns the characters of an example, 0 to drop it as empty, and a hash of 64 bits.

    Raises GlocalError if the source cannot be read, or has no training examples (no test examples for `testing`).
    """
    with reading(name):
        found = cached_reading(reading_cache, lambda: read_through(open_parts(), label_of, measure))
    hashes = found.digests
    ends: dict[str, int] = found.meta["ends"]
    left_out: dict[str, int] = found.meta["left_out"]
    empty, repeated = found.sizes == 0, np.zeros(len(hashes), dtype=bool)
    starts = dict(zip(ends, [0, *ends.values()], strict=False))
    if unique and "train" in ends:
        repeated[starts["train"] : ends["train"]] = True
        repeated[np.unique(hashes, return_index=True)[1]] = False
    dropped = empty | repeated
    places = np.concatenate([[0], np.cumsum(~dropped)])
    splits = {split: np.arange(places[starts[split]], places[end]) for split, end in ends.items()}
    # Benchmarks of the hub have test splits without labels; such a split counts as absent.
    for split in [split for split, part in splits.items() if not len(part) and split != "train"]:
        warnings.warn(f"the {split} set of {name} holds no {unit}, and counts as absent", stacklevel=2)
    splits = {"train": np.arange(0)} | {split: part for split, part in splits.items() if len(part)}
    counts = {unit: len(hashes) + sum(left_out.values())} | {reason: left_out.get(reason, 0) for reason in reasons}
    if empty.any():
        counts["empty"] = counts.get("empty", 0) + int(empty.sum())
    if unique:
        counts["duplicate"] = int((repeated & ~empty).sum())
    wanted = "test" if testing else "train"
    if not len(splits.get(wanted, ())):
        listed = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
        raise GlocalError(f"{name} holds no {wanted} {unit}{listed and f', of {listed}'}; expected {expected}")
    sizes, labels, hashes = (each[~dropped] for each in (found.sizes, found.labels, hashes))
    return Examples(name, open_parts, splits, labels, found.meta["classes"], sizes, hashes, dropped, counts)


def read_through(
    parts: Parts[E], label_of: Callable[[E], str] | None, measure: Callable[[E], tuple[int, int]]
) -> FirstReading:
    """Read all examples once."""
    sizes, digests, labels, left_out = array("q"), array("Q"), array("q"), Counter[str]()
    classes: dict[str, int] = {}
    ends: dict[str, int] = {}
    for split, part in parts.items():
        for item in progress(part, f"Reading {split}"):
            if isinstance(item, LeftOut):
                left_out[item] += 1
                continue
            size, digest = measure(item)
            sizes.append(size)
            digests.append(digest)
            labels.append(classes.setdefault(label_of(item), len(classes)) if label_of else 0)
        ends[split] = len(digests)
    meta = {"ends": ends, "classes": [*classes], "left_out": dict(left_out)}
    return FirstReading(np.array(sizes, np.int64), np.array(digests, np.uint64), np.array(labels, np.int64), meta)


def cached_reading(reading_cache: ReadingCache | None, read: Callable[[], FirstReading]) -> FirstReading:
    """Return the stored reading; without one, or if the source has changed, read the source and store the result."""
    if reading_cache is None:
        return read()

    def content() -> Iterator[Part]:
        found = read()
        yield from zip(("sizes", "digests", "labels"), found, strict=False)
        yield "meta", np.frombuffer(json.dumps(found.meta).encode(), np.uint8)

    kinds = {"sizes": np.int64, "digests": np.uint64, "labels": np.int64, "meta": np.uint8}
    columns = keep(reading_cache.folder, reading_cache.key, kinds, content())
    meta = json.loads(columns["meta"].tobytes())
    return FirstReading(columns["sizes"], columns["digests"], columns["labels"], meta)


def examples_of(
    name: str,
    kinds: Sequence[str],
    read: Callable[[Path], Iterable[E | LeftOut]],
    unit: str,
    hub: Callable[[str, Iterable[Record]], Iterable[E | LeftOut]] | None = None,
    testing: bool = False,
    reasons: Sequence[str] = (),
    label_of: Callable[[E], str] | None = None,
    reading_cache: ReadingCache | None = None,
) -> Examples[E]:
    """Survey a file, a folder of files of these `kinds`, each named after its split, or a data set of the hub.

    `hub` returns the examples of a named table of the hub; tasks without it read no data sets of the hub. With
    `testing`, only the test split is read, or all of the source where it names none. Raises GlocalError if there are
    no examples.
    """
    expected = f"a file of .{', .'.join(kinds)}, also with .gz, or a folder of such files named after their splits"
    load = cache(load_hub)

    def open_parts() -> Parts[E]:
        path = source_path(name)
        if name and path.is_file():
            parts: Parts[E] = {"train": read(path)}
        elif name and path.is_dir():
            found = entries(path)
            files = [Path(entry) for entry in found if entry.is_file() and kind_of(Path(entry)) in kinds]
            warn_of_unread_splits(name, [entry.name for entry in found], [file.name for file in files])
            parts = chained(name, {file.name: read(file) for file in files}, f"train.{kinds[0]}")
        elif name and hub is not None and is_hub_name(name):
            tables = load(name, "labelled texts")
            parts = chained(name, {split: hub(f"{name} {split}", table) for split, table in tables.items()}, "train")
        else:
            hint = ", or OWNER/NAME of a data set of the hub" if hub is not None else ""
            raise GlocalError(f"data.source {name!r} is not a folder or file; expected {expected}{hint}")
        return for_testing(parts) if testing else parts

    return survey(name, open_parts, unit, expected, testing, reasons, label_of=label_of, reading_cache=reading_cache)


def chained(name: str, found: Mapping[str, Iterable[T]], expected: str) -> dict[str, Iterable[T]]:
    """Join the parts of each split, found by their names (see `by_split`)."""
    splits = by_split(name, found, expected)
    return {split: chain.from_iterable(found[part] for part in parts) for split, parts in splits.items()}


def for_testing(parts: dict[str, Iterable[T]]) -> dict[str, Iterable[T]]:
    """Return the test split alone; without one, all parts become the test split."""
    return {"test": parts.get("test", chain.from_iterable(parts.values()))}


@contextmanager
def reading(name: str) -> Iterator[None]:
    """Turn an error of the operating system into a GlocalError that names the file."""
    try:
        yield
    except OSError as error:
        raise GlocalError(
            f"{error.filename or name} cannot be read: {(error.strerror or str(error)).lower()}"
        ) from None
