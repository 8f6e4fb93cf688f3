"""What image and text classification share: cross entropy, distillation from a teacher, metrics, the test's output.

    Touvron et al. 2021, *Training data-efficient image transformers & distillation through attention*
    https://arxiv.org/abs/2012.12877

Its symbols: Z_s and Z_t are the logits of student and teacher, ψ the softmax, τ the temperature, λ the teacher's share.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol, cast

import numpy as np
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

from glocal.errors import GlocalError, check_range, shortened
from glocal.tasks.objective import MeanCrossEntropy, model_inputs
from glocal.tasks.spec import TaskData, TestRun
from glocal.training.interfaces import Batch, ExampleScores, Metrics
from glocal.training.run import RunFolder

Labels = Int[Tensor, " batch"] | Float[Tensor, "batch classes"]


class DistilledModel(Protocol):
    """A model that can learn from a teacher."""

    def forward_classifiers(self, **examples: Tensor) -> Float[Tensor, "batch classifiers classes"]:
        """Return the logits of each classifier: of one that serves both losses, or of two."""
        ...


@dataclass(frozen=True)
class ClassificationConfig:
    """The task of assigning one class to each image or text."""

    name: Literal["image-classification", "text-classification"] = "image-classification"
    """The task, which decides the fields of the sections `data` and `task`."""

    label_smoothing: float = 0.0
    """Share of each label that is spread over all classes (Szegedy et al. 2015, section 7)."""
    distillation: Literal["none", "soft", "hard"] = "none"
    """What is learned from the teacher: nothing, its probabilities (equation 2), or its decision (equation 3)."""
    teacher: str | None = None
    """The model to learn from: a run, a folder, a hub id, or `timm:NAME`."""
    temperature: float = 3.0
    """τ of soft distillation."""
    alpha: float | None = None
    """λ, the teacher's share of the loss; by default the paper's: 0.1 soft (section 5.2), ½ hard (equation 3)."""

    def __post_init__(self) -> None:
        check_range("task.label_smoothing", self.label_smoothing, least=0, below=1)
        check_range("task.temperature", self.temperature, above=0)
        check_range("task.alpha", self.alpha, least=0, most=1)


class ClassificationObjective:
    """The objective over `num_classes` classes.

    The teacher, if there is one, gets the same batches and returns logits of the same classes. It is set to eval mode
    and never trained.

    Raises GlocalError if distillation has no teacher, or a teacher no distillation.
    """

    score_name = "top-1 accuracy"

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

    def to(self, device: torch.device) -> "ClassificationObjective":
        """Move the teacher and return the objective."""
        if self.teacher is not None:
            self.teacher.to(device)
        return self

    def loss(self, model: nn.Module, batch: Batch) -> Float[Tensor, ""]:
        """Return the mean loss of a batch; labels are classes, or the shares of the classes where images are mixed."""
        examples, labels = model_inputs(batch), batch["labels"]
        if self.teacher is None:
            return self.cross_entropy(model(**examples), labels)
        logits = cast(DistilledModel, model).forward_classifiers(**examples)
        truth = self.cross_entropy(logits[:, 0], labels)
        return (1 - self.alpha) * truth + self.alpha * self.distillation(logits[:, -1], examples)

    def size(self, batch: Batch) -> int:
        """Return how many images or texts the mean is over."""
        return len(batch["labels"])

    def predictions_and_targets(self, model: nn.Module, batch: Batch) -> tuple[Float[Tensor, "batch classes"], Labels]:
        """Return the logits and the labels."""
        return model(**model_inputs(batch)).float(), batch["labels"]

    def cross_entropy(self, logits: Float[Tensor, "batch classes"], labels: Labels) -> Float[Tensor, ""]:
        """L_CE(ψ(Z_s), y) with smoothed labels, computed in float32."""
        return F.cross_entropy(logits.float(), labels, label_smoothing=self.config.label_smoothing)

    def distillation(self, logits: Float[Tensor, "batch classes"], examples: Batch) -> Float[Tensor, ""]:
        """Return the distance of the student's logits from the teacher's, on the same examples, augmented alike.

        hard: L_CE(ψ(Z_s), argmax Z_t). soft: τ² KL(ψ(Z_t/τ) ‖ ψ(Z_s/τ)), the direction of Hinton et al. 2015 and of the
        authors' code; equation 2 names the arguments the other way round.
        """
        assert self.teacher is not None
        with torch.no_grad():
            target = self.teacher(**examples).float()
        if target.shape != logits.shape:
            raise GlocalError(
                f"the teacher has {target.shape[-1]} classes and the student {logits.shape[-1]}; "
                "give a teacher that was trained on the same classes"
            )
        if self.config.distillation == "hard":
            return F.cross_entropy(logits.float(), target.argmax(dim=-1))
        tau = self.config.temperature
        student, teacher = F.log_softmax(logits.float() / tau, dim=-1), F.log_softmax(target / tau, dim=-1)
        return tau**2 * F.kl_div(student, teacher, reduction="batchmean", log_target=True)

    def metrics(self) -> MetricCollection:
        """Return fresh metrics, to be updated by `predictions_and_targets`.

        Numbers: `loss` (without smoothing), `top1`, `top5` where there are more than five classes, `macro_f1`, and
        `matthews`, the correlation of predictions with labels (Gorodkin 2004), 0 where either are of one class alone.
        Lists over the classes: `precision`, `recall`, `f1` (0 where undefined), and `confusion`, a row for each true
        class.
        """
        by_class = {"precision": MulticlassPrecision, "recall": MulticlassRecall, "f1": MulticlassF1Score}
        classes = self.num_classes
        metrics: dict[str, Metric | MetricCollection] = {
            "loss": MeanCrossEntropy(),
            "top1": MulticlassAccuracy(classes, average="micro", validate_args=False),
            "confusion": MulticlassConfusionMatrix(classes, validate_args=False),
            "matthews": Matthews(classes, validate_args=False),
            "macro_f1": MulticlassF1Score(classes, average="macro", validate_args=False),
        }
        metrics |= {name: metric(classes, average=None, validate_args=False) for name, metric in by_class.items()}
        if self.num_classes > 5:
            metrics["top5"] = MulticlassAccuracy(classes, top_k=5, average="micro", validate_args=False)
        # Metrics of a group share their counts. By default, torchmetrics also merges metrics that are equal on the
        # first batch, such as top1 and top5.
        alone: list[list[str]] = [[name] for name in ("loss", "top1", "top5") if name in metrics]
        groups = [[*by_class, "macro_f1"], ["confusion", "matthews"], *alone]
        return MetricCollection(metrics, compute_groups=groups)

    def score(self, metrics: Metrics) -> float:
        """Return the top-1 accuracy."""
        return metrics["top1"]

    def example_scores(self, model: nn.Module, batch: Batch) -> ExampleScores:
        """Return 1 for each image or text whose class has the highest logit, 0 for the others."""
        logits, labels = self.predictions_and_targets(model, batch)
        right = (logits.argmax(dim=-1) == labels).float()
        return ExampleScores(right, torch.ones_like(right))


class Matthews(MulticlassConfusionMatrix):
    """The correlation of predictions with labels: R_K of Gorodkin 2004, from the confusion matrix."""

    def compute(self) -> Float[Tensor, ""]:
        """Return the correlation over all batches; 0 where the predictions, or the labels, are all of one class."""
        confusion = self.confmat.double()
        total, right = confusion.sum(), confusion.trace()
        true, predicted = confusion.sum(dim=1), confusion.sum(dim=0)
        spread = (total**2 - true @ true) * (total**2 - predicted @ predicted)
        together = total * right - true @ predicted
        return (together / spread.sqrt()).where(spread > 0, 0.0).float()


def draw_confusion(test: TestRun[TaskData, object]) -> Metrics:
    """Draw the confusion matrix into the run's figures."""
    from glocal.reports import figures

    confusion = figures.confusion_matrix(np.array(test.metrics["confusion"]), test.data.labels)
    figures.save(confusion, test.run.figures / "confusion.png")
    return {}


def format_classes(metrics: Metrics, run: RunFolder) -> Iterator[str]:
    """Yield the scores of each class, the scores over all classes, and where the confusion matrix is."""
    labels = [shortened(label, 40) for label in metrics["labels"]]
    width = max(map(len, ["class", *labels])) + 2
    yield f"{'class':{width}}precision   recall       F1"
    for label, *scores in zip(labels, metrics["precision"], metrics["recall"], metrics["f1"], strict=True):
        yield f"{label:{width}}" + "".join(f"{score:9.3f}" for score in scores)
    for name in ("top1", "top5"):
        if name in metrics:
            yield f"{name} {metrics[name]:.2%}"
    yield f"macro F1 {metrics['macro_f1']:.4f}, Matthews correlation {metrics['matthews']:.4f}"
    yield f"confusion matrix: {run.figures / 'confusion.png'}"
