"""A stack of decoder blocks, token by token: the state between two tokens, and one step."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from glocal.layers.attention import KeysValues
from glocal.layers.block import Block
from glocal.layers.block_parts import block_parts
from glocal.layers.mixer import MixerCache
from glocal.ops.stack import BlockStack, can_decode


@dataclass
class DecoderState:
    """State between two tokens. Each input has `beams` consecutive rows."""

    caches: Sequence[MixerCache]
    """What each block's mixer keeps of the tokens so far."""
    pads: Int[Tensor, " rows"] | None = None
    """Padding in front of each row; None where no row has any."""
    contexts: list[KeysValues] | None = None
    """Keys and values of each block's cross-attention, of each input."""
    context_mask: Bool[Tensor, "inputs 1 1 tokens"] | None = None
    """True at the inputs' own tokens."""
    stack: BlockStack | None = None
    """The blocks as one call of `ops` computes them; None until built, and after the tensors were replaced."""
    one_call: dict[int, bool] = field(default_factory=dict)
    """Whether that call is used, by the number of rows."""
    length: int = 0
    """Tokens so far."""

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

    def token_mask(self, new: int) -> Bool[Tensor, "rows new"] | None:
        """Return True where one of `new` tokens is no padding; None where there is no padding, or no local head."""
        if self.pads is None or all(cache.local is None for cache in self.caches):
            return None
        return torch.arange(self.length, self.length + new, device=self.pads.device) >= self.pads[:, None]

    def ends(self) -> list[int]:
        """Return where the next token stands in the buffer of each block's local heads; 0 where there are none."""
        return [0 if cache.local is None else cache.local.reserve() for cache in self.caches]

    def repeat(self, beams: int) -> None:
        """Replace each row by `beams` copies."""
        self.stack = None
        for cache in self.caches:
            cache.repeat(beams)
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

    A single new token per row passes all blocks in one call of `ops` where that was timed to be faster.
    """
    stacked = cast(list[Block], list(blocks))
    if x.shape[1] == 1 and (stack := _stack(stacked, x, state)) is not None:
        y = _at_once(stack, x, state)
        for cache in state.caches:
            cache.advance()
    else:
        y = _one_by_one(stacked, x, state, state.caches)
    state.length += x.shape[1]
    return y


def _at_once(stack: BlockStack, x: Tensor, state: DecoderState) -> Tensor:
    lengths = state.lengths  # rows that end at their own lengths need no mask
    mask = state.mask(1) if lengths is None else None
    return stack.step(x, state.length, mask, state.context_mask, lengths, state.ends())


def _one_by_one(blocks: Sequence[Block], x: Tensor, state: DecoderState, caches: Sequence[MixerCache]) -> Tensor:
    mask = state.mask(x.shape[1])
    own = state.token_mask(x.shape[1])
    contexts: Sequence[KeysValues | None] = state.contexts or [None] * len(caches)
    for block, cache, context in zip(blocks, caches, contexts, strict=True):
        x = block(x, mask=mask, context=context, context_mask=state.context_mask, cache=cache, token_mask=own)
    return x


def _stack(blocks: Sequence[Block], x: Tensor, state: DecoderState) -> BlockStack | None:
    """Return the blocks as one call, where it can compute them and is faster; else None."""
    rows = len(x)
    if state.one_call.get(rows) is False or x.dtype != torch.float32 or torch.is_grad_enabled():
        return None
    if state.stack is None:
        contexts: Sequence[KeysValues | None] = state.contexts or [None] * len(state.caches)
        parts = [block_parts(*each) for each in zip(blocks, state.caches, contexts, strict=True)]
        if not can_decode(parts):
            state.one_call[rows] = False
            return None
        state.stack = BlockStack([part for part in parts if part is not None])
    stack = state.stack
    own = state.token_mask(1)
    if own is not None and not own.all():
        return None  # the kernels take each new token for one of its text

    def module_by_module() -> None:
        _one_by_one(blocks, x, state, [cache.share() for cache in state.caches])

    if rows not in state.one_call:
        state.one_call[rows] = stack.is_faster(rows, partial(_at_once, stack, x, state), module_by_module)
    return stack if state.one_call[rows] else None
