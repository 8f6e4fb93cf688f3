"""glocal: the Transformer family.

    import glocal
    run = glocal.train("vit-digits")                              # a recipe in, a run folder out
    report = glocal.test(run)                                     # metrics on the test split
    glocal.load(run).predict(["photo.jpg"])                       # labels with probabilities
    glocal.explain(run, "photo.jpg")                              # attention weights
    glocal.export(run, "exported", "onnx")                        # for another program
    model = glocal.create_model("deit-tiny", num_classes=10)      # a plain torch module

Nothing heavy is imported before it is used: `import glocal` loads no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from glocal.errors import GlocalError

if TYPE_CHECKING:  # what editors and type checkers read; at run time, `__getattr__` imports each name at its first use
    from glocal import (
        data,
        export,
        generation,
        layers,
        models,
        ops,
        page,
        recipes,
        reports,
        runner,
        serve,
        tasks,
        training,
    )
    from glocal.export.hub import push
    from glocal.models import create_model, list_models, load_model
    from glocal.recipes import list_recipes, load_recipe
    from glocal.runner import resume, search, test, train
    from glocal.tasks import explain, load

__version__ = "0.1.0"

_HOMES = {
    "create_model": "glocal.models",
    "list_models": "glocal.models",
    "load_model": "glocal.models",
    "load": "glocal.tasks",
    "push": "glocal.export.hub",
    "load_recipe": "glocal.recipes",
    "list_recipes": "glocal.recipes",
    "train": "glocal.runner",
    "resume": "glocal.runner",
    "test": "glocal.runner",
}
_PACKAGES = (
    "data",
    "explain",
    "export",
    "generation",
    "layers",
    "models",
    "ops",
    "page",
    "recipes",
    "reports",
    "runner",
    "search",
    "serve",
    "tasks",
    "training",
)

__all__ = [
    "GlocalError",
    "create_model",
    "data",
    "explain",
    "export",
    "generation",
    "layers",
    "list_models",
    "list_recipes",
    "load",
    "load_model",
    "load_recipe",
    "models",
    "ops",
    "page",
    "push",
    "recipes",
    "reports",
    "resume",
    "runner",
    "search",
    "serve",
    "tasks",
    "test",
    "train",
    "training",
]

if not TYPE_CHECKING:  # seen by a type checker, it would give every name the type Any

    def __getattr__(name):
        if name in _PACKAGES:
            return import_module(f"glocal.{name}")
        if name in _HOMES:
            return getattr(import_module(_HOMES[name]), name)
        raise AttributeError(f"module 'glocal' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
