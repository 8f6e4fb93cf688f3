"""Which paths of a supernet a step trains, and by what loss: the training of SPOS, and of two that came after it.

    uniform    one path a batch, each option of a block equally likely (Guo et al. 2019, section 3.3)
    fair       each option of a block once in as many batches as it has options, in random order, so that all of them
               are trained equally often (Chu et al. 2019, *FairNAS*, section 3.3, https://arxiv.org/abs/1907.01845);
               with as many batches a step (`accumulate`), this is its strict fairness
    sandwich   four paths a batch: the largest learns from the labels; the smallest and two random ones learn from what
               the largest predicts (Yu et al. 2020, *BigNAS*, section 3.1, https://arxiv.org/abs/2003.11142)

A path is a pure function of the seed, the epoch and the batch's place. All ranks draw the same one, as they must to
share its gradient, and a resumed run draws the same ones.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MetricCollection

from glocal.errors import GlocalError
from glocal.layers.block import BlockConfig
from glocal.ops import IGNORED
from glocal.search.budget import random_path
from glocal.search.space import Blocks, Space
from glocal.search.supernet import Supernet
from glocal.training.interfaces import Batch, Batches, Data, Metrics, Objective

Sampling = Literal["uniform", "fair", "sandwich"]
Places = list[int]
"""A path, by the place of each block's option among its options."""
Draw = Callable[[Space, str, int], Places | list[Places]]
"""Returns the path, or the paths, of a batch, from the space, a seed and the batch's number in the epoch."""

RANDOM_PATHS = 2
"""Random paths of a batch between the largest and the smallest (Yu et al. 2020, section 3.1)."""


@dataclass(frozen=True)
class Paths:
    """Data whose every batch names the paths that it trains."""

    data: Data
    space: Space
    seed: int
    draw: Draw | None = None
    """How they are drawn; None: `uniform_path`."""

    def train_batches(
        self, batch_size: int, epoch: int, start: int = 0, rank: int = 0, world_size: int = 1
    ) -> "WithPath":
        """Return the data's own batches, each with its paths."""
        batches = self.data.train_batches(batch_size, epoch, start, rank, world_size)
        return WithPath(batches, self.space, f"{self.seed}, train {epoch}", start, self.draw or uniform_path)

    def eval_batches(self, split: str, batch_size: int, rank: int = 0, world_size: int = 1) -> "WithPath":
        """Return a split, each batch with one path."""
        return WithPath(
            self.data.eval_batches(split, batch_size, rank, world_size), self.space, f"{self.seed}, {split}"
        )


def uniform_path(space: Space, seed: str, number: int) -> Places:
    """Return a path in which every option of a block is equally likely."""
    return list(random_path([range(len(options)) for options in space], Random(f"{seed}, {number}")))


def fair_path(space: Space, seed: str, number: int) -> Places:
    """Return a path; over a row of as many batches as a block has options, each of them comes once."""
    path = []
    for block, options in enumerate(space):
        row, place = divmod(number, len(options))
        order = Random(f"{seed}, fair {block}, {row}").sample(range(len(options)), len(options))
        path.append(order[place])
    return path


def sandwich(space: Space, seed: str, number: int, size: Callable[[BlockConfig], float]) -> list[Places]:
    """Return the path of the largest blocks, that of the smallest, and random ones."""
    sizes = [[size(gene) for gene in options] for options in space]
    largest = [of_block.index(max(of_block)) for of_block in sizes]
    smallest = [of_block.index(min(of_block)) for of_block in sizes]
    return [largest, smallest, *(uniform_path(space, f"{seed}, {each}", number) for each in range(RANDOM_PATHS))]


@dataclass(frozen=True)
class WithPath:
    """Batches, each with the places of a path's options in `path`, (blocks,), or of several, (paths, blocks)."""

    batches: Batches
    space: Space
    seed: str
    start: int = 0
    draw: Draw = uniform_path

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        for number, batch in enumerate(self.batches, self.start):
            yield batch | {"path": torch.tensor(self.draw(self.space, self.seed, number))}


@dataclass(frozen=True)
class OnePath:
    """The objective of a supernet: that of a plain model, for the paths that a batch names."""

    task: Objective
    space: Space

    def loss(self, model: nn.Module, batch: Batch) -> Float[Tensor, "*parts"]:
        """Return the task's own loss of a path; of several, the mean of the first's and of those of the others.

        The others learn what the first predicts. Raises GlocalError where the task predicts no classes.
        """
        assert isinstance(model, Supernet)
        first, *others = self.paths(batch)
        loss = self.task.loss(model.subnet(first), batch)
        if not others:
            return loss
        with torch.no_grad():
            taught = self.task.predictions_and_targets(model.subnet(first), batch)
        distilled = [distill(self.task.predictions_and_targets(model.subnet(path), batch), taught) for path in others]
        return torch.stack([loss.reshape(-1), *distilled]).mean(dim=0)

    def predictions_and_targets(self, model: nn.Module, batch: Batch) -> tuple[Tensor, ...]:
        """Return a path's predictions, normalised by the batch's own statistics: the supernet's are of no one path."""
        assert isinstance(model, Supernet)
        (path,) = self.paths(batch)

        def normalized(depth: int, gene: BlockConfig, x: Tensor, **inputs: object) -> Tensor:
            return model.shared_blocks[depth].calibrate(gene, x, **inputs)[0]

        subnet = model.with_blocks([partial(normalized, depth, gene) for depth, gene in enumerate(path)])
        return self.task.predictions_and_targets(subnet, batch)

    def size(self, batch: Batch) -> int | tuple[int, ...]:
        """Return the task's own."""
        return self.task.size(batch)

    def paths(self, batch: Batch) -> list[Blocks]:
        """Return the paths that a batch names."""
        return [
            tuple(options[place] for options, place in zip(self.space, places, strict=True))
            for places in torch.atleast_2d(batch["path"]).tolist()
        ]

    def metrics(self) -> MetricCollection:
        """Return the task's own."""
        return self.task.metrics()

    def score(self, metrics: Metrics) -> float:
        """Return the task's own."""
        return self.task.score(metrics)

    def to(self, device: torch.device) -> "OnePath":
        """Move the task."""
        self.task.to(device)
        return self


def distill(predictions: tuple[Tensor, ...], taught: tuple[Tensor, ...]) -> Float[Tensor, " parts"]:
    """Return KL(taught ‖ predicted) of each part of an objective, the mean over its labels, in nats.

    Both are logits and labels in turn, as `predictions_and_targets` returns them. Raises GlocalError for numbers that
    are no logits.
    """
    parts = []
    for logits, labels, teacher in zip(predictions[0::2], predictions[1::2], taught[0::2], strict=True):
        if logits.ndim < 2:
            raise GlocalError("search.sampling is sandwich, for tasks that predict classes; set it to uniform or fair")
        student, teacher = (each.float().flatten(0, -2).log_softmax(dim=-1) for each in (logits, teacher))
        if labels.shape == logits.shape[:-1]:
            real = labels.flatten() != IGNORED
            student, teacher = student[real], teacher[real]
        parts.append(F.kl_div(student, teacher, reduction="batchmean", log_target=True))
    return torch.stack(parts)
