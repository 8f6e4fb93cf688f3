"""What every model has: a config, labels, preprocessing, and a folder that it is saved to and loaded from.

Folders in timm's and in transformers' layout are read as if they were ours (see glocal.interop).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from fnmatch import fnmatch
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from glocal.errors import GlocalError
from glocal.files import foreign, replacing, write_json
from glocal.models.config import configure, override, stacks
from glocal.models.folders import CONFIG, WEIGHTS, State, read_folder

M = TypeVar("M", bound="Model")

MARGIN = 2**30
"""Bytes that a model may take beside its weights in the file: a fresh head, computed positions."""


class Model(nn.Module):
    """A network and the data that describes it.

    A family gives its name and its config, maps its inputs to logits by `forward`, and to tokens (B, N, D) by
    `forward_features`. A classifier has a `head`, the module that answers, which training may tune alone.
    """

    family: ClassVar[str]
    Config: ClassVar[type[Any]]
    head: nn.Module
    forward_features: Callable[..., Tensor]

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.labels: list[str] | None = None
        """Names of the classes, in the order of the logits."""
        self.problem_type: str | None = None
        """What the outputs mean: `multi_label_classification`, `regression`, or None: one class of several."""
        self.preprocessing: dict[str, Any] | None = None
        """What turns an image into pixel values: the fields of data.Preprocessing."""

    def no_weight_decay(self) -> set[str]:
        """Names of matrices that weight decay should spare."""
        return set()

    def adapt_state(self, state: State, source: Any) -> State:
        """Make the weights of a model with the config `source` fit this one's, where a family knows how."""
        return state

    def description(self) -> dict[str, Any]:
        """Return what config.json holds."""
        return {
            "glocal": version("glocal"),
            "model": self.family,
            "config": asdict(self.config),
            "labels": self.labels,
            "problem_type": self.problem_type,
            "preprocessing": self.preprocessing,
        }

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config.json and model.safetensors; a kill or a full disk leaves what was there before."""
        write_folder(Path(folder), {CONFIG: self.description()}, self.state_dict())

    @classmethod
    def from_pretrained(cls: type[M], source: str | Path, *, excuse: str | Iterable[str] = (), **overrides: Any) -> M:
        """Load a folder or a model of the hub, in our layout, timm's or transformers'.

        `overrides` change fields of its config. With another `image_size` the positions are resized; with another
        `head` or `num_classes` what answers starts anew. Weights that are missing, left over or of another shape raise
        GlocalError; those whose names match a pattern of `excuse` ("head.*") are not looked at, and stay as they are
        initialised.
        """
        description, state = read_folder(source)
        if description["model"] != cls.family:
            raise GlocalError(
                f"{source} holds a {description['model']} model, and {cls.__name__} loads {cls.family} models; "
                "glocal.models.load_model loads either"
            )
        return cls.build(source, description, state, excuse, overrides)

    @classmethod
    def build(
        cls: type[M],
        source: str | Path,
        description: Mapping[str, Any],
        state: State,
        excuse: str | Iterable[str],
        overrides: Mapping[str, Any],
    ) -> M:
        """Assemble what `read_folder` gave of `source`; no memory is taken before the weights fit the config."""
        with foreign(source, "holds no model that can be read"):
            given = configure(cls.Config, description["config"])
            check_depth(given, state)
        if "head" in overrides and getattr(given, "num_classes", None) == 0:
            overrides = {"num_classes": 2, **overrides}  # an encoder alone; as many as most heads have
        config = override(given, overrides)
        new_head = question(config) != question(given)
        patterns = [excuse] if isinstance(excuse, str) else list(excuse)
        changed = f" with {', '.join(overrides)}" if overrides else ""
        with foreign(source, f"cannot be loaded{changed}"), planning():
            plan = cls(config)
            if new_head:
                patterns += plan.fresh_names(state)
            fitting(plan, plan.adapted(state, given), patterns)
            check_memory(plan, state)
            given_images = description.get("preprocessing")
            preprocessing = prepared(given_images, config) if given_images else None
        model = cls(config)
        model.labels = None if new_head else description.get("labels")
        model.problem_type = None if new_head else description.get("problem_type")
        model.preprocessing = preprocessing
        load_state(model, model.adapted(state, given), patterns)
        return model

    def adapted(self, state: State, source: Any) -> State:
        """Make the weights of a model with the config `source` fit this one's channels and what its family adapts."""
        channels = getattr(source, "in_chans", None), getattr(self.config, "in_chans", None)
        if channels in ((3, 1), (1, 3)):
            state = state | recolour(state, self.state_dict(), *channels)
        return self.adapt_state(state, source)

    def fresh_names(self, state: State) -> list[str]:
        """Names, or patterns, of the weights that start anew where these are of a model that answered otherwise."""
        return self.head_names()

    def head_names(self) -> list[str]:
        """Names of the head's parameters in the state dict."""
        head = {id(parameter) for parameter in self.head.parameters()}
        return [name for name, parameter in self.named_parameters() if id(parameter) in head]


def check_images(model: nn.Module, pixel_values: Tensor) -> None:
    """Raise GlocalError where images are no batch of numbers of the model's own type."""
    if pixel_values.ndim != 4:
        shape = "×".join(map(str, pixel_values.shape))
        raise GlocalError(f"images of shape {shape}; expected a batch, B×C×H×W: one image has B = 1, image[None]")
    given, own = pixel_values.dtype, next(model.parameters()).dtype
    if given != own and not (given.is_floating_point and torch.is_autocast_enabled(pixel_values.device.type)):
        raise GlocalError(
            f"images of {given} for a model in {own}; give pixel_values.to({own}), scaled and normalised as "
            "glocal.load(...).pixels does it"
        )


def check_ids(input_ids: Tensor) -> None:
    """Raise GlocalError where the ids of texts are no batch of whole numbers."""
    if input_ids.ndim != 2 or input_ids.dtype not in (torch.int64, torch.int32):
        shape = "×".join(map(str, input_ids.shape))
        raise GlocalError(
            f"ids of {input_ids.dtype} and shape {shape}; expected a batch of texts × tokens in torch.int64: one text "
            "is ids[None]"
        )


def question(config: Any) -> tuple[str | None, int | None]:
    """What a model with this config answers."""
    return getattr(config, "head", None), getattr(config, "num_classes", None)


def prepared(preprocessing: dict[str, Any], config: Any) -> dict[str, Any]:
    """Return a model's preprocessing for the size and the channels that it is built for."""
    changed = preprocessing | {"image_size": config.image_size}
    if preprocessing.get("channels") in (1, 3) and preprocessing["channels"] != config.in_chans:
        changed["channels"] = config.in_chans
        for name in ("mean", "std"):
            values = preprocessing.get(name)
            if isinstance(values, list | tuple) and values:
                changed[name] = [sum(values) / len(values)] * config.in_chans
    return changed


def recolour(state: State, own: State, theirs: int, ours: int) -> State:
    """Return the weights that read images of `theirs` channels as weights that read `ours`: one, or three.

    A grey image's value stands for all three colours, so their weights are added (as in timm); a colour image's three
    values share the weight of the one. These weights have the channels first in their second axis.
    """
    changed = {}
    for name, tensor in state.items():
        expected = own[name].shape if name in own else tensor.shape
        if 1 < tensor.ndim == len(expected) and tensor.shape[1] * ours == expected[1] * theirs:
            channels = tensor.unflatten(1, (theirs, -1))
            shared = channels.sum(1, keepdim=True) / ours
            changed[name] = shared.expand(-1, ours, *channels.shape[2:]).flatten(1, 2)
    return changed


class _NoDraws(TorchFunctionMode):
    """Leave out random numbers, which tensors without data have no use for, and whose first use there takes seconds."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return args[0] if func in (Tensor.normal_, Tensor.uniform_) else func(*args, **(kwargs or {}))


@contextmanager
def planning() -> Iterator[None]:
    """Build models without data: their shapes take no memory, however large they are."""
    with torch.device("meta"), _NoDraws():
        yield


def check_depth(config: Any, state: State) -> None:
    """Raise GlocalError where a model has more blocks than the file has tensors, which it takes long to build."""
    sizes = {name: len(getattr(config, name)) for name in stacks(type(config))}
    sizes |= {"depth": config.depth} if hasattr(config, "depth") else {}
    for name, size in sizes.items():
        if size > len(state):
            raise GlocalError(f"{CONFIG} has {size} as its {name}, and the weights are {len(state)} tensors")


def check_memory(plan: nn.Module, state: State) -> None:
    """Raise GlocalError where a planned model is far larger than the weights that it is to be filled with."""
    tensors = [*plan.parameters(), *plan.buffers()]
    size, given = (sum(t.numel() * t.element_size() for t in some) for some in (tensors, state.values()))
    if size > 4 * given + MARGIN:
        raise GlocalError(f"{CONFIG} describes a model of {size / 1e9:.1f} GB for weights of {given / 1e9:.3f} GB")


def fitting(model: nn.Module, state: State, excuse: Sequence[str] = ()) -> State:
    """Return the weights that no pattern excuses, to be copied. Raises GlocalError with each that does not fit."""

    def expected(weights: State) -> State:
        return {name: weights[name] for name in weights if not any(fnmatch(name, pattern) for pattern in excuse)}

    own, state = expected(model.state_dict()), expected(state)
    wrong = {name: f"- {name}" for name in own.keys() - state.keys()}
    wrong |= {name: f"+ {name}" for name in state.keys() - own.keys()}
    for name in own.keys() & state.keys():
        if own[name].shape != state[name].shape:
            wrong[name] = f"± {name} {tuple(state[name].shape)} instead of {tuple(own[name].shape)}"
        elif own[name].is_floating_point() and not state[name].is_floating_point():
            wrong[name] = f"± {name} of {state[name].dtype} instead of {own[name].dtype}"
    if errors := [wrong[name] for name in sorted(wrong)]:
        more = f", and {len(errors) - 12} more" if len(errors) > 12 else ""
        raise GlocalError(
            f"weights do not fit the model (- missing, + left over, ± another shape): {', '.join(errors[:12])}{more}; "
            "excuse names by a pattern, or give head or num_classes for a new head"
        )
    return state


def load_state(model: nn.Module, state: State, excuse: Sequence[str] = ()) -> None:
    """Copy weights into `model`, but those that a pattern excuses. Raises GlocalError with each that does not fit."""
    model.load_state_dict(fitting(model, state, excuse), strict=False)


def write_folder(folder: Path, documents: Mapping[str, Any], state: State) -> None:
    """Write the weights, then JSON documents by their names, each in one piece.

    Raises WriteError where the disk is full. All files get the permissions that the user's mask gives new files.
    """
    with replacing(folder / WEIGHTS) as draft:
        draft.touch()
        mode = draft.stat().st_mode  # the library takes all others' permissions away
        save_file({name: t.contiguous() for name, t in state.items()}, draft, metadata={"format": "pt"})
        draft.chmod(mode)
    for name, document in documents.items():
        write_json(folder / name, document)
