"""Data sets that the `datasets` library loads: those of the hub, and tables of images."""

import logging
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from glocal.data.files import Record, one_line
from glocal.errors import GlocalError

LIBRARIES = ("datasets", "huggingface_hub")
"""Libraries that log to stderr while a data set is loaded."""


def load_dataset(name: str, what: str, *parts: str, **arguments: object) -> Any:
    """Call `datasets.load_dataset`. Raises GlocalError if `name` cannot be loaded as `what`."""
    import datasets

    try:
        with quiet():
            return datasets.load_dataset(*parts, **arguments)
    # Its readers, its builders and the network each raise errors of their own.
    except Exception as error:
        reason = one_line(error.__cause__ or error)  # its builders wrap the errors of its readers
        raise GlocalError(f"{name!r} cannot be loaded as {what}: {reason}") from None


def is_hub_name(name: str) -> bool:
    """Whether a name has the form OWNER/NAME or OWNER/NAME/SUBSET, and its first part is no local folder."""
    path = Path(name)
    return len(path.parts) in (2, 3) and not path.is_absolute() and not Path(path.parts[0]).exists()


def load_hub(name: str, what: str) -> dict[str, Iterable[Record]]:
    """Load OWNER/NAME or OWNER/NAME/SUBSET with the `datasets` library, by the names of its splits.

    Raises GlocalError if it cannot be loaded as `what`.
    """
    owner, repository, *subset = name.split("/")
    return dict(load_dataset(name, what, f"{owner}/{repository}", *subset))


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the libraries' loggers, and their progress bars where stderr is no terminal."""
    import datasets
    from huggingface_hub import utils

    watched = sys.stderr.isatty()
    switches = [] if watched or datasets.are_progress_bars_disabled() else [datasets]
    switches += [] if watched or utils.are_progress_bars_disabled() else [utils]
    loggers = [logging.getLogger(library) for library in LIBRARIES]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    for switch in switches:
        switch.disable_progress_bars()
    try:
        yield
    finally:
        for switch in switches:
            switch.enable_progress_bars()
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
