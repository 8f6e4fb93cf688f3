"""glocal's own layout: config.json, model.safetensors and the tokenizer."""

from pathlib import Path

from glocal.export.format import Exported, Format, Settings


def write(exported: Exported, folder: Path, settings: Settings) -> None:
    """Write what `glocal.load` reads."""
    exported.model.save_pretrained(folder)
    if exported.tokenizer is not None:
        exported.tokenizer.save(folder)


def usage(exported: Exported) -> str:
    """Return the lines that load the folder."""
    given = '"photo.jpg"' if exported.task is not None and exported.task.modality == "image" else '"A text."'
    return f'import glocal\n\nmodel = glocal.load("FOLDER")\nmodel.predict([{given}])'


FORMAT = Format(
    name="glocal",
    reader="glocal",
    refusal=lambda exported: None,
    write=write,
    usage=usage,
    library="glocal",
)
