"""A small training that resumes, alone or under torchrun; as a script, one run of it."""

import os
import sys
from pathlib import Path
from typing import Any

import torch

from glocal.models import create_model
from glocal.tasks.classification import ClassificationConfig, ClassificationObjective
from glocal.training import OptimizerConfig, RunFolder, TrainConfig, fit
from glocal.training.interfaces import Batch

STEPS = 6
SMALL = {"image_size": 32, "patch_size": 8, "num_classes": 5, "depth": 2, "embed_dim": 24, "num_heads": 3}


def image_batch(seed: int) -> Batch:
    """Eight images, each class of its own brightness."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(8) % 5
    noise = torch.randn(8, 3, 32, 32, generator=generator)
    return {"pixel_values": noise + labels.view(-1, 1, 1, 1), "labels": labels}


def image_task() -> ClassificationObjective:
    return ClassificationObjective(ClassificationConfig(), 5)


class Shuffled:
    """Batches that are a function of the epoch and their number."""

    def train_batches(
        self, batch_size: int, epoch: int, start: int = 0, rank: int = 0, world_size: int = 1
    ) -> list[Batch]:
        return [image_batch(100 * epoch + number) for number in range(start, STEPS)]

    def eval_batches(self, split: str, batch_size: int, rank: int = 0, world_size: int = 1) -> list[Batch]:
        return [image_batch(1000)]


def train(folder: Path, data: Shuffled | None = None, resume: bool = False, **fields: Any) -> RunFolder:
    """Three epochs in bf16, with all that a step draws or remembers."""
    torch.manual_seed(0)
    run = RunFolder.open(folder) if resume else RunFolder.create(folder, "name: small\n")
    model = create_model("vit-tiny", **SMALL, dropout=0.1, attn_drop=0.1, drop_path=0.1)
    config = TrainConfig(
        epochs=3, precision="bf16", ema=0.9, save_every=2, optimizer=OptimizerConfig(clip_norm=1.0), **fields
    )
    fit(model, image_task(), data or Shuffled(), config, run, resume)
    return run


if __name__ == "__main__":
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    train(Path(sys.argv[1]))
