"""The notebooks run from top to bottom, in small form."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))


def script(notebook: Path) -> str:
    """The code of a notebook's cells, without IPython's magics."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    return "\n".join(line for cell in code for line in cell.splitlines() if not line.startswith("%"))


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(notebook: Path, tmp_path: Path) -> None:
    environment = os.environ | {"SMALL": "1", "GLOCAL_OPS": "plain"}  # nothing is compiled or timed
    done = subprocess.run(
        [sys.executable, "-c", script(notebook)],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_whole(notebook: Path) -> None:
    text = notebook.read_text(encoding="utf-8")
    content = json.loads(text)
    assert (content["nbformat"], content["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in content["cells"]}) == len(content["cells"])
    assert len(text) < 400_000, "outputs are small"
    assert '"output_type": "error"' not in text
    assert not re.search(r"(?<![\w.])/(home|root|tmp|Users)/", text), "a path of the machine that ran it"
