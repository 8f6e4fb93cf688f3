"""One network that holds every path: the supernet of SPOS (Guo et al. 2019, section 3.2), with weights shared two ways.

It consists of a frame and of shared blocks. The frame is a family's model (GLiT, BERT, GPT, ...) without its blocks:
embeddings, final norm and head. A shared block only stores weights: `weights(option)` returns the weights of the plain
`Block` that an option describes, under that block's names, and the plain block computes with them. A path runs by the
forward pass of the family's model over the blocks of the path. So a path computes the same in the supernet as when
it is extracted, and no family is named here.

    entangled   one set of the largest weights per block; an option uses a slice of them, and all options that need a
                weight train it (weight entanglement: Chen et al. 2021, *AutoFormer*, https://arxiv.org/abs/2107.00651;
                the layers' `slice_for`)
    separate    separate weights for each option, as in the code of GLiT's authors: memory grows with the number of
                options
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
from glocal.models.config import blocks_of, split_into_stacks
from glocal.search.budget import Architecture
from glocal.search.space import DETAILS, Space

Statistics = Mapping[str, Tensor]
"""BatchNorm's running means, variances and counts in a block, by their names in the block."""
Sharing = Literal["entangled", "separate"]
BlockFunction = Callable[..., Tensor]
"""Takes the inputs that a family's forward pass gives a block, and returns the refined tokens."""
Initializer = Callable[[nn.Module], None]


class Supernet(nn.Module):
    """A model like `model`, with fresh weights, whose blocks are chosen from `space` at every call."""

    has_unused_parameters = True
    """Weights of other paths get no gradient in a step, which DDP must expect."""

    def __init__(self, model: Model, space: Space, sharing: Sharing = "entangled") -> None:
        super().__init__()
        self.config = model.config
        self.space = space
        stacked = split_into_stacks(self.config, blocks_of(self.config))
        # Built with one block per stack, from which a model reads sizes such as embed_dim; the block is removed below.
        self.frame = type(model)(replace(self.config, **{name: blocks[:1] for name, blocks in stacked.items()}))
        self.frame.config = self.config
        for name in stacked:
            setattr(self.frame, name, BlockList())
        kind = {"entangled": EntangledBlock, "separate": SeparateBlocks}[sharing]
        self.blocks = nn.ModuleList(kind(options, self.frame.init_linears) for options in space)

    def forward(self, *inputs: Tensor, path: Architecture) -> Tensor:
        """Return what a plain model of the path returns."""
        return self.subnet(path)(*inputs)

    def subnet(self, path: Architecture) -> Model:
        """Return a path as a model that computes with the supernet's weights, and trains them."""
        blocks = zip(self.shared_blocks, path, strict=True)
        return self.with_blocks([partial(block, option) for block, option in blocks])

    def with_blocks(self, blocks: Sequence[BlockFunction]) -> Model:
        """Return the frame around these blocks: a model of the family that shares the supernet's weights."""
        # A shallow copy shares the frame's weights; only its dictionary of modules is replaced, to hold these blocks.
        model = copy(self.frame)
        stacked = split_into_stacks(self.config, [FunctionBlock(block) for block in blocks])
        model._modules = self.frame._modules | {name: BlockList(stack) for name, stack in stacked.items()}
        return model

    @property
    def shared_blocks(self) -> "list[SharedBlock]":
        """The blocks, in the order of a path."""
        return cast(list[SharedBlock], list(self.blocks))

    @property
    def has_batch_norm(self) -> bool:
        """Whether a block contains BatchNorm, whose statistics have to be measured for each path."""
        return any(isinstance(module, nn.BatchNorm2d) for module in self.blocks.modules())

    def no_weight_decay(self) -> set[str]:
        """Return the names of the embeddings among the weights."""
        return {f"frame.{name}" for name in self.frame.no_weight_decay()}

    def extract_subnet(self, path: Architecture, statistics: Sequence[Statistics] | None = None) -> Model:
        """Return a path as a plain model with a copy of the supernet's weights.

        `statistics` are BatchNorm's for each block of the path; None: the supernet's running statistics.
        """
        model = type(self.frame)(replace(self.config, **split_into_stacks(self.config, path)))
        weights = [block.weights(option) for block, option in zip(self.shared_blocks, path, strict=True)]
        if statistics is not None:
            weights = [tensors | dict(measured) for tensors, measured in zip(weights, statistics, strict=True)]
        state = dict(self.frame.state_dict())
        for name, stack in split_into_stacks(self.config, weights).items():
            for i, tensors in enumerate(stack):
                state |= prefixed(f"{name}.{i}", tensors)
        model.load_state_dict(state)
        return model.train(self.training)


class FunctionBlock(nn.Module):
    """A function as a module, which takes the place of a block in a model."""

    def __init__(self, function: BlockFunction) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Float[Tensor, "batch tokens dim"], **inputs: object) -> Float[Tensor, "batch queries dim"]:
        """Return what the function returns."""
        return self.function(x, **inputs)


class SharedBlock(nn.Module, ABC):
    """The weights of all options of one block."""

    @abstractmethod
    def weights(self, option: BlockConfig) -> StateDict:
        """Return the parameters and buffers of `Block(option)`, as views where possible, with their gradients."""

    def forward(
        self,
        option: BlockConfig,
        x: Float[Tensor, "batch tokens dim"],
        statistics: Statistics | None = None,
        **inputs: object,
    ) -> Float[Tensor, "batch queries dim"]:
        """Return what the plain block returns.

        In evaluation BatchNorm uses `statistics` if they are given, else the supernet's running statistics.
        """
        weights = self.weights(option) | dict(statistics or {})
        return functional_call(meta_block(option).train(self.training), weights, (x,), inputs)

    def calibrate(
        self, option: BlockConfig, x: Float[Tensor, "batch tokens dim"], **inputs: object
    ) -> tuple[Float[Tensor, "batch queries dim"], Statistics]:
        """Return the block's output, for which BatchNorm uses this batch's statistics, and these statistics.

        Without BatchNorm, the statistics are empty.
        """
        block = meta_block(option).eval()
        statistics = {name: torch.zeros_like(t, device=x.device) for name, t in block.named_buffers()}
        for module in block.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.train()
        return functional_call(block, self.weights(option) | statistics, (x,), inputs), statistics


class SeparateBlocks(SharedBlock):
    """A block for each option."""

    def __init__(self, options: Sequence[BlockConfig], initialize: Initializer) -> None:
        super().__init__()
        self.indices = {option: str(index) for index, option in enumerate(options)}
        self.options = nn.ModuleDict({index: new_block(option, initialize) for option, index in self.indices.items()})

    def weights(self, option: BlockConfig) -> StateDict:
        """Return the weights of the option's block."""
        return named_tensors(self.options[self.indices[option]])


class EntangledBlock(SharedBlock):
    """Weights for N global and N local heads, as large as the largest option; each option uses a slice of them.

    A head keeps its index: an option with G global and L local heads uses the first G of the global heads and the last
    L of the local ones, each with the channels that the mixer gives it. Where an option is narrower, it uses the first
    channels of each head, the first hidden channels of the MLP and of the local heads, and the middle of a kernel (of a
    causal kernel, the end).
    """

    def __init__(self, options: Sequence[BlockConfig], initialize: Initializer) -> None:
        super().__init__()
        first = options[0]
        with_local = [option for option in options if option.local_heads]
        if len({(option.embed_dim, option.num_heads, option.local) for option in options}) > 1:
            raise GlocalError(
                "the options of an entangled block share embed_dim, num_heads and the kind of local heads"
            )
        largest = replace(first, **{name: max(getattr(option, name) for option in options) for name in DETAILS})
        self.all_global = new_block(replace(largest, local_heads=0), initialize)
        self.all_local: MultiHeadAttention | LocalConvolution | None = None
        if with_local:
            sizes = {name: max(getattr(option, name) for option in with_local) for name in DETAILS}
            largest_local = replace(largest, **sizes, local_heads=first.num_heads)
            self.all_local = new_block(largest_local, initialize).mixer.local

    def weights(self, option: BlockConfig) -> StateDict:
        """Return the slices that the option uses."""
        weights = self.all_global.slice_for(option)
        if self.all_local is not None and option.local_heads:
            weights |= prefixed("mixer.local", self.all_local.slice_for(option))
        return weights


def new_block(option: BlockConfig, initialize: Initializer) -> Block:
    """Return a block with fresh weights, which are initialised as in the family's model."""
    block = Block(option)
    initialize(block)
    return block


@lru_cache(maxsize=4096)
def meta_block(option: BlockConfig) -> Block:
    """Return a block on the meta device, for calls with given weights.

    In training, the running statistics of BatchNorm are replaced by those of the batch, not averaged with them.
    """
    with torch.device("meta"):
        block = Block(option)
    for module in block.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    return block
