"""The cost of a path, from a table of its parts: the frame, which is all but the blocks, and each block.

    cost(path) = cost(frame) + Σ cost(block)

A search needs the cost of thousands of paths, which consist of a few hundred different blocks; each is measured when it
first occurs. For parameters and multiply-accumulates the sum is exact, and equals `models.cost.count` of the whole
model. For milliseconds it is an estimate from parts that were timed one by one.
"""

import json
import statistics
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from glocal.errors import GlocalError
from glocal.files import write_json
from glocal.layers.block import Block, BlockConfig, BlockList
from glocal.models import Model
from glocal.models.config import stacks
from glocal.models.cost import STACKS, Example, count
from glocal.search.space import Blocks
from glocal.training.devices import choose_precision, machine, this_process

CostKind = Literal["macs", "parameters", "milliseconds"]
Precision = Literal["auto", "float32", "bf16", "fp16"]

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
REPEATS = 9
"""Rounds over all parts; the time of a part is the median."""


class CostTable(ABC):
    """A callable that returns the cost of a path of a model like `model`, for an image or for a text of `tokens`."""

    def __init__(self, model: Model, tokens: int | None = None) -> None:
        self.family = type(model)
        self.config: Any = model.config
        self.size: tuple[int, int] | int = getattr(self.config, "image_size", tokens or 0)
        self.example = Example.of(model, self.size, getattr(self.config, "in_chans", 1))
        self.known: dict[BlockConfig | None, float | int] = {}
        """Cost of each part so far; None is the frame."""

    def __call__(self, path: Blocks) -> float | int:
        """Return the sum of the frame and the blocks of a path; in each block all tokens count."""
        self.add(path)
        return self.known[None] + sum(self.known[without_drop_path(block)] for block in path)

    def of_block(self, block: BlockConfig) -> float | int:
        """Return the cost of a block alone."""
        self.add([block])
        return self.known[without_drop_path(block)]

    def add(self, blocks: Iterable[BlockConfig]) -> None:
        """Measure the blocks that are not in the table yet."""
        parts = dict.fromkeys((None, *map(without_drop_path, blocks)))
        if missing := [part for part in parts if part not in self.known]:
            self.known |= dict(zip(missing, self.measure(missing), strict=True))

    @abstractmethod
    def measure(self, parts: list[BlockConfig | None]) -> list[float] | list[int]:
        """Return the cost of each part."""

    def stack_of(self, block: BlockConfig) -> str:
        """Return the name of the stack that a block belongs to: of those with cross-attention, the decoder."""
        names = stacks(type(self.config))
        return next(name for name in names if getattr(self.config, name)[0].cross == block.cross)

    def build(self, blocks: Iterable[BlockConfig]) -> Model:
        """Return a model of these blocks alone, each in its stack; a stack without any keeps its first two."""
        stacked = {name: getattr(self.config, name)[:1] * 2 for name in stacks(type(self.config))}
        given: dict[str, list[BlockConfig]] = {}
        for block in blocks:
            given.setdefault(self.stack_of(block), []).append(block)
        stacked |= {name: tuple(of_stack) for name, of_stack in given.items()}
        return self.family(replace(self.config, **stacked))


@cache
def without_drop_path(block: BlockConfig) -> BlockConfig:
    """Return a block without stochastic depth, which differs between the blocks of a model and costs nothing."""
    return replace(block, drop_path=0.0)


class CountTable(CostTable):
    """Parameters or multiply-accumulates, counted on tensors without data, so that no part is too large."""

    def __init__(self, model: Model, kind: Literal["macs", "parameters"], tokens: int | None = None) -> None:
        super().__init__(model, tokens)
        self.kind = kind

    def measure(self, parts: list[BlockConfig | None]) -> list[int]:
        """Return the count of each part, as a part of one model that holds all of them."""
        blocks = [part for part in parts if part is not None]
        with torch.device("meta"):
            model = self.build(blocks)
        names = {}
        for name in stacks(type(self.config)):
            of_stack = [block for block in blocks if self.stack_of(block) == name]
            names |= {block: f"{STACKS[name]} {place}" for place, block in enumerate(of_stack)}
        every = {f"{STACKS[name]} {i}" for name in stacks(type(self.config)) for i in range(len(getattr(model, name)))}
        counts: Counter[str] = Counter()
        for row in count(model, self.size, self.example.channels).rows:
            counts[row.name if row.name in every else "frame"] += getattr(row, self.kind)
        return [counts["frame" if part is None else names[part]] for part in parts]


class Call(NamedTuple):
    """A module and what it is called with."""

    module: nn.Module
    args: tuple[Tensor, ...]
    kwargs: dict[str, Any]


class IdentityBlock(nn.Module):
    """Takes the place of the blocks in a model, and computes nothing."""

    def forward(self, x: Tensor, num_queries: int | None = None, **inputs: object) -> Tensor:
        """Return as many tokens as a last block."""
        return x[:, :num_queries]


class LatencyTable(CostTable):
    """Milliseconds of a batch in evaluation, timed on this machine and saved to a file.

    Each round times all parts, so that a machine that is busy for a while slows all of them.

    To repeat a search, and for several ranks of one search, the table must be the same: measure the space once, with
    `add`, and give all of them the file. The last block counts like any other, although in a ViT it is faster, since it
    computes the class token only.
    """

    def __init__(
        self,
        model: Model,
        tokens: int | None = None,
        file: str | Path | None = None,
        batch_size: int = 1,
        precision: Precision = "auto",
        device: torch.device | None = None,
    ) -> None:
        super().__init__(model, tokens)
        self.file = None if file is None else Path(file)
        self.batch_size = batch_size
        self.device = device or this_process().device
        self.precision = choose_precision(self.device) if precision == "auto" else precision
        config = {name: value for name, value in asdict(self.config).items() if name not in stacks(type(self.config))}
        self.setting = json.loads(
            json.dumps(
                {
                    "machine": machine(self.device),
                    "torch": torch.__version__,
                    "device": self.device.type,
                    "precision": self.precision,
                    "batch_size": batch_size,
                    "example": str(self.example),
                    "embed_dim": getattr(self.config, stacks(type(self.config))[0])[0].embed_dim,
                }
                | config
            )
        )
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
            frame = self.build(()).to(self.device).eval()
            calls = self.block_calls(frame)
            for name in stacks(type(self.config)):
                setattr(frame, name, BlockList([IdentityBlock()]))
            calls[None] = Call(frame, self.inputs(), {})
            for _ in range(REPEATS):
                for part, part_times in zip(parts, times, strict=True):
                    call = calls[None if part is None else self.stack_of(part)]
                    if part is not None:
                        call = call._replace(module=Block(part).to(self.device).eval())
                    part_times.append(self.clock(call))
        return [statistics.median(part_times) for part_times in times]

    def inputs(self) -> tuple[Tensor, ...]:
        """Return a batch of examples on the device."""
        return tuple(tensor.to(self.device) for tensor in self.example.inputs(self.batch_size))

    def block_calls(self, model: Model) -> dict[str | None, Call]:
        """Return what the first block of each stack of a model is called with."""
        calls: dict[str | None, Call] = {}
        hooks = []
        for name in stacks(type(self.config)):

            def keep(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], name: str = name) -> None:
                calls[name] = Call(block, args, kwargs)

            hooks.append(getattr(model, name)[0].register_forward_pre_hook(keep, with_kwargs=True))
        model(*self.inputs())
        for hook in hooks:
            hook.remove()
        return calls

    def clock(self, call: Call) -> float:
        """Return the milliseconds of one call, after two to warm up."""
        for _ in range(3):
            start = time.perf_counter()
            call.module(*call.args, **call.kwargs)
            if self.device.type != "cpu":
                torch.accelerator.synchronize(self.device)
        return 1000 * (time.perf_counter() - start)


def cost_table(
    kind: CostKind,
    model: Model,
    tokens: int | None = None,
    file: str | Path | None = None,
    batch_size: int = 1,
    precision: Precision = "auto",
    device: torch.device | None = None,
) -> CostTable:
    """Return the table of a kind of cost of models like `model`: `Budget(cost=cost_table("macs", model))`.

    `tokens` are those of the text that the cost is of; of a translation's target there are as many. The arguments after
    it are for milliseconds: the file of the table, and the batch size, precision and device that are timed (by default
    the device of training). Raises GlocalError where the file was timed under another setting.
    """
    match kind:
        case "macs" | "parameters":
            return CountTable(model, kind, tokens)
        case "milliseconds":
            return LatencyTable(model, tokens, file, batch_size, precision, device)
