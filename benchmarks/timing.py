"""What all benchmarks share: taking turns, a row of the table, and the file that it is written to."""

import csv
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import torch

from glocal.training.devices import machine
from glocal.training.run import provenance


def autocast(precision: str) -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")


def take_turns(ours: Callable[[], object], theirs: Callable[[], object], pairs: int) -> list[list[float]]:
    """Milliseconds of each, pair by pair, after two runs that are not counted."""
    times: list[list[float]] = [[], []]
    for pair in range(-2, pairs):
        for run, taken in zip((ours, theirs), times, strict=True):
            start = time.perf_counter()
            run()
            if pair >= 0:
                taken.append(1000 * (time.perf_counter() - start))
    return times


def resident(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith(field))


def compare(
    aims: Mapping[str, tuple[float | None, float | None]],
    what: str,
    unit: str,
    ours: list[float],
    theirs: list[float] | None = None,
    *,
    other: str = "timm",
) -> dict[str, object]:
    """One row of the table, printed: medians, and of the ratios theirs / ours the median and the quartiles.

    `aims` has for what is asked for the least and what is hoped for.
    """
    at_least, hope = aims.get(what, (None, None))
    row: dict[str, object] = {"what": what, "ours": f"{statistics.median(ours):.4g}", "unit": unit}
    line = f"{what:40} {row['ours']:>6} {unit:2}"
    if theirs:
        q1, ratio, q3 = statistics.quantiles([b / a for a, b in zip(ours, theirs, strict=True)], n=4)
        row |= {other: f"{statistics.median(theirs):.4g}", "ratio": f"{ratio:.2f}"}
        row |= {"quartile1": f"{q1:.2f}", "quartile3": f"{q3:.2f}"}
        line += f"   {other} {row[other]:>6} {unit:2}   {ratio:.2f} × better ({q1:.2f} to {q3:.2f})"
    if at_least:
        line += f"   aim: {at_least}" + (f", hope {hope}" if hope else "")
    print(line, flush=True)
    return row | {"repeats": len(ours), "at_least": at_least, "hope": hope}


def write(rows: list[dict[str, object]], result: Path, columns: Sequence[str], device: str = "cpu") -> None:
    """Write a table, each row with where it comes from and the device that was timed."""
    origin = provenance()
    common = {
        "command": origin["command"],
        "commit": origin["commit"],
        "machine": machine(torch.device(device)),
    }
    common |= {name: version(name.removesuffix("_version")) for name in columns if name.endswith("_version")}
    result.parent.mkdir(exist_ok=True)
    with result.open("w", newline="") as file:
        table = csv.DictWriter(file, columns, lineterminator="\n", extrasaction="ignore")
        table.writeheader()
        table.writerows(row | common for row in rows)
    print(f"written to {os.path.relpath(result)}")
