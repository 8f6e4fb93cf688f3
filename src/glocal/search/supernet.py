"""One network that holds every path: the supernet of SPOS (Guo et al. 2019, section 3.2), with weights shared two ways.

A supernet's block is nothing but a store of weights: `weights(gene)` gives those of the plain `Block` that a gene
describes, under that block's own names, and the plain block computes with them. So a path that is cut out is the same
function as within the supernet, by construction.

    entangled   one set of the largest weights; a gene takes a slice, and all genes that need a weight train it
                (slices after Cai et al. 2020, *Once-for-All*, and Chen et al. 2021, *AutoFormer*)
    separate    each gene its own weights, as GLiT's authors had it: memory grows with the number of choices
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from glocal.errors import GlocalError
from glocal.layers.block import Block, BlockConfig
from glocal.models import GLiT, ViTConfig
from glocal.search.space import DETAILS, Blocks, Space

State = Mapping[str, Tensor]
Sharing = Literal["entangled", "separate"]


class Supernet(nn.Module):
    """A GLiT of `config` whose blocks are drawn from `space` at every call."""

    trains_in_part = True
    """A step's path leaves the weights of others without a gradient; DDP wants to know."""

    def __init__(self, config: ViTConfig, space: Space, sharing: Sharing = "entangled") -> None:
        super().__init__()
        self.config, self.space = config, space
        self.frame = GLiT(replace(config, blocks=config.blocks[:1]))  # all that is not a block
        self.frame.blocks = nn.Sequential()
        store = {"entangled": Entangled, "separate": Separate}[sharing]
        self.blocks = nn.ModuleList(store(options) for options in space)

    def forward(self, pixel_values: Float[Tensor, "batch chans height width"], path: Blocks) -> Tensor:
        """Logits (B, heads, K) of one path."""
        x = self.frame.embed(pixel_values)
        for depth, gene in enumerate(path):
            x = self.stores[depth](x, gene, keep=self.kept(depth))
        return self.answer(x)

    def kept(self, depth: int) -> int | None:
        """How many tokens of a block are read: of the last, those of the heads alone, as in the plain model."""
        return self.frame.num_prefix_tokens or None if depth == len(self.blocks) - 1 else None

    @property
    def stores(self) -> "list[Store]":
        """The blocks, as what they are."""
        return list(self.blocks)  # type: ignore[arg-type]

    def no_weight_decay(self) -> set[str]:
        """Names of the embeddings among the weights."""
        return {f"frame.{name}" for name in self.frame.no_weight_decay()}

    def answer(self, tokens: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch heads classes"]:
        """Logits of each head, from the last block's tokens."""
        return self.frame.head(self.frame.norm(tokens))

    def cut(self, path: Blocks, statistics: Sequence[State] = ()) -> GLiT:
        """Return a path as a plain model with its own copy of the weights, and of BatchNorm's `statistics` a block."""
        model = GLiT(replace(self.config, blocks=path))
        state = dict(self.frame.state_dict())
        for i, (store, gene) in enumerate(zip(self.stores, path, strict=True)):
            weights = store.weights(gene) | dict(statistics[i] if statistics else {})
            state |= {f"blocks.{i}.{name}": tensor for name, tensor in weights.items()}
        model.load_state_dict(state)
        return model.train(self.training)


class Store(nn.Module, ABC):
    """The weights of one block's options."""

    @abstractmethod
    def weights(self, gene: BlockConfig) -> dict[str, Tensor]:
        """Parameters and buffers of `Block(gene)`, as views where that is possible; gradients flow through them."""

    def forward(
        self,
        x: Float[Tensor, "batch tokens dim"],
        gene: BlockConfig,
        statistics: State | None = None,
        keep: int | None = None,
    ) -> Float[Tensor, "batch kept dim"]:
        """Compute as the plain block would, with these statistics of BatchNorm instead of the supernet's own."""
        weights = self.weights(gene) | dict(statistics or {})
        return functional_call(plain(gene).train(self.training), weights, (x,), {"keep": keep})

    def calibrate(
        self, x: Float[Tensor, "batch tokens dim"], gene: BlockConfig
    ) -> tuple[Float[Tensor, "batch tokens dim"], State]:
        """Compute with the statistics of this very batch, and return them too: empty where nothing is normalised so."""
        block = plain(gene).eval()
        statistics = {name: torch.zeros_like(t, device=x.device) for name, t in block.named_buffers()}
        for module in block.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.train()
        return functional_call(block, self.weights(gene) | statistics, (x,)), statistics


class Separate(Store):
    """A block for each option."""

    def __init__(self, options: Blocks) -> None:
        super().__init__()
        self.places = {gene: str(place) for place, gene in enumerate(options)}
        self.options = nn.ModuleDict({place: initial(gene) for gene, place in self.places.items()})

    def weights(self, gene: BlockConfig) -> dict[str, Tensor]:
        """The option's own."""
        block = self.options[self.places[gene]]
        return dict(block.named_parameters()) | dict(block.named_buffers())


class Entangled(Store):
    """One block as large as the largest option: all heads global beside all heads local, of which a gene takes some.

    A head keeps its place: global heads are taken from the first, local ones from the last, each with the channels that
    the mixer gives them. Of a head's width, of the MLP and of the local heads' hidden channels the first are taken, of
    a kernel the middle.
    """

    def __init__(self, options: Blocks) -> None:
        super().__init__()
        first, local = options[0], [gene for gene in options if gene.local_heads]
        if len({(gene.embed_dim, gene.num_heads, gene.local) for gene in options}) > 1:
            raise GlocalError(
                "the options of an entangled block share embed_dim, num_heads and the kind of local heads"
            )
        largest = replace(first, **{name: max(getattr(gene, name) for gene in options) for name in DETAILS})
        self.all_global = initial(replace(largest, local_heads=0))
        self.all_local: nn.Module | None = None
        if local:
            largest = replace(largest, **{name: max(getattr(gene, name) for gene in local) for name in DETAILS})
            self.all_local = initial(replace(largest, local_heads=first.num_heads)).mixer.local

    def weights(self, gene: BlockConfig) -> dict[str, Tensor]:
        """The gene's slices."""
        dim, num_heads, hidden = gene.embed_dim, gene.num_heads, round(gene.embed_dim * gene.mlp_ratio)
        head_dim = dim // num_heads
        border = dim - gene.local_heads * head_dim  # channels before it are the global heads', from it on the local's
        far, near = slice(num_heads - gene.local_heads), slice(num_heads - gene.local_heads, num_heads)

        taken: dict[str, Tensor] = {}
        for name, tensor in named_tensors(self.all_global):
            part = name.partition(".")[0]
            if part == "mixer":
                if border:
                    width = round(head_dim * gene.qkv_ratio)
                    taken[name] = attention_slice(name, tensor, num_heads, far, width, slice(border))
            elif "fc1" in name:
                taken[name] = tensor[:hidden]
            elif "fc2.weight" in name:
                taken[name] = tensor[:, :hidden]
            else:
                taken[name] = tensor
        if self.all_local is None or not gene.local_heads:
            return taken
        for name, tensor in named_tensors(self.all_local):
            if gene.local == "window":
                width = round(head_dim * gene.qkv_ratio)
                tensor = attention_slice(name, tensor, num_heads, near, width, slice(border, None))
            else:
                tensor = convolution_slice(name, tensor, gene, near, slice(border, None))
            taken[f"mixer.local.{name}"] = tensor
        return taken


def attention_slice(name: str, tensor: Tensor, num_heads: int, heads: slice, width: int, channels: slice) -> Tensor:
    """Take some heads of MultiHeadAttention, `width` of each, between some channels."""
    match name.split(".")[-2:]:
        case "qkv", "weight":
            return take(tensor, 0, 3, num_heads, heads, width)[:, channels]
        case "qkv", "bias":
            return take(tensor, 0, 3, num_heads, heads, width)
        case "proj", "weight":
            return take(tensor, 1, 1, num_heads, heads, width)[channels]
        case "proj", "bias":
            return tensor[channels]
    raise KeyError(name)


def convolution_slice(name: str, tensor: Tensor, gene: BlockConfig, heads: slice, channels: slice) -> Tensor:
    """Take some heads of LocalConvolution, `expand_ratio` times their width, between some channels."""
    width = gene.embed_dim // gene.num_heads * gene.expand_ratio
    match name.split("."):
        case "expand", "weight":
            return take(tensor, 0, 2, gene.num_heads, heads, width)[:, channels]
        case "expand", "bias":
            return take(tensor, 0, 2, gene.num_heads, heads, width)
        case "depthwise", "weight":
            rows, columns = (middle(size, gene.kernel_size) for size in tensor.shape[2:])
            return take(tensor, 0, 1, gene.num_heads, heads, width)[:, :, rows, columns]
        case "contract", "weight":
            return take(tensor, 1, 1, gene.num_heads, heads, width)[channels]
        case "contract", "bias":
            return tensor[channels]
        case "norm", "num_batches_tracked":
            return tensor
    return take(tensor, 0, 1, gene.num_heads, heads, width)  # one value a hidden channel


def take(tensor: Tensor, axis: int, parts: int, num_heads: int, heads: slice, width: int) -> Tensor:
    """Of an axis that stacks `parts` (as queries, keys, values) of all heads, keep the first `width` of some heads."""
    index: list[slice] = [slice(None)] * tensor.ndim
    index[axis : axis + 1] = [slice(None), heads, slice(width)]
    return tensor.unflatten(axis, (parts, num_heads, -1))[tuple(index)].flatten(axis, axis + 2)


def middle(size: int, wanted: int) -> slice:
    """The middle `wanted` of an axis; one that is no longer than 1 is whole."""
    return slice(None) if size == 1 else slice((size - wanted) // 2, (size + wanted) // 2)


def named_tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    """Parameters and buffers by name, gradients attached."""
    return [*module.named_parameters(), *module.named_buffers()]


def initial(gene: BlockConfig) -> Block:
    """A block with fresh weights, drawn as a GLiT's."""
    block = Block(gene)
    GLiT.init_linears(block)
    return block


@lru_cache(maxsize=4096)
def plain(gene: BlockConfig) -> Block:
    """A block without weights of its own: what a gene computes. Its BatchNorm remembers the last batch alone."""
    with torch.device("meta"):
        block = Block(gene)
    for module in block.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    return block
