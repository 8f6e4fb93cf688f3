"""An architecture, read as the paper reads its own: how global and local heads are mixed, and how they alternate."""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from glocal.errors import GlocalError
from glocal.layers.block import BlockConfig

Kind = Literal["global", "local", "mixed"]


@dataclass(frozen=True)
class Reading:
    """The findings as plain values: `dataclasses.asdict` makes them ready for a report, `sentences` for a reader."""

    kinds: tuple[Kind, ...]
    """What each block is, from the first to the last: its heads are all global, all local, or mixed."""
    global_heads: tuple[int, ...]
    """Global heads G of each block."""
    mixed_share: float
    """Share of the blocks that are mixed; a quarter in Chen et al. 2021 (GLiT)."""
    kernel_sizes: dict[int, int]
    """Kernel size K, and in how many blocks it was chosen: the sizes on offer, those that nobody chose among them."""
    alternation: float | None
    """Share of neighbouring blocks that are of different kinds; None of a single block."""
    global_share_by_half: tuple[float, float]
    """Share of the heads that are global in the first and in the second half of the blocks; a middle one is in both."""

    def sentences(self) -> list[str]:
        """Say it in words, one sentence a finding, beside what the paper found; blocks are counted from 1."""
        depth, number = len(self.kinds), Counter(self.kinds)
        said = [
            f"Of {depth} blocks {self.mixed_share:.0%} are mixed (in the paper's architecture a quarter): mixed "
            f"{number['mixed']}, all global {number['global']}, all local {number['local']}."
        ]
        if any(self.kernel_sizes.values()):
            sizes = ", ".join(f"{size} in {count or 'none'}" for size, count in self.kernel_sizes.items())
            said.append(f"Kernel sizes of the blocks with local heads: {sizes}; in the paper's, 17 in none.")
        if self.alternation is not None:
            turns = sum(a != b for a, b in pairwise(self.kinds))
            said.append(
                f"{turns} of {depth - 1} pairs of neighbouring blocks ({self.alternation:.0%}) are of different kinds."
            )
        early, late = self.global_share_by_half
        said.append(f"{early:.0%} of the heads are global in the first half of the blocks, {late:.0%} in the second.")
        if "global" in self.kinds:
            places = [number for number, kind in enumerate(self.kinds) if kind == "global"]
            first, last = places[0], places[-1]
            said.append(
                f"The first block with only global heads is block {first}, the last block {last}."
                if first < last
                else f"The one block with only global heads is block {first}."
            )
        return said


def read_architecture(blocks: Sequence[BlockConfig], kernel_sizes: Collection[int] = ()) -> Reading:
    """Read an architecture; `kernel_sizes` are those the search could choose, so that it shows which it never did.

    Raises GlocalError where there are no blocks.
    """
    if not blocks:
        raise GlocalError("an architecture of no blocks has nothing to read; give one block or more")
    kinds = tuple(kind_of(block) for block in blocks)
    chosen = Counter(block.kernel_size for block in blocks if block.local_heads)
    half = (len(blocks) + 1) // 2
    return Reading(
        kinds=kinds,
        global_heads=tuple(block.num_heads - block.local_heads for block in blocks),
        mixed_share=kinds.count("mixed") / len(kinds),
        kernel_sizes={size: chosen[size] for size in sorted({*kernel_sizes, *chosen})},
        alternation=sum(a != b for a, b in pairwise(kinds)) / (len(kinds) - 1) if len(kinds) > 1 else None,
        global_share_by_half=(global_share(blocks[:half]), global_share(blocks[-half:])),
    )


def kind_of(block: BlockConfig) -> Kind:
    """Tell what heads a block has."""
    if block.local_heads == 0:
        return "global"
    return "local" if block.local_heads == block.num_heads else "mixed"


def global_share(blocks: Sequence[BlockConfig]) -> float:
    """Return the share of all heads that are global."""
    return 1 - sum(block.local_heads for block in blocks) / sum(block.num_heads for block in blocks)
