"""Encoding of a source's examples as columns of numbers, chunk by chunk."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import DTypeLike

from glocal.data.encoding import Row
from glocal.data.memmap import Part
from glocal.data.progress import progress
from glocal.data.text_sources import Examples

E = TypeVar("E")

TOGETHER = 1000
"""Examples that are encoded at a time, on all cores."""
COUNT = "count."
"""Prefix of the columns that count examples, a number for each chunk."""


class Encoded(NamedTuple):
    """Encoded examples."""

    rows: Sequence[Sequence[Row]]
    """The rows of each example; a long one may have several, one that is too long has none."""
    counts: Mapping[str, int]
    """How many examples were shortened, cut or dropped, by their names in the report; always the same names."""


Encode = Callable[[Sequence[E]], Encoded]
"""Encodes some examples."""


class Chunk(NamedTuple):
    """Rows of some examples."""

    owners: list[int]
    """The number of each row's example."""
    rows: list[Row]
    counts: Mapping[str, int]


def encode_chunks(examples: Examples[E], encode: Encode[E]) -> Iterator[Chunk]:
    """Yield the chunks of a source, in the order of its examples.

    From the second chunk on, a thread encodes the next chunk while the caller writes the last.
    """
    items = progress(examples.read(), "Encoding", len(examples.labels))

    def chunk_of(number: int, some: list[E]) -> Chunk:
        encoded = encode(some)
        owners = [owner for owner, rows in enumerate(encoded.rows, start=number) for _ in rows]
        return Chunk(owners, [row for rows in encoded.rows for row in rows], encoded.counts)

    some = list(islice(items, TOGETHER))
    if some:
        yield chunk_of(0, some)
    with ThreadPoolExecutor(1) as thread:
        number, ahead = len(some), None
        while some := list(islice(items, TOGETHER)):
            last, ahead = ahead, thread.submit(chunk_of, number, some)
            number += len(some)
            if last is not None:
                yield last.result()
        if ahead is not None:
            yield ahead.result()


def is_value(column: str) -> bool:
    """Whether a column holds values of rows."""
    return column != "owner" and not column.endswith(".ends") and not column.startswith(COUNT)


def column_kinds(chunk: Chunk, vocab_size: int) -> dict[str, DTypeLike]:
    """Return the columns of a chunk and their types; a column of lists has a second column, the ends of the lists."""
    kinds: dict[str, DTypeLike] = dict.fromkeys(["owner", *(f"{COUNT}{name}" for name in chunk.counts)], np.int64)
    for name, value in chunk.rows[0].items() if chunk.rows else ():
        kinds[name] = np.uint16 if name == "input_ids" and vocab_size <= 2**16 else value.dtype
        if value.ndim:
            kinds[f"{name}.ends"] = np.int64
    return kinds


def columns_of(chunks: Iterable[Chunk], kinds: Mapping[str, DTypeLike]) -> Iterator[Part]:
    """Yield the columns of rows, a chunk at a time."""
    sizes = {name: 0 for name in kinds if is_value(name)}
    for chunk in chunks:
        yield from ((f"{COUNT}{name}", [count]) for name, count in chunk.counts.items())
        if not chunk.rows:
            continue
        yield "owner", chunk.owners
        for name in sizes:
            values = [row[name] for row in chunk.rows]
            if f"{name}.ends" not in kinds:
                yield name, np.stack(values)
                continue
            yield name, np.concatenate(values)
            ends = sizes[name] + np.cumsum([len(value) for value in values])
            yield f"{name}.ends", ends
            sizes[name] = int(ends[-1])
