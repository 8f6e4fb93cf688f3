"""One network that holds every path: the supernet of SPOS (Guo et al. 2019, section 3.2), with weights shared two ways.

It consists of the family's own model without blocks, the frame, and of shared blocks, which only store weights.
`weights(gene)` returns those of the plain `Block` that a gene describes, under that block's names, and the plain block
computes with them. A path is run by the family's own forward pass, over the blocks of the path. So an extracted path is
the same function as within the supernet, by construction, and no family is named here.

    entangled   one set of the largest weights; a gene takes a slice, and all genes that need a weight train it
                (`slice_for` of the layers)
    separate    each gene its own weights, as in GLiT's authors' code: memory grows with the number of choices
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import replace
from functools import lru_cache, partial
from typing import Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from glocal.errors import GlocalError
from glocal.layers.attention import MultiHeadAttention
from glocal.layers.block import Block, BlockConfig
from glocal.layers.convolution import LocalConvolution
from glocal.layers.encoder import BlockList
from glocal.layers.slicing import StateDict, named_tensors, prefixed
from glocal.models import Model
from glocal.models.config import blocks_of, cut_stacks
from glocal.search.space import DETAILS, Blocks, Space

Statistics = Mapping[str, Tensor]
"""BatchNorm's running means, variances and counts of a block, by their names in it."""
Sharing = Literal["entangled", "separate"]
BlockFunction = Callable[..., Tensor]
"""Takes what a family's forward pass gives a block, and returns the refined tokens."""
Initializer = Callable[[nn.Module], None]


class Supernet(nn.Module):
    """A model like `model`, with fresh weights, whose blocks are chosen from `space` at every call."""

    trains_in_part = True
    """A step leaves the weights of other paths without a gradient, which DDP must expect."""

    def __init__(self, model: Model, space: Space, sharing: Sharing = "entangled") -> None:
        super().__init__()
        self.config = model.config
        self.space = space
        stacked = cut_stacks(self.config, blocks_of(self.config))
        self.frame = type(model)(replace(self.config, **{name: blocks[:1] for name, blocks in stacked.items()}))
        self.frame.config = self.config
        for name in stacked:
            setattr(self.frame, name, BlockList())
        kind = {"entangled": Entangled, "separate": Separate}[sharing]
        self.blocks = nn.ModuleList(kind(options, self.frame.init_linears) for options in space)

    def forward(self, *inputs: Tensor, path: Blocks) -> Tensor:
        """Return what a plain model of the path returns."""
        return self.subnet(path)(*inputs)

    def subnet(self, path: Blocks) -> Model:
        """Return a path as a model that computes with the supernet's weights, and trains them."""
        return self.with_blocks([partial(block, gene) for block, gene in zip(self.shared_blocks, path, strict=True)])

    def with_blocks(self, blocks: Sequence[BlockFunction]) -> Model:
        """Return the frame around these blocks: a model of the family, with the supernet's own weights, not copies."""
        model = copy(self.frame)
        stacked = cut_stacks(self.config, [FunctionBlock(block) for block in blocks])
        model._modules = self.frame._modules | {name: BlockList(stack) for name, stack in stacked.items()}
        return model

    @property
    def shared_blocks(self) -> "list[SharedBlock]":
        """The blocks, in the order of a path."""
        return cast(list[SharedBlock], list(self.blocks))

    @property
    def has_batch_norm(self) -> bool:
        """Whether a block has statistics of its own for every path."""
        return any(isinstance(module, nn.BatchNorm2d) for module in self.blocks.modules())

    def no_weight_decay(self) -> set[str]:
        """Return the names of the embeddings among the weights."""
        return {f"frame.{name}" for name in self.frame.no_weight_decay()}

    def extract_subnet(self, path: Blocks, statistics: Sequence[Statistics] = ()) -> Model:
        """Return a path as a plain model, with its own copy of the weights and of BatchNorm's `statistics` a block."""
        model = type(self.frame)(replace(self.config, **cut_stacks(self.config, path)))
        weights = [block.weights(gene) for block, gene in zip(self.shared_blocks, path, strict=True)]
        for own, measured in zip(weights, statistics, strict=False):
            own |= dict(measured)
        state = dict(self.frame.state_dict())
        for name, stack in cut_stacks(self.config, weights).items():
            for i, tensors in enumerate(stack):
                state |= prefixed(f"{name}.{i}", tensors)
        model.load_state_dict(state)
        return model.train(self.training)


class FunctionBlock(nn.Module):
    """A function that stands in a model where a block stands."""

    def __init__(self, function: BlockFunction) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Float[Tensor, "batch tokens dim"], **inputs: object) -> Float[Tensor, "batch queries dim"]:
        """Return what the function returns."""
        return self.function(x, **inputs)


class SharedBlock(nn.Module, ABC):
    """The weights of all options of one block."""

    @abstractmethod
    def weights(self, gene: BlockConfig) -> StateDict:
        """Return the parameters and buffers of `Block(gene)`, as views where possible; gradients flow through them."""

    def forward(
        self,
        gene: BlockConfig,
        x: Float[Tensor, "batch tokens dim"],
        statistics: Statistics | None = None,
        **inputs: object,
    ) -> Float[Tensor, "batch queries dim"]:
        """Return what the plain block returns; `statistics` replace the supernet's own of BatchNorm."""
        weights = self.weights(gene) | dict(statistics or {})
        return functional_call(meta_block(gene).train(self.training), weights, (x,), inputs)

    def calibrate(
        self, gene: BlockConfig, x: Float[Tensor, "batch tokens dim"], **inputs: object
    ) -> tuple[Float[Tensor, "batch queries dim"], Statistics]:
        """Return the block's output, normalised by this batch's statistics, and these; empty without BatchNorm."""
        block = meta_block(gene).eval()
        statistics = {name: torch.zeros_like(t, device=x.device) for name, t in block.named_buffers()}
        for module in block.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.train()
        return functional_call(block, self.weights(gene) | statistics, (x,), inputs), statistics


class Separate(SharedBlock):
    """A block for each option."""

    def __init__(self, options: Blocks, initialize: Initializer) -> None:
        super().__init__()
        self.indices = {gene: str(index) for index, gene in enumerate(options)}
        self.options = nn.ModuleDict({index: new_block(gene, initialize) for gene, index in self.indices.items()})

    def weights(self, gene: BlockConfig) -> StateDict:
        """Return the option's own."""
        return named_tensors(self.options[self.indices[gene]])


class Entangled(SharedBlock):
    """One block as large as the largest option: all heads global beside all heads local, of which a gene takes some.

    A head keeps its index: a gene takes the first global heads and the last local ones, each with the channels that the
    mixer gives them. Of the width of a head, of the MLP and of the local heads' hidden channels it takes the first, of
    a kernel the middle.
    """

    def __init__(self, options: Blocks, initialize: Initializer) -> None:
        super().__init__()
        first = options[0]
        with_local = [gene for gene in options if gene.local_heads]
        if len({(gene.embed_dim, gene.num_heads, gene.local) for gene in options}) > 1:
            raise GlocalError(
                "the options of an entangled block share embed_dim, num_heads and the kind of local heads"
            )
        largest = replace(first, **{name: max(getattr(gene, name) for gene in options) for name in DETAILS})
        self.all_global = new_block(replace(largest, local_heads=0), initialize)
        self.all_local: MultiHeadAttention | LocalConvolution | None = None
        if with_local:
            largest = replace(largest, **{name: max(getattr(gene, name) for gene in with_local) for name in DETAILS})
            self.all_local = new_block(replace(largest, local_heads=first.num_heads), initialize).mixer.local

    def weights(self, gene: BlockConfig) -> StateDict:
        """Return the gene's slices."""
        weights = self.all_global.slice_for(gene)
        if self.all_local is not None and gene.local_heads:
            weights |= prefixed("mixer.local", self.all_local.slice_for(gene))
        return weights


def new_block(gene: BlockConfig, initialize: Initializer) -> Block:
    """Return a block with fresh weights, initialised as the family's."""
    block = Block(gene)
    initialize(block)
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
