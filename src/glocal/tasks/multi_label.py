"""What multi-label classification of images and texts shares: each class is predicted or not, whatever the others."""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MetricCollection
from torchmetrics.classification import MultilabelAveragePrecision, MultilabelF1Score
from torchmetrics.utilities import dim_zero_cat

from glocal.errors import shortened
from glocal.tasks.objective import Mean, model_inputs
from glocal.training.interfaces import Batch, ExampleScores, Metrics
from glocal.training.run import RunFolder

THRESHOLD = 0.5
"""Least probability of a predicted class."""


@dataclass(frozen=True)
class MultiLabelConfig:
    """The task of assigning any number of classes to each image or text."""

    name: Literal["multi-label-image-classification", "multi-label-text-classification"] = (
        "multi-label-text-classification"
    )
    """The task, which decides the fields of the sections `data` and `task`."""


class MultiLabelObjective:
    """Binary cross entropy of each class; a batch's `labels` (B, K) are 1 at the classes of an example, else 0."""

    score_name = "negative loss"

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes

    def predictions_and_targets(
        self, model: nn.Module, batch: Batch
    ) -> tuple[Float[Tensor, "batch classes"], Float[Tensor, "batch classes"]]:
        """Return the logits and the labels, in float32."""
        return model(**model_inputs(batch)).float(), batch["labels"].float()

    def loss(self, model: nn.Module, batch: Batch) -> Float[Tensor, ""]:
        """Return the mean binary cross entropy over examples and classes, in nats."""
        return F.binary_cross_entropy_with_logits(*self.predictions_and_targets(model, batch))

    def size(self, batch: Batch) -> int:
        """Return how many examples the mean is over."""
        return len(batch["labels"])

    def metrics(self) -> MetricCollection:
        """Return fresh metrics.

        `loss` in nats; `micro_f1` over all decisions and `macro_f1`, the mean over classes, at a probability of one
        half; `map`, the mean average precision over the classes that occur; `f1`, a list over the classes.
        """
        labels = self.num_classes
        return MetricCollection(
            {
                "loss": MeanBinaryCrossEntropy(),
                "micro_f1": F1(labels, average="micro", validate_args=False),
                "macro_f1": F1(labels, average="macro", validate_args=False),
                "f1": F1(labels, average=None, validate_args=False),
                "map": MeanAveragePrecision(labels, average=None, validate_args=False),
            },
            compute_groups=False,  # torchmetrics merges metrics equal on the first batch
        )

    def score(self, metrics: Metrics) -> float:
        """Return the mean average precision."""
        return metrics["map"]

    def example_scores(self, model: nn.Module, batch: Batch) -> ExampleScores:
        """Return the negative loss of each example: average precision is defined for a class, not for an example."""
        logits, labels = self.predictions_and_targets(model, batch)
        losses = F.binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(dim=1)
        return ExampleScores(-losses, torch.ones_like(losses))

    def to(self, device: torch.device) -> "MultiLabelObjective":
        """Return the objective, which has no tensors to move."""
        return self


class MeanBinaryCrossEntropy(Mean):
    """Mean binary cross entropy over examples and classes, in nats."""

    def update(self, logits: Float[Tensor, "batch classes"], labels: Float[Tensor, "batch classes"]) -> None:
        """Add a batch."""
        self.add(F.binary_cross_entropy_with_logits(logits, labels, reduction="none"))


class F1(MultilabelF1Score):
    """F1 at a probability of one half."""

    def update(self, logits: Float[Tensor, "batch classes"], labels: Float[Tensor, "batch classes"]) -> None:
        """Add a batch."""
        super().update(logits.sigmoid(), labels.long())


class MeanAveragePrecision(MultilabelAveragePrecision):
    """Mean average precision over the classes that occur in the labels."""

    def update(self, logits: Float[Tensor, "batch classes"], labels: Float[Tensor, "batch classes"]) -> None:
        """Add a batch."""
        super().update(logits.sigmoid(), labels.long())

    def compute(self) -> Float[Tensor, ""]:  # type: ignore[override]
        """Return the mean over all batches; 0 where no class occurs."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "No positive samples")  # such classes are left out
            precision = super().compute()
        occurs = dim_zero_cat(self.target).any(dim=0)
        return precision[occurs].mean() if occurs.any() else precision.new_zeros(())


def format_test(metrics: Metrics, run: RunFolder) -> Iterator[str]:
    """Yield the F1 of each class and the scores over all."""
    yield f"{metrics['examples']} test examples"
    labels = [shortened(label, 40) for label in metrics["labels"]]
    width = max(map(len, ["class", *labels])) + 2
    yield f"{'class':{width}}      F1"
    for label, score in zip(labels, metrics["f1"], strict=True):
        yield f"{label:{width}}{score:8.3f}"
    yield f"micro F1 {metrics['micro_f1']:.4f}, macro F1 {metrics['macro_f1']:.4f}"
    yield f"mean average precision {metrics['map']:.4f}"
