"""Reports as a single HTML file with its figures, without scripts or links to other files.

    write_page("report.html", "Digits", [
        Section("", [Numbers({"test accuracy": "98.9 %", "parameters": "0.2 M"})]),
        Section("Models", [Table(["model", Column("top-1", ".1%", best=max)], [["vit", 0.989], ["resnet18", 0.982]])]),
        Section("Training", [Picture(figures.training_curves(runs), "Every epoch, on the validation split.")]),
    ])

`page.html` is the template. The page has a light and a dark theme, and is printed with all folds open.
"""

import re
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from io import StringIO
from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.figure import Figure

from glocal.reports.figures.style import HAIRLINE, INK, MUTED, SERIES

# The colours of figures in the light and the dark theme; figures are SVG within the page, so that themes apply to them.
DARK_SERIES = ("#5aaee6", "#f0894a", "#3fc59c", "#e0a1c6", "#f0bc4a", "#9ad4f5")
THEME = {"ink": (INK, "#e8e5de"), "muted": (MUTED, "#a39e94"), "hairline": (HAIRLINE, "#3b3934")} | {
    f"series-{i}": pair for i, pair in enumerate(zip(SERIES, DARK_SERIES, strict=True))
}


@dataclass(frozen=True)
class Text:
    """Paragraphs, with an empty line between them."""

    text: str


@dataclass(frozen=True)
class Code:
    """Text in a fixed width: a command, a recipe."""

    text: str


@dataclass(frozen=True)
class Numbers:
    """A few important numbers in large type: their names and values."""

    values: Mapping[str, str]


@dataclass(frozen=True)
class Column:
    """A table's column."""

    name: str
    format: str = ""
    """Python's format specification for its cells, such as `.1%`."""
    best: Callable[..., object] | None = None
    """`max` or `min` marks the best cells."""


@dataclass(frozen=True)
class Table:
    """Rows of cells; None is an empty cell, and numbers are aligned to the right."""

    columns: Sequence[str | Column]
    rows: Sequence[Sequence[object]]
    caption: str = ""


@dataclass(frozen=True)
class Picture:
    """A matplotlib figure, or the path of a PNG."""

    figure: Figure | Path
    caption: str


@dataclass(frozen=True)
class Fold:
    """Parts that are hidden until a click on the title."""

    title: str
    parts: Sequence["Part"]


Part = Text | Code | Numbers | Table | Picture | Fold


@dataclass(frozen=True)
class Section:
    """A heading and its parts."""

    title: str
    parts: Sequence[Part]


def write_page(path: str | Path, title: str, sections: Sequence[Section], subtitle: str = "") -> Path:
    """Write the page and return its path; a missing folder is made."""
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    environment.filters |= {"kind": lambda part: type(part).__name__, "drawn": _drawn, "cells": _cells}
    template = environment.from_string(resources.files(__package__).joinpath("page.html").read_text("utf-8"))
    page = template.render(title=title, subtitle=subtitle, sections=sections, theme=THEME)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")
    return path


class _Cell(NamedTuple):
    text: str
    number: bool
    best: bool


def _cells(table: Table) -> tuple[list[Column], list[list[_Cell]]]:
    """Return a table's columns and formatted cells."""
    columns = [Column(column) if isinstance(column, str) else column for column in table.columns]
    values = [[row[i] for row in table.rows if row[i] is not None] for i in range(len(columns))]
    tops = [column.best(of, default=None) if column.best else None for column, of in zip(columns, values, strict=True)]

    def cell(value: object, column: Column, top: object) -> _Cell:
        if value is None:
            return _Cell("", False, False)
        return _Cell(format(value, column.format), isinstance(value, int | float), value == top)

    return columns, [[cell(*each) for each in zip(row, columns, tops, strict=True)] for row in table.rows]


def _drawn(picture: Picture) -> Markup:
    """Return the picture as an element of the page."""
    if isinstance(picture.figure, Path):
        data = b64encode(picture.figure.read_bytes()).decode()
        return Markup('<img alt="{}" src="data:image/png;base64,{}">').format(picture.caption, data)
    text = StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "glocal"}):  # text stays text, and ids do not vary
        silent = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        picture.figure.savefig(text, format="svg", transparent=True, metadata=silent)
    _, _, drawing = text.getvalue().partition("</style>\n </defs>")
    drawing = re.sub(r'<g id="[^"]*"', "<g", drawing)
    drawing = re.sub(r"font-family: [^;]*; ", "", drawing)  # the page sets its own
    for name, (colour, _) in THEME.items():
        drawing = drawing.replace(colour, f"var(--{name})")
    width, height = picture.figure.get_size_inches() * 72  # points, the unit of the SVG
    kind = "wide" if width > 432 else "narrow"  # above six inches, a phone scrolls it instead of shrinking it
    opening = '<svg class="{}" role="img" aria-label="{}" viewBox="0 0 {:g} {:g}" style="--width: {:g}pt">'
    return Markup(opening).format(kind, picture.caption, width, height, width) + Markup(drawing)
