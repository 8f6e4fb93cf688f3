"""Being told to stop."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

STOPPING = (signal.SIGTERM, signal.SIGINT)


class Interrupted(KeyboardInterrupt):
    """Training was told to stop, and has saved all it had. Its text names the run and how to continue."""


class StopRequest:
    """While it holds, SIGTERM and Ctrl-C raise `asked` instead of ending the process; a second Ctrl-C ends it.

    The second is heeded in a lone process only: torchrun passes its own Ctrl-C on to ranks that have had it.
    """

    def __init__(self, alone: bool) -> None:
        self.asked = False
        self.alone = alone
        self.before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():  # Python delivers signals nowhere else
            self.before = {number: signal.signal(number, self.ask) for number in STOPPING}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def ask(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal."""
        if self.asked and self.alone and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = True
