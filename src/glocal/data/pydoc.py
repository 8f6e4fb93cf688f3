"""The built-in documents: Python's own documentation, as `help()` shows it.

Some sixty topics of the language, and the docstrings of some hundred modules of the standard library: 2 MB of English.
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
"""What a line consists of that underlines a title, or parts the rows of a table."""

SHORTEST = 300
"""Characters of docstrings from which on a module is a document."""


@cache
def read_documentation() -> tuple[str, ...]:
    """Return each topic and each module as a text of paragraphs."""
    return *_topics(), *progress(_modules(), "Reading Python's documentation")


def _topics() -> Iterator[str]:
    """Read the language's reference.

    Topics of which half or more stands within a longer one are left out ("while" is a part of "compound"): training and
    test must not share them.
    """
    read: set[str] = set()
    for text in sorted(topics.values(), key=lambda text: (-len(text), text)):
        paragraphs = [_unwrapped(each) for each in re.split(r"\n\s*\n", text)]
        paragraphs = [each for each in paragraphs if each.strip()]
        if sum(each in read for each in paragraphs) < len(paragraphs) / 2:
            yield "\n\n".join(paragraphs) + "\n"
        read.update(paragraphs)


def _modules() -> Iterator[str]:
    """Read the docstrings of the standard library's modules, from their files: nothing is imported."""
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
        if len(text) >= SHORTEST:
            yield text + "\n"


def _joined(paragraph: str) -> str:
    """Put prose, whose lines begin alike, into one line; leave examples and lists as they are."""
    lines = paragraph.split("\n")
    prose = ">>>" not in paragraph and len({len(line) - len(line.lstrip()) for line in lines}) == 1
    return " ".join(line.strip() for line in lines) if prose else paragraph


def _unwrapped(paragraph: str) -> str:
    """Leave out lines that are drawn, and join a line to the next where the next's first word did not fit."""
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
