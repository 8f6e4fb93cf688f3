"""Where sentence pairs come from. Every source becomes the same: pairs, splits, and a count of what was left out."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from glocal.data.files import (
    TABLES,
    Row,
    compose,
    entries,
    kind_of,
    pick_columns,
    read_aligned,
    read_table,
    source_path,
)
from glocal.data.progress import progress
from glocal.data.splits import split_of
from glocal.data.text.config import PairsConfig
from glocal.data.text.pairs.numbers import PREFIX, read_name, write_numbers
from glocal.data.text.parts import chained, for_testing, is_hub_name, load_hub, reading
from glocal.data.text.tokenizer import normalise
from glocal.errors import GlocalError


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
    name, path = config.source, source_path(config.source)
    languages = languages_of(config)
    parts: dict[str, Iterable[Row]]
    with reading(name):
        if name.startswith(PREFIX):
            parts = {"train": write_numbers(languages, config.seed)}
        elif path.is_file():
            parts = {"train": read_table(path, languages)}
        elif name and path.is_dir():
            parts = _folder(path, languages)
        elif name.count(",") == 1:
            first, second = (source_path(part.strip()) for part in name.split(","))
            parts = {"train": read_aligned(first, second)}
        elif is_hub_name(name):
            parts = _hub(name, languages)
        else:
            raise GlocalError(
                f"no folder or file {name!r}; expected a {', '.join(TABLES)} file, a folder of files named after their "
                "splits, FILE,FILE, numbers-XX-YY, or OWNER/NAME of a data set of the hub"
            )
        if testing:
            parts = for_testing(parts)
        corpus = _clean(name, languages, parts)
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
            pair = normalise(compose(row[0])), normalise(compose(row[1]))
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
    """Tables and pairs of aligned files by split; files of other kinds are left alone."""
    found: dict[str, Iterable[Row]] = {}
    for file in (Path(entry) for entry in entries(path) if entry.is_file()):
        stem, _, language = file.name.removesuffix(".gz").rpartition(".")
        if kind_of(file) in TABLES:
            found[file.name] = read_table(file, languages)
        elif language in languages and split_of(stem) is not None:
            other = f"{stem}.{languages[1 - languages.index(language)]}"
            partner = next((path / name for name in (other, f"{other}.gz") if (path / name).exists()), None)
            if partner is None:
                raise GlocalError(f"{file} has no {other} beside it; expected two aligned files")
            if language == languages[0]:
                found[file.name] = read_aligned(file, partner)
    return chained(str(path), found, _expected(languages))


def _hub(name: str, languages: tuple[str, str]) -> dict[str, Iterable[Row]]:
    """Load a data set of the hub."""
    tables = load_hub(name, "sentence pairs")
    found = {split: pick_columns(name, table, languages) for split, table in tables.items()}
    return chained(name, found, _expected(languages))


def _expected(languages: tuple[str, str]) -> str:
    return f"train.tsv (or {', '.join(TABLES[1:])}), or train.{languages[0]} beside train.{languages[1]}, also with .gz"
