import re
from html.parser import HTMLParser

import numpy as np
import pytest

from glocal.reports import figures
from glocal.reports.page import Code, Column, Fold, Numbers, Picture, Section, Table, Text, write_page

VOID = {"meta", "img", "br", "link", "path", "use", "image", "rect", "circle"}


class Outline(HTMLParser):
    """Collects tags and text, and checks that every tag is closed."""

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.text = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data.strip())


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("page")
    confusion = figures.confusion_matrix(np.array([[5, 1], [0, 4]]), ["cat", "<dog>"])
    confusion.savefig(folder / "confusion.png")
    rows = [["vit", 0.9894, 212_000], ["resnet18", 0.981, 11_175_000], ["none", None, None]]
    columns = ["model", Column("top-1", ".1%", best=max), Column("parameters", ",", best=min)]
    path = write_page(
        folder / "new" / "report.html",
        "Cats & dogs",
        [
            Section("", [Numbers({"accuracy": "98.9 %"})]),
            Section("Models", [Text("First <b>.\n\nSecond."), Table(columns, rows, "Best in bold.")]),
            Section("Errors", [Picture(confusion, 'The "matrix"'), Picture(folder / "confusion.png", "A PNG")]),
            Section("Again", [Fold("The recipe", [Code("model:\n  name: vit"), Picture(confusion, "Inside")])]),
        ],
        subtitle="A report",
    )
    return path.read_text("utf-8")


@pytest.fixture(scope="module")
def outline(page) -> Outline:
    outline = Outline()
    outline.feed(page)
    assert not outline.open
    return outline


def test_the_page_needs_nothing_but_itself(page, outline):
    assert not re.search(r"https?:|//www|@import|<script|<link", page)
    sources = [attrs[name] for _, attrs in outline.tags for name in ("src", "href", "xlink:href") if name in attrs]
    assert sources
    assert all(source.startswith(("data:image/png;base64,", "#")) for source in sources)


def test_what_is_referred_to_is_there(page):
    assert set(re.findall(r'(?:href="#|url\(#)([^")]+)', page)) <= set(re.findall(r'id="([^"]+)"', page))
    assert set(re.findall(r"var\((--[\w-]+)\)", page)) <= set(re.findall(r"(--[\w-]+):", page))


def test_words_are_words_not_markup(outline):
    assert {"Cats & dogs", "A report", "First <b>.", "Second.", "<dog>", "model:\n  name: vit"} <= set(outline.text)


def test_the_best_cells_are_marked(page):
    assert re.findall(r'class="number best">([^<]*)<', page) == ["98.9%", "212,000"]


def test_figures_follow_the_theme(page, outline):
    assert sum(tag == "svg" for tag, _ in outline.tags) == 2
    body = page.partition("<body>")[2]
    assert "var(--ink)" in body
    assert figures.style.INK not in body
    assert "cat" in outline.text  # letters stay letters


def test_the_same_page_is_written_twice(tmp_path):
    rows = [{"epoch": e, "train_loss": 1 / e, "val_loss": 1 / e, "val_top1": 1 - 1 / e} for e in range(1, 5)]
    pages = [
        write_page(tmp_path / f"{i}.html", "T", [Section("", [Picture(figures.training_curves({"a": rows}), "c")])])
        for i in range(2)
    ]
    assert pages[0].read_text("utf-8") == pages[1].read_text("utf-8")
