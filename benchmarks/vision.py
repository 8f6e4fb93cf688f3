"""DeiT-Tiny beside timm's same model and ONNX Runtime: speed, memory, and how fast the program starts.

    python benchmarks/vision.py            # about five minutes on 2 cores
    python benchmarks/vision.py --pairs 3  # quicker, and rougher

Writes results/speed-vision-PROCESSOR.csv. Both models have the same weights and live in one process. They take turns,
step by step, so that a machine that is busy is so for both; a ratio is the peer's time divided by ours within such a
pair, and the table gives the median of all pairs and their quartiles. Training and inference beside timm have a batch
of 16. Peak memory is a process's largest resident set less what it was before the first step (on Linux), each model in
fresh processes of its own.
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
from timing import (
    COLUMNS,
    Aims,
    attempt,
    autocast,
    compare,
    introduce,
    resident,
    take_turns,
    training_precisions,
    write,
)
from torch import Tensor, nn
from torch.nn import functional as F

from glocal.interop.timm import state_from
from glocal.models import create_model

BATCH = 16

AIMS: Aims = {  # at least, hoped for: ratios, and seconds
    ("training step, float32", "timm"): (1.0, 1.1),
    ("training step, bf16", "timm"): (1.35, 1.6),
    ("inference, float32", "timm"): (1.0, 1.2),
    ("inference, bf16", "timm"): (1.2, 1.6),
    ("peak memory of a step, float32", "timm"): (1.0, 1.25),
    ("peak memory of a step, bf16", "timm"): (1.0, 1.25),
    ("import glocal", ""): (0.3, None),
    ("glocal --help", ""): (1.0, None),
} | {
    (f"inference, batch {batch}, {count}, {precision}", f"ONNX Runtime {precision}"): (0.95, 1.2)
    for batch in (1, 16)
    for count in ("1 thread", "all threads")
    for precision in ("float32", "int8")
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Time DeiT-Tiny of glocal beside timm and ONNX Runtime.")
    parser.add_argument("--pairs", type=int, default=15, help="how often each is run at most (default: %(default)s)")
    parser.add_argument("--peak", nargs=2, metavar=("MODEL", "PRECISION"), help="only print one model's peak, in MB")
    args = parser.parse_args()
    if args.peak:
        print(peak_memory(*args.peak))
        return
    introduce()
    ours, theirs = models()
    rows = []
    for batch in (1, 16):
        with attempt(f"inference, batch {batch}, ONNX Runtime"):
            from onnx_runtime import compare_inference

            images = torch.randn(batch, 3, 224, 224)
            rows += compare_inference(f"inference, batch {batch}", AIMS, ours, theirs, images, args.pairs)
    for run in (training_step, inference):
        for precision in training_precisions():
            what = f"{run.__name__.replace('_', ' ')}, {precision}"
            with attempt(f"{what}, timm"):
                times = take_turns(run(ours, precision), run(theirs, precision), args.pairs)
                rows.append(compare(AIMS, what, "timm", "ms", *times))
    for precision in training_precisions() if platform.system() == "Linux" else ():
        with attempt(f"peak memory of a step, {precision}"):
            peaks = [[peak_in_fresh_process(model, precision) for _ in range(3)] for model in ("glocal", "timm")]
            rows.append(compare(AIMS, f"peak memory of a step, {precision}", "timm", "MB", *peaks))
    program = Path(sys.executable).with_name("glocal")
    for what, command in (
        ("import glocal", [sys.executable, "-c", "import glocal"]),
        ("glocal --help", [str(program), "--help"]),
    ):
        with attempt(what):
            rows.append(compare(AIMS, what, "", "s", [seconds(command) for _ in range(5)]))
    write(rows, "speed-vision", (*COLUMNS, "timm_version", "onnxruntime_version"))


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
