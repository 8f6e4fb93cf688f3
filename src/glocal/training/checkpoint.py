"""Checkpoints: everything that a step changes, to a file and back."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import torch
from accelerate.optimizer import AcceleratedOptimizer
from timm.utils import ModelEmaV3
from torch import nn

from glocal.errors import GlocalError
from glocal.files import JSONObject, atomic_write

Checkpoint = dict[str, Any]
"""The content of a file: tensors, plain values, and dicts of them, by name."""
FREE = {"name", "run.dir", "data.source", "data.workers", "train.save_every"}
"""Settings that may change while a run is stopped. None changes the weights: data is recognised by its fingerprint."""

SAVED_NAMES = {
    "batches": "batch",
    "total_epochs": "epochs",
    "validated_step": "validated",
    "label_count": "labels",
    "log_bytes": "logged",
}
"""Fields of `Progress` that have another name in a checkpoint: the name of earlier versions, whose runs continue."""

LOST = "put it back from a copy, or remove the folder `checkpoints` to train from the start again"
"""What to do about a checkpoint that cannot be read."""


@dataclass
class Progress:
    """How far a run has come."""

    epoch: int = 0
    """Epochs finished."""
    batches: int = 0
    """Batches of the current epoch that were trained on."""
    step: int = 0
    """Optimizer steps."""
    total_epochs: int | None = None
    """Epochs in all; None while a budget of minutes waits for the first to be timed."""
    validated_step: int = 0
    """Step of the last validation."""
    best: float = float("-inf")
    """Highest validation score."""
    since_best: int = 0
    """Validations since that one."""
    loss_sum: float = 0.0
    """Sum of the loss over the labels since the last validation."""
    label_count: float = 0.0
    """Labels since the last validation."""
    log_bytes: int = 0
    """Size of metrics.jsonl in bytes."""
    seconds: float = 0.0
    """Time spent, over all resumptions."""
    cpu_seconds: float = 0.0
    """Processor time of the first process and its data workers."""
    processes: int = 1
    """Processes that share each step."""

    def to_dict(self) -> dict[str, object]:
        """Return the fields by their names in a checkpoint."""
        return {SAVED_NAMES.get(name, name): value for name, value in asdict(self).items()}

    @staticmethod
    def from_dict(saved: JSONObject) -> "Progress":
        """Return what `to_dict` returned. Raises TypeError for another name."""
        names = {saved_name: name for name, saved_name in SAVED_NAMES.items()}
        return Progress(**{names.get(name, name): value for name, value in saved.items()})


@dataclass
class TrainState:
    """What a checkpoint holds. No generator is saved: random numbers are a function of the seed and the progress."""

    model: nn.Module
    averaged_model: ModelEmaV3 | None
    """The average of the weights after each step (`train.ema`), or after each of the last epochs (`train.average`)."""
    optimizer: AcceleratedOptimizer
    progress: Progress
    settings: Mapping[str, object] = field(default_factory=dict)
    """Fields of the recipe, which must not have changed when the run resumes."""

    @property
    def eval_model(self) -> nn.Module:
        """The network that is validated and kept: the averaged one, if weights are averaged."""
        return self.model if self.averaged_model is None else self.averaged_model.module

    def average_epochs(self, last: int) -> None:
        """Add the weights at an epoch's end to the average of the `last` epochs; before these, the average restarts."""
        assert self.averaged_model is not None
        before = max((self.progress.total_epochs or 1) - last, 0)  # epochs that are not averaged
        count = max(self.progress.epoch - before, 1)
        self.averaged_model.decay = 1 - 1 / count  # with this decay, a moving average weighs all epochs alike
        self.averaged_model.update(self.model)

    def check_finite(self) -> None:
        """Raise GlocalError if a weight is not finite, before it replaces a good checkpoint."""
        for name, weight in self.model.named_parameters():
            if not weight.isfinite().all():
                raise GlocalError(
                    f"step {self.progress.step}: {name} is no longer finite and was not saved; what was "
                    "saved before is whole; try a lower train.lr, a longer warm-up, or train.optimizer.clip_norm 1"
                )

    def save(self, path: Path) -> None:
        """Write the whole state, or nothing. Raises GlocalError if the file cannot be written."""
        scaler = self.optimizer.scaler
        write_checkpoint(
            path,
            {
                "model": self.model.state_dict(),
                "average": None if self.averaged_model is None else self.averaged_model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "scaler": None if scaler is None else scaler.state_dict(),
                "progress": self.progress.to_dict(),
                "settings": dict(self.settings),
            },
        )

    def load(self, path: Path) -> None:
        """Restore what was saved. Raises GlocalError if it is of another model, recipe or number of processes."""
        saved = read_checkpoint(path, "model", "average", "optimizer", "scaler", "progress")
        try:
            progress = Progress.from_dict(saved["progress"])
            self.check_settings(path, dict(saved.get("settings", self.settings)), progress.processes)
            self.model.load_state_dict(saved["model"])
            self.optimizer.load_state_dict(saved["optimizer"])
            if self.averaged_model is not None:
                self.averaged_model.load_state_dict(saved["average"])
            if self.optimizer.scaler is not None and saved["scaler"]:
                self.optimizer.scaler.load_state_dict(saved["scaler"])
        except (RuntimeError, ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
            if isinstance(error, GlocalError):
                raise
            raise GlocalError(f"{path} does not fit this recipe: {' '.join(str(error).split())[:300]}") from error
        self.progress = progress

    def check_settings(self, path: Path, begun: Mapping[str, object], processes: int) -> None:
        """Raise GlocalError if the run was begun with other settings, or by another number of processes."""
        if processes != self.progress.processes:
            again = f"with torchrun --nproc-per-node {processes}" if processes > 1 else "without torchrun"
            raise GlocalError(
                f"{path} was written by {processes} processes and is read by {self.progress.processes}; start as many "
                f"again, {again}"
            )
        names = sorted(begun.keys() | self.settings.keys())
        if changed := [name for name in names if begun.get(name) != self.settings.get(name)]:
            changes = ", ".join(
                f"{name} {begun.get(name)!r} is now {self.settings.get(name)!r}" for name in changed[:5]
            )
            raise GlocalError(
                f"{path} is of a run with other settings: {changes}; set them back, or start another run from this "
                "one's weights (--from)"
            )


def write_checkpoint(path: Path, content: Mapping[str, object]) -> None:
    """Write tensors and plain values, all or nothing."""
    with atomic_write(path) as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):  # torch's writer raises another error in place of the disk's
                raise error.__context__ from None
            raise


def read_checkpoint(path: Path, *names: str) -> Checkpoint:
    """Return what `write_checkpoint` wrote, which has these `names`.

    Raises GlocalError if the file is missing, damaged or no checkpoint. A damaged file can make torch's reader raise
    any error, so all of them are caught.
    """
    if not path.is_file():
        raise GlocalError(f"{path} is missing, and the run needs it to continue; {LOST}")
    try:
        with ZipFile(path) as records:
            if damaged := records.testzip():  # torch writes checksums and does not check them
                raise ValueError(f"{damaged} is not as it was written")
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise GlocalError(f"{path} is not a checkpoint of this program: {reason}; {LOST}") from error
    if not isinstance(content, dict) or set(names) - content.keys():
        raise GlocalError(f"{path} is not a checkpoint of this program: it lacks {', '.join(names)}; {LOST}")
    return content


def read_best(path: Path, model: nn.Module) -> Checkpoint:
    """Return the best weights on the validation split, with their metrics.

    Raises GlocalError if they are missing, or belong to another model.
    """
    best = read_checkpoint(path, "model")
    own = {name: tensor.shape for name, tensor in model.state_dict().items()}
    if not isinstance(best["model"], dict) or own != {
        name: getattr(tensor, "shape", None) for name, tensor in best["model"].items()
    }:
        raise GlocalError(f"{path} holds the weights of another model; {LOST}")
    return best
