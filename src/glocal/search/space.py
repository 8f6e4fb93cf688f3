"""What is searched: for each block, the `BlockConfig`s to choose from (Chen et al. 2021, GLiT, section 3.2).

A space covers the blocks of all stacks of a model, one after the other: first the encoder's, then the decoder's.

The full space of 12 blocks with 3 heads has ((3 + 1)·3·3·3·3)¹² ≈ 1.3·10³⁰ paths. Hierarchical search divides it into
two stages: the first chooses how many heads of each block are global and how many local, the second chooses the widths
and kernels of both.
"""

from dataclasses import dataclass, replace
from itertools import product

from glocal.errors import GlocalError, check_range
from glocal.layers.block import BlockConfig
from glocal.search.budget import Architecture

Space = tuple[tuple[BlockConfig, ...], ...]
"""The options of each block."""

DETAILS = ("kernel_size", "expand_ratio", "qkv_ratio", "mlp_ratio")


@dataclass(frozen=True)
class SpaceConfig:
    """The values to choose from. The defaults are the paper's, table 1."""

    local_heads: tuple[int, ...] | None = None
    """L, how many of a block's heads are local; null: 0 to all of them."""
    kernel_size: tuple[int, ...] = (17, 31, 45)
    """K, tokens in the kernel of a local head."""
    expand_ratio: tuple[int, ...] = (1, 2, 4)
    """E, hidden width of the local heads over their width."""
    qkv_ratio: tuple[float, ...] = (0.5, 1.0, 2.0)
    """d_k, width of queries, keys and values over the width of the global heads."""
    mlp_ratio: tuple[float, ...] = (2.0, 4.0, 6.0)
    """d_z, hidden width of the MLP over the width of a token."""

    def check(self) -> None:
        """Raise GlocalError if there is nothing to choose from."""
        for value in self.local_heads or ():
            check_range("one of search.space.local_heads", value, least=0)
        if self.local_heads == ():
            raise GlocalError("search.space.local_heads is empty; give it one value or more, or null for all")
        for name in DETAILS:
            if not getattr(self, name):
                raise GlocalError(f"search.space.{name} is empty; give it one value or more")
            for value in getattr(self, name):
                check_range(f"one of search.space.{name}", value, above=0)


def heads_space(start: Architecture, config: SpaceConfig = SpaceConfig()) -> Space:
    """Return the space of stage 1: each block with each number of local heads, its other fields unchanged.

    Raises GlocalError if a block has fewer heads than `local_heads` needs.
    """
    for block in start:
        if max(config.local_heads or (0,)) > block.num_heads:
            raise GlocalError(
                f"search.space.local_heads {list(config.local_heads or ())} of blocks with {block.num_heads} heads; "
                f"give 0 to {block.num_heads}"
            )
    return tuple(
        tuple(replace(block, local_heads=n) for n in config.local_heads or range(block.num_heads + 1))
        for block in start
    )


def details_space(start: Architecture, config: SpaceConfig) -> Space:
    """Return the space of stage 2: each block with its heads unchanged, and every combination of the other values."""
    config.check()
    return tuple(tuple(dict.fromkeys(refined(block, config))) for block in start)


def full_space(start: Architecture, config: SpaceConfig) -> Space:
    """Return the space of both stages at once: (N + 1)·3·3·3·3 options per block with the paper's values.

    Equal options of a block are kept, so that each number of local heads has as many options, and a uniform draw is
    uniform over the heads too. Without them four in five options would be mixed, since a mixed block uses the most
    values.
    """
    config.check()
    return tuple(
        tuple(option for block in options for option in refined(block, config))
        for options in heads_space(start, config)
    )


def refined(block: BlockConfig, config: SpaceConfig) -> list[BlockConfig]:
    """Return every combination of values for one block.

    A field that the block does not use keeps its value, so that options which compute the same are equal.
    """
    local = block.local_heads > 0
    attends = block.local_heads < block.num_heads or block.local == "window" or block.cross
    unused = {"kernel_size": not local, "expand_ratio": not local or block.local == "window", "qkv_ratio": not attends}
    kept = {name: getattr(block, name) for name in DETAILS if unused.get(name)}
    combinations = product(*(getattr(config, name) for name in DETAILS))
    return [replace(block, **dict(zip(DETAILS, values, strict=True)) | kept) for values in combinations]
