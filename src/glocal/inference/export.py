"""A model of ours in the layout of others, for those who go on with them."""

from pathlib import Path
from typing import Any, Literal

from glocal.data.text import Tokenizer
from glocal.errors import GlocalError
from glocal.files import write_json
from glocal.interop import bert, gpt, marian, timm, transformers
from glocal.models.pretrained import CONFIG, WEIGHTS, find_folder, read_folder, write_weights

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
    ours, state = read_folder(source)
    layout = LAYOUTS.get((ours["model"], to))
    if layout is None:
        known = ", ".join(family for family, whose in LAYOUTS if whose == to)
        raise GlocalError(f"{source} holds a {ours['model']} model, and {to} has none such; export can write {known}")
    try:
        config = layout.config_to(ours)
    except ValueError as error:
        raise GlocalError(f"{source} cannot be written for {to}: {error}") from None
    weights = layout.state_to(state, ours)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if Tokenizer.is_in(found := find_folder(source)):
        Tokenizer.load(found).save(folder)
    write_weights(folder / WEIGHTS, weights)
    write_json(folder / CONFIG, config)
    return folder
