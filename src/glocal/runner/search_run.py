"""An architecture that is searched for: the search, its finalists' training, and the report."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from glocal.data import Images
from glocal.errors import GlocalError
from glocal.files import JSONObject, replacing, write_json, write_text
from glocal.layers.block import restack
from glocal.models import GLiT
from glocal.models.config import SHAPE
from glocal.recipes import Recipe, load_recipe
from glocal.reports import figures
from glocal.runner.model_source import prepare
from glocal.runner.run import new_run, print_on_main, run_recipe
from glocal.search.arch_summary import summarize_architecture
from glocal.search.config import SearchConfig
from glocal.search.hierarchy import Judged, Stage, save_arch
from glocal.search.hierarchy import search as search_blocks
from glocal.training import RunFolder, this_process
from glocal.training.run import provenance


def search(recipe: str | Path | Recipe, overrides: Mapping[str, object] | Sequence[str] = ()) -> Path:
    """Search an architecture by a recipe's section `search`, train its finalists, and return the run folder.

    A run folder given as the recipe goes on where it was. In it are `arch.json` and `model/`, the best finalist on
    validation; `report.json` and `figures/`; `candidates.json`, each stage's generations of judged paths by cost and
    accuracy; and, in folders of their own, each stage's supernet and journal, and each finalist's training.
    """
    if not isinstance(recipe, Recipe) and (Path(recipe) / "recipe.yaml").is_file():
        run = RunFolder.open(recipe)
        if run.metrics.exists():
            raise GlocalError(f"{run} holds a training, not a search; continue it with glocal train --resume {run}")
        if run.finished:
            print_on_main(f"{run} is finished; there is nothing left to search")
            return run.path
        with run.writing():
            return run_search(_checked(load_recipe(run.recipe)), run)
    recipe = _checked(recipe if isinstance(recipe, Recipe) else load_recipe(recipe, overrides))
    with new_run(recipe) as run:
        return run_search(recipe, run)


def _checked(recipe: Recipe) -> Recipe:
    if not recipe.spec.searchable or recipe.search is None:
        raise GlocalError(f"a search needs images and their classes, and recipe {recipe.name} has none")
    recipe.search.check()
    return recipe


def run_search(recipe: Recipe, run: RunFolder) -> Path:
    """Search by a recipe in a folder that was made for it, train the finalists, and return the folder."""
    config = recipe.search
    assert config is not None
    print_on_main(f"{recipe.name} in {run}")
    model, data, objective = prepare(recipe, run)
    assert isinstance(data, Images)
    print_on_main(f"data: {data.describe()}")
    if not isinstance(model, GLiT):
        raise GlocalError(
            f"a search starts from a GLiT's blocks, and {recipe.model.get('name')} is none: glit-tiny is one"
        )
    start = replace(model.config, blocks=restack(model.config.blocks, drop_path=0.0))  # a path is noise enough
    stages = search_blocks(start, objective, data.hold_out(config.val_fraction), config, run)

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
        if not folder.finished:
            if this_process().is_main_process:
                save_arch(folder.path / "arch.json", judged.blocks)
                write_text(folder.splits, run.splits.read_text())
            this_process().wait_for_everyone()
            with folder.writing():
                run_recipe(again, folder, resume=True)
        finalists.append((judged, folder.read_report()))
    if this_process().is_main_process:
        _report(run, config, stages, finalists)
    this_process().wait_for_everyone()
    return run.path


def _report(
    run: RunFolder,
    config: SearchConfig,
    stages: list[Stage],
    finalists: list[tuple[Judged, JSONObject]],
) -> None:
    """Write what a search has found: arch.json, candidates.json, the pictures, and at last report.json."""
    retrained = [report["val"]["top1"] for _, report in finalists]
    best = int(np.argmax(retrained))
    found = finalists[best][0]
    save_arch(run.path / "arch.json", found.blocks)
    with replacing(run.model) as draft:
        shutil.copytree(run.path / f"finalist-{best + 1}" / "model", draft)
    reading = summarize_architecture(found.blocks, config.space.kernel_size)
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
        figures.save(figure, run.figures / f"{name}.png")
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
        finished=True,
    )
