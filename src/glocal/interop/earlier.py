"""Our layout in earlier versions of glocal.

config.json has the number of the layout under `format`; the first layout had no number.

    1   tensors of ViT, BERT and GPT have other names, and ViT's `stem` is a string: pixels, conv:STRIDE, timm:NAME
    2   the present layout
"""

from torch import Tensor

from glocal.files import JSONObject

FORMAT = 2
"""The layout that is written."""

PREFIX = "prefix"
TOKENS = ("cls_token", "dist_token")
VIT = (("positions", "pos_embed"), ("patches.", "patch_embed."))
RENAMED: dict[str, tuple[tuple[str, str], ...]] = {  # beginnings of names: former, present
    "vit": VIT,
    "glit": VIT,
    "bert": (("positions", "pos_embed"), ("segments.", "token_type_embed."), ("words.", "mlm_head.")),
    "gpt": (("positions", "pos_embed"),),
}


def config_from(theirs: JSONObject) -> JSONObject:
    """Return a config.json of ours in the present layout. Raises ValueError for a layout of a later version."""
    written = theirs.get("format", 1)
    if written == FORMAT:
        return theirs
    if written != 1:
        raise ValueError(f"format {written!r:.60}; this version of glocal reads 1 and {FORMAT}: install a later one")
    ours = theirs | {"format": FORMAT}
    config = theirs["config"]
    if theirs["model"] in ("vit", "glit") and isinstance(config, dict) and isinstance(config.get("stem"), str):
        ours["config"] = config | {"stem": stem_from(config["stem"])}
    return ours


def stem_from(stem: str) -> JSONObject:
    """Return the fields of a stem that the first layout wrote as a string."""
    kind, _, value = stem.partition(":")
    if kind == "conv" and value.isdecimal():
        return {"kind": kind, "stride": int(value)}
    return {"kind": kind, "name": value} if value else {"kind": kind}


def state_from(theirs: dict[str, Tensor], description: JSONObject) -> dict[str, Tensor]:
    """Return tensors under their present names; `description` is the config.json as it was read."""
    if description.get("format", 1) != 1:
        return theirs
    renamed = RENAMED.get(description["model"], ())
    state = {}
    for name, tensor in theirs.items():
        for former, present in renamed:
            if name.startswith(former):
                name = present + name.removeprefix(former)
                break
        state[name] = tensor
    if renamed is VIT and PREFIX in state:
        state |= dict(zip(TOKENS, state.pop(PREFIX).split(1, dim=1), strict=False))
    return state
