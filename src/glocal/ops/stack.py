"""A token through a stack of blocks in one call of kernels.cpp, with their caches.

Module by module, a small GPT spends more of a token's time in Python and in torch's dispatch than in reading weights:
170 operations of some 10 µs.
"""

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from glocal.errors import GlocalError
from glocal.ops import native
from glocal.ops.blocks import is_plain
from glocal.ops.choice import PLAIN, Key, choose, size_class
from glocal.ops.implementations import ACTIVATIONS, Activation, Panels
from glocal.ops.products import Linear, packed_weight


@dataclass
class LocalParts:
    """The modules of a block's local heads, and the last tokens of each row in a buffer of `slots`.

    A convolution has `depthwise` and `norm`, and keeps its hidden channels; a window has `heads`, keeps keys and
    `values`, and marks a row's `own` tokens.
    """

    size: int
    tokens: Float[Tensor, "rows slots width"]
    into: Linear
    out: Linear
    heads: int = 0
    values: Float[Tensor, "rows slots width"] | None = None
    own: Bool[Tensor, "rows slots"] | None = None
    depthwise: nn.Conv2d | None = None
    norm: nn.Module | None = None


@dataclass
class BlockParts:
    """The modules of a block and, for decoding, its tensors: keys and values of what was written and of a context."""

    pre_norm: bool
    activation: Activation
    norm1: nn.LayerNorm
    norm2: nn.LayerNorm
    fc1: Linear
    fc2: Linear
    causal: bool = False
    heads: int = 0
    qkv: Linear | None = None
    proj: Linear | None = None
    keys: Float[Tensor, "rows heads max_length d_k"] | None = None
    values: Float[Tensor, "rows heads max_length d_k"] | None = None
    local: LocalParts | None = None
    norm_cross: nn.LayerNorm | None = None
    cross_heads: int = 0
    cross_q: Linear | None = None
    cross_proj: Linear | None = None
    cross_keys: Float[Tensor, "contexts cross_heads tokens cross_d_k"] | None = None
    cross_values: Float[Tensor, "contexts cross_heads tokens cross_d_k"] | None = None

    def layers(self) -> list[Linear]:
        """All linear layers."""
        local = [] if self.local is None else [self.local.into, self.local.out]
        layers = [self.qkv, self.proj, *local, self.cross_q, self.cross_proj, self.fc1, self.fc2]
        return [layer for layer in layers if layer is not None]


def can_decode(parts: Sequence[BlockParts | None]) -> bool:
    """Whether the kernels compute these blocks: float32 on a CPU, packed weights, widths in multiples of 8."""
    if native.load() is None:
        return False
    return all(part is not None and _can_decode(part) for part in parts)


def can_multiply(part: BlockParts) -> bool:
    """Whether the kernels have all weights of a block: float32 ones that are packed, in multiples of 8."""
    weights = [layer.weight for layer in part.layers()]
    return part.fc1.in_features % 8 == 0 and all(
        weight.dtype == torch.float32 and packed_weight(weight, weight) is not None for weight in weights
    )


def _can_decode(part: BlockParts) -> bool:
    tensors = part.keys, part.values, part.cross_keys, part.cross_values
    return (
        all(tensor is None or tensor.dtype == torch.float32 for tensor in tensors)
        and can_multiply(part)
        and (part.keys is None or _fits(part.keys, part.values, part.qkv))
        and (part.local is None or _can_decode_local(part.local))
        and (part.cross_keys is None or _same_layout(part.cross_keys, part.cross_values))
    )


def _fits(keys: Tensor, values: Tensor | None, qkv: Linear | None) -> bool:
    contiguous = values is not None and keys.is_contiguous() and values.is_contiguous()
    return contiguous and keys.shape[3] % 8 == 0 and qkv is not None and qkv.in_features % 8 == 0


def _can_decode_local(part: LocalParts) -> bool:
    """Whether the kernels compute these local heads: whole vectors, one after another, and a plain convolution."""
    wide = part.tokens.shape[2] % (8 * max(part.heads, 1)) == 0 and part.into.in_features % 8 == 0
    plain = part.depthwise is None or (is_plain(part.depthwise, nn.Conv2d) and type(part.norm) is nn.LayerNorm)
    float32 = part.tokens.dtype == torch.float32 and (part.norm is None or part.norm.weight.dtype == torch.float32)
    return wide and plain and float32 and part.tokens.is_contiguous()


def _same_layout(keys: Tensor, values: Tensor | None) -> bool:
    return values is not None and keys.stride() == values.stride() and keys.stride(3) == 1


class BlockStack:
    """Blocks as kernels.cpp reads them; holds what their addresses point to."""

    def __init__(self, parts: Sequence[BlockParts]) -> None:
        self.parts = list(parts)
        self.panels: list[Panels] = []
        self.kernels: list[Tensor] = []
        """Kernels of convolutions, a row of channels for each of their tokens."""
        self.blocks = (native.Block * len(parts))(*map(self._block, parts))

    def is_faster(self, rows: int, step: Callable[[], object], module_by_module: Callable[[], object]) -> bool:
        """Whether a step of so many rows by one call was timed to be faster than the same module by module."""
        first = self.parts[0]
        sizes = len(self.parts), first.fc1.in_features, first.fc1.out_features, size_class(rows)
        cross = "no cross" if first.cross_q is None else "cross"
        key: Key = ("decoder", self.panels[0].precision, *sizes, cross)
        if local := [part.local.out.out_features for part in self.parts if part.local is not None]:
            key += (f"{len(local)} blocks with local heads", sum(local))
        return choose(key, lambda: {PLAIN: module_by_module, "kernel": step}) == "kernel"

    def step(
        self,
        x: Float[Tensor, "rows 1 dim"],
        length: int,
        mask: Bool[Tensor, "rows #heads #queries keys"] | None = None,
        context_mask: Bool[Tensor, "contexts 1 1 tokens"] | None = None,
        lengths: Int[Tensor, " rows"] | None = None,
        ends: Sequence[int] = (),
    ) -> Float[Tensor, "rows 1 dim"]:
        """Refine one token of each row, and write it into the caches.

        Before it, each row has `length` tokens there, or its own of `lengths`, of which `length` is the largest; `ends`
        are its places in the buffers of the blocks' local heads. Raises GlocalError if the caches are full.
        """
        first = self.parts[0]
        rows, _, dim = x.shape
        most = next((part.keys.shape[::2] for part in self.parts if part.keys is not None), (rows, length + 1))
        if rows > most[0] or length >= most[1]:
            raise GlocalError(f"token {length + 1} of {rows} rows; the caches hold {tuple(most)}")
        y = x.detach().clone(memory_format=torch.contiguous_format)
        contexts, context_length = (0, 0) if first.cross_keys is None else first.cross_keys.shape[::2]
        masks = [None if some is None else some.flatten(1).contiguous() for some in (mask, context_mask)]
        counts = None if lengths is None else lengths + 1
        places = (ctypes.c_int64 * len(self.parts))(*ends)
        own, count, context = (None if some is None else some.data_ptr() for some in (masks[0], counts, masks[1]))
        step = native.Step(
            rows, dim, length, most[1], own, count, contexts, context_length, context, ctypes.addressof(places)
        )
        native.kernels().glocal_decode(
            ctypes.addressof(self.blocks),
            len(self.blocks),
            ctypes.addressof(step),
            y.data_ptr(),
            torch.get_num_threads(),
        )
        return y

    def _block(self, part: BlockParts) -> native.Block:
        block = native.Block(
            heads=part.heads,
            pre_norm=part.pre_norm,
            activation=ACTIVATIONS.index(part.activation),
            cross_heads=part.cross_heads,
            keys=address(part.keys),
            values=address(part.values),
        )
        for name in ("norm1", "norm_cross", "norm2"):
            if (norm := getattr(part, name)) is not None:
                setattr(block, name, native.Norm(norm.weight.data_ptr(), norm.bias.data_ptr(), norm.eps))
        for name in ("qkv", "proj", "cross_q", "cross_proj", "fc1", "fc2"):
            if (layer := getattr(part, name)) is not None:
                setattr(block, name, self._layer(layer))
        if part.local is not None:
            block.local = self._local(part.local)
        if part.cross_keys is not None and part.cross_values is not None:
            block.cross_keys = part.cross_keys.data_ptr()
            block.cross_values = part.cross_values.data_ptr()
            block.cross_batch, block.cross_head, block.cross_key = part.cross_keys.stride()[:3]
        return block

    def _local(self, part: LocalParts) -> native.LocalHeads:
        local = native.LocalHeads(
            heads=part.heads,
            size=part.size,
            slots=part.tokens.shape[1],
            into=self._layer(part.into),
            out=self._layer(part.out),
            tokens=part.tokens.data_ptr(),
            values=address(part.values),
            own=address(part.own),
        )
        if part.depthwise is not None and isinstance(part.norm, nn.LayerNorm):
            kernel = part.depthwise.weight.detach().flatten(1).T.contiguous()
            self.kernels.append(kernel)
            local.kernel = kernel.data_ptr()
            local.kernel_bias = address(part.depthwise.bias)
            local.norm = native.Norm(part.norm.weight.data_ptr(), part.norm.bias.data_ptr(), part.norm.eps)
        return local

    def _layer(self, layer: Linear) -> native.Layer:
        packed = packed_weight(layer.weight, layer.weight)
        assert packed is not None
        panels = packed.panels(layer.weight)
        self.panels.append(panels)
        made = native.Layer.from_buffer_copy(panels.layer)
        made.bias = None if layer.bias is None else layer.bias.data_ptr()
        return made


def address(tensor: Tensor | None) -> int | None:
    """Return where a tensor's numbers begin."""
    return None if tensor is None else tensor.data_ptr()
