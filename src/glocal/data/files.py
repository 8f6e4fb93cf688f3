"""Iterators over the lines, rows or records of a file.

Training, testing, predicting and explaining all read files by these functions, with these rules:

- A line ends at a newline, with or without the carriage return of Windows before it, and at no other character.
- Text is UTF-8, with or without a byte order mark, plain or gzipped.
- A line of white space alone is no row of a table. In a file of plain lines, it is a line.
"""

import csv
import gzip
import io
import json
import os
import unicodedata
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from gzip import GzipFile
from pathlib import Path
from typing import Any

import pyarrow
from pyarrow import parquet

from glocal.errors import GlocalError
from glocal.files import JSONObject, parse_json

TABLES = ("tsv", "csv", "jsonl", "parquet")
LONGEST_LINE = 2**28
"""Bytes of the longest line that is read, 256 MiB, for JSON files of one line."""
GZIP = b"\x1f\x8b"
"""The first bytes of a gzipped file."""
EXPANSION = 200
"""Largest ratio of a gzipped file's content to its size; text stays far below."""
SMALL = 2**26
"""Bytes of content up to which the ratio is not checked."""

Record = JSONObject
"""A row of a table: the values by the names of their columns."""


def kind_of(path: Path) -> str:
    """Return the ending of a file's name in small letters, without .gz."""
    return path.name.lower().removesuffix(".gz").rpartition(".")[2]


def compose(text: str) -> str:
    """Compose accents (Unicode NFC), the form in which texts and labels are compared; a lone surrogate becomes ?."""
    return text if text.isascii() else unicodedata.normalize("NFC", text.encode(errors="replace").decode())


def source_path(name: str) -> Path:
    """Return a source's name as a path; ~ stands for a home folder. Raises GlocalError if a user has none."""
    try:
        return Path(name).expanduser()
    except RuntimeError:
        raise GlocalError(f"{name[:80]!r} names no home folder of this machine; give the whole path") from None


# -------------------------------------------------------------------------------------------------------------- folders


def entries(folder: str | Path) -> list[os.DirEntry[str]]:
    """Return the entries of a folder by name, without hidden ones; the order decides labels and splits.

    Raises GlocalError if one is a link that leads nowhere: without its file, less data would be used than is meant.
    """
    with os.scandir(folder) as found:
        visible = [entry for entry in found if not entry.name.startswith((".", "__MACOSX"))]
    for entry in visible:
        if entry.is_symlink() and not os.path.exists(entry.path):  # noqa: PTH110  # pathlib's is slow for many files
            target = os.readlink(entry.path)  # noqa: PTH115
            raise GlocalError(
                f"{entry.path} is a link to {target}, which leads nowhere; restore it, or remove the link"
            )
    return sorted(visible, key=lambda entry: entry.name)


def files_below(
    folder: str | Path, wanted: Callable[[str], bool], above: frozenset[tuple[int, int]] = frozenset()
) -> Iterator[str]:
    """Yield the files in and below a folder whose names are wanted, by name; links are followed, but not in circles."""
    status = os.stat(folder)  # noqa: PTH116  # DirEntry's paths are strings
    place = status.st_dev, status.st_ino
    if place in above:
        return
    for entry in entries(folder):
        if entry.is_dir():
            yield from files_below(entry.path, wanted, above | {place})
        elif entry.is_file() and wanted(entry.name):
            yield entry.path


# ---------------------------------------------------------------------------------------------------------------- lines


def read_chunks(path: Path) -> Iterator[bytes]:
    """Yield the lines of a file as bytes, plain or gzipped, as its name or its first bytes say.

    Raises GlocalError if a gzipped file is damaged or expands more than text does, and where a line is too long.
    """
    size, read = path.stat().st_size, 0
    with path.open("rb") as file:
        gzipped = path.suffix.lower() == ".gz" or file.peek(2).startswith(GZIP)
        try:
            for number, line in enumerate(_lines(GzipFile(fileobj=file) if gzipped else file), start=1):
                if len(line) > LONGEST_LINE:
                    raise GlocalError(f"{path} line {number} is longer than {LONGEST_LINE >> 20} MiB; expected text")
                read += len(line)
                if gzipped and read > max(SMALL, EXPANSION * size):
                    raise GlocalError(
                        f"{path} expands to more than {EXPANSION} times its size; if it is text, unpack it first"
                    )
                yield line
        except (EOFError, gzip.BadGzipFile, zlib.error):
            raise GlocalError(f"{path} is not a complete gzip file; copy it again") from None


def _lines(file: io.BufferedIOBase) -> Iterator[bytes]:
    return iter(lambda: file.readline(LONGEST_LINE + 1), b"")


def read_lines(path: Path) -> Iterator[str]:
    """Yield lines with their ends, plain or gzipped. Raises GlocalError if the file is damaged, or not UTF-8."""
    return decode_lines(str(path), read_chunks(path))


def decode_lines(name: str, lines: Iterable[bytes]) -> Iterator[str]:
    """Decode the lines of a file, or of standard input. Raises GlocalError if one is not UTF-8."""
    for number, line in enumerate(lines, start=1):
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError:
            raise GlocalError(f"{name} line {number} is not UTF-8; convert it, such as by iconv -t UTF-8") from None
        yield f"{text[:-2]}\n" if text.endswith("\r\n") else text


def read_json(path: Path) -> Any:
    """Read a file that is one JSON document. Raises GlocalError if it is none."""
    return parse_json("".join(read_lines(path)), str(path))


# --------------------------------------------------------------------------------------------------------------- tables


def read_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield the fields of each row of a TSV or CSV, the header included, with the number of its first line.

    Fields of a TSV are separated by tabs, and quotation marks have no meaning. Raises GlocalError for other files.
    """
    if kind_of(path) == "tsv":
        lines = enumerate(read_lines(path), start=1)
        return ((number, line.rstrip("\n").split("\t")) for number, line in lines if line.strip())
    if kind_of(path) == "csv":
        return _csv(path)
    raise GlocalError(f"{path} is not a file of rows by its name; expected .tsv or .csv, also with .gz")


def read_records(path: Path) -> Iterator[Record]:
    """Yield the rows of a table. Raises GlocalError if the file's name is no table's, or the file is damaged.

    A row with more or fewer fields than the header of its TSV or CSV has None in every column.
    """
    kind = kind_of(path)
    if kind in ("tsv", "csv"):
        return _below_header(path)
    if kind == "jsonl":
        return _jsonl(path)
    if kind == "parquet":
        return _parquet(path)
    raise GlocalError(f"{path} is not a file of columns by its name; expected .{', .'.join(TABLES)}, also with .gz")


def read_header(path: Path, fields: Iterable[str]) -> list[str]:
    """Return the names of the columns in a header. Raises GlocalError if two columns have one name."""
    header = [compose(field).strip() for field in fields]
    twice = [name for name, count in Counter(header).items() if count > 1 and name]
    if twice:
        raise GlocalError(f"{path} names two columns {twice[0][:40]!r}; rename one of them")
    return header


def check_row(path: Path, line: int, row: Sequence[str], header: Sequence[str]) -> None:
    """Raise GlocalError if a row repeats the header, as when tables were joined: it would become an example."""
    if len(row) != len(header) or len(row) < 2 or row[-1].strip() != header[-1]:
        return
    if [compose(field).strip().removeprefix("\ufeff") for field in row] == header:
        raise GlocalError(f"{path} line {line} repeats the header, the names of the columns; remove that line")


def check_columns(name: str, columns: Collection[str], wanted: Iterable[str], field: str) -> None:
    """Raise GlocalError unless every wanted column exists; `field` is the config's field of their names."""
    for column in wanted:
        if column not in columns:
            raise GlocalError(f"{name} has no column {column!r}; expected {field} to name some of {listed(columns)}")


def listed(columns: Iterable[str]) -> str:
    """Return the columns of a table as an error lists them, on one line."""
    names = [one_line(column)[:30] for column in columns]
    return ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")


def one_line(message: object) -> str:
    """Return a message of another library or a file on one line, without control characters."""
    return "".join(letter if letter.isprintable() else "?" for letter in " ".join(str(message).split()))[:200]


def _below_header(path: Path) -> Iterator[Record]:
    rows = read_rows(path)
    header = read_header(path, next(rows, (1, []))[1])
    for number, row in rows:
        check_row(path, number, row, header)
        yield dict(zip(header, row, strict=True)) if len(row) == len(header) else dict.fromkeys(header)


def _csv(path: Path) -> Iterator[tuple[int, list[str]]]:
    csv.field_size_limit(LONGEST_LINE)  # the library's limit is 128 KiB
    rows = csv.reader(read_lines(path), strict=True)
    begins = 1
    try:
        for row in rows:
            if any(field.strip() for field in row):
                yield begins, row
            begins = rows.line_num + 1
    except csv.Error as error:
        reason = "a carriage return stands outside of quotes" if "new-line" in str(error) else error
        raise GlocalError(f"{path} line {begins} begins a row that is not CSV: {reason}") from None


def _jsonl(path: Path) -> Iterator[Record]:
    for number, line in enumerate(read_lines(path), start=1):
        if not line.strip():
            continue
        record = parse_json(line, f"{path} line {number}")
        if not isinstance(record, dict):
            raise GlocalError(f"{path} line {number} is not a JSON object; expected one on each line")
        yield record


def _parquet(path: Path) -> Iterator[Record]:
    try:
        with parquet.ParquetFile(path) as file:
            schema = file.schema_arrow
            if len(set(schema.names)) < len(schema.names):
                raise GlocalError("two columns have one name; rename one of them")
            classes = _named_classes(schema)
            for batch in file.iter_batches(1000):
                for record in batch.to_pylist():
                    yield record | {column: named_class(names, record[column]) for column, names in classes.items()}
    except GlocalError as error:
        raise GlocalError(f"{path}: {error}") from None
    # A damaged file makes pyarrow raise its own errors, and Python's where it decodes columns.
    except (pyarrow.ArrowException, ArithmeticError, LookupError, MemoryError, OSError, TypeError, ValueError) as error:
        raise GlocalError(f"{path} is not a readable Parquet file: {one_line(error)}") from None


def _named_classes(schema: pyarrow.Schema) -> dict[str, list[str]]:
    """Return the class names that the `datasets` library has stored with a table, for each column of class numbers."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {
            column: feature["names"]
            for column, feature in features.items()
            if column in schema.names and feature["_type"] == "ClassLabel" and isinstance(feature["names"], list)
        }
    except (AttributeError, LookupError, TypeError, ValueError):  # no such metadata, or of another version
        return {}


def named_class(names: Sequence[str], number: object) -> str | None:
    """Return the name of a class by its number, None for -1 and None. Raises GlocalError for any other value."""
    if number in (None, -1):
        return None
    if not isinstance(number, int) or not 0 <= number < len(names):
        raise GlocalError(
            f"a row has the class {number!r:.40}; expected 0 to {len(names) - 1}, as it names its classes"
        )
    return names[number]
