"""Where documents come from. Every source becomes the same: documents one after the other, and a survey of them.

No more of a source than a document's next lines is in memory, so it may be larger than that.
"""

import hashlib
import io
import re
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import chain, compress, islice
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

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
from glocal.data.progress import progress
from glocal.data.splits import Splits, split_of
from glocal.data.text_config import DocumentsConfig
from glocal.data.text_sources import VOCABULARY, chained, for_testing, is_hub_name, load_hub, reading
from glocal.errors import GlocalError

Document = Iterable[str]
"""The lines of one, with their ends, each read when its turn comes."""
Parts = dict[str, Iterable[Document]]
"""The documents of each split that a source names, in the order of the source; `train` alone where it names none."""

KINDS = ("txt", *TABLES)
PIECE = 2**16
"""Characters from which on a piece of a document is long enough."""
SENTENCE_END = re.compile(r"""[.!?…]["'”’»)\]]*\s+(?=\S)""")


@dataclass(frozen=True)
class Documents:
    """A source of documents, to be read as often as need be, and what the first reading has found."""

    name: str
    """As the user gave it."""
    open: Callable[[], Parts]
    """Opens the source once more."""
    splits: dict[str, np.ndarray]
    """Numbers of the documents, for each of train, val and test that the source names; `train` is always there."""
    sizes: np.ndarray
    """Characters of each document; 0 where there is nothing but white space."""
    digests: np.ndarray
    """uint64, by which each document is known."""

    @property
    def usable(self) -> np.ndarray:
        """Mask of the documents that have a text; of training documents, one that stands nowhere before."""
        first = np.zeros(len(self.sizes), dtype=bool)
        first[np.unique(self.digests, return_index=True)[1]] = True
        for split in self.splits.keys() - {"train"}:
            first[self.splits[split]] = True
        return first & (self.sizes > 0)

    @property
    def counts(self) -> dict[str, int]:
        """Count the `documents`, and of them those left out.

        They are `empty`, or a training document that stands in training, val or test already: a `duplicate`.
        """
        empty, usable = int((self.sizes == 0).sum()), int(self.usable.sum())
        return {"documents": len(self.sizes), "empty": empty, "duplicate": len(self.sizes) - empty - usable}

    def fingerprint(self) -> str:
        """Tell this data from data of other documents or splits."""
        sizes = {name: len(indices) for name, indices in self.splits.items()}
        return hashlib.sha256(repr(sizes).encode() + self.digests.tobytes()).hexdigest()[:16]

    def read(self, numbers: ArrayLike) -> Iterator[Document]:
        """Read the documents of these numbers, in the order of the source."""
        wanted = np.isin(np.arange(len(self.sizes)), numbers)
        yield from compress(chain.from_iterable(self.open().values()), wanted)

    def sample(self, numbers: Sequence[int]) -> Iterator[str]:
        """Read pieces of these documents, evenly spaced, of at most `VOCABULARY` characters together."""
        total = int(self.sizes[list(numbers)].sum())
        step = -(-total // VOCABULARY)
        return islice(chain.from_iterable(map(pieces, self.read(numbers))), 0, None, max(step, 1))


def open_documents(config: DocumentsConfig, testing: bool = False) -> Documents:
    """Open the built-in documentation, a file, a folder or, where no such path exists, a data set of the hub.

    A source that is one document is opened as the stretches of it that are training, val and test. For `testing`, only
    the test split is opened; where the source names none, all of it is.

    Raises GlocalError where there is nothing to learn from, or a file is not what its name or the config says.
    """
    documents = _survey(config.source, partial(_open, config, testing, cache(load_hub)))  # asked for once
    wanted, usable = "test" if testing else "train", documents.usable
    if not usable[documents.splits[wanted]].any():
        found = ", ".join(f"{count} {what}" for what, count in documents.counts.items())
        raise GlocalError(f"{config.source} has no {wanted} documents to use, of {found}; expected one or more")
    if testing or len(documents.splits) > 1 or usable.sum() > 1:
        return documents
    return _survey(config.source, partial(_stretches, documents, config.val_fraction, config.test_fraction))


def cut_documents(documents: Documents, val_fraction: float, test_fraction: float, seed: int) -> Splits:
    """Keep the splits that the source names, and cut those it lacks from its training documents.

    A fraction counts characters, of which documents may have very many or few: the split takes documents at random that
    still fit into it. Where none does, a fraction above 0 gets the smallest, validation before test, as long as one is
    left to train on.
    """
    usable = documents.usable
    splits = {name: numbers[usable[numbers]].tolist() for name, numbers in documents.splits.items()}
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
    """Divide documents into those that have at most `limit` characters together, taken in order, and the rest."""
    fit, rest = [], []
    for number in drawn:
        if sizes[number] <= limit:
            fit.append(number)
            limit -= sizes[number]
        else:
            rest.append(number)
    return sorted(fit), rest


def pieces(document: Document) -> Iterator[str]:
    """Gather lines to pieces that are long enough to encode at once, and short enough to be held.

    A piece ends where white space begins, so that its tokens are those of the whole.
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
    """Cut a document into sentences.

    One ends with its line, and at . ! ? or … before white space, closing quotes and brackets counted in, unless a small
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


def _survey(name: str, open_parts: Callable[[], Parts]) -> Documents:
    sizes, digests = array("q"), array("Q")
    splits = {"train": np.arange(0)}
    with reading(name):
        for split, documents in open_parts().items():
            first = len(sizes)
            for document in progress(documents, f"Reading {split}"):
                digest, size, blank = hashlib.blake2b(digest_size=8), 0, True
                for piece in pieces(document):
                    digest.update(piece.encode())
                    size += len(piece)
                    blank = blank and not piece.strip()
                sizes.append(0 if blank else size)
                digests.append(int.from_bytes(digest.digest()))
            splits[split] = np.arange(first, len(sizes))
    return Documents(name, open_parts, splits, np.array(sizes), np.array(digests))


def _stretches(whole: Documents, val_fraction: float, test_fraction: float) -> Parts:
    """Open the first, the middle and the last part of a single document as a document each."""
    size = int(whole.sizes.sum())
    ends = {
        "train": int((1 - val_fraction - test_fraction) * size),
        "val": int((1 - test_fraction) * size),
        "test": size,
    }
    starts = {"train": 0, "val": ends["train"], "test": ends["val"]}
    return {split: [_stretch(whole, starts[split], ends[split])] for split in ends if starts[split] < ends[split]}


def _stretch(whole: Documents, start: int, end: int) -> Document:
    position = 0
    for line in chain.from_iterable(whole.read(np.flatnonzero(whole.usable))):
        yield line[max(0, start - position) : max(0, end - position)]
        position += len(line)


# -------------------------------------------------------------------------------------------------------------- sources


def _open(config: DocumentsConfig, testing: bool, load: Callable[[str, str], dict[str, Iterable[Record]]]) -> Parts:
    name, column, path = config.source, config.column, source_path(config.source)
    parts: Parts
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
            f"{name!r} is no source of documents; expected a file .{', .'.join(KINDS)}, also with .gz, a folder of "
            f"such files, {pydoc.NAME}, or OWNER/NAME of a data set of the hub"
        )
    if testing:
        return for_testing(parts)
    # Training comes last: it must not repeat the others.
    return {split: parts[split] for split in ("test", "val", "train") if split in parts}


def _file(path: Path, column: str) -> Iterator[Document]:
    if kind_of(path) == "txt":
        return iter([map(compose, read_lines(path))])
    return _texts(str(path), read_records(path), column)


def _folder(path: Path, column: str) -> Parts:
    """Files and folders by the splits that they are named after; where none is, all files below are documents."""
    found = {entry.name: Path(entry) for entry in entries(path) if entry.is_dir() or kind_of(Path(entry)) in KINDS}
    if not any(map(split_of, found)):
        return {"train": _below(path, column)}
    parts = {name: _below(each, column) if each.is_dir() else _file(each, column) for name, each in found.items()}
    return chained(str(path), parts, "train.txt")


def _below(path: Path, column: str) -> Iterator[Document]:
    files = files_below(path, lambda name: kind_of(Path(name)) in KINDS)
    return chain.from_iterable(_file(Path(file), column) for file in files)


def _texts(name: str, records: Iterable[Record], column: str) -> Iterator[Document]:
    """Pick the documents out of a table; what is no text is read as an empty one."""
    for number, record in enumerate(records):
        if number == 0:
            check_columns(name, record, [column], "data.column")
        text = record.get(column)
        yield io.StringIO(compose(text).replace("\r\n", "\n") if isinstance(text, str) else "")
