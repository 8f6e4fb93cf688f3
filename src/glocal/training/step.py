"""One optimizer step: the loss of some batches over all processes, and its gradients."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from itertools import islice

import numpy as np
import torch
from accelerate import Accelerator
from jaxtyping import Float
from torch import Tensor, nn

from glocal.training.evaluation import move
from glocal.training.interfaces import Batch, Objective


class LossModule(nn.Module):
    """A task's loss as the forward pass of a module, to which autocast and DDP apply whatever the task calls."""

    def __init__(self, objective: Objective, model: nn.Module) -> None:
        super().__init__()
        self.objective = objective
        self.model = model

    def forward(self, batch: Batch) -> Float[Tensor, "*parts"]:
        """Return the mean loss of a batch, or of each part of an objective."""
        return self.objective.loss(self.model, batch)


def backward(
    loss_fn: Callable[[Batch], Tensor],
    loss_module: nn.Module,
    objective: Objective,
    micro_batches: Sequence[Batch],
    accelerator: Accelerator,
) -> tuple[Float[Tensor, " parts"], Float[Tensor, " parts"]]:
    """Add up the gradients of the mean loss over the labels of these batches and the other processes' batches.

    Each part of an objective is a mean over the labels of that part, so that neither the number of processes nor
    accumulation changes it. `loss_fn` computes the loss, and `loss_module` is the module that accelerate prepared.
    Returns, for each part, the number of labels of all processes and the sum of this process's losses.
    """
    sizes = [to_vector(objective.size(batch), accelerator.device) for batch in micro_batches]
    label_counts = accelerator.reduce(torch.stack(sizes).sum(dim=0))
    loss_sums = torch.zeros_like(label_counts)
    for number, (batch, size) in enumerate(zip(micro_batches, sizes, strict=True), start=1):
        last = number == len(micro_batches)
        with nullcontext() if last else accelerator.no_sync(loss_module):
            loss = loss_fn(move(batch, accelerator.device)).reshape(-1)
            weights = size * accelerator.num_processes / label_counts.clamp(min=1)  # DDP takes the mean over processes
            accelerator.backward((loss * weights).sum())
        loss_sums += loss.detach() * size
    return label_counts, loss_sums


def to_vector(values: int | tuple[int, ...], device: torch.device) -> Float[Tensor, " values"]:
    """Return numbers on a device; `torch.tensor` would wait for all that the device has to compute."""
    numbers = values if isinstance(values, tuple) else (values,)
    return torch.cat([torch.full((1,), float(number), device=device) for number in numbers])


def grouped(batches: Iterable[Batch], size: int) -> Iterator[list[Batch]]:
    """Yield lists of `size` batches, one list for each step; the last may be shorter."""
    iterator = iter(batches)
    while micro_batches := list(islice(iterator, size)):
        yield micro_batches


def seed_dropout(seed: int, step: int, rank: int, device: torch.device) -> None:
    """Seed dropout and drop path for one step, so that no state of a generator has to be saved."""
    number = int(np.random.SeedSequence((seed, step, rank)).generate_state(1, np.uint64)[0])
    torch.default_generator.manual_seed(number)
    if device.type != "cpu":  # `torch.manual_seed` seeds all devices, and formats a traceback at each call
        torch.get_device_module(device).manual_seed(number)
