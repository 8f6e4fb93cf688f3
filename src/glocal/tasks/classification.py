"""One label an image or a text: cross entropy, and distillation from a teacher.

    Touvron et al. 2021, *Training data-efficient image transformers & distillation through attention*
    https://arxiv.org/abs/2012.12877

Its symbols: Z_s and Z_t are the logits of student and teacher, ψ the softmax, τ the temperature, λ the teacher's share.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassConfusionMatrix,
    MulticlassF1Score,
    MulticlassPrecision,
    MulticlassRecall,
)

from glocal.errors import GlocalError, check_range
from glocal.tasks.metrics import MeanCrossEntropy
from glocal.tasks.tokens import inputs

Labels = Int[Tensor, " batch"] | Float[Tensor, "batch classes"]


@dataclass(frozen=True)
class ClassificationConfig:
    """What is asked of a classifier."""

    name: Literal["classification", "text-classification"] = "classification"
    """The kind of task, by which a recipe knows its sections: of images, or of texts."""

    label_smoothing: float = 0.0
    """Share of each label that is spread over all classes (Szegedy et al. 2015, section 7)."""
    distillation: Literal["none", "soft", "hard"] = "none"
    """What is learnt from the teacher: nothing, its probabilities (equation 2), or its decision (equation 3)."""
    teacher: str | None = None
    """The network that is imitated: a run, a folder, a hub id, or `timm:NAME`."""
    temperature: float = 3.0
    """τ of soft distillation."""
    alpha: float | None = None
    """λ, the teacher's share of the loss; by default the paper's: 0.1 soft (section 5.2), ½ hard (equation 3)."""

    def __post_init__(self) -> None:
        check_range("task.label_smoothing", self.label_smoothing, least=0, below=1)
        check_range("task.temperature", self.temperature, above=0)
        check_range("task.alpha", self.alpha, least=0, most=1)


class Classification:
    """The objective over `num_classes` classes.

    A batch's images or texts go to the model and to the teacher, who answers with the logits of the same classes; it is
    put in eval mode and never trained.
    Raises GlocalError where distillation has no teacher, or a teacher no distillation.
    """

    def __init__(self, config: ClassificationConfig, num_classes: int, teacher: nn.Module | None = None) -> None:
        if (config.distillation == "none") != (teacher is None):
            raise GlocalError(
                f"task.distillation is {config.distillation} and task.teacher is {config.teacher}; "
                "soft and hard need a teacher, and a teacher needs one of them"
            )
        self.config = config
        self.num_classes = num_classes
        self.teacher = None if teacher is None else teacher.eval().requires_grad_(False)
        self.alpha = (
            {"none": 0.0, "soft": 0.1, "hard": 0.5}[config.distillation] if config.alpha is None else config.alpha
        )

    def to(self, device: torch.device) -> "Classification":
        """Move the teacher."""
        if self.teacher is not None:
            self.teacher.to(device)
        return self

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Float[Tensor, ""]:
        """Mean loss of a batch; its labels are classes, or each class's share where images are mixed."""
        examples, labels = inputs(batch), batch["labels"]
        if self.teacher is None:
            return self.cross_entropy(model(**examples), labels)
        heads = model.forward_heads(**examples)  # type: ignore[operator]  # (B, 1 or 2, K): one head serves both
        truth = self.cross_entropy(heads[:, 0], labels)
        return (1 - self.alpha) * truth + self.alpha * self.imitation(heads[:, -1], examples)

    def size(self, batch: dict[str, Tensor]) -> int:
        """How many images or texts."""
        return len(batch["labels"])

    def answers(self, model: nn.Module, batch: dict[str, Tensor]) -> tuple[Float[Tensor, "batch classes"], Labels]:
        """The model's logits and the labels."""
        return model(**inputs(batch)).float(), batch["labels"]

    def cross_entropy(self, logits: Float[Tensor, "batch classes"], labels: Labels) -> Float[Tensor, ""]:
        """L_CE(ψ(Z_s), y) with smoothed labels, computed in float32."""
        return F.cross_entropy(logits.float(), labels, label_smoothing=self.config.label_smoothing)

    def imitation(self, logits: Float[Tensor, "batch classes"], examples: dict[str, Tensor]) -> Float[Tensor, ""]:
        """How far the student is from the teacher, who sees the same examples, images augmented alike.

        hard: L_CE(ψ(Z_s), argmax Z_t). soft: τ² KL(ψ(Z_t/τ) ‖ ψ(Z_s/τ)), the direction of Hinton et al. 2015 and of the
        authors' code; equation 2 names the arguments the other way round.
        """
        assert self.teacher is not None
        with torch.no_grad():
            answer = self.teacher(**examples).float()
        if answer.shape != logits.shape:
            raise GlocalError(
                f"the teacher knows {answer.shape[-1]} classes and the student {logits.shape[-1]}; "
                "give a teacher that was trained on the same classes"
            )
        if self.config.distillation == "hard":
            return F.cross_entropy(logits.float(), answer.argmax(dim=-1))
        tau = self.config.temperature
        student, teacher = F.log_softmax(logits.float() / tau, dim=-1), F.log_softmax(answer / tau, dim=-1)
        return tau**2 * F.kl_div(student, teacher, reduction="batchmean", log_target=True)

    def metrics(self) -> MetricCollection:
        """Fresh metrics, to be updated by `answers`, which add up exactly over ranks.

        Numbers: `loss` (without smoothing), `top1`, `top5` where there are more than five classes, `macro_f1`, and
        `matthews`, the correlation of answers with labels (Gorodkin 2004), 0 where either are of one class alone. Lists
        over the classes: `precision`, `recall`, `f1` (0 where undefined); `confusion` has a row a true class.
        """
        kinds = {"precision": MulticlassPrecision, "recall": MulticlassRecall, "f1": MulticlassF1Score}
        options: dict[str, Any] = {"num_classes": self.num_classes, "validate_args": False}
        metrics: dict[str, Metric | MetricCollection] = {
            "loss": MeanCrossEntropy(nan_strategy="disable"),
            "top1": MulticlassAccuracy(average="micro", **options),
            "confusion": MulticlassConfusionMatrix(**options),
            "matthews": Matthews(**options),
            "macro_f1": MulticlassF1Score(average="macro", **options),
        }
        metrics |= {name: kind(average=None, **options) for name, kind in kinds.items()}
        if self.num_classes > 5:
            metrics["top5"] = MulticlassAccuracy(top_k=5, average="micro", **options)
        # Left to itself, the collection joins metrics whose first batch came out equal, such as top1 and top5.
        alone: list[list[str]] = [[name] for name in ("loss", "top1", "top5") if name in metrics]
        groups = [[*kinds, "macro_f1"], ["confusion", "matthews"], *alone]
        return MetricCollection(metrics, compute_groups=groups)

    def score(self, metrics: dict[str, Any]) -> float:
        """Top-1 accuracy decides which weights are the best."""
        return metrics["top1"]


class Matthews(MulticlassConfusionMatrix):
    """The correlation of answers with labels: Gorodkin 2004, R_K, from the confusion matrix, as scikit-learn has it."""

    def compute(self) -> Float[Tensor, ""]:
        """Of all batches; 0 where the answers, or the labels, are all of one class."""
        confusion = self.confmat.double()
        total, right = confusion.sum(), confusion.trace()
        true, told = confusion.sum(dim=1), confusion.sum(dim=0)
        spread = (total**2 - true @ true) * (total**2 - told @ told)
        together = total * right - true @ told
        return (together / spread.sqrt()).where(spread > 0, 0.0).float()
