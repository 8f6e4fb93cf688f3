"""The fields of a recipe, as help shows them: each with its value there, its type, and what it means."""

import ast
import inspect
import json
import re
import textwrap
from collections.abc import Iterator
from dataclasses import asdict, fields, is_dataclass
from itertools import pairwise
from types import NoneType, UnionType
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from glocal.layers.block import BlockConfig
from glocal.models import NAMED_CONFIGS, BaselineConfig
from glocal.models.config import override, stacks
from glocal.recipes import Recipe

FITTED = {"image_size", "in_chans", "num_classes", "vocab_size", "pad_id", "bos_id", "eos_id", "head"}
"""Fields of a model that its data and its task decide."""
BUILT = {"causal", "cross"}
"""Fields of a block that a family of models decides."""
RATES = ("dropout", "attn_drop", "drop_path")
"""Fields of a block that any trained model takes anew."""


class Field(NamedTuple):
    """One field."""

    name: str
    """Its dotted name."""
    value: str
    """What it is in the recipe, as one would write it."""
    type: str
    """What it may be."""
    meaning: str
    """The first sentence of its docstring."""


def list_fields(recipe: Recipe, searching: bool) -> Iterator[tuple[str, str, list[Field]]]:
    """Yield each section of a recipe, what it is about, and its fields; the section `search` only for a search."""
    meanings = docstrings(Recipe)
    yield "model", meanings["model"], model_fields(recipe)
    for name in ("data", "task", "decoding", "train", "run", "search"):
        if getattr(recipe, name) is not None and (name != "search" or searching):
            yield name, meanings[name], list(config_fields(getattr(recipe, name), name))


def config_fields(config: Any, prefix: str) -> Iterator[Field]:
    """Yield the fields of a config and of the configs in it."""
    hints, meanings = get_type_hints(type(config)), docstrings(type(config))
    for name in (field.name for field in fields(config)):
        value, dotted = getattr(config, name), f"{prefix}.{name}"
        if is_dataclass(value):
            yield from config_fields(value, dotted)
        else:
            yield Field(dotted, written(value), described(hints[name]), first_sentence(meanings.get(name, "")))


def model_fields(recipe: Recipe) -> list[Field]:
    """Return the fields of the recipe's model: those of its config, and those of its blocks.

    What a hub id names is not fetched for it: of a model that was trained before, only what it can be given anew.
    """
    given = dict(recipe.model)
    name, start = given.pop("name", None), given.pop("from", None)
    found = [
        Field("model.name", written(name), "name", "A named size: `glocal list models`."),
        Field("model.from", written(start), "path or null", "A run, a folder or a hub id to fine-tune."),
    ]
    inner, meanings = get_type_hints(BlockConfig), docstrings(BlockConfig)

    def block_field(name: str, value: str) -> Field:
        return Field(f"model.{name}", value, described(inner[name]), first_sentence(meanings[name]))

    if start is not None or name is None:
        return found + [block_field(rate, written(given[rate]) if rate in given else "as trained") for rate in RATES]
    family = NAMED_CONFIGS.get(str(name))
    config = override(family[1] if family else BaselineConfig(name=str(name)), given)
    own, kept = get_type_hints(type(config)), docstrings(type(config))
    for field in [each for each in own if each not in {*FITTED, *stacks(type(config)), "name"}]:
        value = written(getattr(config, field))
        found.append(Field(f"model.{field}", value, described(own[field]), first_sentence(kept.get(field, ""))))
    if not stacks(type(config)):
        return found
    found.append(
        Field(
            "model.arch", "null", "path or null", "A file of blocks, as a search writes it; they take the place of all."
        )
    )
    blocks = [block for stack in stacks(type(config)) for block in getattr(config, stack)]
    depth = " and ".join(sorted({str(len(getattr(config, stack))) for stack in stacks(type(config))}))
    found.append(Field("model.depth", depth, "int", "Blocks of a stack."))
    for field in [each for each in inner if each not in BUILT | own.keys()]:
        values = {getattr(block, field) for block in blocks}
        found.append(block_field(field, written(values.pop()) if len(values) == 1 else "block by block"))
    return found


def docstrings(kind: type) -> dict[str, str]:
    """Return the string that stands below each field of a dataclass, those of its bases included."""
    found = {}
    for base in reversed([base for base in kind.__mro__ if is_dataclass(base)]):
        (definition,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        assert isinstance(definition, ast.ClassDef)
        for field, below in pairwise(definition.body):
            if not (isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr)):
                continue
            if isinstance(field.target, ast.Name) and isinstance(below.value, ast.Constant):
                found[field.target.id] = inspect.cleandoc(str(below.value.value))
    return found


def first_sentence(text: str) -> str:
    """Return a docstring up to its first full stop, on one line."""
    return re.split(r"(?<=[.)])\s+(?=[A-Z`])", " ".join(text.split()))[0]


def written(value: object) -> str:
    """Return a value as it is written in a recipe or on the command line."""
    return value if isinstance(value, str) else json.dumps(value, default=asdict)


def described(hint: object) -> str:
    """Return a type in the words of a recipe: `int or null`, `cosine or inverse_sqrt`, `[float, float]`."""
    kind, inner = get_origin(hint), get_args(hint)
    if is_dataclass(hint):
        return "{" + ", ".join(f"{field.name}: ..." for field in fields(hint)) + "}"
    if kind is Literal:
        return " or ".join(map(str, inner))
    if kind in (Union, UnionType):
        return " or ".join(map(described, inner))
    if kind in (tuple, list):
        return "[" + ", ".join("..." if each is Ellipsis else described(each) for each in inner) + "]"
    return {NoneType: "null", str: "text", bool: "true or false"}.get(hint, getattr(hint, "__name__", str(hint)))
