"""Files of text, to the lines, rows or records that they hold, each read when its turn comes."""

import csv
import json
import zlib
from collections.abc import Collection, Iterable, Iterator
from gzip import GzipFile
from pathlib import Path
from typing import Any

import pyarrow
from pyarrow import parquet

from glocal.errors import GlocalError

TABLES = ("tsv", "csv", "jsonl", "parquet")

Record = dict[str, Any]
"""What the columns hold, by their names."""
Row = tuple[Any, Any]
"""The two texts of a pair; something else where a line does not hold two."""


def kind_of(path: Path) -> str:
    """Return the suffix that says what a file holds, before a .gz."""
    return path.name.removesuffix(".gz").rpartition(".")[2]


def read_lines(path: Path) -> Iterator[str]:
    """Read lines with their ends, plain or gzipped. Raises GlocalError where the file is damaged, or not UTF-8."""
    number = 0
    with path.open("rb") as file:
        try:
            for number, line in enumerate(GzipFile(fileobj=file) if path.suffix == ".gz" else file, start=1):
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError:
            raise GlocalError(f"{path} line {number} is not UTF-8; convert it, such as by iconv -t UTF-8") from None
        except (EOFError, zlib.error):
            raise GlocalError(f"{path} is no whole gzip file; copy it again") from None


def read_rows(path: Path) -> Iterator[list[str]]:
    """Read the fields of a TSV's or a CSV's rows, a header among them. Raises GlocalError where it is no such file.

    A TSV is cut at tabs alone: a quotation mark is a letter like others.
    """
    if kind_of(path) == "tsv":
        return (line.rstrip("\r\n").split("\t") for line in read_lines(path))
    if kind_of(path) == "csv":
        return _csv(path)
    raise GlocalError(f"{path} is no file of rows by its name; expected .tsv or .csv, also with .gz")


def read_records(path: Path) -> Iterator[Record]:
    """Read a table of named columns. Raises GlocalError where the file is none by its name, or is damaged.

    A row that has not as many fields as the header of its TSV or CSV holds None in every column.
    """
    kind = kind_of(path)
    if kind in ("tsv", "csv"):
        return _below_header(read_rows(path))
    if kind == "jsonl":
        return _jsonl(path)
    if kind == "parquet":
        return _parquet(path)
    raise GlocalError(f"{path} is no file of columns by its name; expected .{', .'.join(TABLES)}, also with .gz")


def check_columns(name: str, columns: Collection[str], wanted: Iterable[str], field: str) -> None:
    """Raise GlocalError unless every wanted column is there; `field` is where the config names them."""
    for column in wanted:
        if column not in columns:
            raise GlocalError(f"{name} has no column {column!r}; expected {field} to name some of {', '.join(columns)}")


# ---------------------------------------------------------------------------------------------------------------- pairs


def read_aligned(first: Path, second: Path) -> Iterator[Row]:
    """Pair the lines of two files. Raises GlocalError where one has more than the other."""
    left, right = list(read_lines(first)), list(read_lines(second))
    if len(left) != len(right):
        raise GlocalError(
            f"{first} has {len(left)} lines and {second} has {len(right)}; expected as many, each the translation of "
            "the same line of the other"
        )
    yield from zip(left, right, strict=True)


def read_table(path: Path, languages: tuple[str, str]) -> Iterator[Row]:
    """Read the columns named after the languages. Raises GlocalError where it lacks one, or is damaged."""
    return pick_columns(str(path), read_records(path), languages)


def pick_columns(name: str, records: Iterable[Record], languages: tuple[str, str]) -> Iterator[Row]:
    """Pick two columns out of records; much of the hub keeps them one level down, in a column `translation`."""
    for number, record in enumerate(records):
        inner = record.get("translation")
        columns = inner if isinstance(inner, dict) else record
        if number == 0:
            check_columns(name, columns, languages, "data.languages")
        yield columns.get(languages[0]), columns.get(languages[1])


# ----------------------------------------------------------------------------------------------------- kinds of tables


def _below_header(rows: Iterator[list[str]]) -> Iterator[Record]:
    header = next(rows, [])
    for row in rows:
        yield dict(zip(header, row, strict=True)) if len(row) == len(header) else dict.fromkeys(header)


def _csv(path: Path) -> Iterator[list[str]]:
    rows = csv.reader(read_lines(path), strict=True)
    try:
        yield from rows
    except csv.Error as error:
        raise GlocalError(f"{path} line {rows.line_num} is no CSV: {error}") from None


def _jsonl(path: Path) -> Iterator[Record]:
    for number, line in enumerate(read_lines(path), start=1):
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if not isinstance(record, dict):
            raise GlocalError(f"{path} line {number} is no JSON object; expected one a line")
        yield record


def _parquet(path: Path) -> Iterator[Record]:
    try:
        for batch in parquet.ParquetFile(path).iter_batches(1000):
            yield from batch.to_pylist()
    except pyarrow.ArrowInvalid as error:
        raise GlocalError(f"{path} is no Parquet file: {error}") from None
