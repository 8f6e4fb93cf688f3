"""What predictors share: a model that maps inputs to results, and how results are ordered and printed."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar, cast

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from glocal.data.encoding import Batch
from glocal.data.files import TABLES
from glocal.data.progress import progress
from glocal.data.tables import read_prompts
from glocal.errors import GlocalError, printable
from glocal.explain import ImageExplanation, TokenAttention, TranslationExplanation
from glocal.files import short
from glocal.models import Model
from glocal.tasks.feature_extraction import Pooling, choose_pooling, pooled_features, stack_features

Input = TypeVar("Input")
Result = TypeVar("Result")
Item = TypeVar("Item")
Output = TypeVar("Output")

Probabilities = list[tuple[str, float]]
"""Labels or words and their probabilities, the most probable first."""
ReadBatch = Callable[[Batch], Iterable[Tensor]]
"""Returns a tensor for each input of a batch."""


class Predictor(ABC, Generic[Input, Result]):
    """A trained model that maps raw inputs to results, and how the command line reads inputs and prints results."""

    head: ClassVar[str | None] = None
    """The head that a text model must have (see `text_predictor.head_of`); None for image models."""
    json_key: ClassVar[str]
    """The key of a result in JSON."""
    json_input: ClassVar[str] = "a text"
    """What `read_json` takes, in words."""
    options: ClassVar[tuple[str, ...]] = ("top",)
    """Arguments of `predict` that a user sets for each call: the number of results, how text is generated, ..."""
    table_extensions: ClassVar[Sequence[str]] = TABLES
    """Extensions of the files that `read_table` reads; any other file has one input per line."""
    model: Model
    device: torch.device
    precision: str
    predict: Callable[..., list[Result]]
    """Returns the result of each input, in the order given."""
    explain: Callable[..., ImageExplanation | TokenAttention | TranslationExplanation]
    """Returns the attention of every head for one input."""

    @abstractmethod
    def map_batches(self, inputs: Input | Iterable[Input], read: ReadBatch, batch_size: int) -> list[Tensor]:
        """Return what `read` returns for each input, in float32 on the CPU, in the order given."""

    def features(
        self,
        inputs: Input | Iterable[Input],
        pooling: Pooling | None = None,
        normalise: bool = False,
        batch_size: int = 32,
    ) -> Float[np.ndarray, "inputs dim"]:
        """Return one vector for each input, float32, in the order given; a vector does not depend on other inputs.

        The model needs no head. A text longer than the model's maximum loses its end, with a warning.

        Args:
            inputs: images as `predict` takes them; texts, or pairs of texts.
            pooling: `cls`, `mean` or `last`; by default the first of `feature_extraction.poolings`.
            normalise: divide each vector by its length.
            batch_size: inputs at a time.

        Raises GlocalError for a pooling that the model does not allow, and for an invalid input.
        """
        read = partial(pooled_features, self.model, pooling=choose_pooling(self.model, pooling))
        return stack_features(self.map_batches(inputs, read, batch_size), normalise)

    @staticmethod
    def read_line(line: str) -> object:
        """Return the input that a line of text stands for."""
        return line

    @classmethod
    def read_json(cls, value: object) -> Input:
        """Return the input that a value of JSON stands for, or the content of a file, as bytes.

        Names of files are texts like any other: nothing is opened. Raises GlocalError for a value that is no input.
        """
        if not isinstance(value, str):
            raise cls.invalid_input(value)
        return cast(Input, value)

    @classmethod
    def invalid_input(cls, value: object) -> GlocalError:
        """Return the error for a value of JSON, or the content of a file, that is no input."""
        given = f"a file of {len(value)} bytes" if isinstance(value, bytes) else short(value)
        return GlocalError(f"{given} was given; expected {cls.json_input}")

    @staticmethod
    def read_table(path: Path) -> Iterator[object]:
        """Yield the inputs of a table, one for each row, read as in training; "" for a row without one."""
        return read_prompts(path)

    @staticmethod
    @abstractmethod
    def format(given: str, result: Result) -> str:
        """Return the lines that are printed for an input and its result."""

    @staticmethod
    @abstractmethod
    def to_json(result: Result) -> object:
        """Return the result as JSON holds it."""


AnyPredictor = Predictor[Any, Any]
"""A predictor whose inputs and results are not known before it is loaded."""


class Classifier:
    """How predictors of classes print results; it stands before `Predictor` in the list of bases."""

    json_key: ClassVar[str] = "labels"

    @staticmethod
    def format(given: str, result: Probabilities) -> str:
        """Return an input and its labels with their probabilities, on one line."""
        return f"{printable(given)}  {format_probabilities(result)}"

    @staticmethod
    def to_json(result: Probabilities) -> list[dict[str, object]]:
        """Return the labels and their probabilities."""
        return probabilities_to_json(result, "label")


def require_classes(model: Model) -> None:
    """Raise GlocalError if a model is an encoder without a classifier."""
    if getattr(model.config, "num_classes", None) == 0:
        raise GlocalError(
            f"this {type(model).__name__} is an encoder without a classifier, so it predicts nothing; fine-tune it "
            "first: glocal train RECIPE --from it"
        )


def label_names(model: Model) -> list[str]:
    """Return the names of a classifier's classes, or their numbers where it has no names."""
    return model.labels or [str(number) for number in range(model.config.num_classes)]


def trained_labels(model: Model, least: int) -> list[str]:
    """Return the names of a trained model's classes. Raises GlocalError if it has fewer than `least`."""
    labels = list(model.labels or [])
    if len(labels) < least:
        raise GlocalError(
            f"the model names {len(labels)} classes in `labels` of its config.json; expected {least} or more, in the "
            "order of its logits"
        )
    return labels


def check_count(name: str, value: object) -> None:
    """Raise GlocalError if an argument is not a whole number of 1 or more."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise GlocalError(f"{name} {value!r} was given; expected a whole number of 1 or more")


def by_length(
    items: Sequence[Item],
    length: Callable[[Item], int],
    run: Callable[[list[Item]], Iterable[Output]],
    batch_size: int,
) -> list[Output]:
    """Run batches of items of similar length, the longest first, and return the outputs in the order of the items."""
    check_count("batch_size", batch_size)
    order = sorted(range(len(items)), key=lambda i: length(items[i]), reverse=True)
    found: dict[int, Output] = {}
    for batch in progress([order[i : i + batch_size] for i in range(0, len(order), batch_size)]):
        found |= zip(batch, run([items[i] for i in batch]), strict=True)
    return [found[i] for i in range(len(items))]


def split_list(items: Sequence[Item], sizes: Iterable[int]) -> list[list[Item]]:
    """Cut a list into lists of these sizes, as `Tensor.split` cuts a tensor."""
    parts = []
    start = 0
    for size in sizes:
        parts.append(list(items[start : start + size]))
        start += size
    return parts


# -------------------------------------------------------------------------------------------------------- probabilities


def most_probable(logits: Float[Tensor, "rows classes"], name: Callable[[int], str], top: int) -> list[Probabilities]:
    """Return the `top` classes of each row and their probabilities."""
    check_count("top", top)
    best = logits.float().softmax(dim=-1).topk(min(top, logits.shape[1]))
    return [
        [(name(number), probability) for number, probability in zip(*row, strict=True)]
        for row in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]


def independent_probabilities(
    logits: Float[Tensor, "rows classes"], names: Sequence[str], threshold: float, top: int | None
) -> list[Probabilities]:
    """Return the classes of each row whose probability reaches the threshold, or the `top` most probable classes."""
    if top is not None:
        check_count("top", top)
    results = []
    for row in logits.float().sigmoid().tolist():
        ordered = sorted(zip(names, row, strict=True), key=lambda pair: -pair[1])
        results.append([pair for pair in ordered if pair[1] >= threshold] if top is None else ordered[:top])
    return results


def format_probabilities(result: Probabilities) -> str:
    """Return labels or words with their probabilities in percent."""
    return "  ".join(f"{printable(name)} {probability:.1%}" for name, probability in result)


def probabilities_to_json(result: Probabilities, name: str) -> list[dict[str, object]]:
    """Return labels or words and their probabilities as JSON holds them; `name` is the key of the labels or words."""
    return [{name: label, "probability": round(probability, 6)} for label, probability in result]
