"""The cost of a path, from a table of its parts: the frame, which is all but the blocks, and each block.

    cost(path) = cost(frame) + Σ cost(block)

A search needs the cost of thousands of paths, which consist of a few hundred different blocks; each is measured when it
first occurs. For parameters and multiply-accumulates the sum is exact, and equals `models.cost.count` of the whole
model. For milliseconds it is an estimate from parts that were timed one by one (see `latency`).
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
from glocal.search.space import Blocks


class CostTable(ABC):
    """A callable that returns the cost of a path of a model like `model`, for an image or for a text of `tokens`."""

    def __init__(self, model: Model, tokens: int | None = None) -> None:
        self.family = type(model)
        self.config = model.config
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
        names: dict[BlockConfig, str] = {}
        for name in stacks(type(self.config)):
            of_stack = [block for block in blocks if self.stack_of(block) == name]
            names |= {block: f"{STACKS[name]} {place}" for place, block in enumerate(of_stack)}
        every = {f"{STACKS[name]} {i}" for name in stacks(type(self.config)) for i in range(len(getattr(model, name)))}
        counts: Counter[str] = Counter()
        for row in count(model, self.size, self.example.channels).rows:
            counts[row.name if row.name in every else "frame"] += getattr(row, self.kind)
        return [counts["frame" if part is None else names[part]] for part in parts]
