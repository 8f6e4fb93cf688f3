"""Where a model computes, and in which numbers."""

from typing import Literal, get_args

import torch

from glocal import ops
from glocal.errors import GlocalError
from glocal.files import short
from glocal.models import Model
from glocal.models.generative import Generative

Precision = Literal["auto", "float32", "bf16", "fp16", "int8"]
"""Of the weights; `auto` is the faster one of float32 and fp16 on this machine (see docs/inference.md)."""


def choose_device(name: str | None = None) -> torch.device:
    """Return the device of that name; without one the machine's accelerator (CUDA, MPS, ...), else the processor.

    Raises GlocalError if the name is no device or this machine has none of its kind.
    """
    if name is None:
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    if not isinstance(name, str | torch.device):
        raise GlocalError(f"device {name!r:.80} was given; expected cpu, cuda, cuda:1, ..., or none to take the best")
    try:
        device = torch.device(name)
        torch.empty(1, device=device).cpu()  # of a device without data, meta, nothing comes back
    except (RuntimeError, AssertionError, TypeError, NotImplementedError):
        raise GlocalError(
            f"device {short(name)} is not on this machine; give cpu, or no device to take the best"
        ) from None
    return device


def prepare(model: Model, device: str | None = None, precision: Precision = "float32") -> tuple[torch.device, str]:
    """Move a model to its device and pack its weights for inference; return the device and the precision taken.

    Raises GlocalError for an unknown device or precision, and for one that the model cannot be computed in.
    """
    if not isinstance(precision, str) or precision not in get_args(Precision):
        raise GlocalError(f"precision {short(precision)}; expected {', '.join(get_args(Precision))}")
    where = choose_device(device)
    model.eval().to(where)
    if precision == "auto":
        precision = ops.fastest_precision(model, rows=1 if isinstance(model, Generative) else 128)
    ops.pack(model, precision)
    return where, precision
