"""The search itself: train a supernet and evolve its paths, in one stage or, with GLiT's hierarchy, in two.

    Chen et al. 2021, *GLiT*, section 3.2; Guo et al. 2019, *Single Path One-Shot NAS with Uniform Sampling*

    stage 1   searches how many heads of each block are local; kernels and widths stay as in the recipe's model
    stage 2   searches kernels and widths of each block; the heads stay as stage 1 found them

A path is one BlockConfig per block, i.e. one candidate architecture. Each stage has its own run folder, with the
supernet's checkpoints and a log of all evaluated candidates. A restarted search resumes from both.
"""

import math
import random
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch

from glocal.data.progress import progress
from glocal.files import write_json
from glocal.models import Model
from glocal.models.config import blocks_of, split_into_stacks
from glocal.search.budget import Architecture
from glocal.search.config import SearchConfig
from glocal.search.cost import cost_table
from glocal.search.counts import CostTable
from glocal.search.evaluator import Evaluator
from glocal.search.evolution import Generation, evolve, random_search
from glocal.search.journal import Journal
from glocal.search.paths import (
    PathSampler,
    PathSamplingData,
    SupernetObjective,
    fair_path,
    sandwich_paths,
    uniform_path,
)
from glocal.search.space import Space, details_space, full_space, heads_space
from glocal.search.supernet import Supernet
from glocal.training import RunFolder, TrainConfig, fit, open_accelerator, this_process
from glocal.training.checkpoint import read_checkpoint
from glocal.training.interfaces import Data, ScoredObjective


@dataclass(frozen=True)
class EvaluatedPath:
    """A path with its fitness and its cost."""

    path: Architecture
    fitness: float | None
    """The task's score with inherited weights, on the held-out examples; None if there is no supernet."""
    cost: float | int
    """In the budget's unit."""


@dataclass(frozen=True)
class Stage:
    """The result of a stage."""

    name: str
    generations: list[list[EvaluatedPath]]
    """All evaluated paths, by generation."""
    ranking: list[EvaluatedPath]
    """All evaluated paths, the fittest first."""

    @property
    def evaluated(self) -> int:
        """Number of paths that were evaluated by a supernet."""
        return sum(each.fitness is not None for each in self.ranking)

    @staticmethod
    def from_generations(name: str, generations: list[Generation], cost: CostTable) -> "Stage":
        """Return the result of a stage from the generations of its evolution."""
        evaluated = {
            each.path: EvaluatedPath(path=each.path, fitness=each.fitness, cost=cost(each.path))
            for each in generations[-1].ranking
        }
        by_generation = [[evaluated[each.path] for each in generation.candidates] for generation in generations]
        return Stage(name, by_generation, list(evaluated.values()))


@dataclass(frozen=True)
class Search:
    """One search: what its stages share. All files are kept in `run`, and a step whose files exist is not repeated.

    `data` has a `train` and a `val` split, both cut from the training examples. Costs are those of one image, or
    of one text of `tokens` tokens.
    """

    model: Model
    task: ScoredObjective
    data: Data
    config: SearchConfig
    run: RunFolder
    tokens: int | None = None

    def run_stages(self) -> list[Stage]:
        """Search from the blocks of `model`, and return the stages; the ranking of the last one has the finalists."""
        config = self.config
        config.check()
        # Random paths already regularise the supernet, so no drop path.
        start = tuple(replace(block, drop_path=0.0) for block in blocks_of(self.model.config))
        heads = heads_space(start, config.space)
        full = full_space(start, config.space)
        cost = self.cost_table((*heads, *full))
        if config.method == "halving":
            return [self.draw_candidates(full, cost)]
        if config.method == "heads":
            return [self.run_stage("heads", heads, config, cost)]
        if config.method == "hierarchical":
            # Before stage 2 widens blocks, few candidates reach the lower bound.
            without_lower = replace(config, budget=replace(config.budget, lower=None))
            heads_stage = self.run_stage("heads", heads, without_lower, cost)
            details = details_space(heads_stage.ranking[0].path, config.space)
            return [heads_stage, self.run_stage("details", details, config, cost)]
        # `flat` and `random` search the full space in one stage, which is as long as the two of `hierarchical`.
        evolution = replace(config.evolution, generations=2 * config.evolution.generations)
        config = replace(config, evolution=evolution, supernet=twice_as_long(config.supernet))
        return [self.run_stage("whole", full, config, cost)]

    def cost_table(self, space: Space) -> CostTable:
        """Return the cost of every option of a space. The first process times blocks, the others read its timings."""
        budget = self.config.budget
        with this_process().main_process_first():
            cost = cost_table(
                budget.kind,
                self.model,
                budget.tokens or self.tokens,
                self.run.path / f"{budget.kind}.json",
                precision=self.config.supernet.precision,
            )
            cost.add(option for options in space for option in options)
        return cost

    def run_stage(self, name: str, space: Space, config: SearchConfig, cost: CostTable) -> Stage:
        """Train the supernet of a space, then evolve its paths within the budget."""
        budget = config.budget.of(cost)
        budget.check_reachable(space)  # fail before a supernet is trained
        folder = RunFolder(self.run.path / name)
        supernet = self.train_supernet(space, config, cost, folder)

        survivors = config.evolution.parents if config.race else None
        accelerator = open_accelerator(config.supernet.precision)
        evaluator = Evaluator(
            supernet, self.task, self.data, "val", accelerator, config.calibration, config.batch_size, survivors
        )
        fingerprint = {
            "stage": name,
            "space": [[asdict(option) for option in options] for options in space],
            "search": asdict(config),
        }
        journal = Journal(folder.path / "journal.jsonl", fingerprint, write=accelerator.is_main_process)
        index_of = [{option: index for index, option in enumerate(options)} for options in space]

        def key(path: Architecture) -> list[int]:
            return [option_index[option] for option_index, option in zip(index_of, path, strict=True)]

        fitness = journal.cached(evaluator, key, whole_generations=config.race)
        search = random_search if config.method == "random" else evolve
        evolution = search(space, fitness, budget, config.evolution)
        generations = list(progress(evolution, f"searching {name}", config.evolution.generations))
        stage = Stage.from_generations(name, generations, cost)
        if accelerator.is_main_process:
            best = stage.ranking[0]
            assert best.fitness is not None
            print(
                f"stage {name}: {len(stage.ranking)} paths evaluated, the best has "
                f"{format_score(best.fitness, self.task.score_name)} with inherited weights and "
                f"{round(best.cost, 2):,} {budget.unit}",
                flush=True,
            )
        return stage

    def draw_candidates(self, space: Space, cost: CostTable) -> Stage:
        """Draw the candidates of a search without a supernet: random paths within the budget, not evaluated."""
        config = self.config
        budget = config.budget.of(cost)
        drawn = budget.draw_distinct(space, random.Random(config.evolution.seed), config.finalists)
        candidates = [EvaluatedPath(path, None, cost(path)) for path in drawn]
        return Stage("drawn", [candidates], candidates)

    def train_supernet(self, space: Space, config: SearchConfig, cost: CostTable, folder: RunFolder) -> Supernet:
        """Train a supernet of a space in its own run folder, and return it with the weights of the last checkpoint."""
        torch.manual_seed(config.supernet.seed)
        supernet = Supernet(self.model, space, config.sharing)
        if this_process().is_main_process:
            folder.last.parent.mkdir(parents=True, exist_ok=True)
            paths = math.prod(map(len, space))
            print(f"stage {folder.path.name}: a supernet of {paths:,} paths, in {folder}", flush=True)
        this_process().wait_for_everyone()
        samplers: dict[str, PathSampler] = {
            "uniform": uniform_path,
            "fair": fair_path,
            "sandwich": partial(sandwich_paths, size=cost.of_block),
        }
        data = PathSamplingData(self.data, space, config.supernet.seed, samplers[config.sampling])
        fit(supernet, SupernetObjective(self.task, space), data, config.supernet, folder, resume=True)
        # The last checkpoint, not the best: validation scores one random path per batch, so epochs cannot be compared.
        supernet.load_state_dict(read_checkpoint(folder.last)["model"])
        return supernet


def twice_as_long(train: TrainConfig) -> TrainConfig:
    """Return a config of twice the epochs or steps."""
    return replace(train, **{name: 2 * getattr(train, name) for name in ("epochs", "steps") if getattr(train, name)})


def format_score(score: float, name: str) -> str:
    """Write a score with its name: an accuracy in percent, any other as a number."""
    return f"{name} {score:.2%}" if "accuracy" in name else f"{name} {score:.4f}"


def save_arch(file: Path, config: object, path: Architecture) -> None:
    """Write a path to the file that `glocal train RECIPE --model.arch FILE` reads: a list of blocks for each stack."""
    stacked = split_into_stacks(config, path)
    write_json(file, {name: [asdict(block) for block in stack] for name, stack in stacked.items()})
