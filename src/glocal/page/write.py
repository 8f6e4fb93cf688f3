"""The page as one file: its modules and its style inside, the numbers too. It opens from a disk and fetches nothing."""

import json
import re
from base64 import b64encode
from importlib import resources
from pathlib import Path

from glocal.files import write_text
from glocal.page.contract import Numbers
from glocal.page.look import PARTS, Wanted, look
from glocal.page.readings import Given
from glocal.page.trees import Width
from glocal.tasks import AnyPredictor

STATIC = resources.files(__package__).joinpath("static")
"""The page's sources: a server serves this folder, and `render` puts it into one file."""
POLICY = "default-src 'none'; script-src 'unsafe-inline' data:; style-src 'unsafe-inline'; img-src data: blob:"
"""What the file may load: what is in it."""


def write_page(predictor: AnyPredictor, given: Given, path: str | Path) -> Path:
    """Write what a model does with an input as one HTML file of less than 3 MB, and return its path.

    `given` is what `predictor.predict` takes one of: an image, a text, a pair of texts, a question and its context, a
    prompt. Raises GlocalError if the model has no attention, or cannot take the input.
    """
    found = look(predictor, given, Wanted(parts=PARTS, width=Width()))
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, render(found))
    return path


def render(found: Numbers) -> str:
    """Return the page with these numbers inside."""
    page = STATIC.joinpath("index.html").read_text("utf-8")
    style = STATIC.joinpath("style.css").read_text("utf-8")
    page = page.replace('<link rel="stylesheet" href="style.css">', f"<style>\n{style}</style>")
    page = page.replace("<head>", f'<head>\n<meta http-equiv="Content-Security-Policy" content="{POLICY}">')
    page = re.sub(r'"\./(\w+\.js)"', lambda name: json.dumps(data_url(name[1])), page)
    inside = json.dumps(found, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    return page.replace('id="numbers">null', f'id="numbers">{inside}')


def data_url(module: str) -> str:
    """Return a module of the page as a data URL, under which the import map of the page names it."""
    return f"data:text/javascript;base64,{b64encode(STATIC.joinpath(module).read_bytes()).decode()}"
