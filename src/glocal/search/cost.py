"""What a path costs, by table: the frame once, and each of its blocks.

    cost(path) = cost(stem, patches, tokens, norm, head) + Σ cost(block)

A search asks for the cost of thousands of paths, which are made of a few hundred different blocks; each is measured
when it is first met. For parameters and multiply-accumulates the sum is exact, and equals what `inference.count` finds
in the whole model. For milliseconds it is an estimate by parts that were timed one by one.
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
from glocal.layers.block import Block, BlockConfig
from glocal.models.vit import ViT, ViTConfig
from glocal.search.space import Blocks
from glocal.training.devices import choose_precision, machine, this_process

Kind = Literal["macs", "parameters", "milliseconds"]
Precision = Literal["auto", "float32", "bf16", "fp16"]

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
REPEATS = 9
"""Rounds over all parts; the median of its times is a part's."""


class CostTable(ABC):
    """A callable that gives the cost of any path of the model whose other fields, and whose width, `config` has."""

    def __init__(self, config: ViTConfig) -> None:
        self.config = replace(config, blocks=config.blocks[:1])
        with torch.device("meta"):
            net = ViT(self.config)
        self.tokens = net.num_prefix_tokens + prod(net.grid)
        self.known: dict[BlockConfig | None, float | int] = {}
        """What a part costs; None is the frame."""

    def __call__(self, path: Blocks) -> float | int:
        """Add up the frame and the blocks of a path, of which all tokens count."""
        self.add(path)
        return self.known[None] + sum(self.known[asleep(block)] for block in path)

    def add(self, blocks: Iterable[BlockConfig]) -> None:
        """Measure the blocks that are not in the table yet, together; those of a whole space, to have it complete."""
        parts = dict.fromkeys((None, *map(asleep, blocks)))
        if missing := [part for part in parts if part not in self.known]:
            self.known |= dict(zip(missing, self.measure(missing), strict=True))

    @abstractmethod
    def measure(self, parts: list[BlockConfig | None]) -> list[float] | list[int]:
        """Return the cost of each part."""

    def build(self, part: BlockConfig | None) -> tuple[nn.Module, tuple[int, ...]]:
        """Return a part in evaluation mode, and the shape of what reaches it of one image."""
        if part is not None:
            return Block(part).eval(), (self.tokens, part.embed_dim)
        frame = ViT(self.config).eval()
        frame.blocks = nn.Sequential(Through())
        return frame, (self.config.in_chans, *self.config.image_size)


class Through(nn.Module):
    """Where the blocks are in a model, and does nothing."""

    def forward(self, x: Tensor, keep: int | None = None) -> Tensor:
        """Return the tokens that a last block would."""
        return x[:, :keep]


@cache
def asleep(block: BlockConfig) -> BlockConfig:
    """Return a block without stochastic depth, which grows over a model's blocks and costs nothing."""
    return replace(block, drop_path=0.0)


class Count(CostTable):
    """Counted on tensors without data: no part is too large."""

    def __init__(self, config: ViTConfig, count: Callable[[nn.Module, Tensor], int]) -> None:
        super().__init__(config)
        self.count = count

    def measure(self, parts: list[BlockConfig | None]) -> list[int]:
        """Count each part for one image."""
        with torch.device("meta"):
            built = [self.build(part) for part in parts]
        return [self.count(module, torch.empty(1, *shape, device="meta")) for module, shape in built]


def macs(module: nn.Module, x: Tensor) -> int:
    """Multiply-accumulates of matrix products and convolutions, attention's among them: half the FLOPs."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(x)
    return counter.get_total_flops() // 2


def parameters(module: nn.Module, x: Tensor) -> int:
    """Weights and biases, whatever the input."""
    return sum(parameter.numel() for parameter in module.parameters())


class Latency(CostTable):
    """Milliseconds that a batch takes in evaluation, timed on this machine and kept in a file.

    In each round all parts have their turn, so that a machine that is busy for a while is so for all of them.

    A search that is to be repeated needs the same table again, and so do several ranks of one search: measure the space
    once, with `add`, and give all of them the file. The last block counts like any other, though in a ViT it is quicker
    since it works for the class token alone.
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
        self.batch_size, self.device = batch_size, device or this_process().device
        self.precision = choose_precision(self.device) if precision == "auto" else precision
        self.setting = {
            "machine": machine(self.device),
            "torch": torch.__version__,
            "device": self.device.type,
            "precision": self.precision,
            "batch_size": batch_size,
            "tokens": self.tokens,
            "embed_dim": config.blocks[0].embed_dim,
        } | {name: value for name, value in vars(config).items() if name != "blocks"}
        self.setting["image_size"] = list(config.image_size)  # as JSON has it
        if self.file is not None and self.file.exists():
            self.load(self.file)

    def add(self, blocks: Iterable[BlockConfig]) -> None:
        """Time the blocks that are not in the table yet, and keep them in the file."""
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
        """Take what a file holds. Raises GlocalError where it is no table, or was timed under another setting."""
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
        """Time each part, built anew for each of its turns: all blocks of a space may not fit into memory."""
        times: list[list[float]] = [[] for _ in parts]
        # Under one long autocast weights would stay cast, and a model casts each of its own once a batch.
        cast = torch.autocast(
            self.device.type, DTYPES.get(self.precision), enabled=self.precision in DTYPES, cache_enabled=False
        )
        with torch.inference_mode(), cast, torch.random.fork_rng(devices=[]):
            for _ in range(REPEATS):
                for part, its_times in zip(parts, times, strict=True):
                    module, shape = self.build(part)
                    its_times.append(self.clock(module.to(self.device), torch.randn(self.batch_size, *shape)))
        return [statistics.median(its_times) for its_times in times]

    def clock(self, module: nn.Module, x: Tensor) -> float:
        """Time one call in milliseconds, after two to warm up."""
        x = x.to(self.device)
        for _ in range(3):
            start = time.perf_counter()
            module(x)
            if self.device.type != "cpu":
                torch.accelerator.synchronize(self.device)
        return 1000 * (time.perf_counter() - start)


def cost_table(
    kind: Kind,
    config: ViTConfig,
    file: str | Path | None = None,
    batch_size: int = 1,
    precision: Precision = "auto",
    device: torch.device | None = None,
) -> CostTable:
    """Return the table of a kind of cost: `Budget(cost=cost_table("macs", config))`.

    The arguments after `config` are for milliseconds: where the table is kept, and what is timed on which device (by
    default where training would run). Raises GlocalError where the file was timed under another setting.
    """
    match kind:
        case "macs":
            return Count(config, macs)
        case "parameters":
            return Count(config, parameters)
        case "milliseconds":
            return Latency(config, file, batch_size, precision, device)
