"""Which paths of a supernet a step trains, and by which loss: SPOS's way, and two later ones.

    uniform    one path per batch, in which each option of a block is equally likely (Guo et al. 2019, section 3.3)
    fair       one path per batch; each option of a block occurs once in as many batches as the block has options, in
               random order, so that all of them are trained equally often (Chu et al. 2019, *FairNAS*, section 3.3,
               https://arxiv.org/abs/1907.01845). With as many batches per step (`accumulate`), this is the paper's
               strict fairness
    sandwich   four paths per batch: the largest learns from the labels; the smallest and two random ones learn from the
               predictions of the largest (Yu et al. 2020, *BigNAS*, section 3.1, https://arxiv.org/abs/2003.11142)

A path is a pure function of the seed, the epoch and the number of the batch. All ranks draw the same path, as they must
to share its gradient, and a resumed run draws the same paths.
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
from glocal.search.budget import Architecture, random_path
from glocal.search.space import Space
from glocal.search.supernet import Supernet
from glocal.training.interfaces import Batch, Batches, Data, Metrics, Objective

Sampling = Literal["uniform", "fair", "sandwich"]
OptionIndices = list[int]
"""A path: for each block, the index of its option among the block's options."""
PathSampler = Callable[[Space, str, int], OptionIndices | list[OptionIndices]]
"""Returns the path, or the paths, of a batch, from the space, a seed and the batch's number in the epoch."""

RANDOM_PATHS = 2
"""Random paths per batch beside the largest and the smallest (Yu et al. 2020, section 3.1)."""


def uniform_path(space: Space, seed: str, number: int) -> OptionIndices:
    """Return a path in which every option of a block is equally likely."""
    return list(random_path([range(len(options)) for options in space], Random(f"{seed}, {number}")))


def fair_path(space: Space, seed: str, number: int) -> OptionIndices:
    """Return a path; each option of a block occurs once in a round of as many batches as the block has options."""
    path = []
    for block, options in enumerate(space):
        round_number, index = divmod(number, len(options))
        order = Random(f"{seed}, fair {block}, {round_number}").sample(range(len(options)), len(options))
        path.append(order[index])
    return path


def sandwich_paths(space: Space, seed: str, number: int, size: Callable[[BlockConfig], float]) -> list[OptionIndices]:
    """Return the path of the largest blocks, the path of the smallest blocks, and random paths."""
    sizes = [[size(option) for option in options] for options in space]
    largest = [block_sizes.index(max(block_sizes)) for block_sizes in sizes]
    smallest = [block_sizes.index(min(block_sizes)) for block_sizes in sizes]
    return [largest, smallest, *(uniform_path(space, f"{seed}, {each}", number) for each in range(RANDOM_PATHS))]


@dataclass(frozen=True)
class PathSamplingData:
    """Data with the paths that each batch trains."""

    data: Data
    space: Space
    seed: int
    sample: PathSampler = uniform_path

    def train_batches(
        self, batch_size: int, epoch: int, start: int = 0, rank: int = 0, world_size: int = 1
    ) -> "BatchesWithPaths":
        """Return the batches of `data`, each with its paths."""
        batches = self.data.train_batches(batch_size, epoch, start, rank, world_size)
        return BatchesWithPaths(batches, self.space, f"{self.seed}, train {epoch}", start, self.sample)

    def eval_batches(self, split: str, batch_size: int, rank: int = 0, world_size: int = 1) -> "BatchesWithPaths":
        """Return the batches of a split of `data`, each with one uniform path."""
        batches = self.data.eval_batches(split, batch_size, rank, world_size)
        return BatchesWithPaths(batches, self.space, f"{self.seed}, {split}")


@dataclass(frozen=True)
class BatchesWithPaths:
    """Batches with `path`: the option indices of one path, (blocks,), or of several paths, (paths, blocks)."""

    batches: Batches
    space: Space
    seed: str
    start: int = 0
    sample: PathSampler = uniform_path

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        for number, batch in enumerate(self.batches, self.start):
            yield batch | {"path": torch.tensor(self.sample(self.space, self.seed, number))}


@dataclass(frozen=True)
class SupernetObjective:
    """The objective of a supernet: the objective of a plain model, for the paths that a batch names."""

    task: Objective
    space: Space

    def loss(self, model: nn.Module, batch: Batch) -> Float[Tensor, "*parts"]:
        """Return the task's loss for the batch's path. Of several paths, return the mean of their losses.

        Then the first path learns from the labels, and the others learn from the predictions of the first. Raises
        GlocalError where the task predicts no classes.
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
        """Return the task's predictions and targets for the batch's path.

        BatchNorm uses the batch's statistics, since the supernet's running statistics are a mixture of all paths.
        """
        assert isinstance(model, Supernet)
        (path,) = self.paths(batch)

        def normalized(depth: int, option: BlockConfig, x: Tensor, **inputs: object) -> Tensor:
            return model.shared_blocks[depth].calibrate(option, x, **inputs)[0]

        subnet = model.with_blocks([partial(normalized, depth, option) for depth, option in enumerate(path)])
        return self.task.predictions_and_targets(subnet, batch)

    def size(self, batch: Batch) -> int | tuple[int, ...]:
        """Return the task's size of a batch."""
        return self.task.size(batch)

    def paths(self, batch: Batch) -> list[Architecture]:
        """Return the paths that a batch names."""
        return [
            tuple(options[index] for options, index in zip(self.space, indices, strict=True))
            for indices in torch.atleast_2d(batch["path"]).tolist()
        ]

    def metrics(self) -> MetricCollection:
        """Return the task's metrics."""
        return self.task.metrics()

    def score(self, metrics: Metrics) -> float:
        """Return the task's score of metrics."""
        return self.task.score(metrics)

    def to(self, device: torch.device) -> "SupernetObjective":
        """Move the task to a device."""
        self.task.to(device)
        return self


def distill(predictions: tuple[Tensor, ...], taught: tuple[Tensor, ...]) -> Float[Tensor, " parts"]:
    """Return KL(taught ‖ predicted) in nats for each part of an objective, the mean over the part's labels.

    Both tuples alternate logits and labels, as `predictions_and_targets` returns them. Raises GlocalError for
    predictions that are not logits.
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
