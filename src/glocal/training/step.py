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


class ObjectiveModule(nn.Module):
    """A task's loss as the forward pass of a module, to which autocast and DDP apply whatever the task calls."""

    def __init__(self, task: Objective, model: nn.Module) -> None:
        super().__init__()
        self.task = task
        self.model = model

    def forward(self, batch: Batch) -> Float[Tensor, "*parts"]:
        """Return the mean loss of a batch, or of each part of an objective."""
        return self.task.loss(self.model, batch)


def backward(
    loss_fn: Callable[[Batch], Tensor],
    objective: nn.Module,
    task: Objective,
    batches: Sequence[Batch],
    accelerator: Accelerator,
) -> tuple[Float[Tensor, " parts"], Float[Tensor, " parts"]]:
    """Add up the gradients of the mean loss over the labels of these batches and of those of the other processes.

    Each part of an objective is a mean over its own labels, so that neither the number of processes nor accumulation
    changes it. `loss_fn` computes the loss, and `objective` is the module that accelerate prepared. Returns, for each
    part, the labels of all processes and the sum of this process's losses.
    """
    sizes = [to_vector(task.size(batch), accelerator.device) for batch in batches]
    labels = accelerator.reduce(torch.stack(sizes).sum(dim=0))
    loss_sum = torch.zeros_like(labels)
    for number, (batch, size) in enumerate(zip(batches, sizes, strict=True), start=1):
        last = number == len(batches)
        with nullcontext() if last else accelerator.no_sync(objective):
            loss = loss_fn(move(batch, accelerator.device)).reshape(-1)
            weights = size * accelerator.num_processes / labels.clamp(min=1)  # DDP takes the mean over processes
            accelerator.backward((loss * weights).sum())
        loss_sum += loss.detach() * size
    return labels, loss_sum


def to_vector(values: int | tuple[int, ...], device: torch.device) -> Float[Tensor, " values"]:
    """Return numbers on a device; `torch.tensor` would wait for all that the device has to compute."""
    numbers = values if isinstance(values, tuple) else (values,)
    return torch.cat([torch.full((1,), float(number), device=device) for number in numbers])


def grouped(batches: Iterable[Batch], size: int) -> Iterator[list[Batch]]:
    """Yield lists of `size` batches; the last may be shorter."""
    iterator = iter(batches)
    while group := list(islice(iterator, size)):
        yield group


def seed_network(seed: int, step: int, rank: int) -> None:
    """Seed dropout and drop path for one step, so that no state of a generator has to be saved."""
    torch.manual_seed(int(np.random.SeedSequence((seed, step, rank)).generate_state(1, np.uint64)[0]))
