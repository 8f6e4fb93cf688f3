"""A progress bar for what turns out to take a while."""

import time
from collections.abc import Iterator, Sequence
from typing import TypeVar

from rich.console import Console
from rich.progress import Progress

T = TypeVar("T")


def with_patience(batches: Sequence[T]) -> Iterator[T]:
    """Yield the batches, and show a bar with the time left on a terminal once they have taken two seconds."""
    console, start = Console(stderr=True), time.monotonic()
    bar = Progress(console=console, transient=True)
    task = bar.add_task("", total=len(batches))
    try:
        for batch in batches:
            if console.is_terminal and time.monotonic() - start > 2:
                bar.start()
            yield batch
            bar.advance(task)
    finally:
        if bar.live.is_started:
            bar.stop()
