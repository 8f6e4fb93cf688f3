"""The smallest model and data that the loop can train; as a script, one run of it, for tests that kill processes."""

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from glocal.tasks.classification import ClassificationConfig, ClassificationObjective
from glocal.training import OptimizerConfig, RunFolder, ScheduleConfig, TrainConfig, fit

CLASSES = 7


class ToyBatches:
    def __init__(self, data: "ToyData", numbers: range, picks: list[Tensor]) -> None:
        self.data, self.numbers, self.picks = data, numbers, picks

    def __len__(self) -> int:
        return len(self.numbers)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for number in self.numbers:
            time.sleep(self.data.pause)
            pick = self.picks[number]
            yield {"pixel_values": self.data.inputs[pick], "labels": self.data.labels[pick]}


class ToyData:
    """Noisy clusters. The last batch of an epoch is smaller when `size` is no multiple of the batch."""

    def __init__(self, size: int = 96, pause: float = 0.0) -> None:
        generator = torch.Generator().manual_seed(5)
        centres = torch.randn(CLASSES, 6, generator=generator)
        self.labels = torch.arange(size) % CLASSES
        self.inputs = centres[self.labels] + 0.7 * torch.randn(size, 6, generator=generator)
        self.pause = pause

    def train_batches(
        self, batch_size: int, epoch: int, start: int = 0, rank: int = 0, world_size: int = 1
    ) -> ToyBatches:
        order = torch.randperm(len(self.labels), generator=torch.Generator().manual_seed(epoch))
        picks = [part[rank::world_size] for part in order.split(batch_size * world_size)]
        return ToyBatches(self, range(start, len(picks)), picks)

    def eval_batches(self, split: str, batch_size: int, rank: int = 0, world_size: int = 1) -> ToyBatches:
        picks = list(torch.arange(len(self.labels))[rank::world_size].split(batch_size))
        return ToyBatches(self, range(len(picks)), picks)


class ToyModel(nn.Module):
    def __init__(self, dropout: float = 0.2, norm: bool = True) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(6, 16), nn.BatchNorm1d(16) if norm else nn.Identity(), nn.GELU(), nn.Dropout(dropout)
        )
        self.head = nn.Linear(16, CLASSES)

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.head(self.body(pixel_values))


def toy_task() -> ClassificationObjective:
    return ClassificationObjective(ClassificationConfig(label_smoothing=0.1), CLASSES)


def toy_config(**fields: Any) -> TrainConfig:
    budget = {} if {"steps", "minutes"} & fields.keys() else {"epochs": 4}
    defaults: dict[str, Any] = {
        "batch_size": 8,
        "lr": 0.01,
        "ema": 0.95,
        "precision": "float32",
        "save_every": 0,
        "schedule": ScheduleConfig(warmup_epochs=1.0, min_lr=1e-5),
        "optimizer": OptimizerConfig(clip_norm=1.0),
    }
    return TrainConfig(**(budget | defaults | fields))


def train_toy(
    folder: str | Path, resume: bool = False, pause: float = 0.0, norm: bool = True, **fields: Any
) -> RunFolder:
    torch.manual_seed(0)
    run = RunFolder.open(folder) if resume else RunFolder.create(folder, "name: toy\n")
    model = ToyModel(dropout=0.2 if norm else 0.0, norm=norm)
    fit(model, toy_task(), ToyData(pause=pause), toy_config(**fields), run, resume)
    return run


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--pause", type=float, default=0.0)
    parser.add_argument("--plain", action="store_true", help="no dropout, no batch norm")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=4)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print("ready", flush=True)
    try:
        train_toy(
            args.folder,
            args.resume,
            args.pause,
            norm=not args.plain,
            batch_size=args.batch_size,
            epochs=args.epochs,
            accumulate=2,
            save_every=3,
        )
    except KeyboardInterrupt as stopped:
        print(stopped)
        sys.exit(130)
