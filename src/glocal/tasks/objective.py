"""Losses and metrics that objectives share."""

from abc import ABC, abstractmethod

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection

from glocal.ops import IGNORED, cross_entropy
from glocal.training.interfaces import Batch, ExampleScores, Metrics


class TokenObjective(ABC):
    """Cross entropy of a class for every token; a label of -100 is ignored, in the loss and in the metrics."""

    label_smoothing = 0.0
    score_name = "negative loss"

    @abstractmethod
    def predictions_and_targets(self, model: nn.Module, batch: Batch) -> tuple[Tensor, ...]:
        """Return the logits (..., classes) and the labels (...), of all tokens or only of tokens with a label."""

    def loss(self, model: nn.Module, batch: Batch) -> Float[Tensor, "*parts"]:
        """Return the mean cross entropy over the labels, in nats, computed in float32."""
        logits, labels = self.predictions_and_targets(model, batch)
        return cross_entropy(logits.flatten(0, -2), labels.flatten(), label_smoothing=self.label_smoothing)

    def size(self, batch: Batch) -> int | tuple[int, ...]:
        """Return how many labels the mean is over."""
        return int((batch["labels"] != IGNORED).sum())

    def metrics(self) -> MetricCollection:
        """Return fresh metrics, to be updated by `predictions_and_targets`.

        Over all labels: `loss` in nats, without label smoothing, its exponential `perplexity`, and `accuracy`. They
        depend on the vocabulary, so models with different vocabularies are compared by finished text instead.
        """
        metrics: dict[str, Metric | MetricCollection] = {
            "loss": MeanCrossEntropy(),
            "perplexity": Perplexity(),
            "accuracy": Accuracy(),
        }
        # the metrics of a group share their sums
        return MetricCollection(metrics, compute_groups=[["loss", "perplexity"], ["accuracy"]])

    def score(self, metrics: Metrics) -> float:
        """Return the negative loss: the best weights have the lowest."""
        return -metrics["loss"]

    def example_scores(self, model: nn.Module, batch: Batch) -> ExampleScores:
        """Return the negative mean loss of each row's labels, in nats, and how many labels it has."""
        logits, labels, *_ = self.predictions_and_targets(model, batch)
        return row_scores(logits, labels, batch["labels"])

    def to(self, device: torch.device) -> object:
        """Return the objective, which has no tensors to move."""
        return self


def row_scores(
    logits: Float[Tensor, "*labels classes"], labels: Int[Tensor, "*labels"], rows: Int[Tensor, "batch tokens"]
) -> ExampleScores:
    """Return the negative mean cross entropy of each row's labels, and their number.

    `rows` are a batch's labels, -100 where there is none; `logits` and `labels` are of all tokens, or only of tokens
    with a label, row after row.
    """
    losses = cross_entropy(logits.flatten(0, -2), labels.flatten(), reduction="none")[labels.flatten() != IGNORED]
    real = rows != IGNORED
    counts = real.sum(dim=1)
    sums = losses.new_zeros(len(rows)).index_add(0, real.nonzero()[:, 0], losses)
    return ExampleScores(-sums / counts.clamp(min=1), counts.float())


class Mean(Metric):
    """The mean of some values over all batches and processes; NaN where there are no values."""

    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0.0), dist_reduce_fx="sum")

    def add(self, values: Float[Tensor, "*values"]) -> None:
        """Add the values of a batch."""
        self.total += values.sum()
        self.count += values.numel()

    def compute(self) -> Float[Tensor, ""]:
        """Return the mean."""
        return self.total / self.count


class MeanCrossEntropy(Mean):
    """Mean cross entropy over the labels that are not -100, in nats."""

    def update(self, logits: Float[Tensor, "*batch classes"], labels: Int[Tensor, "*batch"]) -> None:
        """Add a batch."""
        labels = labels.flatten()
        self.add(cross_entropy(logits.flatten(0, -2), labels, reduction="none")[labels != IGNORED])


class Perplexity(MeanCrossEntropy):
    """The exponential of the mean cross entropy."""

    def compute(self) -> Float[Tensor, ""]:
        """Return the perplexity over all batches."""
        return super().compute().exp()


class Accuracy(Mean):
    """Share of the labels that have the highest logit."""

    def update(self, logits: Float[Tensor, "*batch classes"], labels: Int[Tensor, "*batch"]) -> None:
        """Add a batch."""
        self.add((logits.argmax(dim=-1) == labels)[labels != IGNORED].float())


def model_inputs(batch: Batch) -> Batch:
    """Return the tensors of a batch that a model's `forward` takes, by its argument names."""
    names = "pixel_values", "input_ids", "attention_mask", "token_type_ids"
    return {name: batch[name] for name in names if name in batch}
