"""Packages that can be called like the function of their name: glocal.search(...), glocal.explain(...)."""

import sys
from importlib import import_module
from types import ModuleType
from typing import Any


class CallableModule(ModuleType):
    """A package that can be called like the function of its name."""

    function: tuple[str, str]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function."""
        module, name = self.function
        return getattr(import_module(module), name)(*args, **kwargs)


def make_callable(package: str, module: str, function: str) -> None:
    """Let a package be called; it runs `function` of `module`, which is imported then."""
    this = sys.modules[package]
    this.__class__ = CallableModule
    vars(this)["function"] = module, function
