"""A run of a search for an architecture: the search, the training of its finalists, and the report."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from glocal.errors import GlocalError
from glocal.files import JSONObject, replacing, write_json
from glocal.layers.block import BlockConfig
from glocal.models import Model
from glocal.models.config import split_into_stacks, stacks
from glocal.recipes import Recipe, load_recipe
from glocal.reports import figures
from glocal.runner.finalists import Finalist, Finals
from glocal.runner.model_source import prepare
from glocal.runner.run import new_run, print_on_main
from glocal.search.arch_summary import summarize_architecture
from glocal.search.config import SearchConfig
from glocal.search.stages import EvaluatedPath, Search, Stage, save_arch
from glocal.training import RunFolder, this_process
from glocal.training.interfaces import ScoredObjective
from glocal.training.run import provenance

FINALIST_SECTIONS = ("val", "macs", "parameters")
"""Sections of a finalist's report that the search's report repeats."""


def search(recipe: str | Path | Recipe, overrides: Mapping[str, object] | Sequence[str] = ()) -> Path:
    """Search an architecture by a recipe's section `search`, train its finalists, and return the run folder.

    If `recipe` is a run folder, its search is continued. The folder holds `arch.json` and `model/`, the finalist with
    the best validation score; `report.json` and `figures/`; `candidates.json`, cost and score of all evaluated paths
    by stage and generation; and folders of the stages, each with supernet and journal, and of the finalists.
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
    if recipe.search is None:
        raise GlocalError(
            f"a search trains models with fresh weights, and {recipe.spec.name}, the task of recipe {recipe.name}, "
            "continues a pre-trained one; search for the task that pre-trains it: masked-lm or causal-lm"
        )
    recipe.search.check()
    return recipe


def run_search(recipe: Recipe, run: RunFolder) -> Path:
    """Search by a recipe in the run folder made for it, train the finalists, and return the folder."""
    config = recipe.search
    assert config is not None
    print_on_main(f"{recipe.name} in {run}")
    model, data, task = prepare(recipe, run)
    print_on_main(f"data: {data.describe()}")
    if not stacks(type(model.config)):
        raise GlocalError(
            f"a search chooses the blocks of a model, and {recipe.model.get('name')} has none; "
            "glit-tiny is one that has, and so are gpt-tiny, bert-tiny and transformer-tiny"
        )
    assert isinstance(task, ScoredObjective)
    tokens = getattr(recipe.data, "max_length", None)
    stages = Search(model, task, data.hold_out(config.val_fraction), config, run, tokens).run_stages()
    finalists = Finals(recipe, run, model.config, task).train(stages[-1].ranking)
    if this_process().is_main_process:
        report(run, config, model, task, stages, finalists)
    this_process().wait_for_everyone()
    return run.path


def report(
    run: RunFolder,
    config: SearchConfig,
    model: Model,
    task: ScoredObjective,
    stages: list[Stage],
    finalists: list[Finalist],
) -> None:
    """Write the results of a search: arch.json, candidates.json, the figures, and at last report.json."""
    best = max(finalists, key=lambda each: each.score)  # the first one, if several are equal
    found = best.candidate
    save_arch(run.path / "arch.json", model.config, found.path)
    with replacing(run.model) as draft:
        shutil.copytree(best.folder.model, draft)
    points = {
        stage.name: [[(each.cost, each.fitness) for each in generation] for generation in stage.generations]
        for stage in stages
    }
    write_json(run.path / "candidates.json", points)
    stacked = split_into_stacks(model.config, found.path)
    draw(run, config, task, stacked, stages, finalists, found)
    run.update_report(
        method=config.method,
        found={
            "finalist": finalists.index(best) + 1,
            "cost": found.cost,
            "unit": config.budget.unit,
            "score": task.score_name,
            "val": best.score,
        },
        finalists=[
            {"inherited": each.candidate.fitness, "cost": each.candidate.cost, "scores": each.scores}
            | {name: value for name, value in each.folder.read_report().items() if name in FINALIST_SECTIONS}
            for each in finalists
        ],
        stages={stage.name: {"evaluated": stage.evaluated, "best": stage.ranking[0].fitness} for stage in stages},
        reading=reading(stacked, config),
        **provenance(),
        finished=True,
    )


def draw(
    run: RunFolder,
    config: SearchConfig,
    task: ScoredObjective,
    stacked: Mapping[str, tuple[BlockConfig, ...]],
    stages: list[Stage],
    finalists: list[Finalist],
    found: EvaluatedPath,
) -> None:
    """Draw the found architecture, one figure per stack, and the evaluated paths, into the run's figures."""
    budget = config.budget
    pictures = {
        "architecture" + (f"-{name}" if len(stacked) > 1 else ""): figures.architecture(blocks)
        for name, blocks in stacked.items()
    }
    if found.fitness is not None:
        points = {
            stage.name: [
                [(each.cost, each.fitness) for each in generation if each.fitness is not None]
                for generation in stage.generations
            ]
            for stage in stages
        }
        pictures["score-against-cost"] = figures.score_against_cost(
            points, budget.unit, (found.cost, found.fitness), (budget.lower, budget.upper), task.score_name
        )
        scores = {name: [[score for _, score in each] for each in stage] for name, stage in points.items()}
        pictures["generations"] = figures.score_by_generation(scores, task.score_name)
    inherited = [each.candidate.fitness for each in finalists if each.candidate.fitness is not None]
    if len(inherited) > 2:
        pictures["rank-correlation"] = figures.rank_correlation(
            inherited, [each.score for each in finalists], task.score_name
        )
    for name, figure in pictures.items():
        figures.save(figure, run.figures / f"{name}.png")


def reading(stacked: Mapping[str, tuple[BlockConfig, ...]], config: SearchConfig) -> JSONObject:
    """Return the summary of the found architecture, with its sentences; of several stacks, one summary by each name."""
    summaries = {name: summarize_architecture(blocks, config.space.kernel_size) for name, blocks in stacked.items()}
    if len(summaries) == 1:
        (summary,) = summaries.values()
        return asdict(summary) | {"sentences": summary.sentences()}
    sentences = [f"{name}: {sentence}" for name, summary in summaries.items() for sentence in summary.sentences()]
    return {name: asdict(summary) for name, summary in summaries.items()} | {"sentences": sentences}
