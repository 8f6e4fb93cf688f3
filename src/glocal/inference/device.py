"""Where a model answers."""

import torch


def choose_device(name: str | None = None) -> torch.device:
    """Return the device of that name; without one the machine's accelerator (CUDA, MPS, ...), else the processor."""
    if name is not None:
        return torch.device(name)
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
