"""What training needs of a task and of data, so that it knows neither: images, texts, a toy in a test."""

from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torchmetrics import MetricCollection

from glocal.files import JSONObject

Batch = dict[str, Tensor]
"""Tensors that share their first axis, one of them `labels`."""
Metrics = JSONObject
"""What an evaluation measured, as report.json keeps it: numbers, texts, and lists of them, by name."""
SampleFn = Callable[[nn.Module], str]
"""Returns a line for the log about a model, such as a sample of its output."""


@runtime_checkable
class Batches(Protocol):
    """An iterable of batches that knows its length."""

    def __iter__(self) -> Iterator[Batch]: ...
    def __len__(self) -> int: ...


@runtime_checkable
class Objective(Protocol):
    """A loss to minimise, and metrics."""

    def loss(self, model: nn.Module, batch: Batch) -> Float[Tensor, "*parts"]:
        """Return the mean over the batch's labels; of an objective that is a sum, one mean for each part."""
        ...

    def size(self, batch: Batch) -> int | tuple[int, ...]:
        """Return how many labels that mean is over (images, tokens without padding), or how many for each part."""
        ...

    def predictions_and_targets(self, model: nn.Module, batch: Batch) -> tuple[Tensor, ...]:
        """Return the model's outputs for a batch and the targets, as the metrics take them."""
        ...

    def metrics(self) -> MetricCollection:
        """Return fresh metrics, to be updated by `predictions_and_targets`; one of them is `loss`."""
        ...

    def score(self, metrics: Metrics) -> float:
        """Return the number by which epochs are compared, from the computed metrics; higher is better."""
        ...

    def to(self, device: torch.device) -> object:
        """Move the objective's tensors, such as a teacher's weights."""
        ...


class ExampleScores(NamedTuple):
    """The scores of a batch's examples, one by one, by which models are compared in pairs."""

    scores: Float[Tensor, " examples"]
    """The score of each example; higher is better."""
    weights: Float[Tensor, " examples"]
    """The weight of each example in the mean over all, the same for every model: 1, or the number of its labels."""


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
    """Batches that are a pure function of the epoch and their number, as many in every process and every epoch."""

    def train_batches(self, batch_size: int, epoch: int, start: int = 0, rank: int = 0, world_size: int = 1) -> Batches:
        """Return this process's share of an epoch, from batch `start` on; a batch has `batch_size` images or tokens."""
        ...

    def eval_batches(self, split: str, batch_size: int, rank: int = 0, world_size: int = 1) -> Batches:
        """Return this process's share of a split in fixed order; the shares hold every example exactly once."""
        ...
