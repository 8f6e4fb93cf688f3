"""The search for an architecture: space, cost, supernet, evolution and journal.

The package has the name of what it does, so it can be called: `glocal.search("glit-digits")` runs a search and trains
its finalists, as `glocal.experiment.search` does.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import Any


class _Callable(ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return import_module("glocal.experiment").search(*args, **kwargs)


sys.modules[__name__].__class__ = _Callable
