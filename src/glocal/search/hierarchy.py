"""The search itself: train a supernet, evolve its paths, and with GLiT's hierarchy do so twice.

    Chen et al. 2021, *GLiT*, section 3.2; Guo et al. 2019, *Single Path One-Shot NAS with Uniform Sampling*

    stage 1   how many heads of each block are local; kernels and widths as at the start
    stage 2   kernels and widths of each block; its heads as stage 1 found them

A stage is a run folder of its own: the supernet's checkpoints, and the journal of every path that was judged. Both go
on where they were when the search is started again.
"""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torchmetrics import MetricCollection

from glocal.data.progress import progress
from glocal.files import write_json
from glocal.models import ViTConfig
from glocal.search.budget import Budget, random_path
from glocal.search.config import SearchConfig
from glocal.search.cost import CostTable, cost_table
from glocal.search.evolution import Generation, evolve, random_search
from glocal.search.journal import Journal
from glocal.search.judge import Judge
from glocal.search.space import Blocks, Space, details, heads, whole
from glocal.search.supernet import Supernet
from glocal.training import RunFolder, fit, open_accelerator, this_process
from glocal.training.checkpoint import read_checkpoint
from glocal.training.interfaces import Batch, Batches, Data, Objective


@dataclass(frozen=True)
class Judged:
    """A path and what is known of it."""

    blocks: Blocks
    fitness: float
    """Accuracy with inherited weights on the images that the search holds back."""
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


def search(model: ViTConfig, task: Objective, data: Data, config: SearchConfig, run: RunFolder) -> list[Stage]:
    """Search for blocks of `model`, whose own are the start; return the stages, the last with the finalists in front.

    `data` has a `train` and a `val` split, both cut from the training images. Everything is kept under `run`, and what
    is kept there already is not done again.
    """
    config.check()
    everything = whole(model.blocks, config.space)
    with this_process().main_process_first():  # the first process times blocks, the others read what it found
        cost = cost_table(
            config.budget.kind, model, run.path / "milliseconds.json", precision=config.supernet.precision
        )
        cost.add(gene for space in (heads(model.blocks), everything) for options in space for gene in options)
    if config.method == "heads":
        return [search_stage("heads", heads(model.blocks), model, task, data, config, run, cost)]
    if config.method == "hierarchical":
        upper = replace(config, budget=replace(config.budget, lower=None))
        first = search_stage("heads", heads(model.blocks), model, task, data, upper, run, cost)
        found = first.ranking[0].blocks
        return [first, search_stage("details", details(found, config.space), model, task, data, config, run, cost)]
    evolution = replace(config.evolution, generations=2 * config.evolution.generations)
    supernet = replace(config.supernet, epochs=2 * (config.supernet.epochs or 0))
    config = replace(config, evolution=evolution, supernet=supernet)
    return [search_stage("whole", everything, model, task, data, config, run, cost)]


def search_stage(
    name: str,
    space: Space,
    model: ViTConfig,
    task: Objective,
    data: Data,
    config: SearchConfig,
    run: RunFolder,
    cost: CostTable,
) -> Stage:
    """Train the supernet of a space, then evolve its paths within the budget."""
    limits = config.budget
    budget = Budget(cost, limits.lower, limits.upper, limits.unit)
    budget.draw(space, Random(0))  # a budget that nothing meets should not cost a supernet
    folder = RunFolder(run.path / name)
    torch.manual_seed(config.supernet.seed)
    supernet = Supernet(model, space, config.sharing)
    if this_process().is_main_process:
        folder.last.parent.mkdir(parents=True, exist_ok=True)
        print(f"stage {name}: a supernet of {math.prod(map(len, space)):,} paths, in {folder}", flush=True)
    this_process().wait_for_everyone()
    fit(supernet, OnePath(task, space), Paths(data, space, config.supernet.seed), config.supernet, folder, resume=True)
    supernet.load_state_dict(read_checkpoint(folder.last)["model"])  # the last: one path a batch ranks no epoch

    places = {gene: place for options in space for place, gene in enumerate(options)}
    survivors = config.evolution.parents if config.race else None
    accelerator = open_accelerator(config.supernet.precision)
    judge = Judge(supernet, data, "val", accelerator, config.calibration, survivors=survivors)
    fingerprint = {
        "stage": name,
        "space": [[asdict(gene) for gene in options] for options in space],
        "search": asdict(config),
    }
    journal = Journal(folder.path / "journal.jsonl", fingerprint, write=accelerator.is_main_process)
    fitness = journal.remember(judge, lambda path: [places[gene] for gene in path], together=config.race)
    evolution = (random_search if config.method == "random" else evolve)(space, fitness, budget, config.evolution)
    generations: list[Generation] = []
    for generation in progress(evolution, f"searching {name}", config.evolution.generations):
        generations.append(generation)
    judged = [[Judged(*candidate, cost(candidate.path)) for candidate in each.candidates] for each in generations]
    ranking = [Judged(*candidate, cost(candidate.path)) for candidate in generations[-1].ranking]
    if accelerator.is_main_process:
        best = f"the best {ranking[0].fitness:.2%} with inherited weights, {round(ranking[0].cost, 2):,} {limits.unit}"
        print(f"stage {name}: {len(ranking)} paths judged, {best}", flush=True)
    return Stage(name, judged, ranking)


@dataclass(frozen=True)
class Paths:
    """Data whose every batch names the path that it trains: a pure function of the seed and the batch's place.

    All ranks draw the same path, as they must to share its gradient.
    """

    data: Data
    space: Space
    seed: int

    def train_batches(self, batch_size: int, epoch: int, start: int = 0, rank: int = 0, world: int = 1) -> "WithPath":
        """The data's own batches, each with a path."""
        batches = self.data.train_batches(batch_size, epoch, start, rank, world)
        return WithPath(batches, self.space, f"{self.seed}, train {epoch}", start)

    def eval_batches(self, split: str, batch_size: int, rank: int = 0, world: int = 1) -> "WithPath":
        """A split, each batch with a path."""
        return WithPath(self.data.eval_batches(split, batch_size, rank, world), self.space, f"{self.seed}, {split}")


@dataclass(frozen=True)
class WithPath:
    """Batches, each with the place of every block's gene in `path`."""

    batches: Batches
    space: Space
    seed: str
    start: int = 0

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        places = [range(len(options)) for options in self.space]
        for number, batch in enumerate(self.batches, self.start):
            yield batch | {"path": torch.tensor(random_path(places, Random(f"{self.seed}, {number}")))}


@dataclass(frozen=True)
class OnePath:
    """The task of a supernet: a batch's path is asked what a plain model would be asked."""

    task: Objective
    space: Space

    def loss(self, model: nn.Module, batch: Batch) -> Float[Tensor, ""]:
        """The task's own loss."""
        return self.task.loss(Subnet(model, self.path(batch)), batch)

    def predictions_and_targets(self, model: nn.Module, batch: Batch) -> tuple[Tensor, ...]:
        """The path's answers, normalised by the batch's own statistics: the supernet's are of no one path."""
        return self.task.predictions_and_targets(Subnet(model.train(), self.path(batch)), batch)

    def size(self, batch: Batch) -> int | tuple[int, ...]:
        """The task's own."""
        return self.task.size(batch)

    def path(self, batch: Batch) -> Blocks:
        """The path that a batch names."""
        return tuple(options[place] for options, place in zip(self.space, batch["path"].tolist(), strict=True))

    def metrics(self) -> MetricCollection:
        """The task's own."""
        return self.task.metrics()

    def score(self, metrics: dict[str, Any]) -> float:
        """The task's own."""
        return self.task.score(metrics)

    def to(self, device: torch.device) -> "OnePath":
        """Move the task."""
        self.task.to(device)
        return self


class Subnet(nn.Module):
    """One path of a supernet, to be called as a model is."""

    def __init__(self, supernet: nn.Module, path: Blocks) -> None:
        super().__init__()
        self.supernet, self.path = supernet, path

    def forward(self, pixel_values: Float[Tensor, "batch chans height width"]) -> Float[Tensor, "batch classes"]:
        """Logits."""
        return self.forward_heads(pixel_values).mean(dim=1)

    def forward_heads(
        self, pixel_values: Float[Tensor, "batch chans height width"]
    ) -> Float[Tensor, "batch heads classes"]:
        """Logits of each head."""
        return self.supernet(pixel_values, self.path)


def save_arch(path: Path, blocks: Blocks) -> None:
    """Write an architecture as `glocal train RECIPE --model.arch FILE` reads it."""
    write_json(path, {"blocks": [asdict(block) for block in blocks]})
