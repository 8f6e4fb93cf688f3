"""A model of ours in the layout of others, for those who go on with them."""

from pathlib import Path
from typing import Any, Literal

from glocal.data.tokenizer import Tokenizer
from glocal.errors import GlocalError, check_path
from glocal.files import short
from glocal.interop import bert, gpt, marian, timm, transformers
from glocal.models import load_model
from glocal.models.folders import CONFIG, PREPROCESSOR, find_folder, write_folder

LAYOUTS: dict[tuple[str, str], Any] = {
    ("vit", "transformers"): transformers,
    ("vit", "timm"): timm,
    ("transformer", "transformers"): marian,
    ("bert", "transformers"): bert,
    ("gpt", "transformers"): gpt,
}
"""By the model's family and who is to read it."""


def export(source: str | Path, folder: str | Path, to: Literal["transformers", "timm"]) -> Path:
    """Write a run's or a folder's model as `from_pretrained` of transformers or timm reads it.

    With it go its labels, and its tokenizer or what prepares its images. Raises GlocalError where they have no such
    model, or not with these fields.
    """
    check_path(source, "a run or a model's folder")
    check_path(folder, "a folder to write")
    model = load_model(source)
    ours = model.description()
    whose = to if isinstance(to, str) else short(to)
    layout = LAYOUTS.get((model.family, whose))
    if layout is None:
        known = ", ".join(family for family, others in LAYOUTS if others == whose) or "nothing"
        raise GlocalError(f"{source} holds a {model.family} model, and {whose} has none such; export can write {known}")
    try:
        documents = {CONFIG: layout.config_to(ours)}
        if layout is transformers and ours["preprocessing"]:
            documents[PREPROCESSOR] = transformers.preprocessing_to(ours["preprocessing"])
    except ValueError as error:
        raise GlocalError(f"{source} cannot be written for {to}: {error}") from None
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if Tokenizer.is_in(found := find_folder(source)):
        Tokenizer.load(found).save(folder)
    write_folder(folder, documents, layout.state_to(model.state_dict(), ours))
    return folder
