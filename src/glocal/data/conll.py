"""Words and tags: files with a word and its tag a line, as CoNLL's, and the entities that tags mark.

Tjong Kim Sang and De Meulder 2003, *Introduction to the CoNLL-2003 Shared Task*
https://arxiv.org/abs/cs/0306050
"""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from tokenizers import Regex
from tokenizers.pre_tokenizers import Split

from glocal.data.files import TABLES, compose, kind_of, read_lines
from glocal.data.labels import class_name
from glocal.errors import GlocalError

COLUMN_EXTENSIONS = ("conll", "iob", "iob2", "bio", "bioes")
"""Extensions that only files of columns have."""
EXTENSIONS = ("txt", "tsv", *COLUMN_EXTENSIONS)
"""Extensions that files of columns may have."""
ENTITY = re.compile("[BIES](-.+)?")
"""A tag of an entity, with or without its type."""
WORD_HEADERS = ("word", "words", "token", "tokens", "text", "form")
TAG_HEADERS = ("tag", "tags", "label", "labels", "ner", "ner_tag", "ner_tags", "entity", "pos", "upos", "pos_tag")
"""Usual names of the first and the last column in a header."""
WORDS = Split(
    Regex(
        r"[\p{L}\p{M}\p{N}_](?:[\p{L}\p{M}\p{N}_.,'’/\x{200C}\x{200D}-]*[\p{L}\p{M}\p{N}_])?[\x{200C}\x{200D}]*"
        r"|(?![\s\p{Cc}\p{Cf}])\X"
    ),
    "removed",
    invert=True,
)
"""Splits a text into words and single other characters, each with its combining marks and joiners."""


class TaggedWords(NamedTuple):
    """The words of a sentence and their tags; tags of entities are in the scheme IOB2."""

    words: tuple[str, ...]
    tags: tuple[str, ...]


def are_entity_tags(tags: Iterable[str]) -> bool:
    """Whether tags are those of entities: O, or B, I, E or S, with or without a type after a hyphen."""
    return all(tag == "O" or ENTITY.fullmatch(tag) for tag in tags)


def entity_types(tags: Sequence[str]) -> list[str]:
    """Return the types of the entities that tags mark, `_` for entities without a type; none for other tags."""
    return sorted({tag[2:] or "_" for tag in tags if tag != "O"}) if are_entity_tags(tags) else []


def find_entities(tags: Sequence[str] | Sequence[Sequence[str]]) -> list[tuple[str, int, int]]:
    """Return the type, the first and the last word of the entities of one sentence, or of several."""
    from seqeval.metrics.sequence_labeling import get_entities  # imports scikit-learn: a second and a half

    return list(get_entities(tags))


def all_tags(sentences: Iterable[TaggedWords]) -> list[str]:
    """Return O, and B- and I- of each type of entity; other tags, such as parts of speech, as they are."""
    tags = {tag for sentence in sentences for tag in sentence.tags}
    suffixes = sorted({tag[1:] for tag in tags if ENTITY.fullmatch(tag)}) if are_entity_tags(tags) else []
    return ["O", *(f"{prefix}{suffix}" for suffix in suffixes for prefix in "BI")] if suffixes else sorted(tags)


def check_tags(tags: Sequence[str], sentences: Iterable[TaggedWords], source: str) -> None:
    """Raise GlocalError if there is one tag only, or tags of entities are written in small letters, or a word has a tag
    that is not among the training tags.
    """
    if len(tags) < 2:
        raise GlocalError(f"{source} holds one tag only ({tags[0]}); expected two or more")
    if not are_entity_tags(tags) and are_entity_tags(tag[:1].upper() + tag[1:] for tag in tags):
        small = next(tag for tag in tags if not are_entity_tags([tag]))
        raise GlocalError(f"{source} has the tag {small[:40]!r}; tags of entities are O, B-TYPE and I-TYPE in capitals")
    known = set(tags)
    for sentence in sentences:
        for word, tag in zip(sentence.words, sentence.tags, strict=True):
            if tag not in known:
                raise GlocalError(
                    f"tag {tag[:40]!r} of {word[:40]!r} in {source} is not one of the training tags: {', '.join(tags)}"
                )


def split_words(sentence: str) -> list[str]:
    """Split a sentence into words as corpora do: punctuation apart, except in words such as U.S, 3,000 and Jean-Luc.

    Accents are composed (Unicode NFC); combining marks and joiners belong to their word.
    """
    return [word for word, _ in WORDS.pre_tokenize_str(compose(sentence))]


def to_iob2(tags: Sequence[str]) -> list[str]:
    """Convert tags of IOB1, IOB2 or BIOES to IOB2: B- at the first word of every entity, I- at its others.

    An entity begins at B- and S-, where the type changes, after O, and after E- and S-. CoNLL's scorer conlleval reads
    all three schemes by this rule, so that the scheme need not be given.
    """
    written = []
    before = "O"
    for tag in tags:
        begins = tag[0] in "BS" or before[0] in "OES" or tag[2:] != before[2:]
        written.append("O" if tag == "O" else f"{'B' if begins else 'I'}{tag[1:]}")
        before = tag
    return written


def read_words(path: Path) -> Iterator[list[str]]:
    """Yield the words of each sentence of a file of columns, in which tags may be missing."""
    return ([columns[0] for _, columns in sentence] for sentence in _sentences(path, width=1))


def read_tagged(path: Path) -> Iterator[TaggedWords]:
    """Yield the words and the tags of each sentence of a file of columns."""
    sentences = [
        [(number, [columns[0], _tag(columns[-1], f"{path} line {number}")]) for number, columns in sentence]
        for sentence in _sentences(path, width=2)
    ]
    tags = Counter(columns[-1] for sentence in sentences for _, columns in sentence)
    entities = sum(count for tag, count in tags.items() if tag != "O" and ENTITY.fullmatch(tag))
    others = tags.total() - entities - tags["O"]
    for number, columns in (line for sentence in sentences for line in sentence if entities):
        if not are_entity_tags([columns[-1]]) and entities >= others:
            raise GlocalError(
                f"{path} line {number} has tag {columns[-1][:40]!r}; expected O, or B, I, E or S and a type of entity "
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
    """Yield each sentence of a file of `width` columns or more: the number and the columns of each line.

    Columns are separated by tabs, or else by spaces. Lines that begin a document, a header, and comments before a
    sentence are left out. Raises GlocalError if lines have different numbers of columns, or the first column holds
    numbers in place of words.
    """
    if kind_of(path) in (*TABLES[1:], "json"):
        expected_names = f".{', .'.join(EXTENSIONS)}, also with .gz"
        raise GlocalError(f"{path} is not a file of columns by its name; expected {expected_names}")
    lines = [
        (number, [compose(column).strip() for column in _cut(line)]) for number, line in enumerate(read_lines(path), 1)
    ]
    words = [columns for _, columns in lines if columns and not columns[0].startswith(("#", "-DOCSTART-"))]
    expected = len(words[0]) if words else width
    tags = {"O", *(columns[-1] for columns in words)}
    sentence: list[tuple[int, list[str]]] = []
    begun = False
    header: list[str] | None = None
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
            begun, header = True, columns
        elif columns == header:
            raise GlocalError(f"{path} line {number} repeats the header, the names of the columns; remove that line")
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
    """Whether a line before a sentence is a comment; # may also be a word that has a tag."""
    return columns[0].startswith("#") and (len(columns) != expected or (expected > 1 and columns[-1] not in tags))
