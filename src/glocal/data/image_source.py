"""Images that are not decoded yet, and their labels: a class, any number of classes, or a number for each."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from glocal.data.decoding import Encoded
from glocal.data.labels import SEPARATOR, class_name, class_names, in_order, multi_hot, number
from glocal.errors import GlocalError

ProblemType = Literal["multi_label_classification", "regression"]
"""Meaning of labels that are not one class of several (see `TaskSpec.problem_type`)."""


@dataclass(frozen=True)
class LabelFormat:
    """How the label of an image is written."""

    problem_type: ProblemType | None = None
    """Its meaning: any number of classes, a number, or, with None, one class."""
    column: str | None = None
    """Name of its column in a table; by default a usual one."""
    separator: str = ","
    """The text between several classes."""

    def parse(self, label: object, where: str) -> str | None:
        """Return a label as a text (see `glocal.data.labels`); None where it is missing."""
        if self.problem_type == "regression":
            return number(label, where)
        if self.problem_type == "multi_label_classification":
            return class_names(label, where, self.separator)
        return class_name(label, where)


SINGLE = LabelFormat()
"""One class an image."""


@dataclass(frozen=True)
class Source:
    """Images that are not decoded yet, with their labels."""

    name: str
    """The name that the user gave."""
    items: Sequence[Encoded] | np.ndarray
    """Inputs of `open_image`."""
    labels: np.ndarray
    """int64, the index of each image's class in `classes`; all 0 where there are `values`."""
    classes: list[str]
    """Names of the classes; none where the labels are numbers."""
    splits: dict[str, np.ndarray]
    """Indices of the images, for `train` and for each other split that the source names."""
    values: np.ndarray | None = None
    """Labels that are not one class: numbers, float32 (N,), or 1 at the classes of an image, else 0, uint8 (N, K)."""
    root: str = ""
    """The folder that files are relative to; by default `name`."""

    def targets(self, indices: np.ndarray) -> np.ndarray:
        """Return the labels of these images as a batch holds them: int64 classes, or else float32."""
        return self.labels[indices] if self.values is None else self.values[indices].astype(np.float32)

    def describe(self, index: int) -> str:
        """Return an image's name for an error: its path, or its number in the source."""
        item = self.items[index] if isinstance(self.items, list) else None
        return item if isinstance(item, str) else f"image {index} of {self.name}"

    def fingerprint(self) -> str:
        """Return a hash that changes where an image is added, removed, renamed or relabelled, not where a folder
        moves.
        """
        root = self.root or self.name
        files = [item.removeprefix(root) for item in self.items] if isinstance(self.items, list) else []
        text = json.dumps([self.classes, self.labels.tolist(), files])
        values = b"" if self.values is None else self.values.tobytes()
        return hashlib.sha256(text.encode() + values).hexdigest()[:16]


def indexed(labels: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    """Return labels as indices of their distinct texts, and these in order."""
    classes = in_order(labels)
    index = {label: place for place, label in enumerate(classes)}
    return np.array([index[label] for label in labels], dtype=np.int64), classes


def check_labels(source: Source) -> None:
    """Raise GlocalError if a source has no images, or a label is the index of no class."""
    labels, classes = source.labels, source.classes
    if len(labels) == 0:
        raise GlocalError(f"{source.name} holds no images")
    wrong = np.flatnonzero((labels < 0) | (labels >= len(classes)))
    if len(wrong):
        raise GlocalError(
            f"{source.describe(int(wrong[0]))} has label {labels[wrong[0]]}; "
            f"expected 0 to {len(classes) - 1} for {len(classes)} classes"
        )


def check_trainable(source: Source, indices: np.ndarray) -> None:
    """Raise GlocalError unless `indices` hold every class at least once, and two or more where they exclude each other.

    There is nothing to check where labels are numbers.
    """
    classes = source.classes
    if source.values is not None and source.values.ndim == 1:
        return
    if source.values is None and len(classes) < 2:
        raise GlocalError(f"{source.name} holds one class only ({classes[0]!r}); expected two or more")
    if not classes:
        raise GlocalError(f"{source.name} holds no classes; expected one or more for some images")
    if source.values is None:
        counts = np.bincount(source.labels[indices], minlength=len(classes))
    else:
        counts = source.values[indices].sum(axis=0, dtype=np.int64)
    if not counts.all():
        empty = classes[int(counts.argmin())]
        raise GlocalError(f"class {empty!r} of {source.name} has no training image; add some or remove the class")


def with_values(source: Source, problem_type: ProblemType, classes: list[str] | None) -> Source:
    """Turn labels that are texts of several classes, or of numbers, into `values`.

    The classes are those of the training images, or of a trained model, `classes`. Raises GlocalError for a class that
    is none of them.
    """
    known: list[str] = []
    if problem_type == "regression":
        values = np.array([float(text) for text in source.classes], dtype=np.float32)
    else:
        used = np.unique(source.labels[source.splits["train"]])
        sets = [source.classes[place].split(SEPARATOR) for place in used]
        known = in_order(name for names in sets for name in names if name) if classes is None else classes
        numbers = {class_name(name, "the model") or name: place for place, name in enumerate(known)}
        first = dict(zip(*np.unique(source.labels, return_index=True), strict=True))
        values = np.zeros((len(source.classes), len(known)), dtype=np.uint8)
        for place, index in first.items():
            values[place] = multi_hot(source.classes[place], numbers, source.describe(int(index)))
    return replace(source, labels=np.zeros_like(source.labels), classes=known, values=values[source.labels])


def for_testing(source: Source, classes: list[str]) -> Source:
    """Return a source whose images are all the test split, unless it names one, with the classes of a trained model."""
    none = np.arange(0)
    splits = {"train": none, "val": none, "test": source.splits.get("test", np.arange(len(source.labels)))}
    if source.values is not None:
        return replace(source, splits=splits)
    places = {class_name(name, "the model"): place for place, name in enumerate(classes)}
    unknown = sorted(set(source.classes) - places.keys())
    if unknown:
        raise GlocalError(f"class {unknown[0]!r} of {source.name} is not one of the model's: {', '.join(classes)}")
    index = np.array([places[name] for name in source.classes], dtype=np.int64)
    return replace(source, labels=index[source.labels], classes=classes, splits=splits)
