"""transformers' layout: config.json with `model_type`, and the tensors of its ViT and DeiT.

ViTModel, ViTForImageClassification, DeiTModel, DeiTForImageClassification, DeiTForImageClassificationWithTeacher.
The names on disk are the same in transformers 4 and 5; version 5 has shorter ones in memory, and both are read.
"""

from typing import Any

import torch
from torch import Tensor

DEFAULTS: dict[str, Any] = {  # of its ViTConfig and its DeiTConfig; a file may leave them out
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "qkv_bias": True,
    "image_size": 224,
    "patch_size": 16,
    "num_channels": 3,
    "id2label": {0: "LABEL_0", 1: "LABEL_1"},
}
RENAMED = (  # ours, theirs on disk, and theirs in memory where that differs
    ("positions", "embeddings.position_embeddings"),
    ("patches.proj.", "embeddings.patch_embeddings.projection."),
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
TOKENS = ("embeddings.cls_token", "embeddings.distillation_token")
UNUSED = "pooler."  # a layer behind the class token of ViTModel and DeiTModel, for which ours has no use
RESAMPLE = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}  # Pillow's numbers


def config_from(theirs: dict[str, Any]) -> dict[str, Any]:
    """Return our config.json for theirs; what preprocessor_config.json says may stand among its keys."""
    theirs = DEFAULTS | theirs
    size, width, labels = theirs["image_size"], theirs["hidden_size"], theirs["id2label"] or DEFAULTS["id2label"]
    if theirs["hidden_act"] not in ("gelu", "relu"):
        raise ValueError(f"hidden_act {theirs['hidden_act']!r}; ours are 'gelu' and 'relu'")
    block = {
        "embed_dim": width,
        "num_heads": theirs["num_attention_heads"],
        "mlp_ratio": theirs["intermediate_size"] / width,
        "qkv_bias": theirs["qkv_bias"],
        "activation": theirs["hidden_act"],
        "norm_eps": theirs["layer_norm_eps"],
    }
    config = {
        "image_size": [size, size] if isinstance(size, int) else size,
        "patch_size": theirs["patch_size"],
        "in_chans": theirs["num_channels"],
        "num_classes": len(labels),
        "blocks": [block] * theirs["num_hidden_layers"],
        "distilled": theirs["model_type"] == "deit",
    }
    return {
        "model": "vit",
        "config": config,
        "labels": [name for _, name in sorted(labels.items(), key=lambda item: int(item[0]))],
        "preprocessing": preprocessing_from(theirs, config),
    }


def preprocessing_from(theirs: dict[str, Any], config: dict[str, Any]) -> dict[str, Any] | None:
    """Return what their image processor does in our words; None where its file was not there."""
    if "image_mean" not in theirs:
        return None
    shown, resized = config["image_size"][0], theirs.get("size", {})
    resized = resized.get("height", resized.get("shortest_edge", shown)) if theirs.get("do_center_crop") else shown
    return {
        "image_size": config["image_size"],
        "channels": config["in_chans"],
        "mean": theirs["image_mean"],
        "std": theirs["image_std"],
        "interpolation": RESAMPLE[theirs.get("resample", 2)],
        "crop_pct": shown / resized,
    }


def config_to(ours: dict[str, Any]) -> dict[str, Any]:
    """Return the config.json of their ViTForImageClassification, or DeiTForImageClassificationWithTeacher."""
    config = ours["config"]
    block, *others = [block | {"drop_path": 0.0} for block in config["blocks"]]
    given = config | block
    plain = {"stem": "pixels", "positions": True, "pool": "token", "norm": "pre", "causal": False, "cross": False}
    if foreign := [f"{key} {given[key]!r}" for key in plain if given[key] != plain[key]]:
        raise ValueError(f"transformers' ViT has no {', '.join(foreign)}")
    if any(other != block for other in others):
        raise ValueError("transformers' ViT has blocks that are all alike")
    labels = dict(enumerate(ours.get("labels") or map(str, range(config["num_classes"]))))
    return {
        "architectures": [
            "DeiTForImageClassificationWithTeacher" if config["distilled"] else "ViTForImageClassification"
        ],
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
        "id2label": labels,
        "label2id": {name: index for index, name in labels.items()},
    }


def state_from(theirs: dict[str, Tensor], ours: dict[str, Any]) -> dict[str, Tensor]:
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
    if tokens := [state.pop(key) for key in TOKENS if key in state]:
        state["prefix"] = torch.cat(tokens, dim=1)
    if "patches.proj.weight" in state:
        state["patches.proj.weight"] = state["patches.proj.weight"].flatten(1)  # (D, C, P, P) -> (D, C·P·P)
    if ours["config"]["distilled"] and "classifier.weight" in theirs:
        # DeiTForImageClassification reads its class token alone; two heads whose mean is the same do that.
        for kind in ("weight", "bias"):
            head = state[f"head.classifier.{kind}"]
            state |= {f"head.classifier.{kind}": 2 * head, f"head.distillation.{kind}": torch.zeros_like(head)}
    return state


def state_to(ours: dict[str, Tensor], config: dict[str, Any]) -> dict[str, Tensor]:
    """Return our ViT's tensors under their names on disk; `config` is our config.json."""
    distilled, patch_size = config["config"]["distilled"], config["config"]["patch_size"]
    family = "deit" if distilled else "vit"
    state = {}
    for key, tensor in ours.items():
        if ".qkv." in key:
            parts = {key.replace(".qkv.", f".{part}."): rows for part, rows in zip("qkv", tensor.chunk(3), strict=True)}
        elif key == "prefix":
            parts = dict(zip(TOKENS, tensor.split(1, dim=1), strict=False))
        elif key == "patches.proj.weight":
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
