"""From plain values, as JSON, YAML and keyword arguments have them, to the dataclass that is an architecture."""

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from difflib import get_close_matches
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from glocal.errors import GlocalError
from glocal.layers.block import BlockConfig, restack

Config = TypeVar("Config")

SHAPE = {"depth", *get_type_hints(BlockConfig)} - {"dropout", "attn_drop", "drop_path"}
"""What an architecture's file says of every block, and other fields of a model should not say again."""


def configure(kind: type[Config], values: Mapping[str, Any]) -> Config:
    """Build a config: lists become tuples, blocks BlockConfigs, one number for an image's size a square."""
    check(values, get_type_hints(kind))
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    if isinstance(size := values.get("image_size"), int):
        values["image_size"] = (size, size)
    for name in stacks(kind) & values.keys():
        for block in values[name]:
            check(block, get_type_hints(BlockConfig))
        values[name] = tuple(BlockConfig(**block) for block in values[name])
    return kind(**values)


def stacks(kind: type[Any]) -> set[str]:
    """Names of a config's fields that are stacks of blocks."""
    return {name for name, hint in get_type_hints(kind).items() if hint == tuple[BlockConfig, ...]}


def override(config: Any, changes: Mapping[str, Any]) -> Any:
    """Change fields of a config; `depth` and the fields of BlockConfig change all its blocks.

    `arch` is a JSON file whose `blocks` take the place of all of them, as a search writes it. Raises GlocalError for an
    unknown name, and names the nearest ones.
    """
    if "arch" in changes:
        changes = {name: value for name, value in changes.items() if name != "arch"} | read_arch(changes["arch"])
    own = get_type_hints(type(config))
    inner = get_type_hints(BlockConfig) | {"depth": int} if stacks(type(config)) else {}
    check(changes, inner | own)
    config = configure(type(config), asdict(config) | {name: changes[name] for name in changes if name in own})
    if blocks := {name: changes[name] for name in changes if name in inner}:
        config = replace(config, **{name: restack(getattr(config, name), **blocks) for name in stacks(type(config))})
    return config


def read_arch(file: Any) -> dict[str, Any]:
    """Read the blocks of an architecture's file."""
    try:
        return {"blocks": json.loads(Path(file).read_text())["blocks"]}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise GlocalError(
            f"arch {file} is no architecture ({error!r}); give the arch.json that a search wrote"
        ) from None


def check(values: Mapping[str, Any], hints: Mapping[str, Any]) -> None:
    """Raise GlocalError for the first value whose name is not among the hints, or whose type or choice is another."""
    for name, value in values.items():
        if name not in hints:
            raise GlocalError(f"unknown field {name!r} of a model; {nearest(name, list(hints))}")
        hint = hints[name]
        if get_origin(hint) is Literal:
            fits, expected = value in get_args(hint), " or ".join(map(repr, get_args(hint)))
        elif name == "image_size":
            sides = [value, value] if isinstance(value, int) else value
            fits = isinstance(sides, (list, tuple)) and len(sides) == 2 and all(isinstance(n, int) for n in sides)
            expected = "a number of pixels, or [height, width]"
        elif isinstance(hint, type | UnionType):
            fits = isinstance(value, (int, float) if hint is float else hint)
            expected = f"of type {getattr(hint, '__name__', hint)}"
        else:
            continue
        if not fits:
            raise GlocalError(f"{name} {value!r} of a model; expected {expected}")


def nearest(name: str, known: list[str]) -> str:
    """Say which of `known` was meant, or some of them where nothing is near."""
    return f"did you mean {' or '.join(get_close_matches(name, known, n=3) or known[:20])}?"
