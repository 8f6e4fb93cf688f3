"""The cost of a path, from a table of its parts: the frame, which is all but the blocks, and each block.

    cost(path) = cost(frame) + Σ cost(block)

A search needs the cost of thousands of paths, which consist of a few hundred different blocks; each is measured when it
first occurs. For parameters and multiply-accumulates the sum is exact, and equals `inference.count` of the
whole model. For milliseconds it is an estimate from parts that were timed one by one.
"""

import json
import statistics
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from functools import cache
from math import prod
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from glocal.errors import GlocalError
from glocal.files import write_json
from glocal.layers.block import Block, BlockConfig, BlockList
from glocal.models.vit import ViT, ViTConfig
from glocal.search.space import Blocks
from glocal.training.devices import choose_precision, machine, this_process

CostKind = Literal["macs", "parameters", "milliseconds"]
Precision = Literal["auto", "float32", "bf16", "fp16"]

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
REPEATS = 9
"""Rounds over all parts; the time of a part is the median."""


class CostTable(ABC):
    """A callable that returns the cost of a path; `config` holds the width and all fields but the blocks."""

    def __init__(self, config: ViTConfig) -> None:
        self.config = replace(config, blocks=config.blocks[:1])
        with torch.device("meta"):
            net = ViT(self.config)
        self.tokens = net.num_prefix_tokens + prod(net.grid)
        self.known: dict[BlockConfig | None, float | int] = {}
        """Cost of each part so far; None is the frame."""

    def __call__(self, path: Blocks) -> float | int:
        """Return the sum of the frame and the blocks of a path; in each block all tokens count."""
        self.add(path)
        return self.known[None] + sum(self.known[without_drop_path(block)] for block in path)

    def add(self, blocks: Iterable[BlockConfig]) -> None:
        """Measure the blocks that are not in the table yet."""
        parts = dict.fromkeys((None, *map(without_drop_path, blocks)))
        if missing := [part for part in parts if part not in self.known]:
            self.known |= dict(zip(missing, self.measure(missing), strict=True))

    @abstractmethod
    def measure(self, parts: list[BlockConfig | None]) -> list[float] | list[int]:
        """Return the cost of each part."""

    def build(self, part: BlockConfig | None) -> tuple[nn.Module, tuple[int, ...]]:
        """Return a part in evaluation mode, and the shape of its input for one image."""
        if part is not None:
            return Block(part).eval(), (self.tokens, part.embed_dim)
        frame = ViT(self.config).eval()
        frame.blocks = BlockList([IdentityBlock()])
        return frame, (self.config.in_chans, *self.config.image_size)


class IdentityBlock(nn.Module):
    """Takes the place of the blocks in a model, and computes nothing."""

    def forward(self, x: Tensor, num_queries: int | None = None) -> Tensor:
        """Return as many tokens as a last block."""
        return x[:, :num_queries]


@cache
def without_drop_path(block: BlockConfig) -> BlockConfig:
    """Return a block without stochastic depth, which differs between the blocks of a model and costs nothing."""
    return replace(block, drop_path=0.0)


class CountTable(CostTable):
    """Parameters or multiply-accumulates, counted on tensors without data, so that no part is too large."""

    def __init__(self, config: ViTConfig, count: Callable[[nn.Module, Tensor], int]) -> None:
        super().__init__(config)
        self.count = count

    def measure(self, parts: list[BlockConfig | None]) -> list[int]:
        """Return the count of each part for one image."""
        with torch.device("meta"):
            built = [self.build(part) for part in parts]
        return [self.count(module, torch.empty(1, *shape, device="meta")) for module, shape in built]


def macs(module: nn.Module, x: Tensor) -> int:
    """Return the multiply-accumulates of matrix products (attention's included) and convolutions: half the FLOPs."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(x)
    return counter.get_total_flops() // 2


def parameters(module: nn.Module, x: Tensor) -> int:
    """Return the number of weights and biases; it does not depend on the input."""
    return sum(parameter.numel() for parameter in module.parameters())


class LatencyTable(CostTable):
    """Milliseconds of a batch in evaluation, timed on this machine and saved to a file.

    Each round times all parts, so that a machine that is busy for a while slows all of them.

    To repeat a search, and for several ranks of one search, the table must be the same: measure the space once, with
    `add`, and give all of them the file. The last block counts like any other, although in a ViT it is faster, since it
    computes the class token only.
    """

    def __init__(
        self,
        config: ViTConfig,
        file: str | Path | None = None,
        batch_size: int = 1,
        precision: Precision = "auto",
        device: torch.device | None = None,
    ) -> None:
        super().__init__(config)
        self.file = None if file is None else Path(file)
        self.batch_size = batch_size
        self.device = device or this_process().device
        self.precision = choose_precision(self.device) if precision == "auto" else precision
        self.setting = {
            "machine": machine(self.device),
            "torch": torch.__version__,
            "device": self.device.type,
            "precision": self.precision,
            "batch_size": batch_size,
            "tokens": self.tokens,
            "embed_dim": config.blocks[0].embed_dim,
        } | {name: value for name, value in asdict(replace(config, blocks=())).items() if name != "blocks"}
        self.setting["image_size"] = list(config.image_size)  # as JSON has it
        if self.file is not None and self.file.exists():
            self.load(self.file)

    def add(self, blocks: Iterable[BlockConfig]) -> None:
        """Time the blocks that are not in the table yet, and save them to the file."""
        before = len(self.known)
        super().add(blocks)
        if self.file is not None and len(self.known) > before:
            parts = [
                {"block": None if part is None else asdict(part), "milliseconds": cost}
                for part, cost in self.known.items()
            ]
            self.file.parent.mkdir(parents=True, exist_ok=True)
            write_json(self.file, {"setting": self.setting, "parts": parts})

    def load(self, file: Path) -> None:
        """Read a file. Raises GlocalError where it is no table, or was timed under another setting."""
        try:
            content = json.loads(file.read_text())
            setting = dict(content["setting"])
            parts = [(part["block"], float(part["milliseconds"])) for part in content["parts"]]
            known = {None if block is None else BlockConfig(**block): cost for block, cost in parts}
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise GlocalError(f"{file} is no table of milliseconds: {error!r}; give another, or delete it") from None
        for name, here in self.setting.items():
            if (there := setting.get(name)) != here:
                raise GlocalError(
                    f"{file} holds milliseconds for {name} {there}, and this is {name} {here}; give another file, or "
                    "delete it to measure again"
                )
        self.known |= known

    def measure(self, parts: list[BlockConfig | None]) -> list[float]:
        """Return the milliseconds of each part, built anew in each round: a whole space may not fit into memory."""
        times: list[list[float]] = [[] for _ in parts]
        # Without the cache: a model casts each of its weights once a batch, not once in a long autocast.
        cast = torch.autocast(
            self.device.type, DTYPES.get(self.precision), enabled=self.precision in DTYPES, cache_enabled=False
        )
        with torch.inference_mode(), cast, torch.random.fork_rng(devices=[]):
            for _ in range(REPEATS):
                for part, part_times in zip(parts, times, strict=True):
                    module, shape = self.build(part)
                    part_times.append(self.clock(module.to(self.device), torch.randn(self.batch_size, *shape)))
        return [statistics.median(part_times) for part_times in times]

    def clock(self, module: nn.Module, x: Tensor) -> float:
        """Return the milliseconds of one call, after two to warm up."""
        x = x.to(self.device)
        for _ in range(3):
            start = time.perf_counter()
            module(x)
            if self.device.type != "cpu":
                torch.accelerator.synchronize(self.device)
        return 1000 * (time.perf_counter() - start)


def cost_table(
    kind: CostKind,
    config: ViTConfig,
    file: str | Path | None = None,
    batch_size: int = 1,
    precision: Precision = "auto",
    device: torch.device | None = None,
) -> CostTable:
    """Return the table of a kind of cost: `Budget(cost=cost_table("macs", config))`.

    The arguments after `config` are for milliseconds: the file of the table, and the batch size, precision and device
    that are timed (by default the device of training). Raises GlocalError where the file was timed under another
    setting.
    """
    match kind:
        case "macs":
            return CountTable(config, macs)
        case "parameters":
            return CountTable(config, parameters)
        case "milliseconds":
            return LatencyTable(config, file, batch_size, precision, device)
