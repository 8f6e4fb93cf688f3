"""Built-in documents: Python's documentation, as `help()` shows it.

It has some sixty topics of the language, and the docstrings of some hundred modules of the standard library: 2 MB of
English.
"""

import ast
import re
import sys
import sysconfig
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from pydoc_data.topics import topics

from glocal.data.progress import progress

NAME = "pydoc"
WIDTH = 70
"""Columns at which the paragraphs are wrapped."""
RULE = re.compile(r"[\s+|=*~^-]*")
"""A line that underlines a title or separates the rows of a table."""

MIN_LENGTH = 300
"""Least characters of a module's docstrings."""


@cache
def read_documentation() -> tuple[str, ...]:
    """Return each topic and each module as a text of paragraphs."""
    return *_topics(), *progress(_modules(), "Reading Python's documentation")


def _topics() -> Iterator[str]:
    """Yield the topics of the language's reference.

    A topic is left out if half or more of it is in a longer one ("while" is a part of "compound"), so that training and
    test do not share texts.
    """
    read: set[str] = set()
    for text in sorted(topics.values(), key=lambda text: (-len(text), text)):
        paragraphs = [_unwrapped(each) for each in re.split(r"\n\s*\n", text)]
        paragraphs = [each for each in paragraphs if each.strip()]
        if sum(each in read for each in paragraphs) < len(paragraphs) / 2:
            yield "\n\n".join(paragraphs) + "\n"
        read.update(paragraphs)


def _modules() -> Iterator[str]:
    """Yield the docstrings of the standard library's modules, which are read from files without importing them."""
    library = Path(sysconfig.get_path("stdlib"))
    for file in sorted(library.rglob("*.py")):
        package = file.relative_to(library).parts
        if package[0].removesuffix(".py") not in sys.stdlib_module_names or {"test", "tests"} & set(package):
            continue
        try:
            nodes = ast.walk(ast.parse(file.read_bytes()))
        except (SyntaxError, ValueError):  # lib2to3 keeps examples of broken files
            continue
        kinds = ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef
        found = [ast.get_docstring(node) for node in nodes if isinstance(node, kinds)]
        text = "\n\n".join(_joined(each) for doc in found if doc for each in re.split(r"\n\s*\n", doc))
        if len(text) >= MIN_LENGTH:
            yield text + "\n"


def _joined(paragraph: str) -> str:
    """Join the lines of prose, which have equal indents; examples and lists do not change."""
    lines = paragraph.split("\n")
    prose = ">>>" not in paragraph and len({len(line) - len(line.lstrip()) for line in lines}) == 1
    return " ".join(line.strip() for line in lines) if prose else paragraph


def _unwrapped(paragraph: str) -> str:
    """Remove rules, and join a line to the next one if the next one's first word did not fit."""
    lines: list[str] = []
    column = 0
    for line in paragraph.split("\n"):
        if RULE.fullmatch(line):
            continue
        if column <= WIDTH < column + 1 + len(line.split()[0]):
            lines[-1] += f" {line.strip()}"
        else:
            lines.append(line)
        column = len(line)
    return "\n".join(lines)
