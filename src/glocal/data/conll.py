"""Files of columns: a word and its tag a line, a blank line between sentences, as CoNLL keeps them.

Tjong Kim Sang and De Meulder 2003, *Introduction to the CoNLL-2003 Shared Task*
https://arxiv.org/abs/cs/0306050
"""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from glocal.data.files import TABLES, compose, kind_of, read_lines
from glocal.data.labels import class_name
from glocal.errors import GlocalError

COLUMNS = ("conll", "iob", "iob2", "bio", "bioes")
"""What files of columns are named, and nothing else is."""
KINDS = ("txt", "tsv", *COLUMNS)
"""What files of columns may be named."""
ENTITY = re.compile("[BIES](-.+)?")
"""A tag that spells an entity, of a kind or, where there is but one, of none."""
WORD_HEADERS = ("word", "words", "token", "tokens", "text", "form")
TAG_HEADERS = ("tag", "tags", "label", "labels", "ner", "ner_tag", "ner_tags", "entity", "pos", "upos", "pos_tag")
"""What a header calls the first and the last column."""


class TaggedWords(NamedTuple):
    """The words of a sentence and their tags; tags of entities are in the scheme IOB2."""

    words: tuple[str, ...]
    tags: tuple[str, ...]


def spell_entities(tags: Iterable[str]) -> bool:
    """Whether tags are those of entities: O, or B, I, E or S, with or without a kind after a hyphen."""
    return all(tag == "O" or ENTITY.fullmatch(tag) for tag in tags)


def to_iob2(tags: Sequence[str]) -> list[str]:
    """Write tags of IOB1, IOB2 or BIOES in IOB2: B- at the first word of every entity, I- at its others.

    An entity begins at B- and S-, where the kind changes, after O, and after E- and S-. So CoNLL's own scorer reads all
    three schemes (conlleval), and no one has to say which it is.
    """
    written = []
    before = "O"
    for tag in tags:
        begins = tag[0] in "BS" or before[0] in "OES" or tag[2:] != before[2:]
        written.append("O" if tag == "O" else f"{'B' if begins else 'I'}{tag[1:]}")
        before = tag
    return written


def read_words(path: Path) -> Iterator[list[str]]:
    """Read the words of each sentence of a file of columns, whose tags may be missing, to be tagged."""
    return ([columns[0] for _, columns in sentence] for sentence in _sentences(path, width=1))


def read_tagged(path: Path) -> Iterator[TaggedWords]:
    """Read the words and the tags of each sentence of a file of columns."""
    sentences = [
        [(number, [columns[0], _tag(columns[-1], f"{path} line {number}")]) for number, columns in sentence]
        for sentence in _sentences(path, width=2)
    ]
    tags = Counter(columns[-1] for sentence in sentences for _, columns in sentence)
    entities = sum(count for tag, count in tags.items() if tag != "O" and ENTITY.fullmatch(tag))
    others = tags.total() - entities - tags["O"]
    for number, columns in (line for sentence in sentences for line in sentence if entities):
        if not spell_entities([columns[-1]]) and entities >= others:
            raise GlocalError(
                f"{path} line {number} has tag {columns[-1][:40]!r}; expected O, or B, I, E or S and a kind of entity "
                "after a hyphen, as other lines have"
            )
    for sentence in sentences:
        words, found = [columns[0] for _, columns in sentence], [columns[-1] for _, columns in sentence]
        yield TaggedWords(tuple(words), tuple(to_iob2(found) if entities > others else found))


def _tag(written: str, where: str) -> str:
    tag = class_name(written, where)
    if tag is None:
        raise GlocalError(f"{where} has no tag; expected a word first and its tag last")
    return tag


def _sentences(path: Path, width: int) -> Iterator[list[tuple[int, list[str]]]]:
    """Read a file of `width` columns or more: the lines of each sentence, numbered, and the columns of each.

    Columns are cut at tabs or else at spaces. Lines that begin a document, a header, and comments before a sentence are
    left out. Raises GlocalError where a line has more or fewer columns than others, or its words are but numbered.
    """
    if kind_of(path) in (*TABLES[1:], "json"):
        raise GlocalError(f"{path} is no file of columns by its name; expected .{', .'.join(KINDS)}, also with .gz")
    lines = [
        (number, [compose(column).strip() for column in _cut(line)]) for number, line in enumerate(read_lines(path), 1)
    ]
    words = [columns for _, columns in lines if columns and not columns[0].startswith(("#", "-DOCSTART-"))]
    expected = len(words[0]) if words else width
    tags = {"O", *(columns[-1] for columns in words)}
    sentence: list[tuple[int, list[str]]] = []
    begun = False
    numbered = True
    for number, columns in [*lines, (0, [])]:
        if not columns:
            if sentence:
                numbered = numbered and [each[0] for _, each in sentence] == [*map(str, range(1, len(sentence) + 1))]
                yield sentence
            sentence = []
        elif columns[0].startswith("-DOCSTART-") or (not sentence and _is_comment(columns, expected, tags)):
            continue
        elif not begun and columns[0].lower() in WORD_HEADERS and columns[-1].lower() in TAG_HEADERS:
            begun = True
        elif len(columns) != expected or len(columns) < width or not columns[0]:
            raise GlocalError(
                f"{path} line {number} has {len(columns)} columns; expected a word first and its tag last, and as "
                "many columns in every line"
            )
        else:
            begun = True
            sentence.append((number, columns))
    if begun and numbered and expected > 2:
        raise GlocalError(f"{path} begins its lines with numbers; expected a word first and its tag last")


def _cut(line: str) -> list[str]:
    line = line.strip(" \n").rstrip()
    return (line.split("\t") if "\t" in line else re.split(" +", line)) if line.strip() else []


def _is_comment(columns: Sequence[str], expected: int, tags: Collection[str]) -> bool:
    """Whether a line before a sentence is no word and its tag, though # may be a word."""
    return columns[0].startswith("#") and (len(columns) != expected or (expected > 1 and columns[-1] not in tags))
