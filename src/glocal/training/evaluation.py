"""What a model is worth, by a task's metrics."""

from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import nn

from glocal.ops import Precision, pack
from glocal.training.interfaces import Batch, Batches, Objective


@torch.no_grad()
def evaluate(
    model: nn.Module, task: Objective, batches: Batches, accelerator: Accelerator, precision: Precision | None = None
) -> dict[str, Any]:
    """Metrics of `model`, numbers and lists of them, over the batches of all ranks; each rank brings its own share.

    With a `precision` the model's weights are packed for it first.
    """
    model.to(accelerator.device).eval()
    if precision is not None:
        pack(model, precision)
    for buffer in model.buffers():
        broadcast(buffer)  # batch norm's statistics are each rank's own; the first rank's are those that are saved
    metrics = task.metrics().to(accelerator.device)
    for batch in batches:
        batch = move(batch, accelerator.device)
        with accelerator.autocast():
            answers = task.predictions_and_targets(model, batch)
        metrics.update(*answers)
    return {name: value.tolist() for name, value in metrics.compute().items()}


def move(batch: Batch, device: torch.device) -> Batch:
    """Bring a batch to the device. From pinned memory it is copied while the device goes on with the step before."""
    if device.type == "cuda":
        batch = {name: tensor.pin_memory() for name, tensor in batch.items()}  # what is pinned already is not copied
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
