"""Tables of texts: the columns of texts and labels, and whether the first line is a header."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path

from glocal.data.files import Record, check_row, compose, kind_of, listed, read_header, read_records, read_rows
from glocal.data.labels import is_visible
from glocal.errors import GlocalError

TEXTS = (("sentence1", "sentence2"), ("premise", "hypothesis"), ("question1", "question2"), ("question", "sentence"),
         ("question", "passage"), ("text",), ("sentence",), ("review",), ("content",), ("question",))  # fmt: skip
"""Usual names of columns of text, pairs first."""
LABELS = ("label", "labels", "class", "category", "score")
"""Usual names of the column of labels."""
HEADERS = {2: ["text", "label"], 3: ["sentence1", "sentence2", "label"]}
"""Columns of a TSV without a header, by their number."""
PROMPTS = ("prompt", "text", "sentence", "content", "source")
"""Usual names of a column of texts to continue, to fill in or to translate."""


def text_columns(names: Iterable[str], given: Sequence[str] | None = None) -> tuple[str, ...] | None:
    """Return the one or two columns of text: those `given`, or usual ones; None where they are missing."""
    present = set(names)
    return next((tuple(each) for each in ([given] if given else TEXTS) if present.issuperset(each)), None)


def labelled_columns(
    names: Iterable[str], texts: Sequence[str] | None = None, label: str | None = None
) -> tuple[str, ...] | None:
    """Return the columns of text, followed by the column of labels; None where one is missing."""
    present = set(names)
    found = text_columns(present, texts)
    labels = next((each for each in ([label] if label else LABELS) if each in present), None)
    return None if found is None or labels is None else (*found, labels)


def read_labelled(path: Path, texts: Sequence[str] | None, label: str | None) -> Iterator[Record]:
    """Yield the records of a table of labelled texts. A TSV whose first line names no such columns has no header.

    Raises GlocalError if rows have different numbers of columns, or where it is unclear whether the first line is a
    header.
    """
    if kind_of(path) not in ("tsv", "csv"):
        return read_records(path)
    return _below_header(path, lambda names: labelled_columns(names, texts, label) is not None, bool(texts or label))


def read_text_inputs(path: Path) -> Iterator[str | tuple[str, str]]:
    """Yield the texts of a table, or its pairs of texts, one a row; "" for a row without a text.

    The columns are found as in training; a column of labels is ignored. Raises GlocalError if there are no such
    columns, and for a TSV of two columns without a header, whose second may be a label or a text.
    """
    if kind_of(path) in ("tsv", "csv"):
        records = _below_header(path, lambda names: text_columns(names) is not None, False, labelled=False)
    else:
        records = read_records(path)
    columns: tuple[str, ...] = ()
    for record in records:
        columns = columns or text_columns(record) or ()
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


def read_prompts(path: Path) -> Iterator[str]:
    """Yield the texts of a table to continue, to fill in or to translate, one a row; "" for a row without one.

    Raises GlocalError if no column has a usual name.
    """
    for record in read_records(path):
        column = next((name for name in PROMPTS if name in record), None)
        if column is None:
            raise GlocalError(
                f"{path} has the columns {listed(record)}; expected one named {', '.join(PROMPTS[:-1])} or "
                f"{PROMPTS[-1]}, or a .txt file with one text a line"
            )
        text = record[column]
        yield compose(text) if isinstance(text, str) and is_visible(text) else ""


def _below_header(
    path: Path, is_header: Callable[[Sequence[str]], bool], named: bool, labelled: bool = True
) -> Iterator[Record]:
    """Yield the rows of a TSV or CSV by columns. There is a header if `named`, that is, if the config names columns."""
    rows = read_rows(path)
    line, first = next(rows, (1, []))
    headless = (
        kind_of(path) == "tsv"
        and not named
        and len(first) in HEADERS
        and not is_header([name.strip() for name in first])
    )
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
        check_row(path, number, row, header)
        tally[row[-1]] += 1
        yield dict(zip(header, row, strict=True))
    if headless and labelled and _names_no_class(first[-1], tally):
        raise GlocalError(
            f"the class {first[-1]!r} of {path} line 1 occurs in no other line; if that line is a header, name its "
            "columns in data.texts and data.label, and if not, add more of that class"
        )


def _names_no_class(name: str, tally: Counter[str]) -> bool:
    """Whether the last field of the first line is probably no class, by the numbers of the last fields."""
    others = tally - Counter([name])
    if not others or name in others:
        return False
    numbered = all(map(_is_number, others)) and not _is_number(name)
    return numbered or min(others.values()) > 1


def _is_number(label: str) -> bool:
    return label.strip().lstrip("+-").isdecimal()
