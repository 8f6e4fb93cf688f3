"""A batch through one block in one call of kernels.cpp, without a cache.

Module by module, DeiT-Tiny spends a sixth of an image's time in Python and in torch's dispatch.
"""

import ctypes
from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from glocal.ops import native
from glocal.ops.attention import CLASS
from glocal.ops.choice import PLAIN, choose, size_class
from glocal.ops.products import Linear, Packed, packed_weight, state_of
from glocal.ops.stack import BlockParts, BlockStack, address, can_multiply


def can_encode(part: BlockParts) -> bool:
    """Whether the kernels compute a block without a cache: one with global heads alone, and as for `can_decode`."""
    return (
        native.load() is not None
        and part.qkv is not None
        and part.qkv.in_features == part.fc1.in_features
        and part.cross_q is None
        and part.qkv.out_features % (3 * 8 * part.heads) == 0
        and can_multiply(part)
    )


class BlockEncoder:
    """A block as kernels.cpp reads it, for all tokens of a batch."""

    def __init__(self, part: BlockParts) -> None:
        self.part = part
        self.weights = [_packed_weights(layer) for layer in part.layers()]
        self.vectors = _vectors(part)
        self.stack = BlockStack([part])
        self.faster: dict[tuple[int | None, ...], bool] = {}
        """Whether one call is faster, by the sizes of a batch."""

    def is_current(self, part: BlockParts) -> bool:
        """Whether the block still has these weights, with the same numbers; biases and norms are read in place."""
        layers = part.layers()
        return (
            len(layers) == len(self.weights)
            and all(
                weight is layer.weight
                and state == state_of(weight)
                and packed is getattr(weight, "packed", None)  # `pack` sets another, and training empties that one
                and packed.layouts.get("kernel") is panels
                for layer, (weight, state, packed), panels in zip(layers, self.weights, self.stack.panels, strict=True)
            )
            and self.vectors == _vectors(part)
        )

    def takes(self, x: Tensor, mask: Tensor | None) -> bool:
        """Whether the kernels compute this batch: in float32, under no mask but one of padding, or a causal one."""
        if x.dtype != torch.float32 or x.shape[2] != self.part.fc1.in_features or torch.is_autocast_enabled("cpu"):
            return False
        return mask is None or (not self.part.causal and mask.shape == (x.shape[0], 1, 1, x.shape[1]))

    def is_faster(
        self, x: Tensor, mask: Tensor | None, num_queries: int | None, module_by_module: Callable[[], object]
    ) -> bool:
        """Whether one call for a batch of this size was timed to be faster than the same module by module."""
        batch, tokens, dim = x.shape
        case = batch, tokens, num_queries, torch.get_num_threads()
        if case not in self.faster:
            sizes = dim, self.part.fc1.out_features, size_class(batch), -(-tokens // CLASS) * CLASS
            queries = "all queries" if num_queries is None else f"{num_queries} queries"
            key = ("encoder", self.stack.panels[0].precision, *sizes, queries)
            encode = partial(self.encode, x, mask, num_queries)
            self.faster[case] = choose(key, lambda: {PLAIN: module_by_module, "kernel": encode}) == "kernel"
        return self.faster[case]

    def encode(
        self,
        x: Float[Tensor, "batch tokens dim"],
        mask: Bool[Tensor, "batch 1 1 tokens"] | None = None,
        num_queries: int | None = None,
    ) -> Float[Tensor, "batch queries dim"]:
        """Return the batch after the block: all tokens, or the first `num_queries` of them."""
        x = x.contiguous()
        batch, tokens, dim = x.shape
        queries = tokens if num_queries is None else min(num_queries, tokens)
        y = x.new_empty(batch, queries, dim)
        own = None if mask is None else mask.contiguous()
        sizes = native.Batch(batch, tokens, queries, dim, self.part.causal, address(own))
        native.kernels().glocal_encode(
            ctypes.addressof(self.stack.blocks),
            ctypes.addressof(sizes),
            x.data_ptr(),
            y.data_ptr(),
            torch.get_num_threads(),
        )
        return y


def _packed_weights(layer: Linear) -> tuple[Tensor, tuple[int, int], Packed]:
    """Return a weight, its state, and its packed form."""
    packed = packed_weight(layer.weight, layer.weight)
    assert packed is not None
    return layer.weight, state_of(layer.weight), packed


def _vectors(part: BlockParts) -> list[int | None]:
    """Return where the norms and the biases of a block are."""
    norms = part.norm1.weight, part.norm1.bias, part.norm2.weight, part.norm2.bias
    return [address(vector) for vector in (*norms, *(layer.bias for layer in part.layers()))]
