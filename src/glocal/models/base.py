"""The base class of all models: a network, and the data that describes it."""

from collections.abc import Callable, Iterable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from glocal.errors import GlocalError
from glocal.files import JSONObject
from glocal.interop import earlier
from glocal.layers.slicing import StateDict
from glocal.models.folders import CONFIG, write_folder

M = TypeVar("M", bound="Model")


class Model(nn.Module):
    """A network and the data that describes it.

    A family defines its name and its config, `forward` from inputs to logits, and `forward_features` to tokens
    (B, N, D). A classifier has a `head`, which can be trained alone.
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
        """Meaning of the outputs: `multi_label_classification`, `regression`, or None: one class of several."""
        self.preprocessing: JSONObject | None = None
        """How an image becomes pixel values: the fields of data.Preprocessing."""

    def no_weight_decay(self) -> set[str]:
        """Return the names of matrices that weight decay excludes."""
        return set()

    def init_linears(self, part: nn.Module) -> None:
        """Initialise the linear layers of the model or of a part, such as a block, as the family does."""

    def adapt_state(self, state: StateDict, source: Any) -> StateDict:
        """Return the weights of a model with the config `source` adapted to this one's, where a family can do so."""
        return state

    def fresh_names(self, state: StateDict) -> list[str]:
        """Return names, or patterns, of the weights that a new head initialises, for a file with another head."""
        return self.head_names()

    def head_names(self) -> list[str]:
        """Return the names of the head's parameters in the state dict."""
        head = {id(parameter) for parameter in self.head.parameters()}
        return [name for name, parameter in self.named_parameters() if id(parameter) in head]

    def description(self) -> JSONObject:
        """Return the content of config.json."""
        return {
            "glocal": version("glocal"),
            "format": earlier.FORMAT,
            "model": self.family,
            "config": asdict(self.config),
            "labels": self.labels,
            "problem_type": self.problem_type,
            "preprocessing": self.preprocessing,
        }

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config.json and model.safetensors; after a kill or on a full disk, the former files are intact."""
        write_folder(Path(folder), {CONFIG: self.description()}, self.state_dict())

    @classmethod
    def from_pretrained(
        cls: type[M], source: str | Path, *, ignore_keys: str | Iterable[str] = (), **overrides: object
    ) -> M:
        """Return the model of a folder or of a hub id, in our layout, timm's or transformers'.

        `overrides` change fields of its config. With another `image_size` the positions are resized; with another
        `head` or `num_classes` the head is initialised. Weights whose names match a pattern of `ignore_keys` ("head.*")
        are not loaded, and stay as initialised. Raises GlocalError for weights that are missing, unexpected or of
        another shape, and where the folder holds another family.
        """
        from glocal.models.loading import build_model, read_model  # imports this module

        saved = read_model(source)
        if saved.family != cls.family:
            raise GlocalError(
                f"{source} holds a {saved.family} model, and {cls.__name__} loads {cls.family} models; "
                "glocal.models.load_model loads either"
            )
        return build_model(cls, saved, ignore_keys, overrides)


def check_images(model: nn.Module, pixel_values: Tensor) -> None:
    """Raise GlocalError if images are not a batch, B×C×H×W, of the model's own number type."""
    if pixel_values.ndim != 4:
        shape = "×".join(map(str, pixel_values.shape))
        raise GlocalError(f"images of shape {shape}; expected a batch, B×C×H×W: one image has B = 1, image[None]")
    given = pixel_values.dtype
    own = next(model.parameters()).dtype
    if given != own and not (given.is_floating_point and torch.is_autocast_enabled(pixel_values.device.type)):
        raise GlocalError(
            f"images of {given} for a model in {own}; give pixel_values.to({own}), scaled and normalised as "
            "glocal.load(...).pixels does it"
        )


def check_ids(input_ids: Tensor) -> None:
    """Raise GlocalError if token ids are not a batch, texts × tokens, of integers."""
    if input_ids.ndim != 2 or input_ids.dtype not in (torch.int64, torch.int32):
        shape = "×".join(map(str, input_ids.shape))
        raise GlocalError(
            f"ids of {input_ids.dtype} and shape {shape}; expected a batch of texts × tokens in torch.int64: one text "
            "is ids[None]"
        )
