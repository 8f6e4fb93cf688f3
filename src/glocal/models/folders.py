"""Model folders and checkpoints, on the disk or on the hub: in our layout, timm's, transformers', and GLiT's authors'.

All foreign files are read here, and none is trusted: values are checked before they are used, weights are mapped from
the disk rather than copied, pickles yield tensors and run no code, and whatever a library raises for a damaged file
becomes one GlocalError that names the file.
"""

import re
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from huggingface_hub import snapshot_download
from safetensors.torch import load_file, save_file
from torch import Tensor

from glocal.errors import GlocalError
from glocal.files import JSONObject, foreign, read_object, replacing, short, write_json
from glocal.interop import bert as bert_layout
from glocal.interop import earlier
from glocal.interop import glit as glit_layout
from glocal.interop import gpt as gpt_layout
from glocal.interop import marian as marian_layout
from glocal.interop import timm as timm_layout
from glocal.interop import transformers as transformers_layout
from glocal.layers.slicing import StateDict

CONFIG, WEIGHTS, PREPROCESSOR = "config.json", "model.safetensors", "preprocessor_config.json"
PICKLE, INDEX = "pytorch_model.bin", ".index.json"
NAMED_CONFIGS = (WEIGHTS, WEIGHTS + INDEX, PICKLE, PICKLE + INDEX)
"""Names that libraries give to files of weights, in order of preference."""
ENDINGS = ("*.safetensors", "*.pth", "*.pt", "*.bin", "*.pth.tar")
"""Endings of files of weights with any other name; a folder must hold only one."""
TOKENIZER = ["tokenizer*.json", "special_tokens_map.json", "vocab.json", "merges.txt", "vocab.txt", "*.spm"]
INSIDE = ("model", "state_dict", "model_state_dict")
"""Names under which a training checkpoint may hold the weights."""
PROBLEM_TYPES = ("multi_label_classification", "regression")
"""Meanings of the outputs of a classification head, other than classes that exclude each other."""
PREFIXES = ("_orig_mod.", "module.")
"""Prefixes that torch.compile and DistributedDataParallel put before the name of every tensor."""


@runtime_checkable
class Layout(Protocol):
    """A module of `interop`."""

    def config_from(self, theirs: JSONObject, /) -> JSONObject:
        """Return our config.json for theirs."""

    def state_from(self, theirs: StateDict, ours: JSONObject, /) -> StateDict:
        """Return their tensors under our names."""


TRANSFORMERS: dict[str, Layout] = {
    "vit": transformers_layout,
    "deit": transformers_layout,
    "marian": marian_layout,
    "bert": bert_layout,
    "gpt2": gpt_layout,
    "openai-gpt": gpt_layout,
}
"""The layouts of transformers, by their `model_type`."""


def find_folder(source: str | Path) -> Path:
    """Return the path of a local folder or file, of a run's model, or of the download of a hub id.

    Raises GlocalError if there is none.
    """
    if not isinstance(source, str | Path):
        raise GlocalError(f"a {type(source).__name__} was given for a model; expected a folder, a run or a hub id")
    folder = Path(source)
    with foreign(short(str(source)), "is no path"):  # it may be too long, or hold what no path can
        if (folder / "model" / CONFIG).is_file():
            return folder / "model"
        if (folder / "recipe.yaml").is_file():
            raise GlocalError(f"the run {folder} has no finished model yet; finish it: glocal train --resume {folder}")
        if folder.exists():
            return folder
        if not re.fullmatch(r"\w[\w.-]*/[\w.-]+", str(source)):
            raise GlocalError(
                f"{source} is neither a run, nor a folder, nor a hub id such as google/vit-base-patch16-224"
            )
        if (here := Path(folder.parts[0])).exists():
            raise GlocalError(f"{here} has no {folder.name}; give a run or a model's folder that is there")
    try:
        described = [CONFIG, PREPROCESSOR, *TOKENIZER]
        shards = [WEIGHTS + INDEX, "model-*-of-*.safetensors"]
        folder = Path(snapshot_download(str(source), allow_patterns=[WEIGHTS, *shards, *described]))
        if not any((folder / name).is_file() for name in NAMED_CONFIGS[:2]):
            snapshot_download(str(source), allow_patterns=[PICKLE, PICKLE + INDEX, "pytorch_model-*-of-*.bin"])
        return folder
    except (OSError, ValueError) as error:
        said = str(error).partition("\n")[0]
        raise GlocalError(f"no folder {source} here, and the hub gave no model of that id: {said}") from None


def read_folder(source: str | Path) -> tuple[JSONObject, StateDict]:
    """Return a model's config.json and weights, read in any layout, in ours.

    The fields of the config are checked later, by `config.configure`. Raises GlocalError for a damaged folder.
    """
    folder = find_folder(source)
    with foreign(folder, "holds no model that can be read"):
        if folder.is_file():
            state = read_file(folder)
            return glit_layout.config_from(state), glit_layout.state_from(state)
        config = read_object(folder / CONFIG)
        state = read_weights(folder)
        if "model" in config and "config" in config:
            return earlier.config_from(check_description(config)), earlier.state_from(state, config)
        layout = layout_of(config)
        if layout is transformers_layout and (folder / PREPROCESSOR).is_file():
            config["preprocessor"] = read_object(folder / PREPROCESSOR)
        description = layout.config_from(config)
        return check_description(description), layout.state_from(state, description)


def read_config(source: str | Path) -> JSONObject:
    """Read the config of a model in our layout, without its weights; empty for a file, which holds weights alone."""
    folder = find_folder(source)
    if folder.is_file():
        return {}
    with foreign(folder, "holds no model that can be read"):
        config = read_object(folder / CONFIG)
        description = config if "model" in config and "config" in config else layout_of(config).config_from(config)
        return dict(check_description(description)["config"])


def layout_of(config: JSONObject) -> Layout:
    """Return the module that maps the layout of a foreign config.json."""
    if "architecture" in config:
        return timm_layout
    if "model_type" not in config:
        raise GlocalError("config.json has none of model (ours), architecture (timm) and model_type (transformers)")
    model_type = config["model_type"]
    if not isinstance(model_type, str) or model_type not in TRANSFORMERS:
        raise GlocalError(f"model_type {short(model_type)} of transformers; known are {', '.join(TRANSFORMERS)}")
    return TRANSFORMERS[model_type]


def check_description(description: JSONObject) -> JSONObject:
    """Return the description. Raises GlocalError if a part has a wrong type, or labels are not one per class."""
    config, labels = description["config"], description.get("labels")
    if not isinstance(description["model"], str) or not isinstance(config, dict):
        raise GlocalError(f"{CONFIG} has no name as its model, or no object as its config")
    if labels is not None:
        if not isinstance(labels, list) or not labels or not all(isinstance(name, str) for name in labels):
            raise GlocalError(f"{CONFIG} has labels {short(labels)}; expected a list of names, or null")
        classifies = config.get("head", "classification") in ("classification", "tagging")
        if classifies and len(labels) != config.get("num_classes", len(labels)):
            raise GlocalError(f"{CONFIG} has {len(labels)} labels for {short(config['num_classes'])} classes")
    if description.get("problem_type") not in (None, *PROBLEM_TYPES):
        known = ", ".join(PROBLEM_TYPES)
        raise GlocalError(f"{CONFIG} has problem_type {short(description['problem_type'])}; expected {known} or null")
    outputs = config.get("num_classes", 1)
    if description.get("problem_type") == "regression" and outputs != 1:
        raise GlocalError(f"{CONFIG} has problem_type regression for {short(outputs)} outputs; expected num_classes 1")
    if not isinstance(description.get("preprocessing"), dict | None):
        raise GlocalError(f"{CONFIG} has the preprocessing {short(description['preprocessing'])}; expected an object")
    return description


def read_weights(folder: Path) -> StateDict:
    """Return a folder's weights: of a file, or shards, with a standard name, else of the only file of weights."""
    named = [folder / name for name in NAMED_CONFIGS if (folder / name).is_file()]
    others = [] if named else sorted({file for ending in ENDINGS for file in folder.glob(ending)})
    if not named and len(others) != 1:
        found = ", ".join(file.name for file in others) or "none"
        raise GlocalError(
            f"{folder} holds neither {', '.join(NAMED_CONFIGS)} nor one other file of weights, but {found}"
        )
    return read_file([*named, *others][0])


def read_file(file: Path) -> StateDict:
    """Return the tensors of a file, or of the shards that an index names, without prefixes of their names."""
    with foreign(file, "holds no weights that can be read"):
        if file.name.endswith(INDEX):
            state = read_shards(file)
        elif file.suffix == ".safetensors":
            state = load_file(file)
        else:
            state = read_pickle(file)
        return without_prefix(state)


def without_prefix(state: StateDict) -> StateDict:
    """Return the tensors without prefixes (`PREFIXES`) that all their names share."""
    for prefix in PREFIXES:
        if state and all(name.startswith(prefix) for name in state):
            return without_prefix({name.removeprefix(prefix): tensor for name, tensor in state.items()})
    return state


def read_shards(index: Path) -> StateDict:
    """Return the tensors of all files that an index names; they are in its folder."""
    files = read_object(index).get("weight_map")
    if not isinstance(files, dict):
        raise GlocalError(f"{index} has no weight_map; expected one that maps tensors to files beside it")
    state: StateDict = {}
    for name in sorted(set(map(str, files.values()))):
        if Path(name).name != name or name.endswith(INDEX):
            raise GlocalError(f"{index} names the file {short(name)}; expected a weight_map to files beside it")
        state |= read_file(index.parent / name)
    if missing := files.keys() - state.keys():
        raise GlocalError(f"{index} names tensors that its files lack: {short(sorted(missing))}")
    return state


def read_pickle(file: Path) -> StateDict:
    """Return the tensors of a pickle or of a training checkpoint; torch's restricted unpickler runs no code."""
    with file.open("rb") as start:
        archive = start.read(4) == b"PK\x03\x04"
    try:
        with torch.serialization.safe_globals([Namespace]):  # arguments of a training script
            state = torch.load(file, map_location="cpu", weights_only=True, mmap=archive)
    except OSError:
        raise
    except Exception as error:
        code = re.search(r"GLOBAL (\S+)", str(error))
        found = f"names code, {code[1]}, which is not run" if code else "is not a file of torch, or a damaged one"
        raise GlocalError(f"{file} {found}; expected tensors by their names") from None
    holders = [state[name] for name in INSIDE if isinstance(state.get(name), dict)] if isinstance(state, dict) else []
    inside = [*holders, state][0]
    if not isinstance(inside, dict) or not inside:
        raise GlocalError(f"{file} holds {short(inside)}; expected tensors by their names")
    for name, tensor in inside.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor) or tensor.layout != torch.strided:
            raise GlocalError(f"{file} holds {short(tensor)} under {short(name)}; expected tensors by their names")
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise GlocalError(f"{file} holds fewer numbers than the shape {tuple(tensor.shape)} of {name} has")
    return inside


def write_folder(folder: Path, documents: Mapping[str, object], state: StateDict) -> None:
    """Write the weights, then JSON documents by their names; each file is replaced as a whole.

    All files get the permissions that the user's mask gives new files. Raises WriteError if the disk is full.
    """
    with replacing(folder / WEIGHTS) as draft:
        draft.touch()
        mode = draft.stat().st_mode  # save_file removes the permissions of group and others
        save_file({name: t.contiguous() for name, t in state.items()}, draft, metadata={"format": "pt"})
        draft.chmod(mode)
    for name, document in documents.items():
        write_json(folder / name, document)
