"""A stack of decoder blocks, token by token: the state between two tokens, and one step."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from glocal import ops
from glocal.layers.attention import Cache, KeysValues, MultiHeadAttention
from glocal.layers.block import Block
from glocal.ops.decoding import BlockParts, DecoderStack, can_decode


@dataclass
class DecoderState:
    """State between two tokens: `beams` rows an input, those of one input consecutive."""

    caches: Sequence[Cache]
    """Keys and values of each block's self-attention."""
    pads: Int[Tensor, " rows"] | None = None
    """Padding in front of each row; None where no row has any."""
    contexts: list[KeysValues] | None = None
    """Keys and values of each block's cross-attention, of each input."""
    context_mask: Bool[Tensor, "inputs 1 1 tokens"] | None = None
    """True at the inputs' own tokens."""
    stack: DecoderStack | None = None
    """The blocks as one call of `ops` computes them; None until built, and after the tensors were replaced."""
    one_call: dict[int, bool] = field(default_factory=dict)
    """Whether that call is used, by the number of rows."""

    @property
    def length(self) -> int:
        """Tokens in the caches."""
        return self.caches[0].length

    @property
    def lengths(self) -> Int[Tensor, " rows"] | None:
        """Tokens of each row, where a row's place in the caches depends on it; None where all have `length`."""
        return None

    def mask(self, new: int) -> Bool[Tensor, "rows 1 new keys"] | None:
        """Return True where a key is no padding, for `new` tokens in each row; None where there is no padding."""
        if self.pads is None:
            return None
        key = torch.arange(self.length + new, device=self.pads.device)
        text = (key >= self.pads[:, None])[:, None, None]
        return text | (key[self.length :, None] == key)  # padding attends to itself: a softmax over nothing is nan

    def repeat(self, beams: int) -> None:
        """Replace each row by `beams` copies."""
        self.stack = None
        for cache in self.caches:
            cache.keys = cache.keys.repeat_interleave(beams, dim=0)
            cache.values = cache.values.repeat_interleave(beams, dim=0)
        if self.pads is not None:
            self.pads = self.pads.repeat_interleave(beams)

    def select(self, rows: Int[Tensor, " rows"], inputs: Int[Tensor, " inputs"] | None = None) -> None:
        """Keep these rows, and these inputs where some are finished; a row may occur many times."""
        for cache in self.caches:
            cache.select(rows)
        if inputs is None:
            return  # rows are exchanged within an input: paddings and contexts stay
        self.stack = None
        if self.pads is not None:
            self.pads = self.pads[rows]
        if self.contexts is not None:
            self.contexts = [KeysValues(*(tensor[inputs] for tensor in context)) for context in self.contexts]
        if self.context_mask is not None:
            self.context_mask = self.context_mask[inputs]


def decode(
    blocks: Iterable[nn.Module], x: Float[Tensor, "rows new dim"], state: DecoderState
) -> Float[Tensor, "rows new dim"]:
    """Return the refined new tokens of every row, and add them to the caches.

    One token a row passes all blocks in one call of `ops` where that was timed to be faster.
    """
    stacked = cast(list[Block], list(blocks))
    if x.shape[1] == 1 and (stack := _stack(stacked, x, state)) is not None:
        y = _at_once(stack, x, state)
        for cache in state.caches:
            cache.length += 1
        return y
    return _one_by_one(stacked, x, state)


def _at_once(stack: DecoderStack, x: Tensor, state: DecoderState) -> Tensor:
    lengths = state.lengths  # rows that end at their own lengths need no mask
    return stack.step(x, state.length, state.mask(1) if lengths is None else None, state.context_mask, lengths)


def _one_by_one(blocks: Sequence[Block], x: Tensor, state: DecoderState) -> Tensor:
    mask = state.mask(x.shape[1])
    contexts: Sequence[KeysValues | None] = state.contexts or [None] * len(state.caches)
    for block, cache, context in zip(blocks, state.caches, contexts, strict=True):
        x = block(x, mask=mask, context=context, context_mask=state.context_mask, cache=cache)
    return x


def _stack(blocks: Sequence[Block], x: Tensor, state: DecoderState) -> DecoderStack | None:
    """Return the blocks as one call, where it can compute them and is faster; else None."""
    rows = len(x)
    if state.one_call.get(rows) is False or x.dtype != torch.float32 or torch.is_grad_enabled():
        return None
    if state.stack is None:
        parts = [_parts(block, number, state) for number, block in enumerate(blocks)]
        if not can_decode(parts):
            state.one_call[rows] = False
            return None
        state.stack = DecoderStack([part for part in parts if part is not None])
    stack, length = state.stack, state.length

    def module_by_module() -> None:
        _one_by_one(blocks, x, state)
        for cache in state.caches:
            cache.length = length

    if rows not in state.one_call:
        state.one_call[rows] = stack.is_faster(rows, partial(_at_once, stack, x, state), module_by_module)
    return stack if state.one_call[rows] else None


def _parts(block: Block, number: int, state: DecoderState) -> BlockParts | None:
    """Return the modules and tensors of one block; None where it is more than attention and an MLP, or in training."""
    attention = block.mixer.attention
    mlp = block.mlp
    cross = block.cross
    activation = ops.activation_name(mlp.act)
    linear = [mlp.fc1, mlp.fc2, *_linear_layers(attention), *_linear_layers(cross)]
    plain = ops.is_plain(block, Block) and all(ops.is_plain(layer, ops.Linear) for layer in linear)
    if attention is None or attention.window is not None or block.mixer.local is not None:
        return None
    if activation is None or not plain or block.training:
        return None
    cache = state.caches[number]
    context = None if state.contexts is None else state.contexts[number]
    return BlockParts(
        pre_norm=block.pre_norm,
        heads=attention.num_heads,
        activation=activation,
        norm1=block.norm1,
        qkv=attention.qkv,
        proj=attention.proj,
        norm2=block.norm2,
        fc1=mlp.fc1,
        fc2=mlp.fc2,
        keys=cache.keys,
        values=cache.values,
        norm_cross=block.norm_cross,
        cross_q=None if cross is None else cross.q,
        cross_proj=None if cross is None else cross.proj,
        cross_keys=None if context is None else context.keys,
        cross_values=None if context is None else context.values,
    )


def _linear_layers(attention: MultiHeadAttention | None) -> list[nn.Module]:
    if attention is None:
        return []
    return [attention.proj, attention.qkv if hasattr(attention, "qkv") else attention.q]
