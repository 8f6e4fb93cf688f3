"""Summary of an architecture, with the figures of GLiT's section 4: how global and local heads are distributed."""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from glocal.errors import GlocalError
from glocal.layers.block import BlockConfig

HeadKind = Literal["global", "local", "mixed"]


@dataclass(frozen=True)
class ArchSummary:
    """The summary as plain values, for a report; `sentences` returns it in words."""

    kinds: tuple[HeadKind, ...]
    """The heads of each block, from the first to the last: all global, all local, or mixed."""
    global_heads: tuple[int, ...]
    """Number of global heads G of each block."""
    mixed_share: float
    """Share of mixed blocks; a quarter in Chen et al. 2021 (GLiT)."""
    kernel_sizes: dict[int, int]
    """Number of blocks with each kernel size K that could be chosen; 0 where no block has it."""
    alternation: float | None
    """Share of neighbouring blocks of different kinds; None for a single block."""
    global_share_by_half: tuple[float, float]
    """Share of global heads in the first and in the second half of the blocks; a middle block belongs to both."""

    def sentences(self) -> list[str]:
        """Return one sentence per finding, with the paper's finding for comparison; blocks are counted from 0."""
        depth = len(self.kinds)
        number = Counter(self.kinds)
        sentences = [
            f"Of {depth} blocks {self.mixed_share:.0%} are mixed (in GLiT's architecture a quarter): mixed "
            f"{number['mixed']}, all global {number['global']}, all local {number['local']}."
        ]
        if any(self.kernel_sizes.values()):
            sizes = ", ".join(f"{size} in {count or 'none'}" for size, count in self.kernel_sizes.items())
            sentences.append(f"Kernel sizes of blocks with local heads: {sizes}; in GLiT's architecture 17 in none.")
        if self.alternation is not None:
            turns = sum(a != b for a, b in pairwise(self.kinds))
            sentences.append(
                f"{turns} of {depth - 1} pairs of neighbouring blocks ({self.alternation:.0%}) are of different kinds."
            )
        early, late = self.global_share_by_half
        sentences.append(
            f"{early:.0%} of the heads are global in the first half of the blocks, {late:.0%} in the second."
        )
        if "global" in self.kinds:
            globals_at = [index for index, kind in enumerate(self.kinds) if kind == "global"]
            first = globals_at[0]
            last = globals_at[-1]
            sentences.append(
                f"The first block with only global heads is block {first}, the last block {last}."
                if first < last
                else f"The one block with only global heads is block {first}."
            )
        return sentences


def summarize_architecture(blocks: Sequence[BlockConfig], kernel_sizes: Collection[int] = ()) -> ArchSummary:
    """Return the summary of an architecture; `kernel_sizes` are those that the search could choose.

    Raises GlocalError if there are no blocks.
    """
    if not blocks:
        raise GlocalError("an architecture of no blocks; give one block or more")
    kinds = tuple(head_kind(block) for block in blocks)
    chosen = Counter(block.kernel_size for block in blocks if block.local_heads)
    half = (len(blocks) + 1) // 2
    return ArchSummary(
        kinds=kinds,
        global_heads=tuple(block.num_heads - block.local_heads for block in blocks),
        mixed_share=kinds.count("mixed") / len(kinds),
        kernel_sizes={size: chosen[size] for size in sorted({*kernel_sizes, *chosen})},
        alternation=sum(a != b for a, b in pairwise(kinds)) / (len(kinds) - 1) if len(kinds) > 1 else None,
        global_share_by_half=(global_share(blocks[:half]), global_share(blocks[-half:])),
    )


def head_kind(block: BlockConfig) -> HeadKind:
    """Return which heads a block has."""
    if block.local_heads == 0:
        return "global"
    return "local" if block.local_heads == block.num_heads else "mixed"


def global_share(blocks: Sequence[BlockConfig]) -> float:
    """Return the share of the heads that are global."""
    return 1 - sum(block.local_heads for block in blocks) / sum(block.num_heads for block in blocks)
