"""A token through a stack of decoder blocks in one call of kernels.cpp.

Module by module, a token of a small GPT waits longer for Python and for torch's dispatch than for its weights: 170
operations of some 10 µs. Here the whole stack is one call.
"""

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from glocal.errors import GlocalError
from glocal.ops import native
from glocal.ops.choice import PLAIN, choose, size_class
from glocal.ops.paths import ACTIVATIONS, Activation, Panels
from glocal.ops.products import Linear, packed_weight


@dataclass
class BlockParts:
    """The modules of a decoder block, and its tensors: keys and values of what was written and of a context."""

    pre_norm: bool
    heads: int
    activation: Activation
    norm1: nn.LayerNorm
    qkv: Linear
    proj: Linear
    norm2: nn.LayerNorm
    fc1: Linear
    fc2: Linear
    keys: Float[Tensor, "rows heads max_length d_k"]
    values: Float[Tensor, "rows heads max_length d_k"]
    norm_cross: nn.LayerNorm | None = None
    cross_q: Linear | None = None
    cross_proj: Linear | None = None
    cross_keys: Float[Tensor, "contexts heads tokens d_k"] | None = None
    cross_values: Float[Tensor, "contexts heads tokens d_k"] | None = None

    def layers(self) -> list[Linear]:
        """All linear layers."""
        layers = [self.qkv, self.proj, self.cross_q, self.cross_proj, self.fc1, self.fc2]
        return [layer for layer in layers if layer is not None]


def can_decode(parts: Sequence[BlockParts | None]) -> bool:
    """Whether the kernels compute these blocks: float32 on a CPU, packed weights, widths in multiples of 8."""
    if native.load() is None:
        return False
    return all(part is not None and _can_decode(part) for part in parts)


def _can_decode(part: BlockParts) -> bool:
    tensors = part.keys, part.values, part.cross_keys, part.cross_values
    weights = [layer.weight for layer in part.layers()]
    return (
        all(tensor is None or tensor.dtype == torch.float32 for tensor in tensors)
        and all(weight.dtype == torch.float32 and packed_weight(weight, weight) is not None for weight in weights)
        and part.keys.shape[3] % 8 == 0
        and part.qkv.in_features % 8 == 0
        and part.keys.is_contiguous()
        and part.values.is_contiguous()
        and (part.cross_keys is None or _same_layout(part.cross_keys, part.cross_values))
    )


def _same_layout(keys: Tensor, values: Tensor | None) -> bool:
    return values is not None and keys.stride() == values.stride() and keys.stride(3) == 1


class DecoderStack:
    """Blocks as kernels.cpp reads them; holds what their addresses point to."""

    def __init__(self, parts: Sequence[BlockParts]) -> None:
        self.parts = list(parts)
        self.panels: list[Panels] = []
        self.blocks = (native.DecoderBlock * len(parts))(*map(self._block, parts))

    def is_faster(self, rows: int, step: Callable[[], object], module_by_module: Callable[[], object]) -> bool:
        """Whether a step of so many rows by one call was timed to be faster than the same module by module."""
        first = self.parts[0]
        sizes = len(self.parts), first.qkv.in_features, first.fc1.out_features, size_class(rows)
        cross = "no cross" if first.cross_q is None else "cross"
        key = ("decoder", self.panels[0].precision, *sizes, cross)
        return choose(key, lambda: {PLAIN: module_by_module, "kernel": step}) == "kernel"

    def step(
        self,
        x: Float[Tensor, "rows 1 dim"],
        length: int,
        mask: Bool[Tensor, "rows #heads #queries keys"] | None = None,
        context_mask: Bool[Tensor, "contexts 1 1 tokens"] | None = None,
        lengths: Int[Tensor, " rows"] | None = None,
    ) -> Float[Tensor, "rows 1 dim"]:
        """Refine one token of each row, and write its keys and values into the caches.

        Before it, each row has `length` tokens there, or its own of `lengths`, of which `length` is the largest.
        Raises GlocalError where the caches are full.
        """
        first = self.parts[0]
        rows, _, dim = x.shape
        if rows > first.keys.shape[0] or length >= first.keys.shape[2]:
            raise GlocalError(f"token {length + 1} of {rows} rows; the caches hold {tuple(first.keys.shape[::2])}")
        y = x.detach().clone(memory_format=torch.contiguous_format)
        contexts, context_length = (0, 0) if first.cross_keys is None else first.cross_keys.shape[::2]
        masks = [None if some is None else some.flatten(1).contiguous() for some in (mask, context_mask)]
        counts = None if lengths is None else lengths + 1
        own, count, context = (None if some is None else some.data_ptr() for some in (masks[0], counts, masks[1]))
        step = native.Step(rows, dim, length, first.keys.shape[2], own, count, contexts, context_length, context)
        native.kernels().glocal_decode(
            ctypes.addressof(self.blocks),
            len(self.blocks),
            ctypes.addressof(step),
            y.data_ptr(),
            torch.get_num_threads(),
        )
        return y

    def _block(self, part: BlockParts) -> native.DecoderBlock:
        block = native.DecoderBlock(
            heads=part.heads,
            pre_norm=part.pre_norm,
            activation=ACTIVATIONS.index(part.activation),
            cross=part.cross_q is not None,
            keys=part.keys.data_ptr(),
            values=part.values.data_ptr(),
        )
        for name in ("norm1", "norm_cross", "norm2"):
            if (norm := getattr(part, name)) is not None:
                setattr(block, name, native.Norm(norm.weight.data_ptr(), norm.bias.data_ptr(), norm.eps))
        for name in ("qkv", "proj", "cross_q", "cross_proj", "fc1", "fc2"):
            if (layer := getattr(part, name)) is not None:
                setattr(block, name, self._layer(layer))
        if part.cross_keys is not None and part.cross_values is not None:
            block.cross_keys = part.cross_keys.data_ptr()
            block.cross_values = part.cross_values.data_ptr()
            block.cross_batch, block.cross_head, block.cross_key = part.cross_keys.stride()[:3]
        return block

    def _layer(self, layer: Linear) -> native.Layer:
        packed = packed_weight(layer.weight, layer.weight)
        assert packed is not None
        panels = packed.panels(layer.weight)
        self.panels.append(panels)
        made = native.Layer.from_buffer_copy(panels.layer)
        made.bias = None if layer.bias is None else layer.bias.data_ptr()
        return made
