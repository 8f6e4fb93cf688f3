"""DeiT-Tiny beside timm's same model: speed, memory, and how fast the program starts. Writes results/speed-vision.csv.

    python benchmarks/vision.py            # about five minutes on 2 cores
    python benchmarks/vision.py --pairs 5  # quicker, and rougher

Both models have the same weights and live in one process. They take turns, step by step, so that a machine that is
busy is so for both; a ratio is timm's time divided by ours within such a pair, and the table gives the median of all
pairs and their quartiles. Peak memory is a process's largest resident set less what it was before the first step (on
Linux), each model in fresh processes of its own.
"""

import argparse
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import timm
import torch
from timing import autocast, compare, resident, take_turns, write
from torch import Tensor, nn
from torch.nn import functional as F

from glocal.interop.timm import state_from
from glocal.models import create_model

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
            times = take_turns(run(ours, precision), run(theirs, precision), args.pairs)
            rows.append(compare(AIMS, what, "ms", *times))
    for precision in ("float32", "bf16") if platform.system() == "Linux" else ():
        peaks = [[peak_in_fresh_process(model, precision) for _ in range(3)] for model in ("glocal", "timm")]
        rows.append(compare(AIMS, f"peak memory of a step, {precision}", "MB", *peaks))
    program = Path(sys.executable).with_name("glocal")
    for what, command in (
        ("import glocal", [sys.executable, "-c", "import glocal"]),
        ("glocal --help", [str(program), "--help"]),
    ):
        rows.append(compare(AIMS, what, "s", [seconds(command) for _ in range(5)]))
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


def peak_memory(which: str, precision: str) -> float:
    """Peak of three training steps of a model alone, in MB, over what the process held before."""
    step = training_step(models()[which == "timm"], precision)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew, from what is held now
    before = resident("VmRSS")
    for _ in range(3):
        step()
    return resident("VmHWM") - before


def peak_in_fresh_process(which: str, precision: str) -> float:
    command = [sys.executable, __file__, "--peak", which, precision]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def seconds(command: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, capture_output=True, check=True)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
