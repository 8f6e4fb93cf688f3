"""DeiT-Tiny beside timm's same model: speed, memory, and how fast the program starts. Writes results/speed-vision.csv.

    python benchmarks/vision.py            # about five minutes on 2 cores
    python benchmarks/vision.py --pairs 5  # quicker, and rougher

Both models have the same weights and live in one process. They take turns, step by step, so that a machine that is
busy is so for both; a ratio is timm's time divided by ours within such a pair, and the table gives the median of all
pairs and their quartiles. Peak memory is a process's largest resident set less what it was before the first step (on
Linux), each model in fresh processes of its own.
"""

import argparse
import csv
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from glocal.interop.timm import state_from
from glocal.models import create_model
from glocal.training.devices import machine
from glocal.training.run import provenance

RESULT = Path(__file__).parents[1] / "results" / "speed-vision.csv"
COLUMNS = (
    *("what", "ours", "timm", "unit", "ratio", "quartile1", "quartile3", "repeats", "at_least", "hope"),
    *("command", "commit", "machine", "torch_version", "timm_version"),
)
BATCH = 16

AIMS = {  # at least, hoped for: ratios, and for the last two seconds
    "training step, float32": (1.0, 1.1),
    "training step, bf16": (1.3, 1.8),
    "inference, bf16": (1.2, 1.6),
    "peak memory of a step, float32": (1.0, 1.25),
    "peak memory of a step, bf16": (1.0, 1.25),
    "import glocal": (0.3, None),
    "glocal --help": (1.0, None),
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Time DeiT-Tiny of glocal and of timm, side by side.")
    parser.add_argument("--pairs", type=int, default=15, help="how often each is run (default: %(default)s)")
    parser.add_argument("--peak", nargs=2, metavar=("MODEL", "PRECISION"), help="only print one model's peak, in MB")
    args = parser.parse_args()
    if args.peak:
        print(peak_memory(*args.peak))
        return
    ours, theirs = models()
    rows = []
    for run in (training_step, inference):
        for precision in ("float32", "bf16"):
            what = f"{run.__name__.replace('_', ' ')}, {precision}"
            rows.append(compare(what, "ms", *take_turns(run(ours, precision), run(theirs, precision), args.pairs)))
    for precision in ("float32", "bf16") if platform.system() == "Linux" else ():
        peaks = [[peak_in_fresh_process(model, precision) for _ in range(3)] for model in ("glocal", "timm")]
        rows.append(compare(f"peak memory of a step, {precision}", "MB", *peaks))
    program = Path(sys.executable).with_name("glocal")
    for what, command in (
        ("import glocal", [sys.executable, "-c", "import glocal"]),
        ("glocal --help", [str(program), "--help"]),
    ):
        rows.append(compare(what, "s", [seconds(command) for _ in range(5)]))
    write(rows, RESULT, COLUMNS)


def models() -> tuple[nn.Module, nn.Module]:
    """Ours and timm's, with the same weights and so with the same logits."""
    torch.manual_seed(0)
    theirs = timm.create_model("deit_tiny_patch16_224")
    ours = create_model("deit-tiny")
    ours.load_state_dict(state_from(theirs.state_dict(), {"model": "vit"}))
    with torch.inference_mode():
        images = torch.randn(2, 3, 224, 224)
        torch.testing.assert_close(ours.eval()(images), theirs.eval()(images), atol=1e-5, rtol=0)
    return ours, theirs


def autocast(precision: str) -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")


def training_step(model: nn.Module, precision: str) -> Callable[[], None]:
    """Forward, backward and AdamW."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    images, labels = torch.randn(BATCH, 3, 224, 224), torch.randint(0, 1000, (BATCH,))

    def step() -> None:
        model.train()
        with autocast(precision):
            loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def inference(model: nn.Module, precision: str) -> Callable[[], Tensor]:
    images = torch.randn(BATCH, 3, 224, 224)

    def step() -> Tensor:
        model.eval()
        with autocast(precision), torch.inference_mode():
            return model(images)

    return step


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


def peak_memory(which: str, precision: str) -> float:
    """Peak of three training steps of a model alone, in MB, over what the process held before."""
    step = training_step(models()[which == "timm"], precision)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew, from what is held now
    before = resident("VmRSS")
    for _ in range(3):
        step()
    return resident("VmHWM") - before


def resident(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith(field))


def peak_in_fresh_process(which: str, precision: str) -> float:
    command = [sys.executable, __file__, "--peak", which, precision]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def seconds(command: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, capture_output=True, check=True)
    return time.perf_counter() - start


def compare(what: str, unit: str, ours: list[float], theirs: list[float] | None = None) -> dict[str, object]:
    """One row of the table, printed: medians, and of the ratios the median and the quartiles."""
    at_least, hope = AIMS.get(what, (None, None))
    row: dict[str, object] = {"what": what, "ours": f"{statistics.median(ours):.4g}", "unit": unit}
    line = f"{what:32} {row['ours']:>6} {unit:2}"
    if theirs:
        q1, ratio, q3 = statistics.quantiles([b / a for a, b in zip(ours, theirs, strict=True)], n=4)
        row |= {"timm": f"{statistics.median(theirs):.4g}", "ratio": f"{ratio:.2f}"}
        row |= {"quartile1": f"{q1:.2f}", "quartile3": f"{q3:.2f}"}
        line += f"   timm {row['timm']:>6} {unit:2}   {ratio:.2f} × better ({q1:.2f} to {q3:.2f})"
    if at_least:
        line += f"   aim: {at_least}" + (f", hope {hope}" if hope else "")
    print(line, flush=True)
    return row | {"repeats": len(ours), "at_least": at_least, "hope": hope}


def write(rows: list[dict[str, object]], result: Path, columns: Sequence[str]) -> None:
    """Write a table, each row with where it comes from."""
    origin = provenance()
    common = {
        "command": origin["command"],
        "commit": origin["commit"],
        "machine": machine(torch.device("cpu")),
        "torch_version": origin["versions"]["torch"],
        "timm_version": origin["versions"]["timm"],
    }
    result.parent.mkdir(exist_ok=True)
    with result.open("w", newline="") as file:
        table = csv.DictWriter(file, columns, lineterminator="\n", extrasaction="ignore")
        table.writeheader()
        table.writerows(row | common for row in rows)
    print(f"written to {os.path.relpath(result)}")


if __name__ == "__main__":
    main()
