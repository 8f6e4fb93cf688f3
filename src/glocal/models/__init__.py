"""The models, created by name as in timm.

    model = create_model("deit-tiny", num_classes=10, image_size=32, depth=6, drop_path=0.1)
    model = create_model("timm:resnet18", num_classes=10)
    model = load_model("runs/mine/model")

`FAMILIES` are the classes, by their name in config.json; `NAMED_CONFIGS` are the published sizes.
"""

from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path

from glocal.errors import GlocalError
from glocal.models import bert, glit, gpt, lstm, transformer, vit
from glocal.models.base import Model
from glocal.models.baseline import Baseline, BaselineConfig
from glocal.models.bert import BERT, BERTConfig
from glocal.models.config import nearest, override
from glocal.models.glit import GLiT
from glocal.models.gpt import GPT, GPTConfig
from glocal.models.loading import build_model, check_size, read_model
from glocal.models.lstm import LSTM, LSTMConfig
from glocal.models.stem import StemConfig
from glocal.models.transformer import Transformer, TransformerConfig
from glocal.models.vit import ViT, ViTConfig

__all__ = [
    "BERT",
    "GPT",
    "LSTM",
    "BERTConfig",
    "Baseline",
    "BaselineConfig",
    "GLiT",
    "GPTConfig",
    "LSTMConfig",
    "Model",
    "StemConfig",
    "Transformer",
    "TransformerConfig",
    "ViT",
    "ViTConfig",
    "create_model",
    "list_models",
    "load_model",
]

FAMILIES: dict[str, type[Model]] = {
    family.family: family for family in (ViT, GLiT, Baseline, Transformer, LSTM, BERT, GPT)
}
NAMED_CONFIGS: dict[str, tuple[type[Model], object]] = {
    name: (family, config)
    for family, paper in ((ViT, vit), (GLiT, glit), (Transformer, transformer), (LSTM, lstm), (BERT, bert), (GPT, gpt))
    for name, config in paper.NAMED_CONFIGS.items()
}


def list_models(pattern: str = "*") -> list[str]:
    """Return the names of the models that match a pattern ("deit-*"), by default all."""
    return [name for name in NAMED_CONFIGS if fnmatch(name, pattern)]


def create_model(name: str, pretrained: bool = False, **overrides: object) -> Model:
    """Return a new model by its name, with initial weights; `timm:NAME` is any network of timm's.

    `overrides` change fields of its config; `depth` and the fields of BlockConfig change all its blocks. With
    `pretrained`, the weights of a network of timm's are downloaded from the hub. Raises GlocalError for an unknown name
    or field, and for a model that is larger than this machine's memory.
    """
    if not isinstance(name, str):
        raise GlocalError(f"{name!r:.80} was given for a model's name; `list_models()` has them")
    source, _, network = name.rpartition(":")
    if source == "timm":
        config = override(BaselineConfig(name=network), overrides)
        check_size(lambda: Baseline(config), name, overrides)
        return Baseline(config, pretrained)
    if name not in NAMED_CONFIGS:
        raise GlocalError(f"unknown model {name!r}; {nearest(name, list_models())}")
    if pretrained:
        raise GlocalError(f"{name} is built with fresh weights; load_model takes a folder or a hub id that has some")
    family, published = NAMED_CONFIGS[name]
    config = override(published, overrides)
    check_size(lambda: family(config), name, overrides)
    return family(config)


def load_model(source: str | Path, *, ignore_keys: str | Iterable[str] = (), **overrides: object) -> Model:
    """Return the model of a folder, a run or a hub id, of any family; the arguments are Model.from_pretrained's."""
    saved = read_model(source)
    if saved.family not in FAMILIES:
        raise GlocalError(f"{source} holds a {saved.family} model; known are {', '.join(FAMILIES)}")
    return build_model(FAMILIES[saved.family], saved, ignore_keys, overrides)
