"""Links of results and notebooks lead to files, versions in several files agree, and the site builds strictly."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

import glocal

ROOT = Path(__file__).parents[1]
PAGES = sorted([*(ROOT / "results").glob("*.md"), *(ROOT / "examples").glob("*.ipynb")])
"""Those of docs/ and beside it are for test_documentation.py."""
LINK = re.compile(r"\]\(([^)#\s]+)")


def links(page: Path) -> list[str]:
    text = page.read_text(encoding="utf-8")
    if page.suffix == ".ipynb":
        text = "\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"])
    return [target for target in LINK.findall(text) if "://" not in target]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_lead_to_files(page: Path) -> None:
    assert [target for target in links(page) if not (page.parent / target).exists()] == []


def test_versions_agree() -> None:
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines())
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    (ruff,) = (repository["rev"] for repository in hooks if "ruff" in repository["repo"])
    assert ruff == f"v{pins['ruff']}"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == project["version"] == glocal.__version__
    assert citation["license"] == project["license"]


def test_ci_runs_every_python_that_is_promised() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    promised = {words.rsplit(" ", 1)[1] for words in project["classifiers"] if words.startswith("Programming Language")}
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    assert set(workflow["jobs"]["test"]["strategy"]["matrix"]["python"]) == promised


@pytest.mark.slow
def test_the_site_builds_strictly(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    for package in (ROOT / "src").rglob("__init__.py"):
        name = ".".join(package.parent.relative_to(ROOT / "src").parts)
        assert (tmp_path / f"site/reference/{name}/index.html").is_file(), name
    assert 'id="glocal.models.create_model"' in (tmp_path / "site/reference/glocal.models/index.html").read_text()
