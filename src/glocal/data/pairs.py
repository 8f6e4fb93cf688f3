"""Sources of sentence pairs: built-in numbers, tables, aligned files, data sets of the hub."""

from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from itertools import zip_longest
from pathlib import Path

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from glocal.data.encoding import Batch, Row
from glocal.data.files import (
    TABLES,
    Record,
    check_columns,
    compose,
    entries,
    kind_of,
    read_lines,
    read_records,
    source_path,
)
from glocal.data.hub import is_hub_name, load_hub
from glocal.data.numbers import PREFIX, read_name, write_numbers
from glocal.data.splits import split_of, warn_of_unread_splits
from glocal.data.text_sources import (
    Examples,
    LeftOut,
    Parts,
    ReadingCache,
    chained,
    for_testing,
    survey,
)
from glocal.data.tokenizer import normalise
from glocal.errors import GlocalError
from glocal.ops import IGNORED

RawPair = tuple[object, object]
"""A row of two columns; both are texts unless the row is invalid."""
Pair = tuple[str, str]
"""A sentence and its translation, both normalised."""


def open_pairs(
    name: str, languages: tuple[str, str], seed: int, testing: bool = False, run: Path | None = None
) -> Examples[Pair]:
    """Survey a source of sentence pairs.

    Left out are `misaligned` rows, which do not hold two texts; `empty` ones, of which a side is empty; and each
    `duplicate`, a training pair that is in training, validation or test already. Validation and test keep their
    duplicates, so that scores are comparable with others'.

    Args:
        name: `numbers-XX-YY`, a table, a folder of tables or of aligned files, `FILE,FILE`, or a data set of the hub.
        languages: names of the two columns or suffixes of the two files, the source language first.
        seed: of the built-in numbers.
        testing: open the test split alone, or all of the source where it names none.
        run: the folder of a run, which stores the result of the first reading.

    Raises GlocalError if there are no pairs, or a file is not what its name or the languages say.
    """
    load = cache(load_hub)

    def tables() -> dict[str, Iterable[RawPair]]:
        path = source_path(name)
        if name.startswith(PREFIX):
            return {"train": write_numbers(languages, seed)}
        if path.is_file():
            return {"train": read_table(path, languages)}
        if name and path.is_dir():
            return _folder(path, languages)
        if name.count(",") == 1:
            first, second = (source_path(part.strip()) for part in name.split(","))
            return {"train": read_aligned(first, second)}
        if is_hub_name(name):
            found = load(name, "sentence pairs")
            picked = {split: pick_columns(name, table, languages) for split, table in found.items()}
            return chained(name, picked, _expected(languages))
        raise GlocalError(
            f"no folder or file {name!r}; expected a {', '.join(TABLES)} file, a folder of files named after their "
            "splits, FILE,FILE, numbers-XX-YY, or OWNER/NAME of a data set of the hub"
        )

    def open_parts() -> Parts[Pair]:
        parts = for_testing(tables()) if testing else tables()
        # Training comes last, so that its duplicates of the others are found.
        return {split: _clean(parts[split]) for split in ("test", "val", "train") if split in parts}

    reading_cache = ReadingCache.of(run, name, (languages, testing))
    return survey(
        name,
        open_parts,
        "pairs",
        "one or more",
        testing,
        ["misaligned", "empty"],
        unique=True,
        reading_cache=reading_cache,
    )


def languages_of(source: str, languages: tuple[str, str] | None) -> tuple[str, str]:
    """Return the source and the target language of `data.source` and `data.languages`.

    Raises GlocalError if neither names them, or the two contradict each other.
    """
    if not source.startswith(PREFIX):
        if languages is None:
            raise GlocalError(
                "data.languages is not given; expected the names of the two columns, or suffixes of the files, the "
                "source language first, such as [en, de]"
            )
        return languages
    named = read_name(source)
    if languages not in (None, named):
        raise GlocalError(
            f"data.source {source} and data.languages {list(languages or ())} contradict each other; leave the "
            "languages out"
        )
    return named


def collate_pairs(rows: Sequence[Row], pad_id: int, bos_id: int) -> Batch:
    """Pad sources and targets to a batch (see `glocal.tasks.translation.open_data`)."""
    sources, targets = ([torch.from_numpy(row[name].astype(np.int64)) for row in rows] for name in rows[0])
    input_ids = pad_sequence(sources, batch_first=True, padding_value=pad_id)
    labels = pad_sequence(targets, batch_first=True, padding_value=IGNORED)
    lengths = torch.tensor([len(source) for source in sources])
    shifted = torch.cat([torch.full_like(labels[:, :1], bos_id), labels[:, :-1]], dim=1)
    return {
        "input_ids": input_ids,
        "attention_mask": torch.arange(input_ids.shape[1]) < lengths[:, None],
        "decoder_input_ids": shifted.masked_fill(labels == IGNORED, pad_id),
        "labels": labels,
    }


def _clean(rows: Iterable[RawPair]) -> Iterator[Pair | LeftOut]:
    for first, second in rows:
        if not (isinstance(first, str) and isinstance(second, str)):
            yield LeftOut("misaligned")
            continue
        pair = normalise(compose(first)), normalise(compose(second))
        yield pair if all(pair) else LeftOut("empty")


def _folder(path: Path, languages: tuple[str, str]) -> dict[str, Iterable[RawPair]]:
    """Open tables and pairs of aligned files by their split; other files are ignored."""
    found: dict[str, Iterable[RawPair]] = {}
    present = entries(path)
    second = set()
    for file in (Path(entry) for entry in present if entry.is_file()):
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
            else:
                second.add(file.name)
    warn_of_unread_splits(str(path), [entry.name for entry in present], {*found, *second})
    return chained(str(path), found, _expected(languages))


def _expected(languages: tuple[str, str]) -> str:
    return f"train.tsv (or {', '.join(TABLES[1:])}), or train.{languages[0]} beside train.{languages[1]}, also with .gz"


def read_aligned(first: Path, second: Path) -> Iterator[RawPair]:
    """Yield the pairs of lines of two files. Raises GlocalError if one has more lines than the other."""
    counts = [0, 0]
    for pair in zip_longest(read_lines(first), read_lines(second)):
        counts = [count + (line is not None) for count, line in zip(counts, pair, strict=True)]
        if counts[0] == counts[1]:
            yield pair
    if counts[0] != counts[1]:
        raise GlocalError(
            f"{first} has {counts[0]} lines and {second} has {counts[1]}; expected as many, each the translation of "
            "the same line of the other"
        )


def read_table(path: Path, languages: tuple[str, str]) -> Iterator[RawPair]:
    """Yield the columns named after the languages. Raises GlocalError if one is missing, or the file is damaged."""
    return pick_columns(str(path), read_records(path), languages)


def pick_columns(name: str, records: Iterable[Record], languages: tuple[str, str]) -> Iterator[RawPair]:
    """Yield two columns of records; many data sets of the hub hold them within a column `translation`."""
    for number, record in enumerate(records):
        inner = record.get("translation")
        columns = inner if isinstance(inner, dict) else record
        if number == 0:
            check_columns(name, columns, languages, "data.languages")
        yield columns.get(languages[0]), columns.get(languages[1])
