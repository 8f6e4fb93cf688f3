"""All that a step changes, to a file and back."""

import pickle
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.optimizer import AcceleratedOptimizer
from timm.utils import ModelEmaV3
from torch import nn

from glocal.errors import GlocalError
from glocal.training.run import atomic_write


@dataclass
class Progress:
    """Where a run stands."""

    epoch: int = 0
    """Epochs finished."""
    batch: int = 0
    """Batches of the epoch under way that have been learnt from."""
    step: int = 0
    """Optimizer steps."""
    epochs: int | None = None
    """Epochs in all; None while a budget of minutes waits for the first to be timed."""
    validated: int = 0
    """Step of the last validation."""
    best: float = float("-inf")
    """Highest validation score."""
    stale: int = 0
    """Validations since then."""
    loss_sum: float = 0.0
    """Sum over the labels since the last validation."""
    labels: float = 0.0
    """How many they were."""
    logged: int = 0
    """Bytes of metrics.jsonl."""
    seconds: float = 0.0
    """Time spent, over all resumptions."""
    cpu_seconds: float = 0.0
    """Processor time of the first process and its data workers."""
    processes: int = 1
    """Processes that share each step."""


@dataclass
class TrainState:
    """What a checkpoint holds. The network's and the data's randomness follow from the position alone."""

    model: nn.Module
    average: ModelEmaV3 | None
    """Of the weights after each step (`train.ema`), or at the ends of the last epochs (`train.average`)."""
    optimizer: AcceleratedOptimizer
    progress: Progress

    @property
    def evaluated(self) -> nn.Module:
        """The network that is validated and kept: the average of the weights, where one is taken."""
        return self.model if self.average is None else self.average.module

    def average_epochs(self, last: int) -> None:
        """Take in the weights at an epoch's end; before the `last` epochs, and with the first of them, begin anew."""
        assert self.average is not None
        before = max((self.progress.epochs or 1) - last, 0)  # epochs that are not averaged
        count = max(self.progress.epoch - before, 1)
        self.average.decay = 1 - 1 / count  # an equal average is a moving one that forgets less and less
        self.average.update(self.model)

    def check_finite(self) -> None:
        """Raise GlocalError where a weight is not: such weights must not take a good checkpoint's place."""
        for name, weight in self.model.named_parameters():
            if not weight.isfinite().all():
                raise GlocalError(
                    f"step {self.progress.step}: {name} is no longer finite and was not saved; what was "
                    "saved before is whole; try a lower train.lr, a longer warm-up, or train.optimizer.clip_norm 1"
                )

    def save(self, path: Path) -> None:
        """Write all of it, or nothing. Raises GlocalError where the file cannot be written."""
        scaler = self.optimizer.scaler
        write_checkpoint(
            path,
            {
                "model": self.model.state_dict(),
                "average": None if self.average is None else self.average.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "scaler": None if scaler is None else scaler.state_dict(),
                "progress": asdict(self.progress),
            },
        )

    def load(self, path: Path) -> None:
        """Become what was saved. Raises GlocalError where it is of another model, length or number of processes."""
        saved = read_checkpoint(path)
        if saved["progress"]["processes"] != self.progress.processes:
            raise GlocalError(
                f"{path} was written by {saved['progress']['processes']} processes and is read by "
                f"{self.progress.processes}; start as many again (torchrun --nproc-per-node)"
            )
        asked, begun = self.progress.epochs, saved["progress"]["epochs"]
        if asked is not None and asked != begun:  # the schedule, and which epochs are averaged, hang on it
            raise GlocalError(
                f"{path} is of a run of {begun} epochs, and its recipe now says {asked}; set train.epochs back, or "
                "start another run from this one's weights (--from)"
            )
        try:
            self.model.load_state_dict(saved["model"])
            self.optimizer.load_state_dict(saved["optimizer"])
            if self.average is not None:
                self.average.load_state_dict(saved["average"])
            self.progress = Progress(**saved["progress"])
        except (RuntimeError, ValueError, TypeError, KeyError) as error:
            raise GlocalError(f"{path} does not fit this recipe: {' '.join(str(error).split())[:300]}") from error
        if self.optimizer.scaler is not None and saved["scaler"]:
            self.optimizer.scaler.load_state_dict(saved["scaler"])


def write_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write tensors and plain values in one piece."""
    with atomic_write(path) as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):  # torch's writer stumbles over the disk's error, and hides it
                raise error.__context__ from None
            raise


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read what `write_checkpoint` wrote. Raises GlocalError where it is none."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, pickle.UnpicklingError, EOFError) as error:
        raise GlocalError(
            f"{path} is not a checkpoint of this program: {' '.join(str(error).split())[:200]}"
        ) from error
