"""The cost of a path, from a table of its parts: the frame (the model without its blocks), and each block.

    cost(path) = cost(frame) + Σ cost(block)

A search needs the cost of thousands of paths, which consist of a few hundred different blocks. Each block is measured
once, when it first occurs. For parameters and multiply-accumulates the sum is exact, and equals `models.cost.count` of
the whole model. For milliseconds the sum is an estimate, since the parts are timed one by one (see `latency`).
"""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from functools import cache
from typing import Literal

import torch

from glocal.layers.block import BlockConfig
from glocal.models import Model
from glocal.models.config import stacks
from glocal.models.cost import STACKS, Example, count
from glocal.search.budget import Architecture


class CostTable(ABC):
    """Returns the cost of a path of a model like `model`, for one image or for one text of `tokens` tokens."""

    def __init__(self, model: Model, tokens: int | None = None) -> None:
        self.family = type(model)
        self.config = model.config
        self.size: tuple[int, int] | int = getattr(self.config, "image_size", tokens or 0)
        self.example = Example.of(model, self.size, getattr(self.config, "in_chans", 1))
        self.known: dict[BlockConfig | None, float | int] = {}
        """The cost of each part that was measured so far; the key None is the frame."""

    def __call__(self, path: Architecture) -> float | int:
        """Return the cost of a path: the sum over the frame and the blocks, in each of which all tokens count."""
        self.add(path)
        return self.known[None] + sum(self.known[without_drop_path(block)] for block in path)

    def of_block(self, block: BlockConfig) -> float | int:
        """Return the cost of one block, without the frame."""
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
        """Return the name of the stack that a block belongs to; a block with cross-attention belongs to the decoder."""
        names = stacks(type(self.config))
        return next(name for name in names if getattr(self.config, name)[0].cross == block.cross)

    def build(self, blocks: Iterable[BlockConfig]) -> Model:
        """Return a model of these blocks, each in its stack; a stack that gets none repeats its first block twice."""
        stacked = {name: getattr(self.config, name)[:1] * 2 for name in stacks(type(self.config))}
        given: dict[str, list[BlockConfig]] = {}
        for block in blocks:
            given.setdefault(self.stack_of(block), []).append(block)
        stacked |= {name: tuple(stack) for name, stack in given.items()}
        return self.family(replace(self.config, **stacked))


@cache
def without_drop_path(block: BlockConfig) -> BlockConfig:
    """Return a block without drop path, whose rate differs between the blocks of a model and costs nothing."""
    return replace(block, drop_path=0.0)


class CountTable(CostTable):
    """Parameters or multiply-accumulates, counted on the meta device, so that no part is too large for the memory."""

    def __init__(self, model: Model, kind: Literal["macs", "parameters"], tokens: int | None = None) -> None:
        super().__init__(model, tokens)
        self.kind = kind

    def measure(self, parts: list[BlockConfig | None]) -> list[int]:
        """Return the count of each part, from one model that contains all parts."""
        blocks = [part for part in parts if part is not None]
        with torch.device("meta"):
            model = self.build(blocks)
        row_of: dict[BlockConfig, str] = {}
        block_rows: set[str] = set()
        for name in stacks(type(self.config)):
            stack = [block for block in blocks if self.stack_of(block) == name]
            row_of |= {block: f"{STACKS[name]} {index}" for index, block in enumerate(stack)}
            block_rows |= {f"{STACKS[name]} {index}" for index in range(len(getattr(model, name)))}
        counts: Counter[str] = Counter()
        for row in count(model, self.size, self.example.channels).rows:
            counts[row.name if row.name in block_rows else "frame"] += getattr(row, self.kind)
        return [counts["frame" if part is None else row_of[part]] for part in parts]
