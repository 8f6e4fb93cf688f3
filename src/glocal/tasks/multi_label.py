"""What multi-label classification of images and texts shares: any number of classes for each, scored one by one."""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MultilabelAveragePrecision, MultilabelF1Score
from torchmetrics.utilities import dim_zero_cat

from glocal.errors import shortened
from glocal.tasks.objective import inputs
from glocal.tasks.spec import Metrics
from glocal.training.interfaces import ExampleScores
from glocal.training.run import RunFolder

THRESHOLD = 0.5
"""Probability from which on a class is predicted."""


@dataclass(frozen=True)
class MultiLabelConfig:
    """The task of assigning any number of classes to each image or text."""

    name: Literal["multi-label-image-classification", "multi-label-text-classification"] = (
        "multi-label-text-classification"
    )
    """The task, by which a recipe knows its sections."""


class MultiLabel:
    """Binary cross entropy of each class; a batch's `labels` (B, K) are 1 at the classes of an example, else 0."""

    score_name = "negative loss"

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes

    def predictions_and_targets(
        self, model: nn.Module, batch: dict[str, Tensor]
    ) -> tuple[Float[Tensor, "batch classes"], Float[Tensor, "batch classes"]]:
        """Return the logits and the labels, in float32."""
        return model(**inputs(batch)).float(), batch["labels"].float()

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Float[Tensor, ""]:
        """Return the mean binary cross entropy over examples and classes, in nats."""
        return F.binary_cross_entropy_with_logits(*self.predictions_and_targets(model, batch))

    def size(self, batch: dict[str, Tensor]) -> int:
        """Return how many examples the mean is over."""
        return len(batch["labels"])

    def metrics(self) -> MetricCollection:
        """Return fresh metrics.

        `loss` in nats; `micro_f1` over all decisions and `macro_f1`, the mean over classes, at a probability of one
        half; `map`, the mean average precision over the classes that occur; `f1`, a list over the classes.
        """
        options: dict[str, Any] = {"num_labels": self.num_classes, "validate_args": False}
        return MetricCollection(
            {
                "loss": MeanBinaryCrossEntropy(),
                "micro_f1": F1(average="micro", **options),
                "macro_f1": F1(average="macro", **options),
                "f1": F1(average=None, **options),
                "map": MeanAveragePrecision(average=None, **options),
            },
            compute_groups=False,
        )

    def score(self, metrics: dict[str, Any]) -> float:
        """Return the mean average precision."""
        return metrics["map"]

    def example_scores(self, model: nn.Module, batch: dict[str, Tensor]) -> ExampleScores:
        """Return the negative loss of each example: average precision is of a class, and no example has one."""
        logits, labels = self.predictions_and_targets(model, batch)
        losses = F.binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(dim=1)
        return ExampleScores(-losses, torch.ones_like(losses))

    def to(self, device: torch.device) -> "MultiLabel":
        """Return the objective, which has no tensors to move."""
        return self


class MeanBinaryCrossEntropy(MeanMetric):
    """Mean binary cross entropy over examples and classes, in nats."""

    def update(self, logits: Float[Tensor, "batch classes"], labels: Float[Tensor, "batch classes"]) -> None:  # type: ignore[override]
        """Add a batch."""
        super().update(F.binary_cross_entropy_with_logits(logits, labels, reduction="none"))


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
        """Return it over all batches; 0 where no class occurs."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "No positive samples")  # such classes are left out
            precision = super().compute()
        occurs = dim_zero_cat(self.target).any(dim=0)
        return precision[occurs].mean() if occurs.any() else precision.new_zeros(())


def format_test(test: Metrics, run: RunFolder) -> Iterator[str]:
    """Yield the F1 of each class and the scores over all."""
    yield f"{test['examples']} test examples"
    labels = [shortened(label, 40) for label in test["labels"]]
    width = max(map(len, ["class", *labels])) + 2
    yield f"{'class':{width}}      F1"
    for label, score in zip(labels, test["f1"], strict=True):
        yield f"{label:{width}}{score:8.3f}"
    yield f"micro F1 {test['micro_f1']:.4f}, macro F1 {test['macro_f1']:.4f}, mean average precision {test['map']:.4f}"
