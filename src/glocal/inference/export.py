"""A model of ours in the layout of others, for those who go on with them."""

import json
from pathlib import Path
from typing import Any, Literal

from safetensors.torch import save_file

from glocal.data.text import Tokenizer
from glocal.errors import GlocalError, check_path
from glocal.interop import bert, gpt, marian, timm, transformers
from glocal.models.pretrained import CONFIG, WEIGHTS, find_folder, read_folder

LAYOUTS: dict[tuple[str, str], Any] = {
    ("vit", "transformers"): transformers,
    ("vit", "timm"): timm,
    ("transformer", "transformers"): marian,
    ("bert", "transformers"): bert,
    ("gpt", "transformers"): gpt,
}
"""By the model's family and who is to read it."""


def export(source: str | Path, folder: str | Path, to: Literal["transformers", "timm"]) -> Path:
    """Write a run's or a folder's model, and its tokenizer, as `from_pretrained` of transformers or timm reads it.

    Raises GlocalError where they have no such model, or not with these fields.
    """
    check_path(source, "a run or a model's folder")
    check_path(folder, "a folder to write")
    ours, state = read_folder(source)
    layout = LAYOUTS.get((ours["model"], to)) if isinstance(to, str) else None
    if layout is None:
        known = ", ".join(family for family, whose in LAYOUTS if whose == to)
        raise GlocalError(f"{source} holds a {ours['model']} model, and {to} has none such; export can write {known}")
    try:
        config = layout.config_to(ours)
    except ValueError as error:
        raise GlocalError(f"{source} cannot be written for {to}: {error}") from None
    weights = {name: tensor.contiguous() for name, tensor in layout.state_to(state, ours).items()}
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    if Tokenizer.is_in(found := find_folder(source)):
        Tokenizer.load(found).save(folder)
    return folder
