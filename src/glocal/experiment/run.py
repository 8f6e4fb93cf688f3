"""Training and testing by a recipe, whatever it is about."""

import json
import shlex
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate.utils import broadcast_object_list
from torch import nn

from glocal.errors import GlocalError, check_path, printable
from glocal.experiment import corpora, images, labelled, translation
from glocal.experiment.origin import fit_length
from glocal.files import WriteError, remove, replacing
from glocal.inference import figures
from glocal.models import Model
from glocal.ops import PRECISIONS, Precision
from glocal.recipes import (
    CausalRecipe,
    CompletionsRecipe,
    ImageRecipe,
    MaskedRecipe,
    QuestionsRecipe,
    Recipe,
    SentencesRecipe,
    TaggedRecipe,
    TranslationRecipe,
    is_given,
    load_recipe,
)
from glocal.training import RunFolder, fit, this_process
from glocal.training.interfaces import Data, Task


class Job(Protocol):
    """A model, its data and its task, fitted to each other."""

    model: Model
    data: Data
    task: Task
    speak: Callable[[nn.Module], str] | None
    """A line for the progress log, after each validation."""

    def describe(self) -> str:
        """Say how much data each split holds, and of how many classes."""
        ...

    def report(self) -> dict[str, Any]:
        """What report.json says of this kind of job."""
        ...

    def save(self, folder: Path) -> None:
        """Write what others need beside the model to use it."""
        ...

    @staticmethod
    def test(recipe: Any, run: RunFolder, source: str | None, precision: Precision | None) -> dict[str, Any]:
        """Measure a finished run on its test split, or on other data."""
        ...

    @staticmethod
    def summary(test: dict[str, Any], run: RunFolder) -> Iterable[str]:
        """Say in a few lines what `test` has measured."""
        ...


JOBS: dict[type[Recipe], Any] = {
    ImageRecipe: images.Job,
    TranslationRecipe: translation.Job,
    MaskedRecipe: corpora.MaskedJob,
    CausalRecipe: corpora.CausalJob,
    SentencesRecipe: labelled.SentencesJob,
    TaggedRecipe: labelled.TaggedJob,
    QuestionsRecipe: labelled.QuestionsJob,
    CompletionsRecipe: labelled.CompletionsJob,
}
"""What each kind of recipe asks for."""


def train(recipe: str | Path | Recipe, overrides: Mapping[str, Any] | Sequence[str] = ()) -> Path:
    """Run a recipe and return its run folder.

    `recipe` is a shipped recipe's name, a YAML file or a `Recipe`; `overrides` maps dotted fields to values.
    """
    if not isinstance(recipe, Recipe):
        file, recipe = recipe, load_recipe(recipe, overrides)
        if not is_given("data.max_length", file, overrides):
            recipe, line = fit_length(recipe)
            if line:
                say(line)
    recipe.train.check()
    with new_run(recipe) as run:
        path = carry_out(recipe, run, resume=False)
    say(*next_commands(run))
    return path


def resume(run: str | Path) -> Path:
    """Continue a run that was stopped, to the weights it would have reached without the stop."""
    check_path(run, "a run's folder")
    folder = RunFolder.open(run)
    if not folder.metrics.exists() and any(folder.path.glob(f"*/{folder.metrics.name}")):
        raise GlocalError(f"{run} holds a search, not a training; continue it with glocal search --resume {run}")
    if folder.finished:
        say(f"{folder} is finished; there is nothing left to train")
    else:
        with folder.writing():
            carry_out(load_recipe(folder.recipe), folder, resume=True)
    say(*next_commands(folder))
    return folder.path


def test(run: str | Path, source: str | None = None, precision: Precision | None = None) -> dict[str, Any]:
    """Measure a finished run on its test split, or on other data of the same kind; report.json keeps it.

    `precision` is that of the weights, as in `load`; without it the model computes as it did in training. Returns what
    the run's task measures; of images, other data must have the same classes.
    """
    if precision is not None and not (isinstance(precision, str) and precision in PRECISIONS):
        raise GlocalError(f"precision {precision!r}; expected one of {', '.join(PRECISIONS)}")
    check_path(run, "a run's folder")
    folder = RunFolder.open(run)
    recipe = load_recipe(folder.recipe)
    if source is None and not keeps_test_split(folder):
        raise GlocalError(
            f"{run} kept nothing back to test on: its data names no test split, and data.test_fraction was 0; "
            f"give other data: {command('test', run)} --data SOURCE"
        )
    with folder.writing():
        metrics: dict[str, Any] = JOBS[type(recipe)].test(recipe, folder, source, precision)
        if precision:
            metrics["weights"] = precision
        if this_process().is_main_process:
            folder.update_report(test=metrics)
        this_process().wait_for_everyone()
    return metrics


def summary(run: str | Path) -> list[str]:
    """Say in a few lines what the run's last test has measured, as `glocal test` prints it."""
    folder = RunFolder.open(run)
    test = folder.read_report().get("test")
    if test is None:
        raise GlocalError(f"the run {run} was not tested yet; glocal test {run}")
    return list(JOBS[type(load_recipe(folder.recipe))].summary(test, folder))


def carry_out(recipe: Recipe, run: RunFolder, resume: bool) -> Path:
    """Train by a recipe in a folder that was made for it, and say what is done."""
    say(f"{recipe.name} in {run}")
    torch.manual_seed(recipe.train.seed)
    job: Job = JOBS[type(recipe)](recipe, run)
    say(f"data: {job.describe()}")
    if not keeps_test_split(run):
        say(f"data: nothing is kept back to test on; give other data later: {command('test', run)} --data SOURCE")
    start = recipe.model.get("from")
    weights = f"weights of {start}" if start is not None else f"{recipe.model['name']} with fresh weights"
    say(f"model: a {type(job.model).__name__}, {weights}")
    history = fit(job.model, job.task, job.data, recipe.train, run, resume, job.speak)
    if this_process().is_main_process:
        with replacing(run.model) as draft:
            job.model.cpu().save_pretrained(draft)
            job.save(draft)
        kept = run.read_report()["val"]
        curves = figures.training_curves({run.path.name: history}, {run.path.name: kept["epoch"]})
        figures.save(curves, run.figures / "training.png")
        run.update_report(name=recipe.name, **job.report(), finished=True)  # the last of all that a run writes
        say(*conclusion(recipe, run, kept))
    this_process().wait_for_everyone()
    return run.path


def conclusion(recipe: Recipe, run: RunFolder, kept: Mapping[str, Any]) -> Iterator[str]:
    """Say which weights were kept, what they are worth, and where they are."""
    scores = "  ".join(f"{name} {value:.4g}" for name, value in kept.items() if name not in ("epoch", "step"))
    average = f", the average of up to {recipe.train.average} epochs," if recipe.train.average else ""
    yield f"best epoch {kept['epoch']:g}{average} kept: val {scores}"
    yield f"model: {run.model}   curves: {run.figures / 'training.png'}"


def next_commands(run: RunFolder) -> Iterator[str]:
    """Say what can be done with a finished run."""
    yield f"next: {command('test', run)}" + ("" if keeps_test_split(run) else " --data SOURCE")
    yield f"      {command('predict', run)} INPUT"


def say(*lines: str) -> None:
    """Print lines as they are, on the first process alone."""
    if this_process().is_main_process:
        print(*map(printable, lines), sep="\n", flush=True)


def keeps_test_split(run: RunFolder) -> bool:
    """Whether the run has examples that it never learned from, by its splits.json; without that file, its data says."""
    if not run.splits.is_file():
        return True
    try:
        return bool(json.loads(run.splits.read_text())["splits"]["test"])
    except (ValueError, KeyError, TypeError):
        return True  # the data's reader refuses the file, and says why


def command(name: str, run: str | Path | RunFolder) -> str:
    """Return a command about a run as one types it."""
    return shlex.join(["glocal", name, str(run)])


@contextmanager
def new_run(recipe: Recipe) -> Iterator[RunFolder]:
    """Make the folder that the recipe names, or one named after the time, for what runs in it.

    Where that fails before anything has learned, and not for want of room, what was made is taken away: there is
    nothing to resume, and the next attempt may have its name. What was in it before is not ours to take.
    """
    name = recipe.run.dir or f"runs/{recipe.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    (name,) = broadcast_object_list([name])  # the time has as many names as there are processes
    run = RunFolder(name)
    before = set(run.path.iterdir()) if run.path.is_dir() else None
    with run.writing():
        run = RunFolder.create(run.path, recipe.to_yaml())
        try:
            yield run
        except WriteError:
            raise
        except Exception:
            if this_process().is_main_process and not any(run.path.rglob(run.metrics.name)):
                for made in set(run.path.iterdir()) - (before or set()):
                    remove(made)
                if before is None:
                    run.path.rmdir()
            raise
