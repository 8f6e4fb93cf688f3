"""What a source of text consists of, file by file, and which of it is training, val and test."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import TypeVar

from glocal.data.files import Record
from glocal.data.hub import load_dataset
from glocal.data.splits import by_split
from glocal.errors import GlocalError

T = TypeVar("T")


def chained(name: str, found: Mapping[str, Iterable[T]], expected: str) -> dict[str, Iterable[T]]:
    """Join the parts of each split, by their names (see `by_split`)."""
    splits = by_split(name, found, expected)
    return {split: chain.from_iterable(found[part] for part in parts) for split, parts in splits.items()}


def for_testing(parts: dict[str, Iterable[T]]) -> dict[str, Iterable[T]]:
    """Keep the test split alone; where there is none, all of it is."""
    return {"test": parts.get("test", chain.from_iterable(parts.values()))}


def is_hub_name(name: str) -> bool:
    """Whether it can be OWNER/NAME or OWNER/NAME/SUBSET, and not a path that begins at a place on this machine."""
    path = Path(name)
    return len(path.parts) in (2, 3) and not path.is_absolute() and not Path(path.parts[0]).exists()


def load_hub(name: str, what: str) -> dict[str, Iterable[Record]]:
    """Load OWNER/NAME or OWNER/NAME/SUBSET by its splits' names with the `datasets` library, which keeps it on disk.

    Raises GlocalError where it cannot be loaded as `what`.
    """
    owner, repository, *subset = name.split("/")
    return dict(load_dataset(name, what, f"{owner}/{repository}", *subset))


@contextmanager
def reading(name: str) -> Iterator[None]:
    """Say in one line what the system cannot read of a source."""
    try:
        yield
    except OSError as error:
        raise GlocalError(
            f"{error.filename or name} cannot be read: {(error.strerror or str(error)).lower()}"
        ) from None
