"""Sources of documents for pre-training, and how documents are cut into pieces, sentences and splits.

Only some lines of a document are in memory at a time, so that sources may be larger than memory.
"""

import hashlib
import io
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache, partial
from itertools import chain, islice
from pathlib import Path

import numpy as np

from glocal.data import pydoc
from glocal.data.files import (
    TABLES,
    Record,
    check_columns,
    compose,
    entries,
    files_below,
    kind_of,
    read_lines,
    read_records,
    source_path,
)
from glocal.data.hub import is_hub_name, load_hub
from glocal.data.splits import Splits, split_of, warn_of_unread_splits
from glocal.data.text_config import DocumentsConfig
from glocal.data.text_sources import VOCABULARY, Examples, Parts, chained, for_testing, survey
from glocal.errors import GlocalError

Document = Iterable[str]
"""The lines of a document, with their ends, each read on demand."""

KINDS = ("txt", *TABLES)
PIECE = 2**16
"""Least characters of a piece of a document, except for the last."""
SENTENCE_END = re.compile(r"""[.!?…]["'”’»)\]]*\s+(?=\S)""")


Documents = Examples[Document]
"""A source of documents; an empty one is left out, and a training document that is in training, val or test already."""


def open_documents(config: DocumentsConfig, testing: bool = False) -> Documents:
    """Open the built-in documentation, a file, a folder or, where no such path exists, a data set of the hub.

    A single training document is opened as up to three, its first, middle and last part: training, and val and test
    where the source names none. With `testing`, only the test split is opened, or all where the source names none.

    Raises GlocalError if there are no documents, or a file is not what its name or the config says.
    """
    documents = _survey(config, partial(_open, config, testing, cache(load_hub)), testing)
    fractions = {"val": config.val_fraction, "test": config.test_fraction}
    lacking = {name: share for name, share in fractions.items() if share and name not in documents.splits}
    if testing or not lacking or len(documents.splits["train"]) > 1:
        return documents
    return _survey(config, partial(_stretches, documents, lacking))


def _survey(config: DocumentsConfig, open_parts: Callable[[], Parts[Document]], testing: bool = False) -> Documents:
    return survey(
        config.source, open_parts, "documents", "one or more", testing, ["empty"], unique=True, measure=measure
    )


def cut_documents(documents: Documents, val_fraction: float, test_fraction: float, seed: int) -> Splits:
    """Keep the splits that the source names, and cut those it lacks from its training documents.

    A fraction counts characters. The split takes random documents as long as they fit. Where none fits, a fraction
    above 0 gets the smallest document, validation before test, if one is left to train on.
    """
    splits = {name: numbers.tolist() for name, numbers in documents.splits.items()}
    size = int(documents.sizes[splits["train"]].sum())
    drawn = np.random.default_rng(seed).permutation(splits["train"]).tolist()
    for name, fraction in {"test": test_fraction, "val": val_fraction}.items():
        if name not in splits:
            splits[name], drawn = _fill(drawn, documents.sizes, fraction * size)
            others = 2 if name == "test" and "val" not in splits and val_fraction else 1
            while splits[name] and len(drawn) < others:
                drawn.append(splits[name].pop())
            if fraction and not splits[name] and len(drawn) > others:
                splits[name] = [min(drawn, key=documents.sizes.__getitem__)]
                drawn.remove(splits[name][0])
            splits["train"] = sorted(drawn)
    return {name: splits[name] for name in ("train", "val", "test")}


def _fill(drawn: list[int], sizes: np.ndarray, limit: float) -> tuple[list[int], list[int]]:
    """Divide documents into some of at most `limit` characters in total, taken in order, and the rest."""
    fit, rest = [], []
    for number in drawn:
        if sizes[number] <= limit:
            fit.append(number)
            limit -= sizes[number]
        else:
            rest.append(number)
    return sorted(fit), rest


def pieces(document: Document) -> Iterator[str]:
    """Join the lines of a document to pieces of at least `PIECE` characters, which are encoded at once.

    A piece ends where white space begins, so that its tokens are those of the document.
    """
    held, size = [], 0
    for line in document:
        held.append(line)
        size += len(line)
        if size >= PIECE and not line.isspace():
            text = "".join(held)
            piece = text.rstrip()
            yield piece
            held, size = [text[len(piece) :]], 0
    yield "".join(held)


def sentences(document: Document) -> Iterator[str]:
    """Yield the sentences of a document.

    A sentence ends with its line, and at . ! ? or … with closing quotes and brackets before white space, unless a small
    letter follows ("e.g. this").
    """
    for line in document:
        start = 0
        for end in SENTENCE_END.finditer(line):
            if not line[end.end()].islower():
                yield line[start : end.end()].strip()
                start = end.end()
        if rest := line[start:].strip():
            yield rest


def sample_pieces(documents: Documents, numbers: Sequence[int]) -> Iterator[str]:
    """Yield pieces of these documents, evenly spaced, of at most `VOCABULARY` characters in total."""
    step = -(-int(documents.sizes[list(numbers)].sum()) // VOCABULARY)
    return islice(chain.from_iterable(map(pieces, documents.read(numbers))), 0, None, max(step, 1))


def measure(document: Document) -> tuple[int, int]:
    """Return the characters of a document, 0 if it is blank, and a hash of 64 bits."""
    digest, size, blank = hashlib.blake2b(digest_size=8), 0, True
    for piece in pieces(document):
        digest.update(piece.encode())
        size += len(piece)
        blank = blank and not piece.strip()
    return 0 if blank else size, int.from_bytes(digest.digest())


def _stretches(documents: Documents, fractions: dict[str, float]) -> Parts[Document]:
    """Open the parts of the single training document as a document each, and the documents of other splits as they are.

    Its last characters are those of `fractions`, in their order; the others are left for training.
    """
    numbers = documents.splits["train"]
    size = int(documents.sizes[numbers].sum())
    parts: Parts[Document] = {
        name: documents.read(some) for name, some in documents.splits.items() if name not in ("train", *fractions)
    }
    start, rest = 0, sum(fractions.values())
    for name in ("train", *fractions):
        rest -= fractions.get(name, 0.0)
        end = int((1 - rest) * size)
        if start < end:
            parts[name] = [_stretch(documents.read(numbers), start, end)]
        start = end
    return parts


def _stretch(document: Iterable[Document], start: int, end: int) -> Document:
    position = 0
    for line in chain.from_iterable(document):
        yield line[max(0, start - position) : max(0, end - position)]
        position += len(line)


# -------------------------------------------------------------------------------------------------------------- sources


def _open(
    config: DocumentsConfig, testing: bool, load: Callable[[str, str], dict[str, Iterable[Record]]]
) -> Parts[Document]:
    name, column, path = config.source, config.column, source_path(config.source)
    parts: Parts[Document]
    if name == pydoc.NAME:
        parts = {"train": map(io.StringIO, pydoc.read_documentation())}
    elif path.is_file() and kind_of(path) in KINDS:
        parts = {"train": _file(path, column)}
    elif name and path.is_dir():
        parts = _folder(path, column)
    elif is_hub_name(name):
        found = load(name, "documents")
        parts = chained(name, {split: _texts(name, table, column) for split, table in found.items()}, "train")
    else:
        raise GlocalError(
            f"{name!r} is not a source of documents; expected a file .{', .'.join(KINDS)}, also with .gz, a folder of "
            f"such files, {pydoc.NAME}, or OWNER/NAME of a data set of the hub"
        )
    if testing:
        return for_testing(parts)
    # Training comes last, so that its duplicates of the others are found.
    return {split: parts[split] for split in ("test", "val", "train") if split in parts}


def _file(path: Path, column: str) -> Iterator[Document]:
    if kind_of(path) == "txt":
        return iter([map(compose, read_lines(path))])
    return _texts(str(path), read_records(path), column)


def _folder(path: Path, column: str) -> Parts[Document]:
    """Open files and folders by the splits that they are named after; if none is, all files below are documents."""
    present = entries(path)
    found = {entry.name: Path(entry) for entry in present if entry.is_dir() or kind_of(Path(entry)) in KINDS}
    if not any(map(split_of, found)):
        return {"train": _below(path, column)}
    warn_of_unread_splits(str(path), [entry.name for entry in present], found)
    parts = {name: _below(each, column) if each.is_dir() else _file(each, column) for name, each in found.items()}
    return chained(str(path), parts, "train.txt")


def _below(path: Path, column: str) -> Iterator[Document]:
    files = files_below(path, lambda name: kind_of(Path(name)) in KINDS)
    return chain.from_iterable(_file(Path(file), column) for file in files)


def _texts(name: str, records: Iterable[Record], column: str) -> Iterator[Document]:
    """Yield the documents of a table; a value that is no text is an empty document."""
    for number, record in enumerate(records):
        if number == 0:
            check_columns(name, record, [column], "data.column")
        text = record.get(column)
        yield io.StringIO(compose(text).replace("\r\n", "\n") if isinstance(text, str) else "")
