"""The log of a run: to the terminal, to metrics.jsonl and to TensorBoard."""

import json
import os
import time
from collections.abc import Mapping
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, Task, TextColumn, TimeRemainingColumn
from rich.text import Text
from torch.utils.tensorboard import SummaryWriter

from glocal.errors import printable
from glocal.files import disk_errors
from glocal.training.run import RunFolder

QUIET = 60
"""Seconds after which a log without a bar prints how far the run is."""


class TimeLeft(TimeRemainingColumn):
    """The time left, where the length of the run is known."""

    def render(self, task: Task) -> Text:
        """Return the time, followed by `left`."""
        return super().render(task).append(" left") if task.total is not None else Text("")


class Log:
    """The log of a run. The main process shows and writes it; in the others, all calls do nothing.

    It continues a run whose metrics.jsonl was `log_bytes` bytes long at optimizer step `step`: rows after these are
    removed.
    """

    def __init__(self, run: RunFolder, is_main_process: bool, step: int = 0, log_bytes: int = 0) -> None:
        self.is_main_process = is_main_process
        self.run = run
        self.log_bytes = 0
        self.bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=20),  # the line then fits into 80 columns
            MofNCompleteColumn(),
            TimeLeft(),
            TextColumn("{task.fields[state]}", markup=False),
            transient=True,
            disable=not (is_main_process and Console().is_terminal),
            speed_estimate_period=600,  # includes a validation, so that the time left is that of the whole run
        )
        self.task = self.bar.add_task("starting", total=None, completed=step, state="")
        self.printed = time.monotonic()
        if is_main_process:
            with disk_errors(run.metrics):
                run.metrics.touch()
                self.log_bytes = run.metrics.read_bytes()[:log_bytes].rfind(b"\n") + 1  # rows that are whole
                os.truncate(run.metrics, self.log_bytes)
                run.history()  # raises where a row is damaged, before the training starts
                self.file = run.metrics.open("ab", buffering=0)
                self.writer = SummaryWriter(str(run.tensorboard), purge_step=step + 1)

    def __enter__(self) -> "Log":
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()
        if self.is_main_process:
            with disk_errors(self.run.tensorboard):
                self.file.close()
                self.writer.close()

    def print(self, line: str) -> None:
        """Print a line above the bar."""
        if self.is_main_process:
            self.printed = time.monotonic()
            shown = Text(printable(line))  # a sample may hold markup of rich, and control characters
            self.bar.console.print(shown, soft_wrap=True)

    def advance(self, step: int, total: float, epoch: str, loss: float) -> None:
        """Move the bar; where there is none, print each minute how far the run is."""
        known = None if total == float("inf") else int(total)
        self.bar.update(self.task, completed=step, total=known, description=epoch, state=f"loss {loss:.4f}")
        if self.bar.disable and time.monotonic() - self.printed > QUIET:
            remaining = self.bar.tasks[self.task].time_remaining
            left = "" if remaining is None else f", {remaining:.0f} s left"
            self.print(f"{epoch}  step {step}/{'?' if known is None else known}{left}  loss {loss:.4f}")

    def write(self, row: Mapping[str, int | float]) -> None:
        """Add a row to metrics.jsonl, and its values at its `step` to TensorBoard."""
        if not self.is_main_process:
            return
        line = (json.dumps(row) + "\n").encode()
        with disk_errors(self.run.metrics):
            if self.file.write(line) < len(line):
                self.file.truncate(self.log_bytes)
                raise OSError("the disk is full")
            self.log_bytes += len(line)
            for name, value in row.items():
                if name != "step":
                    self.writer.add_scalar(name, value, int(row["step"]))

    def flush(self) -> None:
        """Write all rows to the disk, before a checkpoint that records their length."""
        if self.is_main_process:
            with disk_errors(self.run.metrics):
                os.fsync(self.file.fileno())
