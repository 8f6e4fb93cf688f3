"""What the loop asks of a task and of data. Whatever answers so can be trained: images, text, a toy in a test."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torchmetrics import MetricCollection

Batch = dict[str, Tensor]
"""Tensors that share their first axis, one of them `labels`."""
SampleFn = Callable[[nn.Module], str]
"""What can say a line for people about a model, such as a sample of its answers."""


@runtime_checkable
class Batches(Protocol):
    """An iterable that knows its length."""

    def __iter__(self) -> Iterator[Batch]: ...
    def __len__(self) -> int: ...


@runtime_checkable
class Objective(Protocol):
    """An objective: a loss to learn by, metrics to be judged by."""

    def loss(self, model: nn.Module, batch: Batch) -> Float[Tensor, "*parts"]:
        """Mean over the batch's labels, to be minimised; one mean for each part of an objective that is a sum."""
        ...

    def size(self, batch: Batch) -> int | tuple[int, ...]:
        """How many labels that mean is over, or each of them: images, or tokens that are no padding."""
        ...

    def predictions_and_targets(self, model: nn.Module, batch: Batch) -> tuple[Tensor, ...]:
        """The model's answers to a batch and what they should have been, as the metrics take them."""
        ...

    def metrics(self) -> MetricCollection:
        """Fresh metrics, to be updated by `predictions_and_targets`; `loss` is one of them."""
        ...

    def score(self, metrics: dict[str, Any]) -> float:
        """What decides between two epochs, out of the computed metrics; higher is better."""
        ...

    def to(self, device: torch.device) -> object:
        """Move what the task owns, such as a teacher."""
        ...


class ExampleScores(NamedTuple):
    """The scores of a batch's examples, one by one, by which models are compared in pairs."""

    scores: Float[Tensor, " examples"]
    """Of each example: the higher, the better."""
    weights: Float[Tensor, " examples"]
    """Of each in the mean over all examples, which is the same for every model: 1, or its number of labels."""


@runtime_checkable
class ScoredObjective(Objective, Protocol):
    """An objective that scores each example: what a search needs of a task."""

    score_name: str
    """What `example_scores` are, for readers: "top-1 accuracy", "negative loss"."""

    def example_scores(self, model: nn.Module, batch: Batch) -> ExampleScores:
        """Return the score of each example. The weighted mean over a split is `score`, or ranks models as it does."""
        ...


@runtime_checkable
class Data(Protocol):
    """Batches that are a pure function of the epoch and their number, as many on every rank and in every epoch."""

    def train_batches(self, batch_size: int, epoch: int, start: int = 0, rank: int = 0, world: int = 1) -> Batches:
        """Batches `start`, `start + 1`, ... of an epoch: this rank's share, `batch_size` images or tokens each."""
        ...

    def eval_batches(self, split: str, batch_size: int, rank: int = 0, world: int = 1) -> Batches:
        """A split in fixed order, every example exactly once over the ranks."""
        ...
