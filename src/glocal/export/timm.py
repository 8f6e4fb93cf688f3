"""timm's layout: config.json and model.safetensors of a Vision Transformer."""

from pathlib import Path

from glocal.export.format import Exported, Format, Settings
from glocal.interop import timm
from glocal.models.folders import CONFIG, write_folder


def refusal(exported: Exported) -> str | None:
    """Return why timm has no such model."""
    if exported.model.family != "vit":
        return f"timm's layout is written of a vit, and this is a {exported.model.family}"
    try:
        timm.config_to(exported.model.description())
    except ValueError as error:
        return str(error)
    return None


def write(exported: Exported, folder: Path, settings: Settings) -> None:
    """Write what timm.create_model("local-dir:FOLDER", pretrained=True) reads."""
    ours = exported.model.description()
    write_folder(folder, {CONFIG: timm.config_to(ours)}, timm.state_to(exported.model.state_dict(), ours))


def usage(exported: Exported) -> str:
    """Return the lines that load the folder and prepare images."""
    return (
        "import timm\nfrom timm.data import create_transform, resolve_data_config\n\n"
        'model = timm.create_model("local-dir:FOLDER", pretrained=True).eval()\n'
        "transform = create_transform(**resolve_data_config({}, model=model))"
    )


FORMAT = Format(name="timm", reader="timm", refusal=refusal, write=write, usage=usage, library="timm")
