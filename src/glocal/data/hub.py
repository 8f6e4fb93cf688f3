"""Data sets that the `datasets` library loads: those of the hub, and tables of images."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from glocal.errors import GlocalError

LIBRARIES = ("datasets", "huggingface_hub")
"""Whose loggers write to stderr while a data set is loaded."""


def load_dataset(name: str, what: str, *parts: str, **arguments: Any) -> Any:
    """Call `datasets.load_dataset`. Raises GlocalError where `name` cannot be loaded as `what`."""
    import datasets

    try:
        with quiet():
            return datasets.load_dataset(*parts, **arguments)
    # Its readers, its builders and the network below them each raise their own kinds.
    except Exception as error:
        raise GlocalError(f"{name!r} cannot be loaded as {what}: {' '.join(str(error).split())}") from None


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the libraries' loggers silent: what a user must know, the error says."""
    loggers = [logging.getLogger(library) for library in LIBRARIES]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
