"""A bar for what may take a while; on stderr, and gone when it is done, so that output can be piped."""

from collections.abc import Collection, Iterable
from typing import TypeVar

from rich.console import Console
from rich.progress import track

T = TypeVar("T")


def progress(items: Iterable[T], doing: str, total: int | None = None) -> Iterable[T]:
    """Yield the items under a bar with the time left. `total` is needed where the items cannot tell."""
    if isinstance(items, Collection):
        total = len(items)
    return track(items, doing, total, console=Console(stderr=True), transient=True)
