"""What a source of text consists of, file by file, and which of it is training, val and test."""

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import TypeVar

from glocal.data.sources import SPLITS
from glocal.data.text.files import Record
from glocal.errors import GlocalError

T = TypeVar("T")

SHARD = re.compile(r"-\d{5}-of-\d{5}")
"""A part of a large file, as the hub names it: train-00000-of-00003.parquet."""


def split_of(name: str) -> str | None:
    """Return the split that a name begins with: test_2016_flickr is test, and so is tst2012."""
    return (SPLITS | {"tst": "test"}).get(re.split("[^a-z]", name.lower(), maxsplit=1)[0])


def by_split(name: str, found: Mapping[str, Iterable[T]], expected: str) -> dict[str, Iterable[T]]:
    """Tell by their names which parts are training, val and test; each split is one part, or the shards of one.

    Raises GlocalError where a split has several, or no part is named after one, but `expected`.
    """
    parts: dict[str, dict[str, list[Iterable[T]]]] = {}
    for part, items in found.items():
        split = split_of(part)
        if split is not None:
            parts.setdefault(split, {}).setdefault(SHARD.sub("", part), []).append(items)
    if not parts:
        raise GlocalError(f"{name} holds no part named after train, val or test; expected such as {expected}")
    for split, several in parts.items():
        if len(several) > 1:
            raise GlocalError(f"{name} has several {split} sets: {', '.join(several)}; keep one, or rename the others")
    return {split: chain.from_iterable(shards) for split, several in parts.items() for shards in several.values()}


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
    import datasets

    owner, repository, *subset = name.split("/")
    try:
        loaded = datasets.load_dataset(f"{owner}/{repository}", *subset)
    # Its readers, its builders and the network below them each raise their own kinds.
    except Exception as error:
        raise GlocalError(f"{name!r} cannot be loaded as {what}: {' '.join(str(error).split())}") from None
    return dict(loaded)


@contextmanager
def reading(name: str) -> Iterator[None]:
    """Say in one line what the system cannot read of a source."""
    try:
        yield
    except OSError as error:
        raise GlocalError(
            f"{error.filename or name} cannot be read: {(error.strerror or str(error)).lower()}"
        ) from None
