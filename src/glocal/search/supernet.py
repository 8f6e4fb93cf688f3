"""One network that holds every path: the supernet of SPOS (Guo et al. 2019, section 3.2), with weights shared two ways.

A block of a supernet only stores weights. `weights(gene)` returns those of the plain `Block` that a gene describes,
under that block's names, and the plain block computes with them. So an extracted path is the same function as within
the supernet, by construction.

    entangled   one set of the largest weights; a gene takes a slice, and all genes that need a weight train it
                (`slice_for` of the layers)
    separate    each gene its own weights, as in GLiT's authors' code: memory grows with the number of choices
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from glocal.errors import GlocalError
from glocal.layers.attention import MultiHeadAttention
from glocal.layers.block import Block, BlockConfig, BlockList
from glocal.layers.convolution import LocalConvolution
from glocal.layers.slicing import StateDict, named_tensors, prefixed
from glocal.models import GLiT, ViTConfig
from glocal.search.space import DETAILS, Blocks, Space

Statistics = Mapping[str, Tensor]
"""BatchNorm's running means, variances and counts of a block, by their names in it."""
Sharing = Literal["entangled", "separate"]


class Supernet(nn.Module):
    """A GLiT of `config` whose blocks are chosen from `space` at every call."""

    trains_in_part = True
    """A step leaves the weights of other paths without a gradient, which DDP must expect."""

    def __init__(self, config: ViTConfig, space: Space, sharing: Sharing = "entangled") -> None:
        super().__init__()
        self.config = config
        self.space = space
        self.frame = GLiT(replace(config, blocks=config.blocks[:1]))  # all that is not a block
        self.frame.blocks = BlockList()
        kind = {"entangled": Entangled, "separate": Separate}[sharing]
        self.blocks = nn.ModuleList(kind(options) for options in space)

    def forward(self, pixel_values: Float[Tensor, "batch chans height width"], path: Blocks) -> Tensor:
        """Return the logits (B, heads, K) of one path."""
        x = self.frame.embed(pixel_values)
        for depth, (block, gene) in enumerate(zip(self.shared_blocks, path, strict=True)):
            x = block(x, gene, num_queries=self.num_queries(depth))
        return self.forward_head(x)

    def num_queries(self, depth: int) -> int | None:
        """Return how many tokens a block computes: in the last, those that the heads read; None for all of them."""
        return self.frame.num_prefix_tokens or None if depth == len(self.blocks) - 1 else None

    @property
    def shared_blocks(self) -> "list[SharedBlock]":
        """The blocks, by depth."""
        return cast(list[SharedBlock], list(self.blocks))

    def no_weight_decay(self) -> set[str]:
        """Return the names of the embeddings among the weights."""
        return {f"frame.{name}" for name in self.frame.no_weight_decay()}

    def forward_head(self, tokens: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch heads classes"]:
        """Return the logits of each head for the last block's tokens."""
        return self.frame.head(self.frame.norm(tokens))

    def extract_subnet(self, path: Blocks, statistics: Sequence[Statistics] = ()) -> GLiT:
        """Return a path as a plain model, with its own copy of the weights and of BatchNorm's `statistics` a block."""
        model = GLiT(replace(self.config, blocks=path))
        state = dict(self.frame.state_dict())
        for i, (block, gene) in enumerate(zip(self.shared_blocks, path, strict=True)):
            state |= prefixed(f"blocks.{i}", block.weights(gene) | dict(statistics[i] if statistics else {}))
        model.load_state_dict(state)
        return model.train(self.training)


class SharedBlock(nn.Module, ABC):
    """The weights of all options of one block."""

    @abstractmethod
    def weights(self, gene: BlockConfig) -> StateDict:
        """Return the parameters and buffers of `Block(gene)`, as views where possible; gradients flow through them."""

    def forward(
        self,
        x: Float[Tensor, "batch tokens dim"],
        gene: BlockConfig,
        statistics: Statistics | None = None,
        num_queries: int | None = None,
    ) -> Float[Tensor, "batch queries dim"]:
        """Return what the plain block returns; `statistics` replace the supernet's own of BatchNorm."""
        weights = self.weights(gene) | dict(statistics or {})
        return functional_call(meta_block(gene).train(self.training), weights, (x,), {"num_queries": num_queries})

    def calibrate(
        self, x: Float[Tensor, "batch tokens dim"], gene: BlockConfig
    ) -> tuple[Float[Tensor, "batch tokens dim"], Statistics]:
        """Return the block's output, normalised by this batch's statistics, and these; empty without BatchNorm."""
        block = meta_block(gene).eval()
        statistics = {name: torch.zeros_like(t, device=x.device) for name, t in block.named_buffers()}
        for module in block.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.train()
        return functional_call(block, self.weights(gene) | statistics, (x,)), statistics


class Separate(SharedBlock):
    """A block for each option."""

    def __init__(self, options: Blocks) -> None:
        super().__init__()
        self.indices = {gene: str(index) for index, gene in enumerate(options)}
        self.options = nn.ModuleDict({index: new_block(gene) for gene, index in self.indices.items()})

    def weights(self, gene: BlockConfig) -> StateDict:
        """Return the option's own."""
        return named_tensors(self.options[self.indices[gene]])


class Entangled(SharedBlock):
    """One block as large as the largest option: all heads global beside all heads local, of which a gene takes some.

    A head keeps its index: a gene takes the first global heads and the last local ones, each with the channels that the
    mixer gives them. Of the width of a head, of the MLP and of the local heads' hidden channels it takes the first, of
    a kernel the middle.
    """

    def __init__(self, options: Blocks) -> None:
        super().__init__()
        first = options[0]
        with_local = [gene for gene in options if gene.local_heads]
        if len({(gene.embed_dim, gene.num_heads, gene.local) for gene in options}) > 1:
            raise GlocalError(
                "the options of an entangled block share embed_dim, num_heads and the kind of local heads"
            )
        largest = replace(first, **{name: max(getattr(gene, name) for gene in options) for name in DETAILS})
        self.all_global = new_block(replace(largest, local_heads=0))
        self.all_local: MultiHeadAttention | LocalConvolution | None = None
        if with_local:
            largest = replace(largest, **{name: max(getattr(gene, name) for gene in with_local) for name in DETAILS})
            self.all_local = new_block(replace(largest, local_heads=first.num_heads)).mixer.local

    def weights(self, gene: BlockConfig) -> StateDict:
        """Return the gene's slices."""
        weights = self.all_global.slice_for(gene)
        if self.all_local is not None and gene.local_heads:
            weights |= prefixed("mixer.local", self.all_local.slice_for(gene))
        return weights


def new_block(gene: BlockConfig) -> Block:
    """Return a block with fresh weights, initialised as a GLiT's."""
    block = Block(gene)
    GLiT.init_linears(block)
    return block


@lru_cache(maxsize=4096)
def meta_block(gene: BlockConfig) -> Block:
    """Return a block without weights of its own, on the meta device; its BatchNorm keeps the last statistics."""
    with torch.device("meta"):
        block = Block(gene)
    for module in block.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    return block
