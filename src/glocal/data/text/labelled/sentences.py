"""Sentences and pairs of them, each with its class: reviews, questions, entailment."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from glocal.data.files import (
    TABLES,
    Record,
    compose,
    kind_of,
    listed,
    named_class,
    read_header,
    read_records,
    read_rows,
)
from glocal.data.labels import class_name, in_order, is_visible
from glocal.data.text.config import SentencesConfig
from glocal.data.text.encoding import Row, encode_sentences
from glocal.data.text.labelled.texts import Texts, encode_all, read_source, settle_splits
from glocal.data.text.tokenizer import Tokenizer
from glocal.errors import GlocalError

TEXTS = (("sentence1", "sentence2"), ("premise", "hypothesis"), ("question1", "question2"), ("question", "sentence"),
         ("question", "passage"), ("text",), ("sentence",), ("review",), ("content",), ("question",))  # fmt: skip
"""What columns of text are usually called, pairs first."""
LABELS = ("label", "labels", "class", "category")
"""What the column of classes is usually called."""
HEADERS = {2: ["text", "label"], 3: ["sentence1", "sentence2", "label"]}
"""What the columns of a TSV without a header are, by their number."""


class Sentence(NamedTuple):
    """A sentence, or a pair of them, and the name of its class."""

    text: str
    pair: str | None
    label: str


def open_sentences(
    config: SentencesConfig, folder: Path | None, tokenizer: Tokenizer, classes: Sequence[str] | None = None
) -> Texts[Sentence]:
    """Open the sentences that `config` names, with the splits.json of `folder`, written where missing.

    Batches hold `input_ids`, `attention_mask` and, where the tokenizer marks segments, `token_type_ids`, each (B, N),
    and `labels` (B,). The classes are those of the training split. With the `classes` of a trained model, open other
    data to test it on: its test split, or all where it names none.

    Raises GlocalError where the data or the config is unusable, or the data is not that of `folder`.
    """
    counts: Counter[str] = Counter(sentences=0, empty=0, unlabelled=0)
    examples = read_source(
        config.source,
        TABLES,
        partial(_file, config, counts),
        partial(_hub, config, counts),
        classes is not None,
        counts,
    )
    if len({item.pair is None for item in examples.items}) > 1:
        raise GlocalError(f"{config.source} holds single sentences and pairs; expected all of one kind")
    training = (examples.items[index].label for index in examples.splits["train"])
    labels = in_order(training) if classes is None else classes
    if len(labels) < 2:
        raise GlocalError(f"{config.source} holds one class only ({labels[0]!r}); expected two or more to tell apart")
    numbers = {class_name(label, "the model"): number for number, label in enumerate(labels)}
    for item in examples.items:
        if item.label not in numbers:
            whose = "the training split's" if classes is None else "the model's"
            raise GlocalError(
                f"class {item.label!r} of {item.text[:40]!r} in {config.source} is none of {whose}: {', '.join(labels)}"
            )
    examples = replace(examples, labels=np.array([numbers[item.label] for item in examples.items], dtype=np.int64))
    splits = settle_splits(examples, config, folder)

    def encode(items: Sequence[Sentence]) -> list[tuple[Row, bool]]:
        pairs = [item.pair for item in items if item.pair is not None]
        return encode_sentences(tokenizer, [item.text for item in items], pairs or None, config.max_length)

    encoded = encode_all(examples.items, encode)
    rows = [row | {"labels": label} for (row, _), label in zip(encoded, examples.labels, strict=True)]
    report = dict(counts) | {"truncated": sum(overlong for _, overlong in encoded)}
    return Texts(config, examples, splits, tokenizer, rows, range(len(rows)), report, labels)


def _file(config: SentencesConfig, counts: Counter[str], path: Path) -> Iterator[Sentence]:
    records = _below_header(config, path) if kind_of(path) in ("tsv", "csv") else read_records(path)
    return _sentences(config, counts, str(path), records)


def _hub(config: SentencesConfig, counts: Counter[str], name: str, table: Iterable[Record]) -> Iterator[Sentence]:
    """Give classes their names, which the hub keeps beside the table; -1 is no class."""
    features = getattr(table, "features", {})
    names = {column: feature.names for column, feature in features.items() if hasattr(feature, "names")}

    def named(record: Record) -> Record:
        return record | {column: named_class(names[column], record[column]) for column in names}

    return _sentences(config, counts, name, map(named, table))


def read_texts(path: Path) -> Iterator[str | tuple[str, str]]:
    """Read the texts of a table, or its pairs of texts, to be classified: one a row, "" where a row has none.

    The columns are found as in training; that of the classes may be missing, and is not read. Raises GlocalError where
    there are no such columns. Of a TSV of two columns without a header, the second may be a class or a text.
    """
    config = SentencesConfig()
    named = kind_of(path) in ("tsv", "csv")
    records = _below_header(config, path, labelled=False) if named else read_records(path)
    columns: tuple[str, ...] = ()
    for record in records:
        columns = columns or _text_columns(config, record) or ()
        if not columns:
            raise GlocalError(
                f"{path} has the columns {listed(record)}; expected text, or sentence1 and sentence2, in its first line"
            )
        values = [record.get(column) for column in columns]
        texts = [compose(value) for value in values if isinstance(value, str) and is_visible(value)]
        if len(texts) < len(columns):
            yield ""
        else:
            yield (texts[0], texts[1]) if len(texts) == 2 else texts[0]


def _below_header(config: SentencesConfig, path: Path, labelled: bool = True) -> Iterator[Record]:
    """Read a TSV or a CSV; a TSV whose first line names no column that is looked for has the usual ones."""
    rows = read_rows(path)
    line, first = next(rows, (1, []))
    names = [name.strip() for name in first]
    found = _columns(config, names) if labelled else _text_columns(config, names)
    headless = kind_of(path) == "tsv" and not (config.texts or config.label or found) and len(first) in HEADERS
    if headless and not labelled and len(first) == 2:
        raise GlocalError(
            f"{path} has two columns and no header; name them in a first line: text and label, or sentence1 and "
            "sentence2"
        )
    header = HEADERS[len(first)] if headless else read_header(path, first)
    tally: Counter[str] = Counter()
    for number, row in chain([(line, first)] if headless else [], rows):
        if len(row) != len(header):
            raise GlocalError(f"{path} line {number} has {len(row)} columns; expected {len(header)}, as in the first")
        tally[row[-1]] += 1
        yield dict(zip(header, row, strict=True))
    if headless and labelled and _is_header(first[-1], tally):
        raise GlocalError(
            f"the class {first[-1]!r} of {path} line 1 stands nowhere else; if that line is a header, name its columns "
            "in data.texts and data.label, and if not, add more of that class"
        )


def _is_header(name: str, tally: Counter[str]) -> bool:
    """Whether the last field of a first line is hardly a class, by how often each stands there."""
    others = tally - Counter([name])
    if not others or name in others:
        return False
    numbered = all(map(_is_number, others)) and not _is_number(name)
    return numbered or min(others.values()) > 1


def _is_number(label: str) -> bool:
    return label.strip().lstrip("+-").isdecimal()


def _text_columns(config: SentencesConfig, names: Iterable[str]) -> tuple[str, ...] | None:
    """Find the columns of the text."""
    there = set(names)
    return next((each for each in ([config.texts] if config.texts else TEXTS) if there.issuperset(each)), None)


def _columns(config: SentencesConfig, names: Iterable[str]) -> tuple[str, ...] | None:
    """Find the columns of the text, and after them the one of the classes."""
    there = set(names)
    texts = _text_columns(config, there)
    label = next((each for each in ([config.label] if config.label else LABELS) if each in there), None)
    return None if texts is None or label is None else (*texts, label)


def _sentences(
    config: SentencesConfig, counts: Counter[str], name: str, records: Iterable[Record]
) -> Iterator[Sentence]:
    columns: tuple[str, ...] | None = None
    for number, record in enumerate(records, start=1):
        columns = columns or _columns(config, record)
        if columns is None:
            raise GlocalError(
                f"{name} has the columns {listed(record)}; expected text, or sentence1 and sentence2, and label, or "
                "others that data.texts and data.label name"
            )
        texts: list[Any] = [record.get(column) for column in columns]
        label = class_name(texts.pop(), f"{name} example {number}")
        counts["sentences"] += 1
        if not all(isinstance(text, str) and is_visible(text) for text in texts):
            counts["empty"] += 1
        elif label is None:
            counts["unlabelled"] += 1
        else:
            first, *second = map(compose, texts)
            yield Sentence(first, second[0] if second else None, label)
