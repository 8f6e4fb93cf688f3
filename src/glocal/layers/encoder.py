"""A stack of blocks over all tokens of a batch, as in an encoder and in training."""

from collections.abc import Iterator
from functools import partial
from typing import cast
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from glocal.layers.attention import Context, Mask
from glocal.layers.block import Block
from glocal.layers.block_parts import block_parts
from glocal.layers.mixer import TokenMask
from glocal.ops.block_encoder import BlockEncoder, can_encode
from glocal.ops.products import eager_cpu

MAX_TOKENS = 2048
"""Most tokens of a batch for which a block may be one call of `ops`. The call saves some 0.5 ms, and takes memory for
every token."""


class BlockList(nn.ModuleList):
    """Blocks, one after another."""

    def __iter__(self) -> Iterator[Block]:
        """Iterate over the blocks."""
        return cast(Iterator[Block], super().__iter__())

    def forward(
        self,
        x: Float[Tensor, "batch tokens dim"],
        mask: Mask | None = None,
        context: Context | None = None,
        context_mask: Bool[Tensor, "contexts 1 1 keys"] | None = None,
        num_queries: int | None = None,
        token_mask: TokenMask | None = None,
    ) -> Float[Tensor, "batch queries dim"]:
        """Return the tokens after all blocks, or the first `num_queries` of them; the masks are as in `Block`.

        The last block does not compute the other tokens. In inference on a CPU, a block of a packed model is one call
        of `ops` where that was timed to be faster.
        """
        for number, block in enumerate(self, start=1):
            queries = num_queries if number == len(self) else None
            encoder = _encoder(block, x, mask, queries)
            if encoder is not None:
                x = encoder.encode(x, mask, queries)
            else:
                x = block(
                    x,
                    mask=mask,
                    context=context,
                    context_mask=context_mask,
                    num_queries=queries,
                    token_mask=token_mask,
                )
        return x


_encoders: WeakKeyDictionary[nn.Module, BlockEncoder] = WeakKeyDictionary()
"""Blocks as `ops` reads them."""


def _encoder(block: nn.Module, x: Tensor, mask: Mask | None, num_queries: int | None) -> BlockEncoder | None:
    """Return a block as one call of `ops`, where it can compute it and is faster; else None."""
    if torch.is_grad_enabled() or not eager_cpu(x) or len(x) * x.shape[1] > MAX_TOKENS or not isinstance(block, Block):
        return None
    if (parts := block_parts(block)) is None:
        return None
    encoder = _encoders.get(block)
    if encoder is None or not encoder.is_current(parts):
        if not can_encode(parts):
            return None
        encoder = _encoders[block] = BlockEncoder(parts)
    if not encoder.takes(x, mask):
        return None
    modules = partial(block, x, mask=mask, num_queries=num_queries)
    return encoder if encoder.is_faster(x, mask, num_queries, modules) else None
