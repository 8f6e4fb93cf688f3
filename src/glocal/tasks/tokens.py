"""What objectives over tokens share: which labels count, and the usual loss and metrics."""

from abc import ABC, abstractmethod
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection

from glocal.ops import IGNORED, cross_entropy
from glocal.tasks.metrics import Accuracy, MeanCrossEntropy, Perplexity


class TokenTask(ABC):
    """A class for every token, in training and in judgement; a label of -100 counts nowhere."""

    label_smoothing = 0.0

    @abstractmethod
    def answers(self, model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """The model's logits (..., classes) and the labels (...), of all tokens or only of those that count."""

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Float[Tensor, "*parts"]:
        """Cross entropy in nats, mean over the tokens that count, computed in float32."""
        logits, labels = self.answers(model, batch)
        return cross_entropy(logits.flatten(0, -2), labels.flatten(), label_smoothing=self.label_smoothing)

    def size(self, batch: dict[str, Tensor]) -> int | tuple[int, ...]:
        """How many tokens count."""
        return int((batch["labels"] != IGNORED).sum())

    def metrics(self) -> MetricCollection:
        """Fresh metrics, to be updated by `answers`, which add up exactly over ranks.

        Over all tokens: `loss` in nats, without smoothing, its exponential `perplexity`, and `accuracy`. They belong to
        the vocabulary: between two of them, only what is said of finished text compares.
        """
        options: dict[str, Any] = {"nan_strategy": "disable"}
        metrics: dict[str, Metric | MetricCollection] = {
            "loss": MeanCrossEntropy(**options),
            "perplexity": Perplexity(**options),
            "accuracy": Accuracy(**options),
        }
        return MetricCollection(metrics, compute_groups=[["loss", "perplexity"], ["accuracy"]])  # two share their sums

    def score(self, metrics: dict[str, Any]) -> float:
        """The lowest loss decides which weights are the best."""
        return -metrics["loss"]

    def to(self, device: torch.device) -> object:
        """It owns nothing that could move."""
        return self


def inputs(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """What of a batch a model is given, by the names that its `forward` knows."""
    names = "pixel_values", "input_ids", "attention_mask", "token_type_ids"
    return {name: batch[name] for name in names if name in batch}
