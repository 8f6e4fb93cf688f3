"""What regression over images and texts shares: squared error, correlations, and the test's output."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MeanSquaredError, Metric, MetricCollection
from torchmetrics.utilities import dim_zero_cat

from glocal.errors import printable
from glocal.tasks.objective import model_inputs
from glocal.tasks.spec import TestRun
from glocal.training.interfaces import Batch, ExampleScores, Metrics
from glocal.training.run import RunFolder


@dataclass(frozen=True)
class RegressionConfig:
    """The task of predicting one number for each image or text."""

    name: Literal["image-regression", "text-regression"] = "text-regression"
    """The task, which decides the fields of the sections `data` and `task`."""


class RegressionObjective:
    """Squared error of a model with one output; a batch's `labels` (B,) are the numbers."""

    score_name = "negative loss"

    def predictions_and_targets(
        self, model: nn.Module, batch: Batch
    ) -> tuple[Float[Tensor, " batch"], Float[Tensor, " batch"]]:
        """Return the outputs and the labels, in float32."""
        return model(**model_inputs(batch))[:, 0].float(), batch["labels"].float()

    def loss(self, model: nn.Module, batch: Batch) -> Float[Tensor, ""]:
        """Return the mean squared error."""
        return F.mse_loss(*self.predictions_and_targets(model, batch))

    def size(self, batch: Batch) -> int:
        """Return how many numbers the mean is over."""
        return len(batch["labels"])

    def metrics(self) -> MetricCollection:
        """Return fresh metrics: `loss`, the mean squared error, and the correlations `pearson` and `spearman`."""
        metrics: dict[str, Metric | MetricCollection] = {"loss": MeanSquaredError(), "correlations": Correlations()}
        return MetricCollection(metrics, compute_groups=False)  # torchmetrics merges metrics equal on the first batch

    def score(self, metrics: Metrics) -> float:
        """Return the negative loss: the best weights have the lowest."""
        return -metrics["loss"]

    def example_scores(self, model: nn.Module, batch: Batch) -> ExampleScores:
        """Return the negative squared error of each example."""
        predictions, labels = self.predictions_and_targets(model, batch)
        return ExampleScores(-(predictions - labels).square(), torch.ones_like(labels))

    def to(self, device: torch.device) -> "RegressionObjective":
        """Return the objective, which has no tensors to move."""
        return self


class Correlations(Metric):
    """Pearson's correlation of predictions and labels, and Spearman's, of their ranks; 0 where either are constant."""

    full_state_update = False
    predictions: list[Tensor]
    labels: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("predictions", [], dist_reduce_fx="cat")
        self.add_state("labels", [], dist_reduce_fx="cat")

    def update(self, predictions: Float[Tensor, " batch"], labels: Float[Tensor, " batch"]) -> None:
        """Add a batch."""
        self.predictions.append(predictions)
        self.labels.append(labels)

    def compute(self) -> dict[str, Float[Tensor, ""]]:
        """Return both over all batches."""
        from scipy.stats import rankdata

        pair = [dim_zero_cat(values).double().cpu().numpy() for values in (self.predictions, self.labels)]
        ranks = [rankdata(values) for values in pair]
        return {"pearson": torch.tensor(correlation(*pair)), "spearman": torch.tensor(correlation(*ranks))}


def correlation(x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"]) -> float:
    """Return Pearson's correlation; 0 where one of the two is constant."""
    x, y = x - x.mean(), y - y.mean()
    spread = np.sqrt((x @ x) * (y @ y))
    return float(x @ y / spread) if spread > 0 else 0.0


def root_of_error(test: TestRun[object, object]) -> Metrics:
    """Return the root of the mean squared error, in the labels' unit."""
    return {"rmse": test.metrics["loss"] ** 0.5}


def format_test(metrics: Metrics, run: RunFolder) -> Iterator[str]:
    """Yield the error and the correlations."""
    yield f"{metrics['examples']} test examples"
    yield f"mean squared error {metrics['loss']:.4g}, its root {metrics['rmse']:.4g}"
    yield f"Pearson correlation {metrics['pearson']:.4f}, Spearman correlation {metrics['spearman']:.4f}"


class Regressor:
    """How predictors of numbers print results; it stands before `Predictor` in the list of bases."""

    json_key: ClassVar[str] = "score"
    options: ClassVar[tuple[str, ...]] = ()

    @staticmethod
    def format(given: str, result: float) -> str:
        """Return an input and its number, on one line."""
        return f"{printable(given)}  {result:.4g}"

    @staticmethod
    def to_json(result: float) -> float:
        """Return the number."""
        return result
