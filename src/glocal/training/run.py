"""The folder of a run: its files, the lock of the process that writes into it, and whether the run is finished."""

import json
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path

import yaml

from glocal.errors import GlocalError
from glocal.files import JSONObject, locked, write_json, write_text
from glocal.training.devices import broadcast_from_main, lost_process, this_process

Row = dict[str, int | float]
"""A row of metrics.jsonl: numbers by their names."""


class RunFolder:
    """One run on disk.

    recipe.yaml        the recipe, resolved
    splits.json        the examples of each split
    metrics.jsonl      a row every 20 steps and one after each validation
    checkpoints/       last.pt, to continue from; best.pt, the best weights so far
    model/             config.json, model.safetensors, tokenizer.json: what `glocal.load` opens
    adapter/           with LoRA, the trained matrices alone: adapter_config.json, adapter_model.safetensors
    figures/  tensorboard/
    report.json        the results; `finished` is written last
    .lock              names the process that writes into the folder
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.recipe = self.path / "recipe.yaml"
        self.splits = self.path / "splits.json"
        self.metrics = self.path / "metrics.jsonl"
        self.last = self.path / "checkpoints" / "last.pt"
        self.best = self.path / "checkpoints" / "best.pt"
        self.model = self.path / "model"
        self.adapter = self.path / "adapter"
        self.figures = self.path / "figures"
        self.tensorboard = self.path / "tensorboard"
        self.report = self.path / "report.json"

    def __str__(self) -> str:
        return str(self.path)

    def __repr__(self) -> str:
        return f"RunFolder({str(self.path)!r})"

    @classmethod
    def create(cls, path: str | Path, recipe: str) -> "RunFolder":
        """Make the folder and write the recipe's text; of several processes, the first one decides the name and writes.

        Raises GlocalError if the folder holds a run already, or cannot be made.
        """
        run, refusal = cls(path), None
        if this_process().is_main_process:
            if run.recipe.exists() or run.last.exists():
                refusal = f"{run} holds a run already; continue it with --resume {run}, or give another --run.dir"
            else:
                try:
                    for folder in (run.last.parent, run.figures):
                        folder.mkdir(parents=True, exist_ok=True)
                    write_text(run.recipe, recipe)
                except (OSError, GlocalError) as error:
                    refusal = f"no run folder can be made at {run}: {error}; give another --run.dir"
        # Each process would name the folder after a different time, and all have to raise the error.
        path, refusal = broadcast_from_main((str(run), refusal))
        if refusal:
            raise GlocalError(refusal)
        return cls(path)

    @classmethod
    def open(cls, path: str | Path) -> "RunFolder":
        """Open a run that exists. Raises GlocalError if there is none."""
        run = cls(path)
        if not run.recipe.is_file():
            raise GlocalError(
                f"{run} is not a run folder: it has no recipe.yaml; give the folder that `glocal train` made"
            )
        return run

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Lock the folder, which is made where it is missing, for this process and the others that train with it.

        Raises GlocalError if another process has locked it, and where one of the processes dies.
        """
        refusal = None
        with lost_process(f"continue with --resume {self}"), ExitStack() as stack:
            if this_process().is_main_process:
                try:
                    self.path.mkdir(parents=True, exist_ok=True)
                    stack.enter_context(locked(self.path))
                except OSError as error:
                    refusal = f"cannot write into {self}: {error}; free some space there, or give another --run.dir"
                except GlocalError as error:
                    refusal = str(error)
            refusal = broadcast_from_main(refusal)  # all have to raise it
            if refusal:
                raise GlocalError(refusal)
            yield

    @property
    def finished(self) -> bool:
        """Whether the run is finished: `finished` in report.json is the last that a run writes."""
        return bool(self.read_report().get("finished")) and (self.model / "config.json").is_file()

    def settings(self) -> dict[str, object]:
        """Return the fields of recipe.yaml by their dotted names; none where there is no recipe."""
        return flat(yaml.safe_load(self.recipe.read_text()) or {}) if self.recipe.exists() else {}

    def history(self) -> list[Row]:
        """Return the rows of metrics.jsonl, oldest first. Those of a validation have `val_...` fields."""
        rows = []
        for number, line in enumerate(self.metrics.read_bytes().splitlines() if self.metrics.exists() else [], start=1):
            try:
                rows.append(dict(json.loads(line)))
            except (ValueError, TypeError, RecursionError):
                raise GlocalError(
                    f"{self.metrics}, line {number} is damaged; remove the file, and the run continues without its rows"
                ) from None
        return rows

    def read_report(self) -> JSONObject:
        """Return what report.json holds so far. Raises GlocalError if it is damaged."""
        try:
            return dict(json.loads(self.report.read_bytes())) if self.report.exists() else {}
        except (ValueError, TypeError, RecursionError):
            raise GlocalError(
                f"{self.report} is damaged; remove it, and `glocal train --resume {self}` (of a search `glocal search "
                f"--resume {self}`) writes it again"
            ) from None

    def update_report(self, **sections: object) -> None:
        """Add or replace sections of report.json."""
        write_json(self.report, self.read_report() | sections)


def flat(fields: JSONObject, prefix: str = "") -> dict[str, object]:
    """Return the fields of nested sections by their dotted names."""
    named: dict[str, object] = {}
    for name, value in fields.items():
        named |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return named


def provenance() -> dict[str, object]:
    """Return the command, the commit and the versions that a report names."""
    program = Path(sys.argv[0]).name.replace("__main__.py", "glocal")  # started as python -m glocal
    return {
        "command": shlex.join([program, *sys.argv[1:]]),
        "commit": commit(Path(__file__).parents[1]),
        "versions": {name: version(name) for name in ("glocal", "torch", "timm", "accelerate")}
        | {"python": platform.python_version()},
    }


def commit(folder: Path) -> str | None:
    """Return the last commit that changed a folder, marked if files changed since; None outside a checkout."""

    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", folder, *words], capture_output=True, text=True, check=True).stdout.strip()

    try:
        last, changes = git("log", "-1", "--format=%H", "--", "."), git("status", "--porcelain", "--", ".")
    except (OSError, subprocess.CalledProcessError):  # no git, or no checkout
        return None
    return f"{last}{' with changes' if changes else ''}" if last else None
