"""What all benchmarks share: the machine and its precisions, taking turns, a row of the table, and the file of results.

Each processor has a file of its own, so that results of several machines stand side by side (see `processor`). A peer
that is not installed, or that fails, costs its own rows only (see `attempt`).
"""

import csv
import os
import re
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TypeVar, cast

import torch
from torch import nn

from glocal import ops
from glocal.training.devices import choose_precision, machine
from glocal.training.run import provenance

Aims = Mapping[tuple[str, str], tuple[float, float | None]]
"""The ratio that is aimed at, and the one that is hoped for, by (what, peer); for seconds the most they may be."""

Module = TypeVar("Module", bound=nn.Module)

RESULTS = Path(__file__).parents[1] / "results"
COLUMNS = (
    *("what", "peer", "ours", "theirs", "unit", "ratio", "quartile1", "quartile3", "repeats", "at_least", "hope"),
    *("command", "commit", "machine", "torch_version"),
)

CAPS = ("ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY", "MKL_ENABLE_INSTRUCTIONS")
"""Environment variables that make libraries use fewer instruction sets than the processor has."""

CORES = torch.get_num_threads()  # read at import: a benchmark may set another number for a part of its work

ENOUGH, SECONDS = 5, 20
"""Pairs that are always run, and seconds after which no more than these are."""

PAUSE = 0.02
"""Seconds before each run, in which the threads of the other library stop to wait actively."""


def caps() -> dict[str, str]:
    """Return the variables of `CAPS` that are set."""
    return {name: os.environ[name] for name in CAPS if os.environ.get(name)}


def processor() -> str:
    """Return a short name for the instruction sets and the cores, as `avx512-bf16-2cores` or `avx2-capped-2cores`.

    Under a cap (see `CAPS`) the name has the instruction sets that torch's own kernels are left with.
    """
    has = torch.cpu.get_capabilities()
    parts = [torch.backends.cpu.get_cpu_capability().lower()]
    if parts == ["default"]:
        parts = [str(has.get("architecture", "cpu"))]
    if caps():
        parts.append("capped")
    elif has.get("amx_bf16"):
        parts.append("amx")
    elif native_bf16():
        parts.append("bf16")
    elif has.get("avx512_vnni") or has.get("avx_vnni"):
        parts.append("vnni")
    return "-".join([*parts, f"{CORES}cores"])


def native_bf16() -> bool:
    """Whether the processor computes in bf16; a capped one counts as one that does not."""
    return not caps() and choose_precision(torch.device("cpu")) == "bf16"


def training_precisions() -> list[str]:
    """Return what training is timed in."""
    return ["float32", *(["bf16"] if native_bf16() else [])]


def inference_precisions() -> list[str]:
    """Return what inference is timed in."""
    return ["float32", "fp16", "int8", *(["bf16"] if native_bf16() else [])]


def introduce() -> None:
    """Print which machine this is, and which precision is left out on it."""
    print(f"{described()}; results of {processor()}")
    if not native_bf16():
        reason = "the instruction sets are capped" if caps() else "the processor has no instructions for it"
        print(f"bf16 is left out: {reason}")


def described() -> str:
    """Return the machine's name, its threads, and the caps that are set."""
    limits = "".join(f", {name}={value}" for name, value in caps().items())
    return machine(torch.device("cpu")) + limits


@contextmanager
def attempt(what: str) -> Iterator[None]:
    """Run a part of a benchmark; where it fails, print one line and go on."""
    try:
        yield
    except Exception as error:
        first_line = next(iter(str(error).splitlines()), "")
        print(f"{what} is left out: {type(error).__name__}: {first_line}", flush=True)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Let torch use so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def packed(model: Module, precision: str) -> Module:
    """Return a copy of a model for inference in a precision."""
    model = deepcopy(model).eval()
    ops.pack(model, cast(ops.Precision, precision))
    return model


def autocast(precision: str) -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")


def take_turns(
    ours: Callable[[], object], theirs: Callable[[], object], pairs: int, pause: float = PAUSE
) -> list[list[float]]:
    """Return the milliseconds of each, pair by pair, after one run that is not counted.

    There is a `pause` in seconds before each run; what uses the same threads as the other needs none. What is slow is
    run less often: from `ENOUGH` pairs on, none begins after `SECONDS`.
    """
    times: list[list[float]] = [[], []]
    ours(), theirs()
    begin = time.perf_counter()
    for pair in range(pairs):
        if pair >= ENOUGH and time.perf_counter() - begin > SECONDS:
            break
        for run, taken in zip((ours, theirs), times, strict=True):
            time.sleep(pause)
            start = time.perf_counter()
            run()
            taken.append(1000 * (time.perf_counter() - start))
    return times


def resident(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith(field))


def compare(
    aims: Aims,
    what: str,
    peer: str,
    unit: str,
    ours: list[float],
    theirs: list[float] | None = None,
) -> dict[str, object]:
    """Return one row of the table, and print it: medians, and of theirs / ours the median and the quartiles."""
    at_least, hope = aims.get((what, peer), (None, None))
    row: dict[str, object] = {"what": what, "peer": peer, "ours": f"{statistics.median(ours):.4g}", "unit": unit}
    line = f"{what:42} {row['ours']:>6} {unit:2}"
    if theirs:
        q1, ratio, q3 = statistics.quantiles([b / a for a, b in zip(ours, theirs, strict=True)], n=4)
        row |= {"theirs": f"{statistics.median(theirs):.4g}", "ratio": f"{ratio:.2f}"}
        row |= {"quartile1": f"{q1:.2f}", "quartile3": f"{q3:.2f}"}
        line += f"   {peer} {row['theirs']:>6} {unit:2}   {ratio:.2f} × as fast ({q1:.2f} to {q3:.2f})"
    if at_least:
        line += f"   aim: {at_least}" + (f", hope {hope}" if hope else "")
    print(line, flush=True)
    return row | {"repeats": len(ours), "at_least": at_least, "hope": hope}


def read(table: Path) -> list[dict[str, str]]:
    """Return the rows of a table of results, none if there is no file."""
    if not table.exists():
        return []
    with table.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def append(table: Path, row: Mapping[str, object]) -> None:
    """Add a row to a table of results, so that a stopped benchmark continues after it."""
    new = not table.exists()
    with table.open("a", newline="", encoding="utf-8") as file:
        rows = csv.DictWriter(file, list(row), lineterminator="\n")
        if new:
            rows.writeheader()
        rows.writerow(row)


def write(
    rows: list[dict[str, object]], name: str, columns: Sequence[str], folder: Path = RESULTS, device: str = "cpu"
) -> Path:
    """Write the table of a benchmark on this device, each row with where it comes from, and return its path."""
    origin = provenance()
    where = described() if device == "cpu" else machine(torch.device(device))
    slug = processor() if device == "cpu" else re.sub(r"[^a-z0-9]+", "-", where.lower()).strip("-")
    common = {"command": origin["command"], "commit": origin["commit"], "machine": where}
    common |= {column: installed(column.removesuffix("_version")) for column in columns if column.endswith("_version")}
    result = folder / f"{name}-{slug}.csv"
    folder.mkdir(exist_ok=True)
    with result.open("w", newline="") as file:
        table = csv.DictWriter(file, columns, lineterminator="\n", extrasaction="ignore")
        table.writeheader()
        table.writerows(row | common for row in rows)
    print(f"written to {os.path.relpath(result)}")
    return result


def installed(package: str) -> str:
    """Return a package's version, or nothing."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
