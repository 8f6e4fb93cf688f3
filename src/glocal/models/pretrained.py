"""What every model has: a config, labels, preprocessing, and a folder that it is saved to and loaded from.

Folders in timm's and in transformers' layout are read as if they were ours (see glocal.interop).
"""

import json
import pickle
import re
from argparse import Namespace
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from fnmatch import fnmatch
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from glocal.errors import GlocalError
from glocal.files import replacing, write_json
from glocal.interop import bert as bert_layout
from glocal.interop import glit as glit_layout
from glocal.interop import gpt as gpt_layout
from glocal.interop import marian as marian_layout
from glocal.interop import timm as timm_layout
from glocal.interop import transformers as transformers_layout
from glocal.models.config import configure, override

State = dict[str, Tensor]
M = TypeVar("M", bound="Model")

CONFIG, WEIGHTS, PREPROCESSOR = "config.json", "model.safetensors", "preprocessor_config.json"
PICKLE = "pytorch_model.bin"
TOKENIZER = ["tokenizer*.json", "special_tokens_map.json", "vocab.json", "merges.txt", "vocab.txt", "*.spm"]
TRANSFORMERS: dict[str, Any] = {
    "vit": transformers_layout,
    "deit": transformers_layout,
    "marian": marian_layout,
    "bert": bert_layout,
    "gpt2": gpt_layout,
    "openai-gpt": gpt_layout,
}
"""The layouts of transformers, by their `model_type`."""


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
        self.preprocessing: dict[str, Any] | None = None
        """What turns an image into pixel values: the fields of data.Preprocessing."""

    def no_weight_decay(self) -> set[str]:
        """Names of matrices that weight decay should spare."""
        return set()

    def adapt_state(self, state: State, source: Any) -> State:
        """Make the weights of a model with the config `source` fit this one's, where a family knows how."""
        return state

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config.json and model.safetensors; a kill or a full disk leaves what was there before."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        config = {
            "glocal": version("glocal"),
            "model": self.family,
            "config": asdict(self.config),
            "labels": self.labels,
            "preprocessing": self.preprocessing,
        }
        write_weights(folder / WEIGHTS, self.state_dict())
        write_json(folder / CONFIG, config)

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
        return cls.build(description, state, excuse, overrides)

    @classmethod
    def build(
        cls: type[M],
        description: Mapping[str, Any],
        state: State,
        excuse: str | Iterable[str],
        overrides: Mapping[str, Any],
    ) -> M:
        """Assemble what `read_folder` gave."""
        given = configure(cls.Config, description["config"])
        model = cls(override(given, overrides))
        new_head = question(model.config) != question(given)
        if not new_head:
            model.labels = description.get("labels")
        if preprocessing := description.get("preprocessing"):
            model.preprocessing = preprocessing | {"image_size": model.config.image_size}
        patterns = [excuse] if isinstance(excuse, str) else list(excuse)
        if new_head:
            patterns += model.fresh_names(state)
        load_state(model, model.adapt_state(state, given), patterns)
        return model

    def fresh_names(self, state: State) -> list[str]:
        """Names, or patterns, of the weights that start anew where these are of a model that answered otherwise."""
        return self.head_names()

    def head_names(self) -> list[str]:
        """Names of the head's parameters in the state dict."""
        head = {id(parameter) for parameter in self.head.parameters()}
        return [name for name, parameter in self.named_parameters() if id(parameter) in head]


def question(config: Any) -> tuple[str | None, int | None]:
    """What a model with this config answers."""
    return getattr(config, "head", None), getattr(config, "num_classes", None)


def load_state(model: nn.Module, state: State, excuse: Sequence[str] = ()) -> None:
    """Copy weights into `model`, but those that a pattern excuses. Raises GlocalError with each that does not fit."""

    def expected(weights: State) -> State:
        return {name: weights[name] for name in weights if not any(fnmatch(name, pattern) for pattern in excuse)}

    own, state = expected(model.state_dict()), expected(state)
    wrong = {name: f"- {name}" for name in own.keys() - state.keys()}
    wrong |= {name: f"+ {name}" for name in state.keys() - own.keys()}
    for name in own.keys() & state.keys():
        if own[name].shape != state[name].shape:
            wrong[name] = f"± {name} {tuple(state[name].shape)} instead of {tuple(own[name].shape)}"
    if errors := [wrong[name] for name in sorted(wrong)]:
        more = f", and {len(errors) - 12} more" if len(errors) > 12 else ""
        raise GlocalError(
            f"weights do not fit the model (- missing, + left over, ± another shape): {', '.join(errors[:12])}{more}; "
            "excuse names by a pattern, or give head or num_classes for a new head"
        )
    model.load_state_dict(state, strict=False)


def write_weights(file: Path, state: State) -> None:
    """Write tensors as safetensors, in one piece."""
    with replacing(file) as draft:
        draft.touch()
        mode = draft.stat().st_mode  # as of any new file; the library's own is for the owner alone
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, draft, metadata={"format": "pt"})
        draft.chmod(mode)


def read_folder(source: str | Path) -> tuple[dict[str, Any], State]:
    """Read a model's config.json and weights, in whichever layout, and return them in ours."""
    folder = find_folder(source)
    try:
        if folder.is_file():
            state = read_pickle(folder)
            return glit_layout.config_from(state), glit_layout.state_from(state)
        config = json.loads((folder / CONFIG).read_text())
        state = read_weights(folder)
        if "model" in config and "config" in config:
            return config, state
        if "architecture" in config:
            layout: Any = timm_layout
        elif config.get("model_type") in TRANSFORMERS:
            layout = TRANSFORMERS[config["model_type"]]
            if (folder / PREPROCESSOR).is_file():
                config |= json.loads((folder / PREPROCESSOR).read_text())
        elif "model_type" in config:
            raise ValueError(
                f"model_type {config['model_type']!r} of transformers; known are {', '.join(TRANSFORMERS)}"
            )
        else:
            raise ValueError("config.json has none of model (ours), architecture (timm) and model_type (transformers)")
        config = layout.config_from(config)
        return config, layout.state_from(state, config)
    except (ValueError, OSError) as error:
        raise GlocalError(f"{folder} holds no model that can be read: {error}") from None


def find_folder(source: str | Path) -> Path:
    """Return a local folder or file, a run's model, or, at last from the network, what the hub has under that id."""
    folder = Path(source)
    if (folder / "model" / CONFIG).is_file():
        return folder / "model"
    if (folder / "recipe.yaml").is_file():
        raise GlocalError(f"the run {folder} has no finished model yet; finish it: glocal train --resume {folder}")
    if folder.exists():
        return folder
    if not re.fullmatch(r"\w[\w.-]*/[\w.-]+", str(source)):
        raise GlocalError(f"{source} is neither a run, nor a folder, nor a hub id such as google/vit-base-patch16-224")
    try:
        folder = Path(snapshot_download(str(source), allow_patterns=[CONFIG, WEIGHTS, PREPROCESSOR, *TOKENIZER]))
        if not (folder / WEIGHTS).is_file():
            snapshot_download(str(source), allow_patterns=[PICKLE])
        return folder
    except (OSError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise GlocalError(f"no folder {source} here, and the hub gave no model of that id: {reason}") from None


def read_weights(folder: Path) -> State:
    """Read model.safetensors, else pytorch_model.bin or the only .pth file, of which nothing but tensors is taken."""
    if (safe := folder / WEIGHTS).is_file():
        try:
            return load_file(safe)
        except SafetensorError as error:
            raise ValueError(f"{WEIGHTS}: {error}") from None
    pickles = [*folder.glob(PICKLE), *folder.glob("*.pth")]
    if len(pickles) != 1:
        raise ValueError(f"neither {WEIGHTS} nor one file {PICKLE} or *.pth")
    return read_pickle(pickles[0])


def read_pickle(file: Path) -> State:
    """Read tensors by torch's restricted unpickler, out of a training checkpoint's `model` too; none of it is run."""
    try:
        with torch.serialization.safe_globals([Namespace]):  # what a training script was called with
            state = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        code = re.search(r"GLOBAL (\S+)", str(error))
        found = f"names code, {code[1]}, which is not run" if code else "is no file of torch's, or a damaged one"
        raise ValueError(f"{file.name} {found}; expected tensors by their names") from None
    return state.get("model", state)
