"""Sentences of words with a tag each: names of people and places, as CoNLL keeps them.

Tjong Kim Sang and De Meulder 2003, *Introduction to the CoNLL-2003 Shared Task*
https://arxiv.org/abs/cs/0306050
"""

import re
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np

from glocal.data.text.config import TaggedConfig
from glocal.data.text.encoding import IGNORED, Words, encode_words
from glocal.data.text.files import read_lines
from glocal.data.text.labelled.texts import Texts, encode_all, read_source, settle_splits
from glocal.data.text.tokenizer import Tokenizer
from glocal.errors import GlocalError

KINDS = ("txt", "conll", "tsv", "iob", "iob2", "bio", "bioes")
"""What files of columns are named."""
ENTITY = re.compile("[BIES]-.+")
"""A tag that spells an entity."""


class Tagged(NamedTuple):
    """The words of a sentence and their tags; those of entities in the scheme IOB2."""

    words: tuple[str, ...]
    tags: tuple[str, ...]


def open_tagged(
    config: TaggedConfig, folder: Path | None, tokenizer: Tokenizer, classes: Sequence[str] | None = None
) -> Texts[Tagged]:
    """Open the sentences that `config` names, with the splits.json of `folder`, written where missing.

    Batches hold `input_ids`, `attention_mask`, `token_type_ids` and `labels`, each (B, N): the first piece of a word
    has its tag, every other token -100. Whatever the scheme of the files, tags of entities are those of IOB2: O, and B-
    and I- of each kind in the training split. With the `classes` of a trained model, open other data to test it on: its
    test split, or all where it names none.

    Raises GlocalError where the data or the config is unusable, or the data is not that of `folder`.
    """
    examples = read_source(config.source, KINDS, _read, testing=classes is not None)
    if classes is None:
        training = (examples.items[index] for index in examples.splits["train"])
        classes = _classes({tag for item in training for tag in item.tags})
    if len(classes) < 2:
        raise GlocalError(f"{config.source} holds one tag only ({classes[0]}); expected two or more to tell apart")
    numbers = {tag: number for number, tag in enumerate(classes)}
    for item in examples.items:
        for word, tag in zip(item.words, item.tags, strict=True):
            if tag not in numbers:
                raise GlocalError(
                    f"tag {tag!r} of {word!r} in {config.source} is none of training: {', '.join(classes)}"
                )
    splits = settle_splits(examples, config, folder)

    def encode(items: Sequence[Tagged]) -> list[list[Words]]:
        return encode_words(tokenizer, [item.words for item in items], config.max_length)

    encoded = encode_all(examples.items, encode)
    rows, owners = [], []
    for owner, (item, windows) in enumerate(zip(examples.items, encoded, strict=True)):
        for window in windows:
            labels = np.full(len(window.row["input_ids"]), IGNORED)
            labels[window.starts] = [numbers[item.tags[word]] for word in window.words]
            rows.append(window.row | {"labels": labels})
            owners.append(owner)
    report = {"sentences": len(encoded), "cut": sum(len(windows) > 1 for windows in encoded)}
    return Texts(config, examples, splits, tokenizer, rows, owners, report, classes)


def _classes(tags: set[str]) -> list[str]:
    """Give every kind of entity both its tags, after O; other tags, such as parts of speech, stay as they are."""
    kinds = sorted({tag[2:] for tag in tags if ENTITY.fullmatch(tag)})
    return ["O", *(f"{begun}-{kind}" for kind in kinds for begun in "BI")] if kinds else sorted(tags)


def to_iob2(tags: Sequence[str]) -> list[str]:
    """Write tags of IOB1, IOB2 or BIOES in IOB2: B- at the first word of every entity, I- at its others.

    An entity begins at B- and S-, where the kind changes, after O, and after E- and S-. So CoNLL's own scorer reads all
    three schemes (conlleval), and no one has to say which it is.
    """
    written = []
    before = "O"
    for tag in tags:
        begins = tag[0] in "BS" or before[0] in "OES" or tag[2:] != before[2:]
        written.append("O" if tag == "O" else f"{'B' if begins else 'I'}-{tag[2:]}")
        before = tag
    return written


def _read(path: Path) -> Iterator[Tagged]:
    """Read a file of columns, which are cut at tabs or else at spaces; a line that begins a document is left out."""
    width, entities = None, None
    words: list[str] = []
    tags: list[str] = []
    for number, line in enumerate(chain(read_lines(path), [""]), start=1):
        line = line.strip(" \r\n")
        if not line.strip():
            if words:
                yield Tagged(tuple(words), tuple(to_iob2(tags) if entities else tags))
            words, tags = [], []
        elif not line.startswith("-DOCSTART-"):
            columns = line.split("\t") if "\t" in line else re.split(" +", line)
            width = width or len(columns)
            if len(columns) != width or width < 2:
                raise GlocalError(
                    f"{path} line {number} has {len(columns)} columns; expected a word first and its tag last, and as "
                    "many columns in every line"
                )
            if columns[-1] != "O":
                entity = bool(ENTITY.fullmatch(columns[-1]))
                if entity is not (entities := entity if entities is None else entities):
                    raise GlocalError(
                        f"{path} line {number} has tag {columns[-1]!r}; expected O, or B-, I-, E- or S- and a kind of "
                        "entity, in all of a file or nowhere"
                    )
            words.append(columns[0])
            tags.append(columns[-1])
