"""Recipe in, run folder out: the one place where a model, its data, its task and the loop meet."""

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from glocal.data import DataConfig, Images, open_data
from glocal.errors import GlocalError
from glocal.inference import count, figures
from glocal.layers.block import restack
from glocal.models import GLiT, Model, create_model, load_model
from glocal.models.config import SHAPE
from glocal.recipes import Recipe, load_recipe
from glocal.search.config import SearchConfig
from glocal.search.hierarchy import Judged, Stage, save_arch
from glocal.search.hierarchy import search as search_blocks
from glocal.search.reading import read_architecture
from glocal.tasks import Classification, ClassificationConfig
from glocal.training import RunFolder, evaluate, fit, open_accelerator, this_process
from glocal.training.run import provenance, write_json


def train(recipe: str | Path | Recipe, overrides: Mapping[str, Any] | Sequence[str] = ()) -> Path:
    """Run a recipe and return its run folder.

    `recipe` is a shipped recipe's name, a YAML file or a `Recipe`; `overrides` maps dotted fields to values.
    """
    if not isinstance(recipe, Recipe):
        recipe = load_recipe(recipe, overrides)
    recipe.train.check()
    path = recipe.run.dir or f"runs/{recipe.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    return _run(recipe, RunFolder.create(path, recipe.to_yaml()), resume=False)


def resume(run: str | Path) -> Path:
    """Continue a run that was stopped, to the weights it would have reached without the stop."""
    folder = RunFolder.open(run)
    return _run(load_recipe(folder.recipe), folder, resume=True)


def test(run: str | Path, source: str | None = None) -> dict[str, Any]:
    """Measure a finished run on its test split, or on other data that has the same classes.

    Returns what `tasks.Classification` measures, and keeps it in report.json beside a picture of the confusion matrix.
    """
    folder = RunFolder.open(run)
    recipe, model = load_recipe(folder.recipe), load_model(folder.path)
    config = prepared_as(recipe.data, model)
    if source is None:
        images = open_data(config, folder.splits)
    else:
        images = open_data(replace(config, source=source), classes=model.labels)
    task = Classification(ClassificationConfig(), len(images.classes))
    accelerator = open_accelerator(recipe.train.precision)
    batches = images.eval_batches(
        "test", recipe.train.batch_size, rank=accelerator.process_index, world=accelerator.num_processes
    )
    metrics = evaluate(model, task, batches, accelerator)
    metrics |= {"examples": len(images.splits["test"]), "source": str(images.config.source), "labels": images.classes}
    if accelerator.is_main_process:
        folder.update_report(test=metrics)
        confusion = figures.confusion_matrix(np.array(metrics["confusion"]), images.classes)
        confusion.savefig(folder.figures / "confusion.png")
    return metrics


def search(recipe: str | Path | Recipe, overrides: Mapping[str, Any] | Sequence[str] = ()) -> Path:
    """Search an architecture by a recipe's section `search`, train its finalists, and return the run folder.

    A run folder given as the recipe goes on where it was. In it are `arch.json` and `model/`, the best finalist on
    validation; `report.json` and `figures/`; `candidates.json`, each stage's generations of judged paths by cost and
    accuracy; and, in folders of their own, each stage's supernet and journal, and each finalist's training.
    """
    if not isinstance(recipe, Recipe) and (Path(recipe) / "recipe.yaml").is_file():
        run = RunFolder.open(recipe)
        recipe = load_recipe(run.recipe)
    else:
        recipe = recipe if isinstance(recipe, Recipe) else load_recipe(recipe, overrides)
        path = recipe.run.dir or f"runs/{recipe.name}-{time.strftime('%Y%m%d-%H%M%S')}"
        recipe.search.check()
        run = RunFolder.create(path, recipe.to_yaml())
    config = recipe.search
    model, images = assemble(recipe, run)
    if not isinstance(model, GLiT):
        raise GlocalError(
            f"a search starts from a GLiT's blocks, and {recipe.model.get('name')} is none: glit-tiny is one"
        )
    start = replace(model.config, blocks=restack(model.config.blocks, drop_path=0.0))  # a path is noise enough
    task = Classification(recipe.task, len(images.classes), build_teacher(recipe, images))
    stages = search_blocks(start, task, images.hold_out(config.val_fraction), config, run)

    finalists = []
    for place, judged in enumerate(stages[-1].ranking[: config.retrain], start=1):
        folder = RunFolder(run.path / f"finalist-{place}")
        fields = {name: value for name, value in recipe.model.items() if name not in SHAPE}
        fields |= {"arch": str(folder.path / "arch.json")}
        again = replace(recipe, name=folder.path.name, model=fields, search=SearchConfig())
        begun = folder.recipe.exists()
        this_process().wait_for_everyone()  # all have looked before the first one makes it
        if not begun:
            folder = RunFolder.create(folder.path, again.to_yaml())
        if not (folder.model / "config.json").exists():
            if this_process().is_main_process:
                save_arch(folder.path / "arch.json", judged.blocks)
                shutil.copy(run.splits, folder.splits)
            this_process().wait_for_everyone()
            _run(again, folder, resume=True)
        finalists.append((judged, folder.read_report()))
    if this_process().is_main_process:
        _report(run, config, stages, finalists)
    this_process().wait_for_everyone()
    return run.path


def _report(
    run: RunFolder,
    config: SearchConfig,
    stages: list[Stage],
    finalists: list[tuple[Judged, dict[str, Any]]],
) -> None:
    """Write what a search has found: arch.json, report.json, candidates.json, the pictures."""
    retrained = [report["val"]["top1"] for _, report in finalists]
    best = int(np.argmax(retrained))
    found = finalists[best][0]
    save_arch(run.path / "arch.json", found.blocks)
    shutil.copytree(run.path / f"finalist-{best + 1}" / "model", run.model, dirs_exist_ok=True)
    reading = read_architecture(found.blocks, config.space.kernel_size)
    run.update_report(
        method=config.method,
        found={"finalist": best + 1, "cost": found.cost, "unit": config.budget.unit, "val_top1": retrained[best]},
        finalists=[
            {"inherited": judged.fitness, "cost": judged.cost}
            | {name: report[name] for name in ("val", "macs", "parameters")}
            for judged, report in finalists
        ],
        stages={stage.name: {"judged": len(stage.ranking), "best": stage.ranking[0].fitness} for stage in stages},
        reading=asdict(reading) | {"sentences": reading.sentences()},
        **provenance(),
    )
    points = {
        stage.name: [[(each.cost, each.fitness) for each in generation] for generation in stage.generations]
        for stage in stages
    }
    write_json(run.path / "candidates.json", points)
    pictures = {
        "architecture": figures.architecture(found.blocks),
        "accuracy-against-cost": figures.accuracy_against_cost(
            points, config.budget.unit, (found.cost, found.fitness), (config.budget.lower, config.budget.upper)
        ),
        "generations": figures.accuracy_by_generation(
            {name: [[accuracy for _, accuracy in each] for each in stage] for name, stage in points.items()}
        ),
    }
    if len(finalists) > 2:
        pictures["rank-correlation"] = figures.rank_correlation([judged.fitness for judged, _ in finalists], retrained)
    for name, figure in pictures.items():
        figure.savefig(run.figures / f"{name}.png")


def _run(recipe: Recipe, run: RunFolder, resume: bool) -> Path:
    torch.manual_seed(recipe.train.seed)
    model, images = assemble(recipe, run)
    task = Classification(recipe.task, len(images.classes), build_teacher(recipe, images))
    history = fit(model, task, images, recipe.train, run, resume)
    if this_process().is_main_process:
        model.cpu().save_pretrained(run.model)
        macs = count(model, images.image_size, images.channels).macs
        run.update_report(name=recipe.name, macs=macs, image_size=images.image_size, skipped=images.skipped)
        figures.training_curves({recipe.name: history}).savefig(run.figures / "training.png")
    this_process().wait_for_everyone()
    return run.path


def assemble(recipe: Recipe, run: RunFolder) -> tuple[Model, Images]:
    """Build the recipe's model and open its data, each fitted to the other.

    The data decides channels, resolution and classes. A model that was trained before (`model.from`) decides how pixels
    are scaled; its head stays where it knows the same classes in the same order, and starts anew elsewhere.
    """
    fields = dict(recipe.model)
    name, start = fields.pop("name", None), fields.pop("from", None)
    if name is None and start is None:
        raise GlocalError("the recipe names no model; give model.name (`glocal list models`) or --from RUN")
    given = load_model(start) if start else None
    with this_process().main_process_first():  # the first process writes the splits that the others read
        images = open_data(prepared_as(recipe.data, given) if given else recipe.data, run.splits)
    fields |= input_of(images)
    if given is None:
        model = create_model(name, **fields, num_classes=len(images.classes))
    elif given.labels == images.classes:
        model = load_model(start, **fields)
    else:
        model = load_model(start, **fields, num_classes=len(images.classes), excuse=given.head_names())
    model.labels, model.preprocessing = images.classes, asdict(images.preprocessing)
    return model, images


def build_teacher(recipe: Recipe, images: Images) -> Model | None:
    """Return the network that the student imitates: a run, a folder, a hub id, or `timm:NAME` with its own weights."""
    name = recipe.task.teacher
    if name is None:
        return None
    if name.startswith("timm:"):
        return create_model(name, pretrained=True, **input_of(images))
    return load_model(name, image_size=images.image_size)


def input_of(images: Images) -> dict[str, Any]:
    """Return what a model must be built for to take these images."""
    return {"image_size": images.image_size, "in_chans": images.channels}


def prepared_as(config: DataConfig, model: Model) -> DataConfig:
    """Scale pixels as a trained model is used to, unless the recipe says otherwise."""
    known = model.preprocessing or {}
    if config.mean is not None or len(known.get("mean", ())) != config.channels:
        return config
    return replace(config, mean=tuple(known["mean"]), std=tuple(known["std"]))
