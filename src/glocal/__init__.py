"""glocal: the Transformer family.

    import glocal
    run = glocal.train("vit-digits")                              # a recipe in, a run folder out
    report = glocal.test(run)                                     # what it is worth on unseen data
    glocal.load(run).predict(["photo.jpg"])                       # labels with probabilities
    model = glocal.create_model("deit-tiny", num_classes=10)      # a plain torch module

Nothing heavy is imported until it is asked for: `import glocal` loads no torch.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "create_model": "glocal.models",
    "list_models": "glocal.models",
    "load": "glocal.inference",
    "load_recipe": "glocal.recipes",
    "list_recipes": "glocal.recipes",
    "train": "glocal.experiment",
    "resume": "glocal.experiment",
    "test": "glocal.experiment",
}
_ROOMS = ("data", "inference", "layers", "models", "ops", "recipes", "search", "tasks", "training")

__all__ = [*_HOMES, *_ROOMS]


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return import_module(f"glocal.{name}")
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'glocal' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
