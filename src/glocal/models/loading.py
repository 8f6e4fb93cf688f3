"""From a saved config and weights to a model: checked before memory is allocated, and adapted to changed fields."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fnmatch import fnmatch
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from glocal.errors import GlocalError
from glocal.files import JSONObject, foreign, short
from glocal.layers.slicing import StateDict
from glocal.models.base import Model
from glocal.models.config import configure, override, stacks
from glocal.models.folders import CONFIG, read_folder

M = TypeVar("M", bound=Model)

MARGIN = 2**30
"""Bytes that a model may take beside the weights in its file: a new head, computed positions."""
CGROUP = Path("/sys/fs/cgroup")
"""Where Linux tells a container its limits."""
SHOWN = 12
"""Names of unfit weights in an error."""


@dataclass(frozen=True)
class SavedModel:
    """A model as it was read, not checked yet."""

    source: str | Path
    description: JSONObject
    """The content of config.json, in our layout."""
    state: StateDict

    @property
    def family(self) -> str:
        """The name of its family."""
        return str(self.description["model"])


def read_model(source: str | Path) -> SavedModel:
    """Read a folder, a file, a run or a hub id (see `folders`)."""
    return SavedModel(source, *read_folder(source))


def build_model(
    family: type[M], saved: SavedModel, ignore_keys: str | Iterable[str], overrides: Mapping[str, object]
) -> M:
    """Return the model of a file, with `overrides` of its config; see `Model.from_pretrained`.

    The model is first built on the meta device, so that no memory is allocated before the weights fit the config.
    """
    with foreign(saved.source, "holds no model that can be read"):
        given = configure(family.Config, saved.description["config"])
        check_depth(given, saved.state)
    if "head" in overrides and getattr(given, "num_classes", None) == 0:
        overrides = {"num_classes": 2, **overrides}  # an encoder without a classifier; most heads have 2 classes
    config = override(given, overrides)
    new_head = head_of(config) != head_of(given)
    patterns = [ignore_keys] if isinstance(ignore_keys, str) else list(ignore_keys)
    changed = f" with {', '.join(overrides)}" if overrides else ""
    with foreign(saved.source, f"cannot be loaded{changed}"), meta_device():
        skeleton = family(config)
        if new_head:
            patterns += skeleton.fresh_names(saved.state)
        check_memory(skeleton, saved.state)
        matching_weights(skeleton, adapt(skeleton, saved.state, given), patterns)
        given_images = saved.description.get("preprocessing")
        preprocessing = adapt_preprocessing(given_images, config.image_size, config.in_chans) if given_images else None
    model = family(config)
    model.labels = None if new_head else saved.description.get("labels")
    model.problem_type = None if new_head else saved.description.get("problem_type")
    model.preprocessing = preprocessing
    load_state(model, adapt(model, saved.state, given), patterns)
    return model


def head_of(config: object) -> tuple[str | None, int | None]:
    """Return the fields that determine a model's head."""
    return getattr(config, "head", None), getattr(config, "num_classes", None)


def adapt(model: Model, state: StateDict, source: object) -> StateDict:
    """Return the weights of a model with the config `source`, adapted to the channels and the config of `model`."""
    theirs = getattr(source, "in_chans", None)
    ours = getattr(model.config, "in_chans", None)
    if theirs is not None and ours is not None and (theirs, ours) in ((3, 1), (1, 3)):
        state = state | adapt_channels(state, model.state_dict(), theirs, ours)
    return model.adapt_state(state, source)


def adapt_channels(state: StateDict, own: StateDict, theirs: int, ours: int) -> StateDict:
    """Return the weights that read images of `theirs` channels as weights for `ours` channels: 3 to 1, or 1 to 3.

    The value of a grey image stands for all three colours, so their weights are added (as in timm); the three values of
    a colour image share the one weight equally. The channels come first in the second axis of these weights.
    """
    changed = {}
    for name, tensor in state.items():
        expected = own[name].shape if name in own else tensor.shape
        if 1 < tensor.ndim == len(expected) and tensor.shape[1] * ours == expected[1] * theirs:
            channels = tensor.unflatten(1, (theirs, -1))
            shared = channels.sum(1, keepdim=True) / ours
            changed[name] = shared.expand(-1, ours, *channels.shape[2:]).flatten(1, 2)
    return changed


def adapt_preprocessing(preprocessing: JSONObject, image_size: tuple[int, int], in_chans: int) -> JSONObject:
    """Return a model's preprocessing for images of another size, and of another number of channels."""
    changed = preprocessing | {"image_size": image_size}
    if preprocessing.get("channels") in (1, 3) and preprocessing["channels"] != in_chans:
        changed["channels"] = in_chans
        for name in ("mean", "std"):
            values = preprocessing.get(name)
            if isinstance(values, list | tuple) and values:
                changed[name] = [sum(values) / len(values)] * in_chans
    return changed


class _SkipInit(TorchFunctionMode):
    """Skip random initialisation, which meta tensors have no use for, and whose first use there takes seconds."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return args[0] if func in (Tensor.normal_, Tensor.uniform_) else func(*args, **(kwargs or {}))


@contextmanager
def meta_device() -> Iterator[None]:
    """Build models without data: their shapes take no memory, however large they are."""
    with torch.device("meta"), _SkipInit():
        yield


def check_depth(config: object, state: StateDict) -> None:
    """Raise GlocalError if a model has more blocks than the file has tensors: it would take long to build."""
    sizes = {name: len(getattr(config, name)) for name in stacks(type(config))}
    sizes |= {"depth": config.depth} if hasattr(config, "depth") else {}
    for name, size in sizes.items():
        if size > len(state):
            raise GlocalError(f"{CONFIG} has {size} as its {name}, and the weights are {len(state)} tensors")


def check_memory(model: nn.Module, state: StateDict) -> None:
    """Raise GlocalError if a model on the meta device is far larger than its weights in the file."""
    size, given = bytes_of(model.parameters(), model.buffers()), bytes_of(state.values())
    if size > 4 * given + MARGIN:
        raise GlocalError(f"{CONFIG} describes a model of {size / 1e9:.1f} GB for weights of {given / 1e9:.3f} GB")


def check_size(build: Callable[[], nn.Module], name: str, fields: Mapping[str, object]) -> None:
    """Raise GlocalError if a model is larger than this machine's memory; it is built on the meta device to find out.

    `name` and `fields` appear in the error. Within `meta_device`, no model is too large.
    """
    if torch.get_default_device().type == "meta":
        return
    given = f"{name} with {', '.join(f'{field}={short(value, 20)}' for field, value in fields.items())}"
    given = given if fields else name
    with foreign(given, "cannot be built"), meta_device():
        model = build()
    size = bytes_of(model.parameters(), model.buffers())
    memory = total_memory()
    if size > memory:
        parts = chain(model.named_parameters(), model.named_buffers())
        largest, tensor = max(parts, key=lambda part: part[1].numel())
        raise GlocalError(
            f"{given} is a model of {size / 1e9:,.1f} GB, and this machine has {memory / 1e9:,.1f} GB of memory; "
            f"make it smaller: its largest part, {largest}, is {'×'.join(map(str, tensor.shape))}"
        )


def total_memory() -> int:
    """Return the bytes of memory that this process may use: the machine's, or the limit of its container (cgroup)."""
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for file in ("memory.max", "memory/memory.limit_in_bytes"):  # cgroup version 2, and 1
        with suppress(OSError, ValueError):  # no such file, or "max", which is no limit
            limits.append(int((CGROUP / file).read_text()))
    return min(limits)


def bytes_of(*tensors: Iterable[Tensor]) -> int:
    """Return the bytes that tensors take, with or without data."""
    return sum(tensor.numel() * tensor.element_size() for tensor in chain.from_iterable(tensors))


def matching_weights(model: nn.Module, state: StateDict, ignore_keys: Sequence[str] = ()) -> StateDict:
    """Return the weights whose names match no pattern of `ignore_keys`.

    Raises GlocalError with the names of weights that the model or the file lacks, or that have another shape or type.
    """

    def selected(weights: StateDict) -> StateDict:
        return {name: weights[name] for name in weights if not any(fnmatch(name, pattern) for pattern in ignore_keys)}

    own = selected(model.state_dict())
    state = selected(state)
    wrong = {name: f"- {name}" for name in own.keys() - state.keys()}
    wrong |= {name: f"+ {name}" for name in state.keys() - own.keys()}
    for name in own.keys() & state.keys():
        if own[name].shape != state[name].shape:
            wrong[name] = f"± {name} {tuple(state[name].shape)} instead of {tuple(own[name].shape)}"
        elif own[name].is_floating_point() and not state[name].is_floating_point():
            wrong[name] = f"± {name} of {state[name].dtype} instead of {own[name].dtype}"
    if errors := [wrong[name] for name in sorted(wrong)]:
        more = f", and {len(errors) - SHOWN} more" if len(errors) > SHOWN else ""
        raise GlocalError(
            f"weights do not fit the model (- missing, + unexpected, ± another shape): {', '.join(errors[:SHOWN])}"
            f"{more}; name the weights to leave out by ignore_keys, or give head or num_classes for a new head"
        )
    return state


def load_state(model: nn.Module, state: StateDict, ignore_keys: Sequence[str] = ()) -> None:
    """Copy weights into `model`, except those that match a pattern of `ignore_keys`; errors as `matching_weights`."""
    model.load_state_dict(matching_weights(model, state, ignore_keys), strict=False)
