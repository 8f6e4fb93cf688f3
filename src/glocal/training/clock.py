"""How long a run has taken and how fast it goes, its resumptions included."""

import os
import time

from glocal.training.checkpoint import Progress


class Clock:
    """Times a run from where `progress` says it stood."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.origin = time.perf_counter() - progress.seconds
        self.cpu_origin = cpu_seconds() - progress.cpu_seconds
        self.start_lap()

    def start_lap(self) -> None:
        """Measure speed from now on."""
        self.started, self.before = time.perf_counter(), self.progress.labels

    def seconds(self) -> float:
        """Time spent on the run so far."""
        return round(time.perf_counter() - self.origin, 3)

    def timing(self) -> dict[str, float]:
        """Return the lap's speed, all ranks together, and the run's time."""
        rate = (self.progress.labels - self.before) / (time.perf_counter() - self.started)
        return {"labels_per_second": round(rate, 1), "seconds": self.seconds()}

    def keep(self) -> None:
        """Note the time, for a checkpoint."""
        self.progress.seconds = self.seconds()
        self.progress.cpu_seconds = cpu_seconds() - self.cpu_origin


def cpu_seconds() -> float:
    """Processor time of this process and of those it has waited for."""
    return sum(os.times()[:4])
