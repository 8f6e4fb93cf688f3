"""Packages that can be called like the function of their name: glocal.search(...), glocal.explain(...)."""

import sys
from collections.abc import Callable
from importlib import import_module
from types import ModuleType


class CallableModule(ModuleType):
    """A package that can be called like the function of its name."""

    function: tuple[str, str]

    def __call__(self, *args: object, **kwargs: object) -> object:
        """Call the function."""
        module, name = self.function
        return getattr(import_module(module), name)(*args, **kwargs)

    def __reduce__(self) -> tuple[Callable[[str], ModuleType], tuple[str]]:
        """Pickle the package by its name, as cloudpickle does with other modules: Ray sends code that refers to it."""
        return import_module, (self.__name__,)


def make_callable(package: str, module: str, function: str) -> None:
    """Let a package be called; it runs `function` of `module`, which is imported then."""
    this = sys.modules[package]
    this.__class__ = CallableModule
    vars(this)["function"] = module, function
