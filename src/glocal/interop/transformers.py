"""transformers' layout: config.json with `model_type`, the tensors of its ViT and DeiT, and preprocessor_config.json.

ViTModel, ViTForImageClassification, DeiTModel, DeiTForImageClassification, DeiTForImageClassificationWithTeacher.
A model without a classifier has no classes here. The names on disk are the same in transformers 4 and 5; version 5 has
shorter ones in memory, and both are read.
"""

import re
from typing import Any

import torch
from torch import Tensor

from glocal.files import JSONObject
from glocal.interop import USUAL, Outputs, architecture, check, complete, image_size, outputs_from, outputs_to, resized

DEFAULTS: JSONObject = {  # of its ViTConfig and its DeiTConfig; a file may leave them out
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "qkv_bias": True,
    "patch_size": 16,
    "num_channels": 3,
    "architectures": ["ForImageClassification"],
    "id2label": {0: "LABEL_0", 1: "LABEL_1"},
}
RENAMED = (  # ours, theirs on disk, and theirs in memory where that differs
    ("cls_token", "embeddings.cls_token"),
    ("dist_token", "embeddings.distillation_token"),
    ("pos_embed", "embeddings.position_embeddings"),
    ("patch_embed.proj.", "embeddings.patch_embeddings.projection."),
    (".norm1.", ".layernorm_before."),
    (".mixer.attention.q.", ".attention.attention.query.", ".attention.q_proj."),
    (".mixer.attention.k.", ".attention.attention.key.", ".attention.k_proj."),
    (".mixer.attention.v.", ".attention.attention.value.", ".attention.v_proj."),
    (".mixer.attention.proj.", ".attention.output.dense.", ".attention.o_proj."),
    (".norm2.", ".layernorm_after."),
    (".mlp.fc1.", ".intermediate.dense."),
    (".mlp.fc2.", ".output.dense."),
    ("blocks.", "encoder.layer.", "layers."),
    ("norm.", "layernorm."),
    ("head.distillation.", "distillation_classifier."),
    ("head.classifier.", "cls_classifier.", "classifier."),
)
UNUSED = (
    "pooler.",
    "decoder.",
)  # behind the tokens of ViTModel and ViTForMaskedImageModeling; ours has no use for them
RESAMPLE = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}  # Pillow's numbers
PROCESSOR: JSONObject = {  # of their image processors; a file may leave them out
    "do_resize": True,
    "do_center_crop": False,
    "do_rescale": True,
    "do_normalize": True,
    "rescale_factor": 1 / 255,
    "resample": 2,
    "size": 224,
    "image_mean": 0.5,
    "image_std": 0.5,
}
DEIT_PROCESSOR = {"do_center_crop": True, "resample": 3, "size": 256, "crop_size": 224}
KINDS = re.compile("(ViT|DeiT|CLIP|Bit)(?:ImageProcessor|FeatureExtractor)(?:Fast|Pil)?")
SHORTEST = ("CLIP", "Bit")  # of which a number is the length of the shorter side
NEEDED = ("do_center_crop", "resample", "size", "image_mean", "image_std")  # of those, which have other defaults
FOREIGN = ("do_pad", "do_flip_channel_order", "do_thumbnail", "do_align_long_axis")  # what ours cannot do


def config_from(theirs: JSONObject) -> JSONObject:
    """Return our config.json for theirs; what preprocessor_config.json holds may stand under `preprocessor`."""
    theirs = complete(theirs, DEFAULTS)
    size, width = image_size(theirs.get("image_size", 224)), theirs["hidden_size"]
    if theirs["hidden_act"] not in ("gelu", "relu"):
        raise ValueError(f"hidden_act {theirs['hidden_act']!r}; ours are 'gelu' and 'relu'")
    classifies = "ForImageClassification" in architecture(theirs)
    outputs = outputs_from(theirs) if classifies else Outputs(None, 0, None)
    block = {
        "embed_dim": width,
        "num_heads": theirs["num_attention_heads"],
        "mlp_ratio": theirs["intermediate_size"] / width,
        "qkv_bias": theirs["qkv_bias"],
        "activation": theirs["hidden_act"],
        "norm_eps": theirs["layer_norm_eps"],
    }
    config = {
        "image_size": size,
        "patch_size": theirs["patch_size"],
        "in_chans": theirs["num_channels"],
        "num_classes": outputs.num_classes,
        "blocks": [block] * theirs["num_hidden_layers"],
        "distilled": theirs["model_type"] == "deit",
    }
    processor = theirs.get("preprocessor")
    return {
        "model": "vit",
        "config": config,
        "labels": outputs.labels,
        "problem_type": outputs.problem_type,
        "preprocessing": None if processor is None else preprocessing_from(processor, config),
    }


def preprocessing_from(theirs: JSONObject, config: JSONObject) -> JSONObject:
    """Return what their image processor does, in our words; the model's image size takes the place of the crop's.

    They compute (x · rescale_factor - mean)/std of bytes x, and ours (x/255 - mean)/std, so ours is scaled.
    """
    usual_kind = "DeiTImageProcessor" if config["distilled"] else "ViTImageProcessor"
    kind = theirs.get("image_processor_type") or theirs.get("feature_extractor_type") or usual_kind
    if not (match := KINDS.fullmatch(str(kind))):
        raise ValueError(f"the image processor {kind!r:.60}; ours are those of ViT, DeiT, CLIP and Bit")
    family = match[1]
    usual = PROCESSOR | (DEIT_PROCESSOR if family == "DeiT" else {})
    theirs = {key: value for key, value in theirs.items() if value is not None}
    if family in SHORTEST and (missing := [key for key in NEEDED if key not in theirs]):
        raise ValueError(f"a {kind} without {', '.join(missing)}; write them down")
    theirs = usual | theirs
    for key in ("do_resize", "do_center_crop", "do_rescale", "do_normalize", "rescale_factor", "resample"):
        check(key, theirs[key], usual[key])
    if foreign := [key for key in FOREIGN if theirs.get(key)]:
        raise ValueError(f"an image processor with {', '.join(foreign)}, which ours has not; set it to false")
    if theirs["resample"] not in RESAMPLE or not theirs["rescale_factor"]:
        given = f"resample {theirs['resample']}, rescale_factor {theirs['rescale_factor']}"
        raise ValueError(f"{given}; expected 0 to 5, and a number above 0")
    scale = 255 * (theirs["rescale_factor"] if theirs["do_rescale"] else 1.0)
    channels = config["in_chans"]
    mean, std = (per_channel(key, theirs[key], channels) for key in ("image_mean", "image_std"))
    if not theirs["do_normalize"]:
        mean, std = [0.0] * channels, [1.0] * channels
    size, squash = size_of("size", theirs["size"], square=family not in SHORTEST)
    shares = [1.0, 1.0]
    if theirs["do_center_crop"]:
        if not theirs["do_resize"]:
            raise ValueError("an image processor with do_center_crop and without do_resize; ours resizes what it crops")
        crop, _ = size_of("crop_size", theirs.get("crop_size", config["image_size"]), square=True)
        shares = [resized(*sides) for sides in zip(size, crop, strict=True)]
    if shares[0] != shares[1] or not (squash or size[0] == size[1]):
        raise ValueError(
            f"size {theirs['size']}, crop_size {theirs.get('crop_size')}; ours crops one share of both sides"
        )
    return {
        "image_size": config["image_size"],
        "channels": channels,
        "mean": [value / scale for value in mean],
        "std": [value / scale for value in std],
        "interpolation": RESAMPLE[theirs["resample"]],
        "crop_pct": shares[0],
        "crop_mode": "squash" if squash else "center",
        "crop_corner": "floor",
    }


def per_channel(key: str, values: Any, channels: int) -> list[float]:
    """Return a number for each channel of one number or of a list. Raises ValueError for anything else."""
    listed = values if isinstance(values, list | tuple) else [values] * channels
    if len(listed) != channels:
        raise ValueError(f"{key} {values!r:.60}; expected {channels} numbers, one a channel")
    for value in listed:
        check(key, value, 0.0)
    if key == "image_std" and 0 in listed:
        raise ValueError(f"{key} {values!r:.60}; expected numbers above 0")
    return [float(value) for value in listed]


def size_of(key: str, value: object, square: bool) -> tuple[list[int], bool]:
    """Return [height, width] of one of their sizes, and whether both are set (`square`: by a number too)."""
    match value:
        case {"height": height, "width": width}:
            return image_size([height, width]), True
        case {"shortest_edge": side, **others} if not any(others.values()):
            return image_size(side), False
        case int():
            return image_size(value), square
        case [_, _]:
            return image_size(value), True
    raise ValueError(f"{key} {value!r:.60}; expected a number, height and width, or shortest_edge")


def preprocessing_to(ours: JSONObject) -> JSONObject:
    """Return the preprocessor_config.json for our preprocessing.

    Their CLIPImageProcessor is the one that can resize the shorter side and crop; a corner between two pixels is always
    rounded down there. Raises ValueError if theirs have no such crop.
    """
    given = USUAL | ours
    height, width = given["image_size"]
    sides = [int(side / given["crop_pct"]) for side in (height, width)]
    squash = given["crop_mode"] == "squash"
    if given["crop_mode"] not in ("center", "squash") or not (squash or height == width):
        raise ValueError(
            f"transformers' image processors have no crop_mode {given['crop_mode']!r} at {height}×{width} pixels; for "
            "one that squashes images, set crop_mode of preprocessing in config.json to squash"
        )
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": given["channels"] == 3,
        "do_resize": True,
        "size": {"height": sides[0], "width": sides[1]} if squash else {"shortest_edge": sides[0]},
        "resample": next(number for number, name in RESAMPLE.items() if name == given["interpolation"]),
        "do_center_crop": not squash or sides != [height, width],
        "crop_size": {"height": height, "width": width},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(given["mean"]),
        "image_std": list(given["std"]),
    }


def config_to(ours: JSONObject) -> JSONObject:
    """Return the config.json of their ViTForImageClassification, or DeiTForImageClassificationWithTeacher."""
    config = ours["config"]
    block, *others = [block | {"drop_path": 0.0} for block in config["blocks"]]
    given = config | block | {"stem": config["stem"]["kind"]}
    plain = {"stem": "pixels", "positions": True, "pool": "token", "norm": "pre", "causal": False, "cross": False}
    if foreign := [f"{key} {given[key]!r}" for key in plain if given[key] != plain[key]]:
        raise ValueError(f"transformers' ViT has no {', '.join(foreign)}")
    if any(other != block for other in others):
        raise ValueError("transformers' ViT has blocks that are all alike")
    family, classifies = "DeiT" if config["distilled"] else "ViT", config["num_classes"] > 0
    head = f"ForImageClassification{'WithTeacher' if config['distilled'] else ''}" if classifies else "Model"
    named = outputs_to(ours) if classifies else {}
    return {
        "architectures": [family + head],
        "model_type": "deit" if config["distilled"] else "vit",
        "hidden_size": block["embed_dim"],
        "num_hidden_layers": len(config["blocks"]),
        "num_attention_heads": block["num_heads"],
        "intermediate_size": round(block["embed_dim"] * block["mlp_ratio"]),
        "hidden_act": block["activation"],
        "layer_norm_eps": block["norm_eps"],
        "qkv_bias": block["qkv_bias"],
        "image_size": list(config["image_size"]),
        "patch_size": config["patch_size"],
        "num_channels": config["in_chans"],
        **named,
    }


def state_from(theirs: dict[str, Tensor], ours: JSONObject) -> dict[str, Tensor]:
    """Return their tensors under our names, for the config.json that `config_from` gave; unknown ones keep theirs."""
    state = {}
    for key, tensor in theirs.items():
        key = key.removeprefix("vit.").removeprefix("deit.")
        for mine, *spellings in RENAMED:
            key = next((key.replace(spelling, mine) for spelling in spellings if spelling in key), key)
        if not key.startswith(UNUSED):
            state[key] = tensor
    for q in [key for key in state if ".mixer.attention.q." in key]:
        parts = [q.replace(".q.", f".{part}.") for part in "qkv"]
        state[q.replace(".q.", ".qkv.")] = torch.cat([state.pop(part) for part in parts if part in state])
    if "patch_embed.proj.weight" in state:
        state["patch_embed.proj.weight"] = state["patch_embed.proj.weight"].flatten(1)  # (D, C, P, P) -> (D, C·P·P)
    if ours["config"]["distilled"] and "classifier.weight" in theirs:
        # DeiTForImageClassification reads its class token alone; two heads whose mean is the same do that.
        for kind in ("weight", "bias"):
            head = state[f"head.classifier.{kind}"]
            state |= {f"head.classifier.{kind}": 2 * head, f"head.distillation.{kind}": torch.zeros_like(head)}
    return state


def state_to(ours: dict[str, Tensor], config: JSONObject) -> dict[str, Tensor]:
    """Return our ViT's tensors under their names on disk; `config` is our config.json."""
    distilled, patch_size = config["config"]["distilled"], config["config"]["patch_size"]
    family = "deit" if distilled else "vit"
    state = {}
    for key, tensor in ours.items():
        if ".qkv." in key:
            parts = {key.replace(".qkv.", f".{part}."): rows for part, rows in zip("qkv", tensor.chunk(3), strict=True)}
        elif key == "patch_embed.proj.weight":
            parts = {key: tensor.unflatten(1, (-1, patch_size, patch_size))}
        else:
            parts = {key: tensor}
        for name, part in parts.items():
            head = name.startswith("head.")
            for mine, their, *_ in RENAMED:
                name = name.replace(mine, their)
            name = name if distilled else name.replace("cls_classifier.", "classifier.")
            state[name if head else f"{family}.{name}"] = part
    return state
