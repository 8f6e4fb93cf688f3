"""transformers' layout: config.json, model.safetensors, the tokenizer, and what prepares images."""

from pathlib import Path
from types import ModuleType

from glocal.export.format import Exported, Format, Settings
from glocal.files import JSONObject
from glocal.interop import bert, gpt, marian, transformers
from glocal.models.folders import CONFIG, PREPROCESSOR, write_folder

LAYOUTS: dict[str, ModuleType] = {"vit": transformers, "transformer": marian, "bert": bert, "gpt": gpt}
"""By family."""
CLASSES = {"vit": "AutoModelForImageClassification", "transformer": "MarianMTModel"}
"""What loads a family that has one head."""
HEADS = {
    "classification": "AutoModelForSequenceClassification",
    "tagging": "AutoModelForTokenClassification",
    "spans": "AutoModelForQuestionAnswering",
    "pretraining": "AutoModelForMaskedLM",
    "language": "AutoModelForCausalLM",
}
"""What loads a model, by its head."""


def refusal(exported: Exported) -> str | None:
    """Return why transformers has no such model."""
    layout = LAYOUTS.get(exported.model.family)
    if layout is None:
        return f"transformers has no {exported.model.family}"
    try:
        documents(exported)
    except ValueError as error:
        return str(error)
    return None


def documents(exported: Exported) -> dict[str, JSONObject]:
    """Return the JSON files by their names. Raises ValueError for what they cannot express."""
    ours = exported.model.description()
    layout = LAYOUTS[exported.model.family]
    found = {CONFIG: layout.config_to(ours)}
    if layout is transformers and ours["preprocessing"]:
        found[PREPROCESSOR] = transformers.preprocessing_to(ours["preprocessing"])
    return found


def write(exported: Exported, folder: Path, settings: Settings) -> None:
    """Write what `from_pretrained` of transformers reads."""
    if exported.tokenizer is not None:
        exported.tokenizer.save(folder)
    state = LAYOUTS[exported.model.family].state_to(exported.model.state_dict(), exported.model.description())
    write_folder(folder, documents(exported), state)


def usage(exported: Exported) -> str:
    """Return the lines that load the folder."""
    head = getattr(exported.model.config, "head", None)
    kind = CLASSES.get(exported.model.family) or HEADS[str(head)]
    if exported.model.family == "vit":
        reader, loads = "AutoImageProcessor", "processor"
    else:
        reader, loads = "AutoTokenizer", "tokenizer"
    return (
        f"from transformers import {', '.join(sorted([kind, reader]))}\n\n"
        f'{loads} = {reader}.from_pretrained("FOLDER")\nmodel = {kind}.from_pretrained("FOLDER")'
    )


FORMAT = Format(
    name="transformers",
    reader="transformers",
    refusal=refusal,
    write=write,
    usage=usage,
    library="transformers",
)
