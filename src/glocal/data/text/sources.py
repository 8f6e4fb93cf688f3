"""Where sentence pairs come from. Every source becomes the same: pairs, splits, and a count of what was left out."""

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np

from glocal.data.progress import progress
from glocal.data.sources import SPLITS
from glocal.data.text.config import PairsConfig
from glocal.data.text.files import TABLES, Row, pick_columns, read_aligned, read_table
from glocal.data.text.numbers import PREFIX, read_name, write_numbers
from glocal.data.text.tokenizer import normalise
from glocal.errors import GlocalError

SHARD = re.compile(r"-\d{5}-of-\d{5}")
"""A part of a large file, as the hub names it: train-00000-of-00003.parquet."""


@dataclass(frozen=True)
class Corpus:
    """Sentence pairs, normalised, without those that cannot be learned from."""

    name: str
    """As the user gave it."""
    languages: tuple[str, str]
    """From which, to which."""
    pairs: list[tuple[str, str]]
    splits: dict[str, np.ndarray]
    """Indices into `pairs`, for each of train, val and test that the source names; `train` is always there."""
    counts: dict[str, int]
    """Of `pairs` that were read, those left out: `misaligned` (a line that does not hold two texts), `empty` (a side
    has none), `duplicate` (a training pair that stands in training, val or test already)."""

    @property
    def labels(self) -> np.ndarray:
        """All pairs are of one class: a cut takes its share of the whole."""
        return np.zeros(len(self.pairs), dtype=np.int64)

    def fingerprint(self) -> str:
        """Tell this data from data of other sentences, splits or languages."""
        sizes = {name: len(indices) for name, indices in self.splits.items()}
        digest = hashlib.sha256(json.dumps([self.languages, sizes]).encode())
        for pair in self.pairs:
            digest.update("\t".join(pair).encode() + b"\n")
        return digest.hexdigest()[:16]


def open_corpus(config: PairsConfig, testing: bool = False) -> Corpus:
    """Open the built-in numbers, a file, a folder, two aligned files or, where no such path exists, a hub's data set.

    For `testing`, only the test split is opened; where the source names none, all of it is.

    Raises GlocalError where there is nothing to learn from, or a file is not what its name or the config says.
    """
    name, path = config.source, Path(config.source).expanduser()
    languages = languages_of(config)
    parts: dict[str, Iterable[Row]]
    try:
        if name.startswith(PREFIX):
            parts = {"train": write_numbers(languages, config.seed)}
        elif path.is_file():
            parts = {"train": read_table(path, languages)}
        elif path.is_dir():
            parts = _folder(path, languages)
        elif name.count(",") == 1:
            first, second = (Path(part.strip()).expanduser() for part in name.split(","))
            parts = {"train": read_aligned(first, second)}
        elif len(Path(name).parts) in (2, 3) and not path.is_absolute() and not Path(*Path(name).parts[:-1]).exists():
            parts = _hub(name, languages)
        else:
            raise GlocalError(
                f"no folder or file {name!r}; expected a {', '.join(TABLES)} file, a folder of files named after their "
                "splits, FILE,FILE, numbers-XX-YY, or OWNER/NAME of a data set of the hub"
            )
        if testing:
            parts = {"test": parts.get("test", chain.from_iterable(parts.values()))}
        corpus = _clean(name, languages, parts)
    except OSError as error:
        raise GlocalError(
            f"{error.filename or name} cannot be read: {(error.strerror or str(error)).lower()}"
        ) from None
    wanted = "test" if testing else "train"
    if not len(corpus.splits[wanted]):
        found = ", ".join(f"{count} {what}" for what, count in corpus.counts.items())
        raise GlocalError(f"{name} has no {wanted} pairs to use, of {found}; expected one or more")
    return corpus


def languages_of(config: PairsConfig) -> tuple[str, str]:
    """Return what is translated to what. Raises GlocalError where the config does not say, or contradicts itself."""
    if not config.source.startswith(PREFIX):
        if config.languages is None:
            raise GlocalError(
                "data.languages is not given; expected the names of the two columns, or suffixes of the files, what "
                "is translated first, such as [en, de]"
            )
        return config.languages
    languages = read_name(config.source)
    if config.languages not in (None, languages):
        raise GlocalError(
            f"data.source {config.source} and data.languages {list(config.languages or ())} contradict each other; "
            "leave the languages out"
        )
    return languages


def _clean(name: str, languages: tuple[str, str], parts: dict[str, Iterable[Row]]) -> Corpus:
    """Read it all. Val and test stay as they are, with what they repeat, so that scores compare with others'."""
    counts = dict.fromkeys(("pairs", "misaligned", "empty", "duplicate"), 0)
    pairs: list[tuple[str, str]] = []
    seen: set[tuple[str, str]] = set()
    splits = {"train": np.arange(0)}
    for split in ("test", "val", "train"):  # training comes last: it must not repeat the others
        if split not in parts:
            continue
        first = len(pairs)
        for row in progress(parts[split], f"Reading {split}"):
            counts["pairs"] += 1
            if not all(isinstance(text, str) for text in row):
                counts["misaligned"] += 1
                continue
            pair = normalise(row[0]), normalise(row[1])
            if not all(pair):
                counts["empty"] += 1
            elif split == "train" and pair in seen:
                counts["duplicate"] += 1
            else:
                pairs.append(pair)
                seen.add(pair)
        splits[split] = np.arange(first, len(pairs))
    return Corpus(name, languages, pairs, splits, counts)


def _folder(path: Path, languages: tuple[str, str]) -> dict[str, Iterable[Row]]:
    """Tables and pairs of aligned files by split; files with other names are left alone."""
    found: dict[str, Iterable[Row]] = {}
    for file in sorted(path.iterdir()):
        stem, _, kind = file.name.removesuffix(".gz").rpartition(".")
        if _split(stem) is None:
            continue
        if kind in TABLES:
            found[file.name] = read_table(file, languages)
        elif kind in languages:
            other = f"{stem}.{languages[1 - languages.index(kind)]}"
            partner = next((path / name for name in (other, f"{other}.gz") if (path / name).exists()), None)
            if partner is None:
                raise GlocalError(f"{file} has no {other} beside it; expected two aligned files")
            if kind == languages[0]:
                found[file.name] = read_aligned(file, partner)
    return _by_split(str(path), found, languages)


def _hub(name: str, languages: tuple[str, str]) -> dict[str, Iterable[Row]]:
    """Load OWNER/NAME or OWNER/NAME/SUBSET with the `datasets` library."""
    import datasets

    owner, repository, *subset = name.split("/")
    try:
        loaded = datasets.load_dataset(f"{owner}/{repository}", *subset)
    # Its readers, its builders and the network below them each raise their own kinds.
    except Exception as error:
        raise GlocalError(f"{name!r} cannot be loaded as sentence pairs: {' '.join(str(error).split())}") from None
    found: dict[str, Iterable[Row]] = {split: pick_columns(name, table, languages) for split, table in loaded.items()}
    return _by_split(name, found, languages)


def _by_split(name: str, found: dict[str, Iterable[Row]], languages: tuple[str, str]) -> dict[str, Iterable[Row]]:
    """Tell by their names which parts are training, val and test; each split is one part, or the shards of one."""
    parts: dict[str, dict[str, list[Iterable[Row]]]] = {}
    for part, rows in found.items():
        split = _split(part)
        if split is not None:
            parts.setdefault(split, {}).setdefault(SHARD.sub("", part), []).append(rows)
    if not parts:
        raise GlocalError(
            f"{name} holds no part named after train, val or test; expected such as train.tsv (or "
            f"{', '.join(TABLES[1:])}), or train.{languages[0]} beside train.{languages[1]}, also with .gz"
        )
    for split, several in parts.items():
        if len(several) > 1:
            raise GlocalError(f"{name} has several {split} sets: {', '.join(several)}; keep one, or rename the others")
    return {split: chain.from_iterable(shards) for split, several in parts.items() for shards in several.values()}


def _split(name: str) -> str | None:
    """Return the split that a name begins with: test_2016_flickr is test, and so is tst2012."""
    return (SPLITS | {"tst": "test"}).get(re.split("[^a-z]", name.lower(), maxsplit=1)[0])
