"""Maps between checkpoint layouts: the names and shapes of other libraries, and ours.

A layout is a module of four functions on dictionaries: `config_from` and `config_to` map a config.json, `state_from`
and `state_to` the tensors. They raise ValueError for what the other side cannot express. This file has what the layouts
share: the checks of values that come from a file.
"""

import math
from typing import NamedTuple

from glocal.files import JSONObject

USUAL: JSONObject = {"interpolation": "bicubic", "crop_pct": 1.0, "crop_mode": "center"}
"""Our preprocessing by default."""
KINDS: dict[type, str] = {str: "a string", list: "a list", dict: "an object"}
"""The types of JSON in errors."""
MAX_DEPTH = 1000
"""Most blocks of a model that is built from a number of layers; the deepest published ones have some 100."""
MAX_NUMBER = 2**31 - 1
"""Largest number in a config; sizes that differ from the weights are found later, when these are read."""


def complete(theirs: JSONObject, defaults: JSONObject) -> JSONObject:
    """Return their values, with the default where one is left out or null; each must be of its default's kind.

    Raises ValueError for a value of another kind, and for a size or a rate that no model can have.
    """
    values = {**defaults, **{key: value for key, value in theirs.items() if value is not None}}
    for key, default in defaults.items():
        check(key, values[key], default)
    return values


def check(key: str, value: object, default: object) -> None:
    """Raise ValueError where a value is not of its default's kind, or out of range."""
    if isinstance(default, bool):
        fits, expected = isinstance(value, bool), "true or false"
    elif isinstance(default, int):
        least = 0 if key.endswith("_id") else 1
        most = MAX_DEPTH if key.endswith(("layers", "n_layer", "depth")) else MAX_NUMBER
        fits = isinstance(value, int) and not isinstance(value, bool) and least <= value <= most
        expected = f"a whole number from {least} to {most}"
    elif isinstance(default, float):
        fits = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= MAX_NUMBER
        expected = "a number of 0 or more"
    else:
        fits = isinstance(value, type(default))
        expected = KINDS[type(default)]
    if not fits:
        raise ValueError(f"{key} {value!r:.60}; expected {expected}")


def image_size(value: object) -> list[int]:
    """Return [height, width] of a number or of a pair. Raises ValueError for anything else."""
    sides = [value, value] if isinstance(value, int) else value
    if not isinstance(sides, list | tuple) or len(sides) != 2:
        raise ValueError(f"image_size {value!r:.60}; expected a number of pixels, or [height, width]")
    for side in sides:
        check("image_size", side, 1)
    return list(sides)


def class_names(theirs: JSONObject) -> list[str]:
    """Return the labels of transformers' `id2label` in the order of their numbers.

    Raises ValueError if the numbers are not 0, 1, 2, ...
    """
    id2label = theirs["id2label"]
    numbers = {str(number): name for number, name in id2label.items()}
    names = [numbers.get(str(number)) for number in range(len(numbers))]
    if not all(isinstance(name, str) for name in names):
        raise ValueError(f"id2label {id2label!r:.60}; expected a name for each of the numbers 0, 1, 2, ...")
    return [str(name) for name in names]


class Outputs(NamedTuple):
    """What a classifier's outputs are."""

    labels: list[str] | None
    """Names of the classes; None where the output is a number."""
    num_classes: int
    """How many there are."""
    problem_type: str | None
    """What they mean (see `Model.problem_type`)."""


def outputs_from(theirs: JSONObject) -> Outputs:
    """Return what the outputs of transformers' classifier are; where it does not say, one output is a number.

    Raises ValueError for several numbers at once, for one class of one, and for an unknown `problem_type`.
    """
    names, problem = class_names(theirs), theirs.get("problem_type")
    if len(names) == 1 and problem in (None, "regression"):
        return Outputs(None, 1, "regression")
    if names and problem == "multi_label_classification":
        return Outputs(names, len(names), problem)
    if len(names) > 1 and problem in (None, "single_label_classification"):
        return Outputs(names, len(names), None)
    raise ValueError(
        f"a classifier of {len(names)} labels with problem_type {problem!r:.60}; expected one of two labels or more "
        "(single_label_classification), any number of labels (multi_label_classification), or one number (regression). "
        "To fine-tune its encoder, write the encoder alone with transformers (model.base_model.save_pretrained)"
    )


def outputs_to(ours: JSONObject) -> JSONObject:
    """Return the fields of transformers' config.json that say what the outputs of our classifier are."""
    problem = ours.get("problem_type")
    labels = dict(enumerate(ours.get("labels") or map(str, range(ours["config"]["num_classes"]))))
    theirs = {"id2label": labels, "label2id": {name: index for index, name in labels.items()}}
    return theirs | ({"problem_type": problem} if problem else {})


def architecture(theirs: JSONObject) -> str:
    """Return the class that wrote a file of transformers. Raises ValueError if `architectures` names none."""
    names = theirs["architectures"]
    if not names or not isinstance(names[0], str):
        raise ValueError(f"architectures {names!r:.60}; expected the name of a class of transformers")
    return names[0]


def resized(size: int, target: int) -> float:
    """Return the share of `size` that `target` is, so that floor(target / share) is `size` again."""
    share = target / size
    return share if math.floor(target / share) == size else math.nextafter(share, 0)
