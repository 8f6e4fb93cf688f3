"""SIGTERM and Ctrl-C, which end training once everything is saved."""

import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType

STOPPING = (signal.SIGTERM, signal.SIGINT)

Handler = Callable[[int, FrameType | None], object] | int | None
"""What `signal.signal` takes and returns."""


class Interrupted(KeyboardInterrupt):
    """Training was stopped by a signal and has saved everything. Its text names the run and how to continue."""


class StopRequest:
    """Within the block, SIGTERM and Ctrl-C set `requested` instead of ending the process; a second Ctrl-C ends it.

    With `alone` False, a second Ctrl-C is ignored: torchrun sends a signal to processes that have already received the
    terminal's.
    """

    def __init__(self, alone: bool) -> None:
        self.requested = False
        self.alone = alone
        self.before: dict[signal.Signals, Handler] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():  # Python delivers signals to no other thread
            self.before = {number: signal.signal(number, self.handle) for number in STOPPING}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal."""
        if self.requested and self.alone and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True
