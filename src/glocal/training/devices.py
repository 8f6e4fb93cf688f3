"""Devices, precision, and the processes that train together."""

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from traceback import walk_tb
from typing import TypeVar

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, broadcast_object_list
from torch import Tensor

from glocal.errors import GlocalError
from glocal.ops import computes_bf16, keep_choices

T = TypeVar("T")
WAIT = timedelta(days=7)
"""How long processes wait for each other. The first one alone encodes a corpus, times blocks or writes translations,
which can take hours. Where one dies, the others do not wait."""


def this_process() -> PartialState:
    """Return this process's place among the processes that train together, which torchrun's environment names."""
    # without `cpu`, accelerate would not connect processes on the CPU
    return PartialState(cpu=not torch.accelerator.is_available(), timeout=WAIT)


def broadcast_from_main(value: T) -> T:
    """Return the first process's value in every process."""
    this_process()  # connects the processes, which accelerate's function would not on the CPU
    (value,) = broadcast_object_list([value])
    return value


def open_accelerator(precision: str = "auto", in_part: bool = False) -> Accelerator:
    """Return the device of this process, at the precision of `TrainConfig.precision`.

    `in_part` allows steps that leave weights without a gradient, which costs several processes some time.
    """
    keep_choices()  # so that every process, and a resumed run, computes by the same implementations
    device = this_process().device
    chosen = choose_precision(device) if precision == "auto" else precision
    if chosen == "fp16" and device.type != "cuda":
        raise GlocalError(
            f"train.precision is fp16, which needs a GPU, and this is {device.type}; choose bf16 or float32"
        )
    AcceleratorState._reset_state()  # else the precision of the process's first run would hold for all its runs
    return Accelerator(
        mixed_precision="no" if chosen == "float32" else chosen,
        cpu=device.type == "cpu",
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=in_part)],
    )


def choose_precision(device: torch.device) -> str:
    """Return bf16 where the hardware computes in it, else float32."""
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    return "bf16" if device.type == "cpu" and computes_bf16() else "float32"


@contextmanager
def lost_process(remedy: str) -> Iterator[None]:
    """Turn the death of another process, one that trains with this one or one that prepares data, into a GlocalError.

    torch raises a RuntimeError in either case, which only its text distinguishes from others. Where a process dies
    while it sends a batch, multiprocessing raises another type of error.
    """
    try:
        yield
    except (RuntimeError, OSError, EOFError) as error:
        text = " ".join(str(error).split()) or type(error).__name__
        if "DataLoader worker" in text or (not isinstance(error, RuntimeError) and handed_over(error)):
            raise GlocalError(
                f"a process that prepares data has died, as it does where memory is short ({text[:160]}); lower "
                f"data.workers, and {remedy}"
            ) from error
        processes = getattr(
            this_process(), "num_processes", 2
        )  # unknown where the other one died before they connected
        several = isinstance(error, RuntimeError) and processes > 1
        if several and any(name in text for name in ("gloo", "NCCL", "Connection", "Socket")):
            raise GlocalError(
                f"another process of this run has failed, and prints why in a separate line ({text[:160]}); "
                f"{remedy}, with as many processes"
            ) from error
        raise


def handed_over(error: BaseException) -> bool:
    """Whether an error comes from sending tensors between processes."""
    modules = (frame.f_globals.get("__name__", "") for frame, _ in walk_tb(error.__traceback__))
    return any(name.startswith(("multiprocessing.", "torch.multiprocessing.")) for name in modules)


class AsyncCopy:
    """A copy of vectors from the device to main memory, made in the background."""

    def __init__(self, *vectors: Tensor) -> None:
        on_cuda = vectors[0].is_cuda
        self.vectors = [vector.to("cpu", non_blocking=on_cuda) for vector in vectors]  # into pinned memory, by torch
        self.copied = torch.cuda.Event() if on_cuda else None
        if self.copied is not None:
            self.copied.record()

    def read(self) -> list[list[float]]:
        """Wait for the copy alone, not for later work of the device, and return the numbers of each vector."""
        if self.copied is not None:
            self.copied.synchronize()
        return [vector.tolist() for vector in self.vectors]


def machine(device: torch.device) -> str:
    """Return the name of the GPU, or of the processor (as Linux names it, else its architecture) and its threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {torch.get_num_threads()} threads"
