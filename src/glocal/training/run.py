"""The folder a run lives in, and writing into it so that no kill and no full disk can spoil it."""

import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

from accelerate.utils import broadcast_object_list

from glocal.errors import GlocalError
from glocal.training.devices import this_process


class RunFolder:
    """One run on disk.

    recipe.yaml        what was asked for, resolved
    splits.json        which example is in which split
    metrics.jsonl      one line every so many steps and one after each epoch
    checkpoints/       last.pt, to continue from; best.pt, the best weights so far
    model/             config.json, model.safetensors, labels: what others load
    adapter/           with LoRA, what was trained, alone: adapter_config.json, adapter_model.safetensors
    figures/  tensorboard/  report.json
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
        """Make the folder, with the recipe's text in it; where several processes train, the first one's.

        Raises GlocalError where the folder holds a run already, or cannot be made.
        """
        run, refusal = cls(path), None
        if this_process().is_main_process:
            if run.recipe.exists() or run.last.exists():
                refusal = f"{run} holds a run already; continue it with --resume {run}, or give another --run.dir"
            else:
                try:
                    for folder in (run.last.parent, run.figures):
                        folder.mkdir(parents=True, exist_ok=True)
                    with atomic_write(run.recipe) as file:
                        file.write(recipe.encode())
                except (OSError, GlocalError) as error:
                    refusal = f"no run folder can be made at {run}: {error}; give another --run.dir"
        # A folder named after the time has as many names as there are processes, and a refusal is everyone's.
        path, refusal = broadcast_object_list([str(run), refusal])
        if refusal:
            raise GlocalError(refusal)
        return cls(path)

    @classmethod
    def open(cls, path: str | Path) -> "RunFolder":
        """Open a run that exists. Raises GlocalError where there is none."""
        run = cls(path)
        if not run.recipe.is_file():
            raise GlocalError(
                f"{run} is no run folder: it has no recipe.yaml; give the folder that `glocal train` made"
            )
        return run

    def history(self) -> list[dict[str, Any]]:
        """Rows of metrics.jsonl, oldest first. Those of an epoch's end have `val_...` fields."""
        return [json.loads(line) for line in self.metrics.read_text().splitlines()] if self.metrics.exists() else []

    def read_report(self) -> dict[str, Any]:
        """What report.json holds so far."""
        return json.loads(self.report.read_text()) if self.report.exists() else {}

    def update_report(self, **sections: Any) -> None:
        """Add or replace sections of report.json."""
        write_json(self.report, self.read_report() | sections)


@contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """Open a file that takes the place of `path` once all of it is on the disk; until then `path` is as it was.

    Raises GlocalError, and leaves no half file, where it cannot be written.
    """
    half = path.with_name(path.name + ".tmp")
    with disk_errors(path):
        try:
            with half.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            half.replace(path)
        except BaseException:
            half.unlink(missing_ok=True)
            raise


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn the errors of a full or broken disk into one clear line."""
    try:
        yield
    except OSError as error:
        raise GlocalError(
            f"cannot write {path}: {error.strerror or error}; what was saved before is whole: "
            f"make room, then continue with --resume"
        ) from error


def write_json(path: Path, content: Any) -> None:
    """Write JSON in one piece."""
    with atomic_write(path) as file:
        file.write((json.dumps(content, indent=2) + "\n").encode())


def provenance() -> dict[str, Any]:
    """The command, the commit and the versions that a report names."""
    program = Path(sys.argv[0]).name.replace("__main__.py", "glocal")  # also started as python -m glocal
    return {
        "command": shlex.join([program, *sys.argv[1:]]),
        "commit": commit(Path(__file__).parents[1]),
        "versions": {name: version(name) for name in ("glocal", "torch", "timm", "accelerate")}
        | {"python": platform.python_version()},
    }


def commit(folder: Path) -> str | None:
    """The last commit that changed a folder, marked where it has changed since; None outside a checkout."""

    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", folder, *words], capture_output=True, text=True, check=True).stdout.strip()

    try:
        last, changes = git("log", "-1", "--format=%H", "--", "."), git("status", "--porcelain", "--", ".")
    except (OSError, subprocess.CalledProcessError):  # no git, or no checkout
        return None
    return f"{last}{' with changes' if changes else ''}" if last else None
