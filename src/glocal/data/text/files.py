"""One file, or two aligned ones, to the rows of two texts that they hold."""

import csv
import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from gzip import GzipFile
from pathlib import Path
from typing import Any

import pyarrow
from pyarrow import parquet

from glocal.errors import GlocalError

TABLES = ("tsv", "csv", "jsonl", "parquet")

Row = tuple[Any, Any]
"""The two texts of a pair; something else where a line does not hold two."""


def read_aligned(first: Path, second: Path) -> Iterator[Row]:
    """Pair the lines of two files. Raises GlocalError where one has more than the other."""
    left, right = list(_lines(first)), list(_lines(second))
    if len(left) != len(right):
        raise GlocalError(
            f"{first} has {len(left)} lines and {second} has {len(right)}; expected as many, each the translation of "
            "the same line of the other"
        )
    yield from zip(left, right, strict=True)


def read_table(path: Path, languages: tuple[str, str]) -> Iterator[Row]:
    """Read the columns named after the languages. Raises GlocalError where it lacks one, or is damaged."""
    kind = path.name.removesuffix(".gz").rpartition(".")[2]
    if kind == "tsv":
        return _columns(path, _tsv(path), languages)
    if kind == "csv":
        return _columns(path, _csv(path), languages)
    if kind == "jsonl":
        return pick_columns(str(path), _jsonl(path), languages)
    if kind == "parquet":
        return pick_columns(str(path), _parquet(path), languages)
    raise GlocalError(f"{path} is no file of two columns by its name; expected .{', .'.join(TABLES)}, also with .gz")


def pick_columns(name: str, records: Iterable[dict[str, Any]], languages: tuple[str, str]) -> Iterator[Row]:
    """Pick two columns out of records; much of the hub keeps them one level down, in a column `translation`."""
    for number, record in enumerate(records):
        inner = record.get("translation")
        columns = inner if isinstance(inner, dict) else record
        if number == 0:
            _check_columns(name, list(columns), languages)
        yield columns.get(languages[0]), columns.get(languages[1])


def _columns(path: Path, rows: Iterator[list[str]], languages: tuple[str, str]) -> Iterator[Row]:
    """Read a header, then the rows below it."""
    header = next(rows, None)
    if header is None:
        return
    _check_columns(str(path), header, languages)
    first, second = map(header.index, languages)
    for row in rows:
        yield (row[first], row[second]) if len(row) == len(header) else (None, None)


def _check_columns(name: str, columns: Sequence[str], languages: tuple[str, str]) -> None:
    for language in languages:
        if language not in columns:
            raise GlocalError(f"{name} has no column {language!r}; name two of {', '.join(columns)} in data.languages")


def _tsv(path: Path) -> Iterator[list[str]]:
    """Cut at tabs alone: a quotation mark is a letter like others."""
    return (line.rstrip("\r\n").split("\t") for line in _lines(path))


def _csv(path: Path) -> Iterator[list[str]]:
    rows = csv.reader(_lines(path), strict=True)
    try:
        yield from rows
    except csv.Error as error:
        raise GlocalError(f"{path} line {rows.line_num} is no CSV: {error}") from None


def _jsonl(path: Path) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(_lines(path), start=1):
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if not isinstance(record, dict):
            raise GlocalError(f"{path} line {number} is no JSON object; expected one a line")
        yield record


def _parquet(path: Path) -> Iterator[dict[str, Any]]:
    try:
        for batch in parquet.ParquetFile(path).iter_batches(1000):
            yield from batch.to_pylist()
    except pyarrow.ArrowInvalid as error:
        raise GlocalError(f"{path} is no Parquet file: {error}") from None


def _lines(path: Path) -> Iterator[str]:
    """Read the lines of a text file, plain or gzipped. Raises GlocalError where it is damaged, or not UTF-8."""
    number = 0
    with path.open("rb") as file:
        try:
            for number, line in enumerate(GzipFile(fileobj=file) if path.suffix == ".gz" else file, start=1):
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError:
            raise GlocalError(f"{path} line {number} is not UTF-8; convert it, such as by iconv -t UTF-8") from None
        except (EOFError, zlib.error):
            raise GlocalError(f"{path} is no whole gzip file; copy it again") from None
