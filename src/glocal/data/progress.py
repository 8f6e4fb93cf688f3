"""A progress bar on stderr for what takes longer than two seconds; it is removed at the end."""

import time
from collections.abc import Iterable, Iterator, Sized
from threading import current_thread, main_thread
from typing import TypeVar

from rich.console import Console
from rich.progress import Progress

T = TypeVar("T")


def progress(items: Iterable[T], doing: str = "", total: int | None = None) -> Iterator[T]:
    """Yield the items, and on a terminal show a bar with the time left once they have taken two seconds.

    `total` is the number of items, for items without a length.
    """
    console, start = Console(stderr=True), time.monotonic()
    if not console.is_terminal or current_thread() is not main_thread():  # a server's threads leave the terminal alone
        yield from items
        return
    bar = Progress(console=console, transient=True)
    task = bar.add_task(doing, total=len(items) if isinstance(items, Sized) else total)
    try:
        for done, item in enumerate(items):
            if time.monotonic() - start > 2:
                bar.start()
                bar.update(task, completed=done)
            yield item
    finally:
        if bar.live.is_started:
            bar.stop()
