"""Evaluation: a task's metrics of a model, over the batches of all processes."""

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import nn

from glocal.ops import Precision, pack
from glocal.training.interfaces import Batch, Batches, Metrics, Objective


@torch.no_grad()
def evaluate(
    model: nn.Module,
    objective: Objective,
    batches: Batches,
    accelerator: Accelerator,
    precision: Precision | None = None,
) -> Metrics:
    """Return the metrics of `model`, numbers and lists of them; `batches` are this process's share.

    With a `precision`, the model's weights are packed for it first.
    """
    model.to(accelerator.device).eval()
    if precision is not None:
        pack(model, precision)
    for buffer in model.buffers():
        broadcast(buffer)  # each process has other batch statistics; the first process's are saved
    metrics = objective.metrics().to(accelerator.device)
    for batch in batches:
        batch = move(batch, accelerator.device)
        with accelerator.autocast():
            outputs = objective.predictions_and_targets(model, batch)
        metrics.update(*outputs)
    return {name: value.tolist() for name, value in metrics.compute().items()}


def move(batch: Batch, device: torch.device) -> Batch:
    """Return a batch on the device. It is copied from pinned memory while the device computes the step before."""
    if device.type == "cuda":
        batch = {name: tensor.pin_memory() for name, tensor in batch.items()}  # a pinned tensor is not copied again
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
