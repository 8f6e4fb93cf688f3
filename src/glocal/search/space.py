"""What is searched: for each block, the `BlockConfig`s to choose from (Chen et al. 2021, GLiT, section 3.2).

The blocks are those of all stacks of a model, one after the other: an encoder's, then a decoder's.

The whole space of 12 blocks with 3 heads has ((3 + 1)·3·3·3·3)¹² ≈ 1.3·10³⁰ paths. Hierarchical search takes it in two
stages: first how many heads of each block are global and how many local, then the widths and kernels of both.
"""

from dataclasses import dataclass, replace
from itertools import product

from glocal.errors import GlocalError, check_range
from glocal.layers.block import BlockConfig

Blocks = tuple[BlockConfig, ...]
"""A path: one config a block."""
Space = tuple[Blocks, ...]
"""The options of each block."""

DETAILS = ("kernel_size", "expand_ratio", "qkv_ratio", "mlp_ratio")


@dataclass(frozen=True)
class SpaceConfig:
    """The values to choose from. The defaults are the paper's, table 1."""

    local_heads: tuple[int, ...] | None = None
    """L, the local ones of a block's heads; null: 0 to all of them."""
    kernel_size: tuple[int, ...] = (17, 31, 45)
    """K of a block's local heads."""
    expand_ratio: tuple[int, ...] = (1, 2, 4)
    """E of a block's local heads."""
    qkv_ratio: tuple[float, ...] = (0.5, 1.0, 2.0)
    """d_k of a block's global heads."""
    mlp_ratio: tuple[float, ...] = (2.0, 4.0, 6.0)
    """d_z of a block's MLP."""

    def check(self) -> None:
        """Raise GlocalError where there is nothing to choose from."""
        for value in self.local_heads or ():
            check_range("one of search.space.local_heads", value, least=0)
        if self.local_heads == ():
            raise GlocalError("search.space.local_heads is empty; give it one value or more, or null for all")
        for name in DETAILS:
            if not getattr(self, name):
                raise GlocalError(f"search.space.{name} is empty; give it one value or more")
            for value in getattr(self, name):
                check_range(f"one of search.space.{name}", value, above=0)


def heads(start: Blocks, config: SpaceConfig = SpaceConfig()) -> Space:
    """Stage 1: each block with each number of local heads, all else as it is.

    Raises GlocalError where a block has fewer heads.
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


def details(start: Blocks, config: SpaceConfig) -> Space:
    """Stage 2: each block with its heads as they are, and every combination of the values that they have a use for."""
    config.check()
    return tuple(tuple(dict.fromkeys(refined(block, config))) for block in start)


def whole(start: Blocks, config: SpaceConfig) -> Space:
    """Both at once, as a search in one stage has it: (N + 1)·3·3·3·3 options a block with the paper's values.

    Equal ones among them stay, so that uniform draws are uniform over the heads too: without them four in five blocks
    would be mixed, since those have a use for the most values.
    """
    config.check()
    return tuple(
        tuple(gene for block in options for gene in refined(block, config)) for options in heads(start, config)
    )


def refined(block: BlockConfig, config: SpaceConfig) -> list[BlockConfig]:
    """Every combination for one block; what it has no use for keeps its value, so that equal blocks are equal."""
    local = block.local_heads > 0
    attends = block.local_heads < block.num_heads or block.local == "window" or block.cross
    idle = {"kernel_size": not local, "expand_ratio": not local or block.local == "window", "qkv_ratio": not attends}
    kept = {name: getattr(block, name) for name in DETAILS if idle.get(name)}
    combinations = product(*(getattr(config, name) for name in DETAILS))
    return [replace(block, **dict(zip(DETAILS, values, strict=True)) | kept) for values in combinations]
