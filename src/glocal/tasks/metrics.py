"""Metrics of logits against integer labels, a mean over all labels but those that are -100."""

from jaxtyping import Float, Int
from torch import Tensor
from torchmetrics import MeanMetric

from glocal.ops import IGNORED, cross_entropy


class MeanCrossEntropy(MeanMetric):
    """Cross entropy, in nats a label."""

    def update(self, logits: Float[Tensor, "*batch classes"], labels: Int[Tensor, "*batch"]) -> None:  # type: ignore[override]
        """Add a batch."""
        labels = labels.flatten()
        super().update(cross_entropy(logits.flatten(0, -2), labels, reduction="none")[labels != IGNORED])


class Perplexity(MeanCrossEntropy):
    """Its exponential: among how many equally likely labels the model is left to guess."""

    def compute(self) -> Float[Tensor, ""]:
        """Of all batches."""
        return super().compute().exp()


class Accuracy(MeanMetric):
    """Share of labels that have the highest logit."""

    def update(self, logits: Float[Tensor, "*batch classes"], labels: Int[Tensor, "*batch"]) -> None:  # type: ignore[override]
        """Add a batch."""
        real = labels != IGNORED
        super().update((logits.argmax(dim=-1) == labels)[real].float())
