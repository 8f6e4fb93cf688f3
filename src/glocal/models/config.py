"""From plain values, as in JSON, YAML and keyword arguments, to the dataclass of an architecture, checked."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from glocal.errors import GlocalError
from glocal.files import JSONObject, read_object, short
from glocal.layers.block import override_blocks
from glocal.layers.config import MAX_DEPTH, BlockConfig

Config = TypeVar("Config")
T = TypeVar("T")

SHAPE = {"depth", *get_type_hints(BlockConfig)} - {"dropout", "attn_drop", "drop_path"}
"""Fields that the file of an architecture (arch.json) determines for every block."""

RATES = {"dropout", "attn_drop", "drop_path"}
"""Fields that are rates of dropout."""
MAY_BE_ZERO = {"local_heads", "num_classes", "pad_id", "bos_id", "eos_id"}
"""Integers that may be 0; all others are at least 1."""
MAX_NUMBER = 2**31 - 1
"""The largest value of a field."""
MAX_VALUES = {"depth": MAX_DEPTH, "in_chans": 2**16}
"""Largest values of fields with which a model would take long to build, however little memory it takes."""


def configure(kind: type[Config], values: Mapping[str, object]) -> Config:
    """Return a config: lists become tuples, objects dataclasses, and one number as image_size a square.

    Raises GlocalError for an unknown name, or a value that its field cannot hold.
    """
    if not isinstance(values, Mapping):
        raise GlocalError(f"a model's config {short(values)}; expected names and values")
    check(values, get_type_hints(kind))
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    if isinstance(size := values.get("image_size"), int):
        values["image_size"] = (size, size)
    for name, hint in get_type_hints(kind).items():
        if isinstance(hint, type) and is_dataclass(hint) and isinstance(given := values.get(name), Mapping):
            values[name] = configure(hint, given)
    for name in [name for name in stacks(kind) if name in values]:
        blocks = values[name]
        if not isinstance(blocks, tuple) or not blocks or not all(isinstance(block, Mapping) for block in blocks):
            raise GlocalError(f"{name} {short(blocks)} of a model; expected a list of objects, one block or more")
        if len(blocks) > MAX_DEPTH:
            raise GlocalError(f"{name} of a model are {len(blocks)}; expected {MAX_DEPTH} blocks at most")
        for block in blocks:
            check(block, get_type_hints(BlockConfig))
        values[name] = tuple(BlockConfig(**block) for block in blocks)
    return kind(**values)


def stacks(kind: type[object]) -> list[str]:
    """Return the names of a config's fields that are stacks of blocks, in the order of the forward pass."""
    return [name for name, hint in get_type_hints(kind).items() if hint == tuple[BlockConfig, ...]]


def blocks_of(config: object) -> tuple[BlockConfig, ...]:
    """Return the blocks of a config, stack after stack: an encoder's, then a decoder's."""
    return tuple(block for name in stacks(type(config)) for block in getattr(config, name))


def split_into_stacks(config: object, blocks: Sequence[T]) -> dict[str, tuple[T, ...]]:
    """Cut what stands for each of a config's blocks, in the order of `blocks_of`, into stacks by their names."""
    rest = iter(blocks)
    return {name: tuple(islice(rest, len(getattr(config, name)))) for name in stacks(type(config))}


def override(config: Any, changes: Mapping[str, Any]) -> Any:
    """Return a config with fields changed; `depth` and the fields of BlockConfig change all its blocks.

    `arch` is a JSON file whose stacks replace the config's, as a search writes it: `blocks`, or `encoder` and
    `decoder`. Raises GlocalError for an unknown name or a value that its field cannot hold.
    """
    if "arch" in changes:
        arch = read_arch(changes["arch"], stacks(type(config)))
        changes = {name: value for name, value in changes.items() if name != "arch"} | arch
    own = get_type_hints(type(config))
    inner = get_type_hints(BlockConfig) | {"depth": int} if stacks(type(config)) else {}
    check(changes, inner | own)
    config = configure(type(config), asdict(config) | {name: changes[name] for name in changes if name in own})
    if blocks := {name: changes[name] for name in changes if name in inner}:
        names = stacks(type(config))
        config = replace(config, **{name: override_blocks(getattr(config, name), **blocks) for name in names})
    return config


def read_arch(file: object, names: Sequence[str]) -> JSONObject:
    """Return the stacks of these names of the file of an architecture. Raises GlocalError if it lacks one."""
    if not isinstance(file, str | Path):
        raise GlocalError(f"arch {short(file)}; give the path of the arch.json that a search wrote")
    if not names:
        raise GlocalError(f"arch {file} of a model without blocks; leave it out, or give a model that has blocks")
    try:
        arch = read_object(Path(file))
        for name in names:
            configure(_Blocks, {"blocks": arch.get(name)})
    except GlocalError as error:
        raise GlocalError(
            f"arch {file} is not an architecture: {error}; give the arch.json that a search wrote"
        ) from None
    return {name: arch[name] for name in names}


@dataclass(frozen=True)
class _Blocks:
    """A stack in an arch.json, to check it."""

    blocks: tuple[BlockConfig, ...]


def check(values: Mapping[str, object], hints: Mapping[str, object]) -> None:
    """Raise GlocalError for the first unknown name, or value that its field cannot hold."""
    for name, value in values.items():
        if name not in hints:
            raise GlocalError(f"unknown field {short(name)} of a model; {nearest(name, list(hints))}")
        if expected := unmet(name, value, hints[name]):
            raise GlocalError(f"{name} {short(value)} of a model; expected {expected}")


def unmet(name: str, value: Any, hint: Any) -> str | None:
    """Return what a field expects, by type, choices and range, if a value is not that; else None."""
    if get_origin(hint) is Literal:
        fits = isinstance(value, str) and value in get_args(hint)
        return None if fits else " or ".join(map(repr, get_args(hint)))
    if name == "image_size":
        sides = [value, value] if isinstance(value, int) else value
        fits = isinstance(sides, list | tuple) and len(sides) == 2 and not any(unmet("", side, int) for side in sides)
        return None if fits else "a number of pixels, or [height, width]"
    if isinstance(hint, UnionType) and value is None and type(None) in get_args(hint):
        return None
    if is_dataclass(hint):
        fits = isinstance(value, Mapping | hint)
        return None if fits else f"an object with {', '.join(field.name for field in fields(hint))}"
    kind = next(kind for kind in get_args(hint) if kind is not type(None)) if isinstance(hint, UnionType) else hint
    kind = get_origin(kind) or kind
    if kind is tuple:  # a stack, which is checked block by block
        return None
    if not isinstance(value, int | float if kind is float else kind) or (isinstance(value, bool) and kind is not bool):
        return f"of type {getattr(hint, '__name__', hint)}"
    if kind is int:
        least = 0 if name in MAY_BE_ZERO else 1
        most = MAX_VALUES.get(name, MAX_NUMBER)
        return None if least <= value <= most else f"{least} or more" if value < least else f"{most} at most"
    if kind is float and name in RATES:
        return None if 0 <= value < 1 else "0 or more, and less than 1"
    return None if kind is not float or 0 < value <= MAX_NUMBER else f"a number above 0, {MAX_NUMBER} at most"


def check_tokens(config: object, vocab_size: int) -> None:
    """Raise GlocalError if a special token is not in the vocabulary."""
    for name in ("pad_id", "bos_id", "eos_id"):
        if (token := getattr(config, name, None)) is not None and not 0 <= token < vocab_size:
            raise GlocalError(
                f"{name} {token} of a vocabulary of {vocab_size} tokens; give the tokenizer's"
                + (", or None" if isinstance(get_type_hints(type(config))[name], UnionType) else "")
            )


def nearest(name: str, known: list[str]) -> str:
    """Return a question that names the known names nearest to `name`, or some of them where none is near."""
    return f"did you mean {' or '.join(get_close_matches(str(name)[:60], known, n=3) or known[:20])}?"
