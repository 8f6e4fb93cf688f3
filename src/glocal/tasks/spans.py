"""An answer that stands in a text: where it starts and where it ends.

    Rajpurkar et al. 2016, *SQuAD: 100,000+ Questions for Machine Comprehension of Text*
    https://arxiv.org/abs/1606.05250
    Devlin et al. 2018, *BERT*, section 4.2

Training knows tokens. Which span is best, over a long text's windows, is found where answers are given; `squad_scores`
judges those.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric, MetricCollection
from torchmetrics.functional.text import squad

from glocal.errors import GlocalError
from glocal.ops import IGNORED, cross_entropy_at_once
from glocal.tasks.metrics import MeanCrossEntropy
from glocal.tasks.tokens import inputs


@dataclass(frozen=True)
class SpansConfig:
    """What is asked of a reader."""

    name: Literal["spans"] = "spans"
    """The kind of task, by which a recipe knows its sections."""


class Spans:
    """The objective: `labels` (B, 2) are the tokens an answer starts and ends with; -100 counts nowhere."""

    def answers(
        self, model: nn.Module, batch: dict[str, Tensor]
    ) -> tuple[Float[Tensor, "batch 2 tokens"], Int[Tensor, "batch 2"]]:
        """Logits of each token to be the start and the end, which padding never is, and the labels."""
        logits = model(**inputs(batch)).mT
        if "attention_mask" in batch:
            logits = logits.masked_fill(~batch["attention_mask"][:, None], float("-inf"))
        return logits, batch["labels"]

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Float[Tensor, ""]:
        """Mean of both ends' cross entropy over the text's tokens, in nats, computed in float32."""
        logits, labels = self.answers(model, batch)
        return cross_entropy_at_once(logits.flatten(0, 1), labels.flatten())

    def size(self, batch: dict[str, Tensor]) -> int:
        """How many ends count."""
        return int((batch["labels"] != IGNORED).sum())

    def metrics(self) -> MetricCollection:
        """Fresh metrics, to be updated by `answers`, which add up exactly over ranks.

        Of windows: `loss` in nats, and `accuracy`, the share whose start and end are both found.
        """
        options: dict[str, Any] = {"nan_strategy": "disable"}
        metrics: dict[str, Metric | MetricCollection] = {
            "loss": MeanCrossEntropy(**options),
            "accuracy": BothEnds(**options),
        }
        return MetricCollection(metrics, compute_groups=[["loss"], ["accuracy"]])

    def score(self, metrics: dict[str, Any]) -> float:
        """Accuracy decides which weights are the best."""
        return metrics["accuracy"]

    def to(self, device: torch.device) -> "Spans":
        """It owns nothing that could move."""
        return self


class BothEnds(MeanMetric):
    """Share of spans whose start and end have the highest logits."""

    def update(self, logits: Float[Tensor, "batch 2 tokens"], labels: Int[Tensor, "batch 2"]) -> None:  # type: ignore[override]
        """Add a batch."""
        real = (labels != IGNORED).all(dim=-1)
        super().update((logits.argmax(dim=-1) == labels).all(dim=-1)[real].float())


def squad_scores(answers: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Judge finished answers as SQuAD's script does: `exact_match` and `f1` of words, from 0 to 100.

    Case, punctuation, English articles and spaces are no difference; of a question's references the nearest counts.
    Without any, the empty answer is right (Rajpurkar et al. 2018). Raises GlocalError where the two do not pair up.
    """
    if len(answers) != len(references) or not references:
        raise GlocalError(
            f"{len(answers)} answers against {len(references)} questions; give one answer a question, and at least one"
        )
    told: Any = [{"id": str(number), "prediction_text": answer} for number, answer in enumerate(answers)]
    right: Any = [{"id": str(number), "answers": {"text": texts or [""]}} for number, texts in enumerate(references)]
    return {name: score.item() for name, score in squad(told, right).items()}
