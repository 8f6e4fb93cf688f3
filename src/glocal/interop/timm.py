"""timm's layout: config.json with `architecture`, and the tensors of its ViT, DeiT and distilled DeiT.

Any other network of timm, such as a CNN or a ViT of another architecture, is used by its name, without mapping.
"""

import re

from torch import Tensor

from glocal.files import JSONObject
from glocal.interop import USUAL, check, complete, image_size

SIZES = {  # embed_dim, depth, num_heads
    "tiny": (192, 12, 3),
    "small": (384, 12, 6),
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
    "huge": (1280, 32, 16),
}
ARCHITECTURE = re.compile(rf"(?:vit|deit)_({'|'.join(SIZES)})(_distilled)?_patch(\d+)_\d+(?:\.\w+)?")
POOLS = {  # global_pool, class_token, fc_norm; with fc_norm, its default for avg, timm normalises the mean, not tokens
    ("token", True, None): "token",
    ("token", True, False): "token",
    ("avg", False, False): "mean",
}
RENAMED = (  # ours, theirs
    (".mixer.attention.", ".attn."),
    ("head.classifier.", "head."),
    ("head.distillation.", "head_dist."),
)
SHARED = ("mean", "std", "interpolation", "crop_pct", "crop_mode")  # of the preprocessing, under the same names


def config_from(theirs: JSONObject) -> JSONObject:
    """Return our config.json for timm's. Rates of dropout are left out: they belong to a training, not to weights."""
    theirs = complete(theirs, {"architecture": "", "model_args": {}, "pretrained_cfg": theirs})  # older files are flat
    pretrained = complete(theirs["pretrained_cfg"], {"input_size": [3, 224, 224]})
    args = {key: value for key, value in theirs["model_args"].items() if not key.endswith("_rate")}
    if len(pretrained["input_size"]) != 3:
        raise ValueError(f"input_size {pretrained['input_size']!r:.60}; expected channels, height and width")
    chans, *size = pretrained["input_size"]
    interface = {
        "image_size": image_size(args.pop("img_size", None) or size),
        "in_chans": args.pop("in_chans", chans),
        "num_classes": args.pop("num_classes", theirs.get("num_classes", 1000)),
    }
    check("in_chans", interface["in_chans"], 3)
    preprocessing = {key: pretrained[key] for key in SHARED if key in pretrained}
    preprocessing |= {"image_size": interface["image_size"], "channels": interface["in_chans"]}
    vit = vit_fields(theirs["architecture"], args)
    return {
        "model": "vit" if vit else "timm",
        "config": interface | (vit or {"name": theirs["architecture"], "args": args}),
        "labels": names if isinstance(names := theirs.get("label_names"), list) else None,
        "preprocessing": preprocessing if "mean" in preprocessing else None,
    }


def vit_fields(architecture: str, args: JSONObject) -> JSONObject | None:
    """Return the fields of our ViT that timm's name and arguments set; None where ours is not the same function."""
    if not (match := ARCHITECTURE.fullmatch(architecture)):
        return None
    size, distilled, patch_size = match.groups()
    sizes: JSONObject = dict(zip(("embed_dim", "depth", "num_heads"), SIZES[size], strict=True))
    args = complete(args, sizes | {"patch_size": int(patch_size), "mlp_ratio": 4.0, "qkv_bias": True})
    plain = args.pop("proj_bias", True) and args.pop("final_norm", True)
    pooling = [args.pop("global_pool", "token"), args.pop("class_token", True), args.pop("fc_norm", None)]
    pool = next((mine for their, mine in POOLS.items() if list(their) == pooling), None)
    block = {
        "embed_dim": args["embed_dim"],
        "num_heads": args.pop("num_heads"),
        "mlp_ratio": int(args["embed_dim"] * args.pop("mlp_ratio")) / args.pop("embed_dim"),  # timm rounds down
        "qkv_bias": args.pop("qkv_bias"),
        "activation": args.pop("act_layer", None) or "gelu",
    }
    fields = {
        "patch_size": args.pop("patch_size"),
        "positions": args.pop("pos_embed", "learn") == "learn",
        "blocks": [block] * args.pop("depth"),
        "pool": pool,
        "distilled": bool(distilled),
    }
    plain = (
        plain and block["activation"] in ("gelu", "relu") and not any(args.values())
    )  # any other argument that is set is unsupported
    return fields if plain and pool else None


def config_to(ours: JSONObject) -> JSONObject:
    """Return timm's config.json for our ViT's; `timm.create_model("local-dir:FOLDER", pretrained=True)` reads it."""
    config = ours["config"]
    block, *others = [block | {"drop_path": 0.0} for block in config["blocks"]]
    given = config | block | {"stem": config["stem"]["kind"]}
    plain = {"stem": "pixels", "norm": "pre", "norm_eps": 1e-6, "causal": False, "cross": False}
    plain |= {"positions": True} if config["distilled"] else {}
    if foreign := [f"{key} {given[key]!r}" for key in plain if given[key] != plain[key]]:
        raise ValueError(f"timm's ViT has no {', '.join(foreign)}")
    if any(other != block for other in others):
        raise ValueError("timm's ViT has blocks that are all alike")
    preprocessing = USUAL | ours["preprocessing"] if ours.get("preprocessing") else {}
    size, pool = list(config["image_size"]), {"token": "token", "mean": "avg"}[config["pool"]]
    return {
        "architecture": "deit_base_distilled_patch16_224" if config["distilled"] else "vit_base_patch16_224",
        "num_classes": config["num_classes"],
        "num_features": block["embed_dim"],
        "global_pool": pool,
        "label_names": ours.get("labels"),
        "model_args": {key: given[key] for key in ("embed_dim", "num_heads", "mlp_ratio", "qkv_bias", "patch_size")}
        | {
            "img_size": size,
            "depth": len(config["blocks"]),
            "act_layer": block["activation"],
            "pos_embed": "learn" if config["positions"] else "none",
            "class_token": pool == "token",
            "global_pool": pool,
            "fc_norm": False,
        },
        "pretrained_cfg": {key: value for key, value in preprocessing.items() if key in SHARED}
        | {"input_size": [config["in_chans"], *size], "fixed_input_size": True},
    }


def state_from(theirs: dict[str, Tensor], ours: JSONObject) -> dict[str, Tensor]:
    """Return timm's tensors under our names, for the config.json that `config_from` gave; unknown ones keep theirs."""
    if ours["model"] == "timm":
        return {f"net.{key}": tensor for key, tensor in theirs.items()}
    state = {}
    for key, tensor in theirs.items():
        for mine, their in RENAMED:
            key = key.replace(their, mine)
        state[key] = tensor
    if "patch_embed.proj.weight" in state:
        state["patch_embed.proj.weight"] = state["patch_embed.proj.weight"].flatten(1)  # (D, C, P, P) -> (D, C·P·P)
    return state


def state_to(ours: dict[str, Tensor], config: JSONObject) -> dict[str, Tensor]:
    """Return our ViT's tensors under timm's names; `config` is our config.json."""
    state = {}
    for key, tensor in ours.items():
        for mine, their in RENAMED:
            key = key.replace(mine, their)
        state[key] = tensor
    patch_size = config["config"]["patch_size"]
    state["patch_embed.proj.weight"] = state["patch_embed.proj.weight"].unflatten(1, (-1, patch_size, patch_size))
    return state
