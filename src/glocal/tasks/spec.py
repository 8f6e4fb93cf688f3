"""What a task consists of: everything that training, testing, predicting, explaining and recipes need to know of it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

from torch import nn

from glocal.generation import DecodingConfig
from glocal.models import Model
from glocal.training.interfaces import Data, Objective
from glocal.training.run import RunFolder

Metrics = dict[str, Any]
"""What a test has measured, as report.json keeps it: numbers, texts, and lists of them."""


@dataclass(frozen=True)
class TaskConfig:
    """A task without settings of its own."""

    name: str
    """The task, by which a recipe knows its sections."""


@runtime_checkable
class TaskData(Data, Protocol):
    """The data of a task: batches, splits, and what the log and the report say of it."""

    @property
    def labels(self) -> list[str]:
        """Names of the classes, in the order of their numbers; none where the task has no classes."""
        ...

    @property
    def splits(self) -> dict[str, list[int]]:
        """Numbers of the examples in train, val and test."""
        ...

    @property
    def report(self) -> dict[str, Any]:
        """How many examples were read, and how many were left out or shortened, by reason."""
        ...

    def describe(self) -> str:
        """Return a line that counts the examples and the classes."""
        ...

    def hold_out(self, fraction: float) -> Data:
        """Return the training examples alone, a share of them as `val`: what a search may see."""
        ...


@dataclass(frozen=True)
class TestRun:
    """A finished run and the data that it is tested on, for `TaskSpec.evaluate_answers`."""

    predictor: Any
    data: Any
    decoding: DecodingConfig | None
    metrics: Metrics
    """What the objective measured on the batches of the test split."""
    run: RunFolder


def no_answers(test: TestRun) -> Metrics:
    """Return nothing: the objective's metrics say it all."""
    return {}


@dataclass(frozen=True)
class TaskSpec:
    """One task. `TASKS` holds them all, and nothing else in the package names a task."""

    name: str
    """The field's name, as in transformers."""
    description: str
    """What goes in and what comes out, in a line."""
    data: type[Any]
    """The config of a recipe's section `data`."""
    config: type[Any]
    """The config of a recipe's section `task`; its `name` is the task's."""
    open_data: Callable[..., TaskData]
    """`open_data(config, run=None, tokenizer=None, model=None)` returns the data.

    With a `run`, a folder, its splits and tokenizer are used, and written where missing. A `tokenizer` is one that was
    learned before. A trained `model` opens other data to test it on: its test split, or all where it names none."""
    objective: Callable[[Any, Any, Model | None], Objective]
    """`objective(config, data, teacher)` returns the loss and the metrics."""
    predictor: type[Any]
    """Turns raw inputs into results, reads inputs from lines and tables, and prints results."""
    format_test: Callable[[Metrics, RunFolder], Iterator[str]]
    """Yields the lines that `glocal test` prints."""
    modality: Literal["image", "text"] = "text"
    head: str | None = None
    """The head of a text model that the task needs; None where the family has one output alone."""
    problem_type: Literal["multi_label_classification", "regression"] | None = None
    """What the outputs of a classification head mean, as in transformers; None: the classes exclude each other."""
    num_outputs: int = 2
    """Outputs of the head where the data has no classes."""
    pretrained: bool = False
    """Whether the task continues from a pre-trained model and its tokenizer (`--from`)."""
    decoding: DecodingConfig | None = None
    """The default of a recipe's section `decoding`, for tasks that generate text."""
    evaluate_answers: Callable[[TestRun], Metrics] = no_answers
    """Scores finished answers, writes them beside the report, and draws figures."""
    calibrate: Callable[[Any, Any], dict[str, Any]] | None = None
    """`calibrate(predictor, data)` returns what a finished run's report keeps for `configure` of its predictor, chosen
    on the validation split."""
    sample: Callable[[nn.Module, Any, int], str] | None = None
    """`sample(model, data, number)` returns a line for the log after each validation, of the validation split."""
