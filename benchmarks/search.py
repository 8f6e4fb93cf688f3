"""What the search saves: the cost of a supernet's step, and of a generation as a tree and as a race.

    python benchmarks/search.py             # about seven minutes of one free core
    python benchmarks/search.py --pairs 3   # quicker, and rougher

Writes results/speed-search-PROCESSOR.csv. Steps are in bf16 where the processor computes in it, else in float32.

The scale is CIFAR-10's: 32×32 images, patches of 4, 12 blocks of 3 heads and width 96, each with GLiT's full
space. All runs on one thread. The time is that which the processor spent, to which other programs add little, and what
is compared takes turns. A ratio is ours divided by the other, so lower is better: the median and the quartiles.

    local     the training step of a path cut out as a plain model, beside the same with local heads by torch's own GLU
              and convolution
    step      the entangled supernet's training step beside the step of the plain model of the same path, path by path
    memory    peak of three steps over what a process held before it built the model, each in fresh processes of its own
    tree      generations of a simulated evolution, evaluated together and path by path with the same supernet, whose
              weights are random; the accuracies are the same, to the bit
    race      all of two simulated evolutions, evaluated as a tree and a race: not timed, but counted in the
              multiply-accumulates of blocks, calibration included; and whether the ten best are the same

The simulation stands for a trained supernet and 5000 images: an option makes all images a little easier or harder,
and each single image too. The standard deviation of random paths' accuracies is some 1.4 percent, and paths that share
options make similar errors.
"""

import argparse
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from timing import attempt, introduce, resident, training_precisions, write
from torch import Tensor, nn
from torch.nn import functional as F

from glocal import ops
from glocal.layers.block import BlockConfig, uniform_blocks
from glocal.models import GLiT, ViTConfig
from glocal.search.budget import Architecture, Budget, random_path
from glocal.search.cost import cost_table
from glocal.search.evaluator import Evaluator
from glocal.search.evolution import EvolutionConfig, evolve
from glocal.search.space import SpaceConfig, full_space
from glocal.search.supernet import BlockFunction, Supernet
from glocal.tasks.classification import ClassificationConfig, ClassificationObjective
from glocal.training import open_accelerator

COLUMNS = (
    *("what", "precision", "ours", "other", "unit", "ratio", "quartile1", "quartile3", "repeats", "at_most", "hope"),
    *("command", "commit", "machine", "torch_version"),
)
AIMS = {  # at most, hoped for
    "step of a GLiT by the local heads of ops": (1.0, None),
    "step of the supernet": (1.2, 1.05),
    "peak memory of a step": (1.3, 1.1),
    "generation as a tree": (0.8, 0.7),
    "generation as a tree and a race": (0.5, 0.35),
    "generations whose ten best a race changes": (0.05, None),
}

BLOCKS = uniform_blocks(12, embed_dim=96, num_heads=3)
CONFIG = ViTConfig(image_size=(32, 32), num_classes=10, patch_size=4, blocks=BLOCKS)
SPACE = full_space(BLOCKS, SpaceConfig())
PRECISION = training_precisions()[-1]  # bf16 where it is native
BATCH = 128
TASK = ClassificationObjective(ClassificationConfig(), num_classes=10)
IMAGES, CALIBRATION = 5000, 512  # of the simulation
TIMED, NOISE = (4, 14), 32  # generations, counted from 0, and images that they are evaluated on


def main() -> None:
    parser = argparse.ArgumentParser(description="Time the supernet and the evaluation of its paths.")
    parser.add_argument("--pairs", type=int, default=5, help="how many paths take a step (default: %(default)s)")
    parser.add_argument("--peak", choices=("supernet", "plain"), help="only print one model's peak, in MB")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if args.peak:
        print(peak_memory(args.peak))
        return
    introduce()
    rows = []
    with attempt("step of a GLiT by the local heads of ops"):
        rows.append(compare("step of a GLiT by the local heads of ops", "ms", *local_heads(args.pairs)))
    with attempt("step of the supernet"):
        rows.append(compare("step of the supernet", "ms", *steps(args.pairs)))
    if Path("/proc/self/clear_refs").exists():
        with attempt("peak memory of a step"):
            peaks = [[peak_in_fresh_process(model) for _ in range(3)] for model in ("supernet", "plain")]
            rows.append(compare("peak memory of a step", "MB", *peaks))
    with attempt("generations as a tree and a race"):
        generations, raced, alone, changed = simulated_evolutions()
        rows.append(compare("generation as a tree", "s", *tree(generations)))
        rows.append(compare("generation as a tree and a race", "TMAC", raced, alone))
        rows.append(compare("generations whose ten best a race changes", "share", changed))
    write([row | {"precision": PRECISION} for row in rows], "speed-search", COLUMNS)


def training_step(model: nn.Module) -> Callable[..., None]:
    """Forward, backward and AdamW; arguments go to the model, beside the images."""
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=1e-4, fused=True)
    images, labels = torch.randn(BATCH, 3, 32, 32), torch.randint(0, 10, (BATCH,))

    def step(**args: Any) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=PRECISION == "bf16"):
            loss = F.cross_entropy(model(images, **args), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def local_heads(count: int) -> list[list[float]]:
    """Milliseconds of the plain model's step and of the same by plain torch, path by path."""
    ours = ops.glu, ops.depthwise
    torchs = (lambda x, layer: F.glu(layer(x))), (lambda x, conv: conv(x))
    times: list[list[float]] = [[], []]
    for seed in range(count):
        step = training_step(Supernet(GLiT(CONFIG), SPACE).extract_subnet(random_path(SPACE, random.Random(seed))))
        for functions, its_times in zip((ours, torchs), times, strict=True):
            ops.glu, ops.depthwise = functions
            step()  # not counted
            its_times.append(1000 * seconds(step))
        ops.glu, ops.depthwise = ours
    return times


def steps(count: int) -> list[list[float]]:
    """Milliseconds of the supernet's step and of the plain model's, for each of some random paths."""
    supernet = Supernet(GLiT(CONFIG), SPACE)
    step = training_step(supernet)
    times: list[list[float]] = [[], []]
    for seed in range(count):
        path = random_path(SPACE, random.Random(seed))
        plain = training_step(supernet.extract_subnet(path))
        step(path=path), plain()  # not counted
        times[0].append(1000 * seconds(partial(step, path=path)))
        times[1].append(1000 * seconds(plain))
    return times


def peak_memory(which: str) -> float:
    """MB that three steps on the largest path need, the model included; the supernet's second is on all other heads."""
    size = cost_table("parameters", GLiT(CONFIG))
    largest = tuple(max(options, key=size.of_block) for options in SPACE)
    attention = tuple(
        max(options, key=lambda option: (not option.local_heads, size.of_block(option))) for options in SPACE
    )
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew, from what is held now
    before = resident("VmRSS")
    if which == "supernet":
        step = training_step(Supernet(GLiT(CONFIG), SPACE))
        for path in (largest, attention, largest):
            step(path=path)
    else:
        step = training_step(GLiT(replace(CONFIG, blocks=largest)))
        for _ in range(3):
            step()
    return resident("VmHWM") - before


def peak_in_fresh_process(which: str) -> float:
    command = [sys.executable, __file__, "--peak", which]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def simulated_evolutions() -> tuple[list[list[Architecture]], list[float], list[float], list[float]]:
    """Return the generations, the cost of each as a tree and a race and one by one, and whether its best changed."""
    net = Simulation()
    evaluators: Any = {
        survivors: Evaluator(net, TASK, net, "val", open_accelerator("float32"), CALIBRATION, survivors=survivors)  # type: ignore[arg-type]
        for survivors in (None, EvolutionConfig().parents)
    }
    generations, raced, alone, changed = [], [], [], []

    def fitness(paths: list[Architecture]) -> list[float]:
        accuracies = [record["fitness"] for record in evaluators[None](paths)]
        net.spent = 0
        records = evaluators[EvolutionConfig().parents](paths)
        ranking = sorted(range(len(paths)), key=lambda i: -records[i]["fitness"])
        best = sorted(accuracies[i] for i in ranking[: EvolutionConfig().parents])
        generations.append(paths)
        raced.append(net.spent / 1e12)
        alone.append(sum(net.cost.known[option] for path in paths for option in path) * (IMAGES + CALIBRATION) / 1e12)
        changed.append(float(best != sorted(accuracies)[-EvolutionConfig().parents :]))
        return accuracies

    for seed in range(2):
        for _ in evolve(SPACE, fitness, Budget(net.cost, upper=net.mean_cost), EvolutionConfig(seed=seed)):
            pass
    return generations, raced, alone, changed


class Simulation(nn.Module):
    """A trained supernet and its data, without either: an image's only token is its number and how easy it is."""

    def __init__(self) -> None:
        super().__init__()
        self.spent, self.has_batch_norm = 0, True
        self.images = torch.stack([torch.arange(float(IMAGES)), 0.6 + 0.35 * torch.randn(IMAGES)], dim=1)
        self.cost = cost_table("macs", GLiT(CONFIG))
        self.cost.add(option for options in SPACE for option in options)
        self.mean_cost = statistics.fmean(self.cost(random_path(SPACE, random.Random(seed))) for seed in range(200))
        self.shared_blocks = [SimulatedBlock(self, options) for options in SPACE]

    def train_batches(self, batch_size: int, epoch: int) -> list[dict[str, Tensor]]:
        """Images to calibrate on."""
        return self.eval_batches("train", batch_size)

    def eval_batches(self, split: str, batch_size: int) -> list[dict[str, Tensor]]:
        """All images, of class 1."""
        return [
            {"pixel_values": p, "labels": torch.ones(len(p), dtype=torch.long)} for p in self.images.split(batch_size)
        ]

    def with_blocks(self, blocks: Sequence[BlockFunction]) -> "SimulatedModel":
        """A model of some blocks."""
        return SimulatedModel(blocks)


class SimulatedModel(nn.Module):
    """An image that is easy enough after all blocks gets its own class."""

    def __init__(self, blocks: Sequence[BlockFunction]) -> None:
        super().__init__()
        self.blocks = blocks

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Logits of both classes."""
        tokens = pixel_values
        for block in self.blocks:
            tokens = block(tokens)
        return torch.stack([torch.zeros(len(tokens)), tokens[:, 1]], dim=1)


class SimulatedBlock:
    """Each option makes all images easier by one amount, and each image by another amount."""

    def __init__(self, net: Simulation, options: Sequence[BlockConfig]) -> None:
        skill = 0.03 * torch.randn(len(options), 1) + 0.25 * torch.randn(len(options), IMAGES)
        self.net, self.easier = net, dict(zip(options, skill / len(SPACE) ** 0.5, strict=True))

    def __call__(self, option: BlockConfig, tokens: Tensor, statistics: object = None) -> Tensor:
        """Refine the tokens."""
        self.net.spent += int(self.net.cost.known[option]) * len(tokens)
        return torch.stack([tokens[:, 0], tokens[:, 1] + self.easier[option][tokens[:, 0].long()]], dim=1)

    def calibrate(self, option: BlockConfig, tokens: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The same; there are no statistics."""
        return self(option, tokens), {}


def tree(generations: list[list[Architecture]]) -> list[list[float]]:
    """Seconds that some generations take as a tree and one by one, with a few images of noise."""
    supernet = Supernet(GLiT(CONFIG), SPACE)
    for weight in supernet.frame.head.parameters():  # drawn as zeros, with which all answers are the same
        nn.init.normal_(weight)
    accelerator = open_accelerator(PRECISION)
    evaluator = Evaluator(supernet, TASK, Noise(), "val", accelerator, calibration=NOISE, batch_size=NOISE)
    times: list[list[float]] = [[], []]
    for number in TIMED:
        together: list[Any] = []
        alone: list[Any] = []
        paths = generations[number]
        times[0].append(seconds(lambda: together.extend(evaluator(paths))))  # noqa: B023
        times[1].append(seconds(lambda: alone.extend(evaluator([path])[0] for path in paths)))  # noqa: B023
        assert together == alone
    return times


class Noise:
    """A batch of labelled images without meaning, the same at every call."""

    def train_batches(self, *_: object, **__: object) -> list[dict[str, Tensor]]:
        """To calibrate on."""
        images = torch.randn(NOISE, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        return [{"pixel_values": images, "labels": torch.arange(NOISE) % 10}]

    eval_batches = train_batches


def seconds(run: Callable[..., object], *args: object) -> float:
    """What the processor spends on it."""
    start = time.process_time()
    run(*args)
    return time.process_time() - start


def compare(what: str, unit: str, ours: list[float], other: list[float] | None = None) -> dict[str, object]:
    """One row of the table, printed: medians, and of the ratios the median and the quartiles; or a mean alone."""
    at_most, hope = AIMS[what]
    row: dict[str, object] = {"what": what, "unit": unit, "repeats": len(ours), "at_most": at_most, "hope": hope}
    if other is None:
        row |= {"ours": f"{statistics.fmean(ours):.4g}"}
        line = f"{what:42} {row['ours']:>6} {unit}"
    else:
        q1, ratio, q3 = statistics.quantiles([a / b for a, b in zip(ours, other, strict=True)], n=4)
        row |= {"ours": f"{statistics.median(ours):.4g}", "other": f"{statistics.median(other):.4g}"}
        row |= {"ratio": f"{ratio:.2f}", "quartile1": f"{q1:.2f}", "quartile3": f"{q3:.2f}"}
        line = f"{what:42} {row['ours']:>6} of {row['other']:>6} {unit}: {ratio:.2f} × ({q1:.2f} to {q3:.2f})"
    print(f"{line}   aim: {at_most}" + (f", hope {hope}" if hope else ""), flush=True)
    return row


if __name__ == "__main__":
    main()
