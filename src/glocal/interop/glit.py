"""The layout of GLiT's authors: one checkpoint file. The shapes of its tensors decide the architecture.

https://github.com/bychen515/GLiT: `glit_tiny.pth.tar`, and the checkpoints of its training script. The width of a head
is 64 there.
"""

import re
from math import isqrt

from torch import Tensor

from glocal.files import JSONObject

HEAD_DIM = 64
RENAMED = (  # ours, theirs
    (".mixer.attention.", ".attn."),
    (".mixer.local.expand.", ".attn.net.1."),
    (".mixer.local.depthwise.", ".attn.net.3.conv."),
    (".mixer.local.norm.", ".attn.net.4."),
    (".mixer.local.contract.", ".attn.net.6."),
    ("head.classifier.", "head."),
)


def config_from(theirs: dict[str, Tensor]) -> JSONObject:
    """Return our config.json for their tensors. Raises ValueError if they are another model's."""
    depth = len({key.split(".")[1] for key in theirs if key.startswith("blocks.")})
    needed = {"pos_embed": 3, "patch_embed.proj.weight": 4, "head.weight": 2}
    needed |= {f"blocks.{i}.0.mlp.fc1.weight": 2 for i in range(depth)}
    if any(key not in theirs or theirs[key].ndim != ndim for key, ndim in needed.items()) or not depth:
        raise ValueError(
            "the tensors are not named and shaped as in the GLiT authors' checkpoints; a model of another kind needs "
            "its config.json: give the folder in which both lie"
        )
    embed_dim, in_chans, patch_size, _ = theirs["patch_embed.proj.weight"].shape
    side = isqrt(theirs["pos_embed"].shape[1] - 1) * patch_size
    return {
        "model": "glit",
        "config": {
            "image_size": [side, side],
            "in_chans": in_chans,
            "num_classes": len(theirs["head.weight"]),
            "patch_size": patch_size,
            "blocks": [block_from(theirs, f"blocks.{i}.0.", embed_dim) for i in range(depth)],
        },
        "labels": None,
        "preprocessing": None,
    }


def block_from(theirs: dict[str, Tensor], prefix: str, embed_dim: int) -> JSONObject:
    """Return the fields of our BlockConfig for the tensors under a prefix; an absent branch leaves its default."""
    shapes = {key.removeprefix(prefix): tensor.shape for key, tensor in theirs.items() if key.startswith(prefix)}
    block = {
        "embed_dim": embed_dim,
        "num_heads": embed_dim // HEAD_DIM,
        "mlp_ratio": shapes["mlp.fc1.weight"][0] / embed_dim,
    }
    if "attn.qkv.weight" in shapes:
        rows, dim = shapes["attn.qkv.weight"]
        block["qkv_ratio"] = rows / 3 / dim
    if "attn.net.1.weight" in shapes:
        rows, dim, _ = shapes["attn.net.1.weight"]
        block["local_heads"] = dim // HEAD_DIM
        block["expand_ratio"] = rows // 2 // dim
        block["kernel_size"] = shapes["attn.net.3.conv.weight"][-1]
    return block


def state_from(theirs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return their tensors under our names; a pointwise convolution is a product, the depthwise one is one row tall."""
    state = {}
    for key, tensor in theirs.items():
        key = re.sub(r"^(blocks\.\d+)\.0\.", r"\1.", key)
        for mine, their in sorted(RENAMED, key=lambda pair: -len(pair[1])):  # `.attn.net.1.` before `.attn.`
            if their in key:
                key = key.replace(their, mine)
                break
        if tensor.ndim == 3 and ".depthwise." in key:
            tensor = tensor.unsqueeze(2)
        elif tensor.ndim == 3 and ".local." in key:
            tensor = tensor.squeeze(-1)
        state[key] = tensor
    state["patch_embed.proj.weight"] = state["patch_embed.proj.weight"].flatten(1)
    return state
