"""DeiT, BERT-Base and GPT-2 training in bf16 on a GPU, beside timm and transformers: speed, and the share of its peak.

    python benchmarks/gpu.py                      # five to ten minutes; most of it is compilation
    python benchmarks/gpu.py --minutes 3          # begins with no further model after three minutes
    python benchmarks/gpu.py --device cpu --tiny  # small models, compiled without code: only to try the program

Writes results/speed-gpu-DEVICE.csv. Both sides have the same weights, get the same batch, which is on the device
already, and are first checked to have the same loss. A step is forward, backward and fused AdamW under autocast, once
eager and once by torch.compile, with PyTorch's own attention kernels (SDPA) on both sides. All four take turns; a ratio
is our speed divided by theirs within such a round, and the table gives the median of all rounds and their quartiles.
`best` compares the faster way of each side.

The share of the peak is the model's FLOPs / time / the card's dense bf16 peak. A training step is three forward passes
of two FLOPs a multiply-accumulate, attention in full even where it is causal, BERT's vocabulary at masked tokens alone.
"""

import argparse
import re
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import timm
import torch
from timing import write
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BertConfig, BertForPreTraining, GPT2Config, GPT2LMHeadModel
from transformers.utils import logging

from glocal.interop.timm import state_from
from glocal.models import create_model, load_model
from glocal.models.cost import count
from glocal.tasks.causal_lm import CausalLMObjective
from glocal.tasks.classification import ClassificationConfig, ClassificationObjective
from glocal.tasks.masked_lm import MaskedLMObjective
from glocal.training import compiling
from glocal.training.devices import machine
from glocal.training.step import LossModule

RESULTS = Path(__file__).parents[1] / "results"
COLUMNS = (
    *("model", "batch", "way", "ours", "theirs", "peer", "unit", "ratio", "quartile1", "quartile3", "repeats"),
    *("our_share_of_peak", "their_share_of_peak"),
    *("command", "commit", "machine", "torch_version", "timm_version", "transformers_version"),
)
WAYS = ("eager", "compiled")
MASKED = 0.15
"""Share of the tokens that BERT guesses."""

PEAKS = {
    "B200": 2250,
    "GH200": 989,
    "H200": 989,
    "H100 NVL": 835,
    "H100 PCIe": 756,
    "H100": 989,
    "A100": 312,
    "A30": 165,
    "A10G": 70,
    "A10": 125,
    "L40S": 362,
    "L40": 181,
    "L4": 121,
    "RTX 4090": 165,
    "RTX 3090": 71,
    "RTX A6000": 155,
}
"""Teraflops a second of dense products in bf16 with sums in float32, by a part of the name that CUDA gives the card, as
the makers state them. The first part that fits counts."""


@dataclass
class Contest:
    """A model of ours and the same of a peer's, and the batch that both learn from."""

    peer: str
    unit: str
    units: int
    """Images or tokens of a step."""
    flops: float
    """Of a training step."""
    ours: nn.Module
    theirs: nn.Module
    task: Any
    batch: dict[str, Tensor]
    their_loss: Callable[[], Tensor]

    def our_loss(self) -> Tensor:
        """Loss of our model, by the task that training has."""
        return self.task.loss(self.ours, self.batch).sum()

    def check(self) -> None:
        """Raise SystemExit where the two do not have the same loss in float32."""
        self.ours.eval()
        self.theirs.eval()
        with torch.no_grad():
            ours, theirs = self.our_loss().item(), self.their_loss().item()
        if abs(ours - theirs) > 1e-3 * abs(theirs):
            raise SystemExit(f"our loss is {ours} and that of {self.peer} {theirs}: no comparison")


def main() -> None:
    args = parse_args()
    device = torch.device(args.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit("no CUDA device: torch.cuda.is_available() is False; --device cpu --tiny tries the program")
    if args.tiny:
        compiling.SETTINGS = {"backend": "aot_eager"}
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    name, peak = machine(device), find_peak(device)
    print(f"{name}; peak in bf16: {f'{peak:g} TFLOPS' if peak else 'unknown'}")
    rows: list[dict[str, object]] = []
    start = time.perf_counter()
    for model in args.models or BUILDERS:
        if time.perf_counter() - start > 60 * args.minutes:
            print(f"{model}: left out, {args.minutes:g} minutes are over (--minutes)")
            continue
        rows += compare(model, device, args.tiny, args.rounds, args.steps, peak)
    write(rows, "speed-gpu", COLUMNS, args.results, args.device)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Time training on a GPU beside timm and transformers.")
    parser.add_argument("--device", default="cuda", help="default: %(default)s")
    parser.add_argument("--tiny", action="store_true", help="small models: no figures, only a trial of the program")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin with no further model after these")
    parser.add_argument("--rounds", type=int, help="turns of each (default: 9; tiny 2)")
    parser.add_argument("--steps", type=int, help="steps of a turn (default: 10; tiny 1)")
    parser.add_argument("--models", nargs="+", choices=BUILDERS, help="only these")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the table (default: results/)")
    args = parser.parse_args()
    args.rounds = args.rounds or (2 if args.tiny else 9)
    args.steps = args.steps or (1 if args.tiny else 10)
    return args


def find_peak(device: torch.device) -> float | None:
    """Peak of a card in teraflops; None where the table has no part of its name."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in PEAKS.items() if re.search(rf"\b{part}\b", name)), None)


def compare(
    model: str, device: torch.device, tiny: bool, rounds: int, steps: int, peak: float | None
) -> Iterator[dict[str, object]]:
    """Rows of a model; where the card's memory does not hold its batch, of half as large a one."""
    batch = 2 if tiny else BUILDERS[model][1]
    while True:
        try:
            contest, speeds = measure(model, batch, device, tiny, rounds, steps)
            break
        except torch.OutOfMemoryError:
            if batch == 1:
                raise
            batch //= 2
        torch.cuda.empty_cache()
    best = [max(WAYS, key=lambda way: statistics.median(speeds[side, way])) for side in ("ours", "theirs")]
    pairings = {way: [way, way] for way in WAYS} | {"best": best}
    for name, ways in pairings.items():
        ours, theirs = speeds["ours", ways[0]], speeds["theirs", ways[1]]
        yield row(contest, model, batch, name, ours, theirs, peak)


def measure(
    model: str, batch: int, device: torch.device, tiny: bool, rounds: int, steps: int
) -> tuple[Contest, dict[tuple[str, str], list[float]]]:
    torch.manual_seed(0)
    contest = BUILDERS[model][0](batch, device, tiny)
    contest.check()
    return contest, take_turns(contest, device, rounds, steps)


def take_turns(contest: Contest, device: torch.device, rounds: int, steps: int) -> dict[tuple[str, str], list[float]]:
    """Images or tokens a second of each side and way, round by round, after a round that is not counted."""
    loss_module = LossModule(contest.task, contest.ours)
    compiled = compiling.Compiled(loss_module, contest.task, contest.batch)
    settings = compiling.SETTINGS if "backend" in compiling.SETTINGS else {}
    our_step, their_step = (partial(step, build_optimizer(net), net, device) for net in (contest.ours, contest.theirs))
    turns: dict[tuple[str, str], Callable[[], None]] = {
        ("ours", "eager"): partial(our_step, contest.our_loss),
        ("theirs", "eager"): partial(their_step, contest.their_loss),
        ("ours", "compiled"): partial(our_step, partial(compiled, contest.batch)),
        ("theirs", "compiled"): partial(their_step, torch.compile(contest.their_loss, **settings)),
    }
    speeds: dict[tuple[str, str], list[float]] = {key: [] for key in turns}
    for number in range(-1, rounds):
        for key, turn in turns.items():
            synchronize(device)
            start = time.perf_counter()
            for _ in range(steps):
                turn()
            synchronize(device)
            if number >= 0:
                speeds[key].append(steps * contest.units / (time.perf_counter() - start))
    return speeds


def build_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.train().parameters(), lr=1e-5, fused=True)


def step(optimizer: torch.optim.Optimizer, model: nn.Module, device: torch.device, loss: Callable[[], Tensor]) -> None:
    model.train()
    with torch.autocast(device.type, torch.bfloat16):
        value = loss()
    value.backward()
    optimizer.step()
    optimizer.zero_grad()


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def row(
    contest: Contest, model: str, batch: int, way: str, ours: list[float], theirs: list[float], peak: float | None
) -> dict[str, object]:
    """One row of the table, printed."""
    q1, ratio, q3 = statistics.quantiles([a / b for a, b in zip(ours, theirs, strict=True)], n=4)
    speeds = statistics.median(ours), statistics.median(theirs)
    shares = ["unknown" if peak is None else f"{share_of_peak(contest, speed, peak):.3f}" for speed in speeds]
    print(
        f"{model:11} {way:9} {speeds[0]:>9,.0f} {contest.unit:8}   {contest.peer} {speeds[1]:>9,.0f}   "
        f"{ratio:.2f} × as fast ({q1:.2f} to {q3:.2f})   share of peak {shares[0]}, {contest.peer} {shares[1]}",
        flush=True,
    )
    return {
        "model": model,
        "batch": batch,
        "way": way,
        "ours": f"{speeds[0]:.4g}",
        "theirs": f"{speeds[1]:.4g}",
        "peer": contest.peer,
        "unit": contest.unit,
        "ratio": f"{ratio:.2f}",
        "quartile1": f"{q1:.2f}",
        "quartile3": f"{q3:.2f}",
        "repeats": len(ours),
        "our_share_of_peak": shares[0],
        "their_share_of_peak": shares[1],
    }


def share_of_peak(contest: Contest, speed: float, peak: float) -> float:
    return contest.flops * speed / contest.units / (peak * 1e12)


def training_flops(model: nn.Module, size: tuple[int, int] | int, head_share: float = 1.0) -> float:
    """FLOPs of a training step on one example: three forward passes, the head's for a share of the tokens."""
    rows = count(model, size).rows
    return 6.0 * sum(row.macs * (head_share if row.name == "head" else 1.0) for row in rows)


def deit(name: str, batch: int, device: torch.device, tiny: bool) -> Contest:
    side = 32 if tiny else 224
    fields: dict[str, Any] = {"depth": 1, "embed_dim": 48, "num_heads": 3} if tiny else {}
    theirs = timm.create_model(f"{name.replace('-', '_')}_patch16_224", img_size=side, **fields).to(device)
    ours = create_model(name, image_size=side, **fields)
    ours.load_state_dict(state_from(theirs.state_dict(), {"model": "vit"}))
    images = torch.randn(batch, 3, side, side, device=device)
    labels = torch.randint(0, 1000, (batch,), device=device)
    return Contest(
        peer="timm",
        unit="images/s",
        units=batch,
        flops=batch * training_flops(ours, (side, side)),
        ours=ours.to(device),
        theirs=theirs,
        task=ClassificationObjective(ClassificationConfig(), 1000),
        batch={"pixel_values": images, "labels": labels},
        their_loss=lambda: F.cross_entropy(theirs(images).float(), labels),
    )


def shared(theirs: Any, device: torch.device) -> tuple[Any, Any]:
    """A model of ours with the weights of theirs, and theirs."""
    with TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        return load_model(folder).to(device), theirs.to(device)


def bert(batch: int, device: torch.device, tiny: bool) -> Contest:
    length = 32 if tiny else 512
    fields: dict[str, Any] = {"attn_implementation": "sdpa"}
    if tiny:
        fields |= {"vocab_size": 200, "hidden_size": 48, "num_hidden_layers": 1, "num_attention_heads": 3}
    config = BertConfig(**fields)
    ours, theirs = shared(BertForPreTraining(config), device)
    ids = torch.randint(100, config.vocab_size, (batch, length), device=device)
    inputs = {
        "input_ids": ids,
        "token_type_ids": (torch.arange(length, device=device) >= length // 2).long().expand(batch, -1),
        "labels": ids.masked_fill(torch.rand(batch, length, device=device) >= MASKED, -100),
        "next_sentence_label": torch.randint(0, 2, (batch,), device=device),
    }
    return Contest(
        peer="transformers",
        unit="tokens/s",
        units=batch * length,
        flops=batch * training_flops(ours, length, MASKED),
        ours=ours,
        theirs=theirs,
        task=MaskedLMObjective(),
        batch=inputs,
        their_loss=lambda: theirs(**inputs).loss,
    )


def gpt2(batch: int, device: torch.device, tiny: bool) -> Contest:
    length = 32 if tiny else 1024
    fields: dict[str, Any] = {"attn_implementation": "sdpa"}
    if tiny:
        fields |= {"vocab_size": 200, "n_embd": 48, "n_layer": 1, "n_head": 3, "bos_token_id": 0, "eos_token_id": 0}
    config = GPT2Config(**fields)
    ours, theirs = shared(GPT2LMHeadModel(config), device)
    ids = torch.randint(0, config.vocab_size, (batch, length), device=device)
    labels = ids.roll(-1, 1)
    labels[:, -1] = -100
    return Contest(
        peer="transformers",
        unit="tokens/s",
        units=batch * length,
        flops=batch * training_flops(ours, length),
        ours=ours,
        theirs=theirs,
        task=CausalLMObjective(),
        batch={"input_ids": ids, "labels": labels},
        their_loss=lambda: theirs(input_ids=ids, labels=ids, use_cache=False).loss,
    )


BUILDERS: dict[str, tuple[Callable[[int, torch.device, bool], Contest], int]] = {
    "gpt2": (gpt2, 16),
    "deit-tiny": (partial(deit, "deit-tiny"), 256),
    "bert-base": (bert, 32),
    "deit-small": (partial(deit, "deit-small"), 256),
}
"""What is compared, and images or texts of a batch."""


if __name__ == "__main__":
    main()
