"""Training and testing by a recipe, for any task."""

import json
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from glocal.data import Images
from glocal.errors import GlocalError, check_path, printable
from glocal.files import JSONObject, WriteError, remove, replacing
from glocal.models import Model
from glocal.models.cost import count
from glocal.ops import PRECISIONS, Precision
from glocal.recipes import Recipe, is_given, load_recipe
from glocal.reports import figures
from glocal.runner.model_source import fit_length, prepare
from glocal.tasks import load
from glocal.tasks.spec import TaskData, TestRun
from glocal.training import RunFolder, evaluate, fit, open_accelerator, this_process
from glocal.training.devices import broadcast_from_main, lost_process


def train(recipe: str | Path | Recipe, overrides: Mapping[str, object] | Sequence[str] = ()) -> Path:
    """Run a recipe and return its run folder.

    `recipe` is a shipped recipe's name, a YAML file or a `Recipe`; `overrides` maps dotted fields to values.
    """
    if not isinstance(recipe, Recipe):
        file, recipe = recipe, load_recipe(recipe, overrides)
        if not is_given("data.max_length", file, overrides):
            recipe, line = fit_length(recipe)
            if line:
                print_on_main(line)
    recipe.train.check()
    with new_run(recipe) as run:
        path = run_recipe(recipe, run, resume=False)
    print_on_main(*next_commands(run))
    return path


def resume(run: str | Path) -> Path:
    """Continue a run that was stopped, to the weights it would have reached without the stop."""
    check_path(run, "a run's folder")
    folder = RunFolder.open(run)
    if not folder.metrics.exists() and any(folder.path.glob(f"*/{folder.metrics.name}")):
        raise GlocalError(f"{run} holds a search, not a training; continue it with glocal search --resume {run}")
    if folder.finished:
        print_on_main(f"{folder} is finished; there is nothing left to train")
    else:
        with folder.writing():
            run_recipe(load_recipe(folder.recipe), folder, resume=True)
    print_on_main(*next_commands(folder))
    return folder.path


def test(run: str | Path, source: str | None = None, precision: Precision | None = None) -> JSONObject:
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
            f"{run} has no test split: its data names none, and data.test_fraction was 0; "
            f"give other data: {command('test', run)} --data SOURCE"
        )
    with folder.writing():
        metrics = evaluate_run(recipe, folder, source, precision)
        if this_process().is_main_process:
            folder.update_report(test=metrics)
        this_process().wait_for_everyone()
    return metrics


def evaluate_run(recipe: Recipe, run: RunFolder, source: str | None, precision: Precision | None) -> JSONObject:
    """Return the metrics of the task's objective on the test split, and what its `further_metrics` adds."""
    spec = recipe.spec
    predictor = load(run.path, precision=precision or "float32")
    config = recipe.data if source is None else replace(recipe.data, source=source)
    tokenizer, model = getattr(predictor, "tokenizer", None), predictor.model
    own = source is None
    data = spec.open_data(config, run.path if own else None, tokenizer, None if own else model)
    task = replace(recipe.task, **{name: value for name, value in NO_TEACHER.items() if hasattr(recipe.task, name)})
    accelerator = open_accelerator("float32" if precision else recipe.train.precision)
    shard = {"rank": accelerator.process_index, "world_size": accelerator.num_processes}
    batches = data.eval_batches("test", recipe.train.batch_size, **shard)
    metrics = evaluate(model, spec.objective(task, data, None), batches, accelerator)
    metrics |= {"examples": len(data.splits["test"]), "source": str(config.source)}
    metrics |= {"labels": data.labels} if data.labels else {}
    if accelerator.is_main_process:
        metrics |= spec.further_metrics(TestRun(predictor, data, recipe.decoding, metrics, run))
    accelerator.wait_for_everyone()
    return metrics | ({"weights": precision} if precision else {})


NO_TEACHER = {"teacher": None, "distillation": "none"}
"""A test needs no teacher."""


def summary(run: str | Path) -> list[str]:
    """Return the lines that `glocal test` prints for the run's last test."""
    folder = RunFolder.open(run)
    test = folder.read_report().get("test")
    if test is None:
        raise GlocalError(f"the run {run} was not tested yet; glocal test {run}")
    return list(load_recipe(folder.recipe).spec.format_test(test, folder))


def run_recipe(recipe: Recipe, run: RunFolder, resume: bool) -> Path:
    """Train by a recipe in a folder that was made for it, print the progress, and return the folder."""
    print_on_main(f"{recipe.name} in {run}")
    torch.manual_seed(recipe.train.seed)
    model, data, objective = prepare(recipe, run)
    print_on_main(f"data: {data.describe()}")
    if not keeps_test_split(run):
        print_on_main(
            f"data: nothing is kept back to test on; give other data later: {command('test', run)} --data SOURCE"
        )
    start = recipe.model.get("from")
    weights = f"weights of {start}" if start is not None else f"{recipe.model['name']} with fresh weights"
    print_on_main(f"model: a {type(model).__name__}, {weights}")
    history = fit(model, objective, data, recipe.train, run, resume, Sampler.of(recipe, data))
    if this_process().is_main_process:
        with replacing(run.model) as draft:
            model.cpu().save_pretrained(draft)
            if hasattr(data, "tokenizer"):
                data.tokenizer.save(draft)
        kept = run.read_report()["val"]
        curves = figures.training_curves({run.path.name: history}, {run.path.name: kept["epoch"]})
        figures.save(curves, run.figures / "training.png")
        sections: JSONObject = {"data": data.report} | sizes(model, data)
        if recipe.spec.calibrate is not None:
            sections |= recipe.spec.calibrate(load(run.path), data)
        run.update_report(name=recipe.name, **sections, finished=True)  # the last of all that a run writes
        print_on_main(*conclusion(recipe, run, kept))
    this_process().wait_for_everyone()
    return run.path


class Sampler:
    """Returns a line for the log after each validation, of another example each time."""

    def __init__(self, recipe: Recipe, data: TaskData) -> None:
        self.recipe, self.data, self.number = recipe, data, 0

    @classmethod
    def of(cls, recipe: Recipe, data: TaskData) -> "Sampler | None":
        """Return one for a task that has samples."""
        return None if recipe.spec.sample is None else cls(recipe, data)

    def __call__(self, model: nn.Module) -> str:
        """Return a sample of the model's output."""
        assert self.recipe.spec.sample is not None
        line = self.recipe.spec.sample(model, self.data, self.number)
        self.number += 1
        return line


def sizes(model: Model, data: TaskData) -> JSONObject:
    """Return what the report says of the model's inputs."""
    if hasattr(data, "tokenizer"):
        return {"vocab_size": data.tokenizer.vocab_size}
    assert isinstance(data, Images)
    return {"macs": count(model, data.image_size, data.channels).macs, "image_size": data.image_size}


def conclusion(recipe: Recipe, run: RunFolder, kept: JSONObject) -> Iterator[str]:
    """Yield which weights were kept, their scores, and where they are."""
    scores = "  ".join(f"{name} {value:.4g}" for name, value in kept.items() if name not in ("epoch", "step"))
    average = f", the average of up to {recipe.train.average} epochs," if recipe.train.average else ""
    yield f"best epoch {kept['epoch']:g}{average} kept: val {scores}"
    yield f"model: {run.model}   curves: {run.figures / 'training.png'}"


def next_commands(run: RunFolder) -> Iterator[str]:
    """Yield the commands that one may want next."""
    yield f"next: {command('test', run)}" + ("" if keeps_test_split(run) else " --data SOURCE")
    yield f"      {command('predict', run)} INPUT"


def print_on_main(*lines: str) -> None:
    """Print lines, on the main process only."""
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

    If an error other than a full disk ends the run before its first metrics, the files that the run made are removed:
    there is nothing to resume, and the next attempt may have the same name. Older files of the folder are kept.
    """
    name = recipe.run.dir or f"runs/{recipe.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    with lost_process("repeat the command"):
        name = broadcast_from_main(name)  # the time has as many names as there are processes
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
