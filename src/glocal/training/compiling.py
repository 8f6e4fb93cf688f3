"""The training step by torch.compile: when it saves time, and for which batches."""

from typing import Any

import torch
from torch import Tensor, nn

from glocal.errors import GlocalError
from glocal.training.config import TrainConfig
from glocal.training.interfaces import Batch, Objective

PAYS_FROM = 3000
"""Optimizer steps from which `auto` compiles. At 20 ms per step they save a minute, as long as compilation takes."""

SETTINGS: dict[str, Any] = {"options": {"deterministic": True}}
"""Kernels are chosen by their shapes and not by timing, so that a resumed run uses the same ones."""


class Compiled:
    """A loss module, compiled for batches of one shape; a batch of another shape is computed eagerly.

    A graph of fixed shapes is the fastest. Methods that the objective names in `uncompiled` stay out of it. The shape
    is always the shape of the run's first batch, so that a resumed run ends in the same weights.
    """

    def __init__(self, loss_module: nn.Module, objective: Objective, like: Batch) -> None:
        torch.compiler.reset()  # a process keeps eight graphs of a function, and earlier runs may have made some
        for name in getattr(objective, "uncompiled", ()):
            setattr(objective, name, torch.compiler.disable(getattr(objective, name)))
        self.eager = loss_module
        self.compiled = torch.compile(loss_module, dynamic=False, **SETTINGS)
        self.shapes = shapes(like)

    def __call__(self, batch: Batch) -> Tensor:
        """Return the loss of a batch."""
        forward = self.compiled if shapes(batch) == self.shapes else self.eager
        return forward(batch)


def shapes(batch: Batch) -> dict[str, torch.Size]:
    """Return the shape of each tensor of a batch."""
    return {name: tensor.shape for name, tensor in batch.items()}


def choose_compile(
    config: TrainConfig, model: nn.Module, device: torch.device, steps: float | None
) -> tuple[bool, str]:
    """Return whether `train.compile` compiles a run of `steps` (None: of minutes), and a reason to print, if any.

    The choice depends on the recipe and the machine alone, so that a resumed run makes the same one. Raises GlocalError
    for `always` where torch.compile fails.
    """
    choice = config.compile
    if choice == "never" or (choice == "auto" and device.type != "cuda"):
        return False, ""
    if getattr(model, "has_unused_parameters", False):
        return False, "not compiled: each batch of a supernet takes another path (train.compile)"
    if choice == "auto" and steps is None:
        return False, "not compiled: in a run of minutes the first epoch is timed (train.compile)"
    if choice == "auto" and steps is not None and steps < PAYS_FROM:
        return False, f"not compiled: {steps:g} steps are fewer than {PAYS_FROM:,} (train.compile)"
    fault = compiler_fault(device)
    if fault and choice == "always":
        raise GlocalError(
            f"train.compile is always, and torch.compile fails on {device.type}: {fault}; install a C++ compiler and "
            "Python's headers, or set it to never"
        )
    return not fault, f"not compiled: torch.compile fails on {device.type}: {fault}" if fault else "compiling the step"


def compiler_fault(device: torch.device) -> str | None:
    """Compile a sum, and return the first line of the error that it raises: Triton needs a C compiler, for instance."""
    try:
        torch.compile(_double, **SETTINGS)(torch.ones(2, device=device))
    except Exception as error:  # each part of the compiler raises other types
        cause = getattr(error, "inner_exception", error)
        return str(cause).strip().partition("\n")[0] or type(cause).__name__
    return None


def _double(x: Tensor) -> Tensor:
    return x + x
