"""What a task consists of: everything that training, testing, predicting, explaining and recipes need to know of it."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, Literal, Protocol, TypeVar, runtime_checkable

from torch import nn

from glocal.files import JSONObject
from glocal.generation import DecodingConfig
from glocal.models import Model
from glocal.tasks.predictor import AnyPredictor
from glocal.training.interfaces import Data, Metrics, Objective
from glocal.training.run import RunFolder


@runtime_checkable
class TaskData(Data, Protocol):
    """The data of a task: batches, splits, and what the log and the report say of it."""

    @property
    def labels(self) -> list[str]:
        """Names of the classes, in the order of the logits; none where the task has no classes."""
        ...

    @property
    def splits(self) -> dict[str, list[int]]:
        """Indices of the examples in train, val and test."""
        ...

    @property
    def report(self) -> JSONObject:
        """How many examples were read, and how many were left out or shortened, by reason."""
        ...

    def describe(self) -> str:
        """Return a line that counts the examples and the classes."""
        ...

    def hold_out(self, fraction: float) -> Data:
        """Return the training examples alone, a share of them as `val`: what a search may see."""
        ...


Config = TypeVar("Config")
DataT = TypeVar("DataT", bound=TaskData)
PredictorT = TypeVar("PredictorT", bound=AnyPredictor)
TestedData = TypeVar("TestedData", covariant=True)
TestedPredictor = TypeVar("TestedPredictor", covariant=True)


@dataclass(frozen=True)
class TestRun(Generic[TestedData, TestedPredictor]):
    """A finished run and the data that it is tested on, for `TaskSpec.further_metrics`."""

    predictor: TestedPredictor
    data: TestedData
    decoding: DecodingConfig | None
    metrics: Metrics
    """What the objective measured on the batches of the test split."""
    run: RunFolder
    """The folder into which predictions and figures are written."""


def no_further_metrics(test: TestRun[object, object]) -> Metrics:
    """Return nothing, for tasks whose objective measures everything."""
    return {}


@dataclass(frozen=True)
class TaskSpec(Generic[Config, DataT, PredictorT]):
    """One task. `TASKS` holds them all, and nothing else in the package names a task."""

    name: str
    """The task's name, as in transformers."""
    description: str
    """Its inputs and outputs, in a line."""
    data: type[object]
    """The config of a recipe's section `data`."""
    config: type[Config]
    """The config of a recipe's section `task`; its `name` is the task's."""
    open_data: Callable[..., DataT]
    """`open_data(config, run=None, tokenizer=None, model=None)` returns the data.

    With a `run`, a folder, its splits and tokenizer are used, and written where missing. A `tokenizer` is one that was
    learned before. A trained `model` opens other data to test it on: its test split, or all where it names none."""
    objective: Callable[[Config, DataT, Model | None], Objective]
    """`objective(config, data, teacher)` returns the loss and the metrics."""
    predictor: type[PredictorT]
    """The class that maps raw inputs to results, reads inputs from lines and tables, and prints results."""
    format_test: Callable[[Metrics, RunFolder], Iterator[str]]
    """Yields the lines that `glocal test` prints."""
    modality: Literal["image", "text"] = "text"
    problem_type: Literal["multi_label_classification", "regression"] | None = None
    """Meaning of a classification head's outputs, as in transformers; None: each input has one class of several."""
    pipeline_tag: str | None = None
    """The hub's name of the task, where it differs from `name`."""
    num_outputs: int = 2
    """Outputs of the head where the data has no classes."""
    needs_pretrained: bool = False
    """Whether the task continues from a pre-trained model and its tokenizer (`--from`)."""
    decoding: DecodingConfig | None = None
    """The default of a recipe's section `decoding`, for tasks that generate text."""
    further_metrics: Callable[[TestRun[DataT, PredictorT]], Metrics] = no_further_metrics
    """Returns what is added to the metrics of `objective` on the test split; also writes predictions and figures into
    the run folder."""
    calibrate: Callable[[PredictorT, DataT], Mapping[str, object]] | None = None
    """`calibrate(predictor, data)` returns what a finished run's report keeps for `configure` of its predictor, chosen
    on the validation split."""
    sample: Callable[[nn.Module, DataT, int], str] | None = None
    """`sample(model, data, number)` returns a line for the log after each validation, from the validation split."""

    @property
    def head(self) -> str | None:
        """The head that a text model must have, which is the predictor's; None for image models."""
        return self.predictor.head


AnyTaskSpec = TaskSpec[Any, Any, Any]
"""A task that is not known before it runs."""
