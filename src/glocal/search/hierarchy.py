"""The search itself: train a supernet, evolve its paths, and with GLiT's hierarchy do so twice.

    Chen et al. 2021, *GLiT*, section 3.2; Guo et al. 2019, *Single Path One-Shot NAS with Uniform Sampling*

    stage 1   how many heads of each block are local; kernels and widths as at the start
    stage 2   kernels and widths of each block; its heads as stage 1 found them

A stage is a run folder of its own: the supernet's checkpoints, and the journal of every path that was judged. Both go
on where they were when the search is started again.
"""

import math
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from random import Random

import torch

from glocal.data.progress import progress
from glocal.files import write_json
from glocal.models import Model
from glocal.models.config import blocks_of, cut_stacks
from glocal.search.budget import Budget
from glocal.search.config import SearchConfig
from glocal.search.cost import cost_table
from glocal.search.counts import CostTable
from glocal.search.evolution import Generation, evolve, random_search
from glocal.search.journal import Journal
from glocal.search.judge import Judge
from glocal.search.paths import Draw, OnePath, Paths, fair_path, sandwich, uniform_path
from glocal.search.space import Blocks, Space, details, heads, whole
from glocal.search.supernet import Supernet
from glocal.training import RunFolder, TrainConfig, fit, open_accelerator, this_process
from glocal.training.checkpoint import read_checkpoint
from glocal.training.interfaces import Data, ScoredObjective


@dataclass(frozen=True)
class Judged:
    """A path and what is known of it."""

    blocks: Blocks
    fitness: float
    """The task's score with inherited weights, on the held-out examples."""
    cost: float | int
    """In the budget's unit."""


@dataclass(frozen=True)
class Stage:
    """A stage that is done."""

    name: str
    generations: list[list[Judged]]
    """Every path that was judged."""
    ranking: list[Judged]
    """The same, the fittest first."""

    @staticmethod
    def of(name: str, generations: list[Generation], cost: CostTable) -> "Stage":
        """Return the stage of an evolution that is done."""
        judged = [[Judged(*each, cost(each.path)) for each in generation.candidates] for generation in generations]
        return Stage(name, judged, [Judged(*each, cost(each.path)) for each in generations[-1].ranking])


@dataclass(frozen=True)
class Search:
    """One search: what its stages share. Everything is kept under `run`, and what is there already is not done again.

    `data` has a `train` and a `val` split, both cut from the training examples. Costs are those of a text of `tokens`,
    or of an image.
    """

    model: Model
    task: ScoredObjective
    data: Data
    config: SearchConfig
    run: RunFolder
    tokens: int | None = None

    def stages(self) -> list["Stage"]:
        """Search for blocks, those of `model` being the start; return the stages, the last with the finalists first."""
        config = self.config
        config.check()
        start = tuple(replace(block, drop_path=0.0) for block in blocks_of(self.model.config))  # a path is noise enough
        first, everything = heads(start, config.space), whole(start, config.space)
        cost = self.cost_table((*first, *everything))
        if config.method == "heads":
            return [self.stage("heads", first, config, cost)]
        if config.method == "hierarchical":
            open_below = replace(config, budget=replace(config.budget, lower=None))
            upper = self.stage("heads", first, open_below, cost)
            return [upper, self.stage("details", details(upper.ranking[0].blocks, config.space), config, cost)]
        evolution = replace(config.evolution, generations=2 * config.evolution.generations)
        config = replace(config, evolution=evolution, supernet=twice_as_long(config.supernet))
        return [self.stage("whole", everything, config, cost)]

    def cost_table(self, space: Space) -> CostTable:
        """Return the cost of every block of a space; the first process times blocks, the others read what it found."""
        budget = self.config.budget
        with this_process().main_process_first():
            cost = cost_table(
                budget.kind,
                self.model,
                budget.tokens or self.tokens,
                self.run.path / f"{budget.kind}.json",
                precision=self.config.supernet.precision,
            )
            cost.add(gene for options in space for gene in options)
        return cost

    def stage(self, name: str, space: Space, config: SearchConfig, cost: CostTable) -> "Stage":
        """Train the supernet of a space, then evolve its paths within the budget."""
        limits = config.budget
        budget = Budget(cost, limits.lower, limits.upper, limits.unit)
        budget.draw(space, Random(0))  # a budget that nothing meets should not cost a supernet
        folder = RunFolder(self.run.path / name)
        supernet = self.train_supernet(space, config, cost, folder)

        survivors = config.evolution.parents if config.race else None
        accelerator = open_accelerator(config.supernet.precision)
        judge = Judge(
            supernet, self.task, self.data, "val", accelerator, config.calibration, config.batch_size, survivors
        )
        fingerprint = {
            "stage": name,
            "space": [[asdict(gene) for gene in options] for options in space],
            "search": asdict(config),
        }
        journal = Journal(folder.path / "journal.jsonl", fingerprint, write=accelerator.is_main_process)
        places = [{gene: place for place, gene in enumerate(options)} for options in space]

        def key(path: Blocks) -> list[int]:
            return [of_block[gene] for of_block, gene in zip(places, path, strict=True)]

        fitness = journal.remember(judge, key, together=config.race)
        evolution = (random_search if config.method == "random" else evolve)(space, fitness, budget, config.evolution)
        generations = list(progress(evolution, f"searching {name}", config.evolution.generations))
        stage = Stage.of(name, generations, cost)
        if accelerator.is_main_process:
            best = stage.ranking[0]
            print(
                f"stage {name}: {len(stage.ranking)} paths judged, the best has "
                f"{format_score(best.fitness, self.task.score_name)} with inherited weights and "
                f"{round(best.cost, 2):,} {limits.unit}",
                flush=True,
            )
        return stage

    def train_supernet(self, space: Space, config: SearchConfig, cost: CostTable, folder: RunFolder) -> Supernet:
        """Train a supernet of a space in a folder of its own, and return it with its last weights."""
        torch.manual_seed(config.supernet.seed)
        supernet = Supernet(self.model, space, config.sharing)
        if this_process().is_main_process:
            folder.last.parent.mkdir(parents=True, exist_ok=True)
            paths = math.prod(map(len, space))
            print(f"stage {folder.path.name}: a supernet of {paths:,} paths, in {folder}", flush=True)
        this_process().wait_for_everyone()
        draw: dict[str, Draw] = {
            "uniform": uniform_path,
            "fair": fair_path,
            "sandwich": partial(sandwich, size=cost.of_block),
        }
        data = Paths(self.data, space, config.supernet.seed, draw[config.sampling])
        fit(supernet, OnePath(self.task, space), data, config.supernet, folder, resume=True)
        supernet.load_state_dict(read_checkpoint(folder.last)["model"])  # the last: one path a batch ranks no epoch
        return supernet


def twice_as_long(train: TrainConfig) -> TrainConfig:
    """Return a config of twice the epochs or steps."""
    return replace(train, **{name: 2 * getattr(train, name) for name in ("epochs", "steps") if getattr(train, name)})


def format_score(score: float, name: str) -> str:
    """Write a score with its name: an accuracy in percent, any other as a number."""
    return f"{name} {score:.2%}" if "accuracy" in name else f"{name} {score:.4f}"


def save_arch(path: Path, config: object, blocks: Blocks) -> None:
    """Write the blocks of a model's config as `glocal train RECIPE --model.arch FILE` reads them, stack by stack."""
    stacked = cut_stacks(config, blocks)
    write_json(path, {name: [asdict(block) for block in stack] for name, stack in stacked.items()})
