"""The time that a run has taken, over all resumptions, and its speed."""

import os
import time

from glocal.training.checkpoint import Progress


class Clock:
    """Times a run from the time that its `progress` has recorded."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.origin = time.perf_counter() - progress.seconds
        self.cpu_origin = cpu_seconds() - progress.cpu_seconds
        self.start_lap()

    def start_lap(self) -> None:
        """Measure the speed from now on."""
        self.started, self.before = time.perf_counter(), self.progress.label_count

    def seconds(self) -> float:
        """Return the seconds that the run has taken so far."""
        return round(time.perf_counter() - self.origin, 3)

    def timing(self) -> dict[str, float]:
        """Return the speed since `start_lap`, over all processes, and the run's seconds."""
        rate = (self.progress.label_count - self.before) / (time.perf_counter() - self.started)
        return {"labels_per_second": round(rate, 1), "seconds": self.seconds()}

    def record(self) -> None:
        """Record the time in the progress, for a checkpoint."""
        self.progress.seconds = self.seconds()
        self.progress.cpu_seconds = cpu_seconds() - self.cpu_origin


def cpu_seconds() -> float:
    """Return the processor time of this process and of its children that have ended."""
    return sum(os.times()[:4])
