"""Ways to take a path of an operation, whatever this machine would choose."""

import importlib
from collections.abc import Callable

import pytest

from glocal.ops import native

MODULES = [importlib.import_module(f"glocal.ops.{name}") for name in ("attention", "dropout", "vocabulary")]


@pytest.fixture
def take(monkeypatch) -> Callable[[str], None]:
    """Have attention, dropout and what is done over a vocabulary take the path of that name, or torch's own."""

    def patch(path: str) -> None:
        for module in MODULES:
            monkeypatch.setattr(module, "choose", lambda *_, **__: path)

    return patch


@pytest.fixture
def kernels() -> None:
    """Skip a test of the compiled kernels where there are none; test_native.py checks that there are some."""
    if native.load() is None:
        pytest.skip("no compiled kernels: no compiler, no AVX2, or GLOCAL_OPS=plain")
