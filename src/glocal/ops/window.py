"""Attention to neighbours alone: sliding windows (Beltagy et al. 2020, *Longformer*, section 3.1).

Full attention that is masked to windows of W tokens computes N² scores. Blocks of c queries, each with the W - 1 + c
keys that its queries reach, compute N (W - 1 + c).
"""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from glocal.ops.attention import scaled_dot_product_attention
from glocal.ops.choice import PLAIN, choose, dtype_name, size_class, step
from glocal.ops.products import eager_cpu

BLOCKS = (32, 128)
"""Queries of a block: the sizes that are candidates."""


def window_attention(
    q: Float[Tensor, "batch heads tokens d_k"],
    k: Float[Tensor, "batch heads tokens d_k"],
    v: Float[Tensor, "batch heads tokens d_v"],
    window: int,
    mask: Bool[Tensor, "#batch 1 1 tokens"] | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
) -> Float[Tensor, "batch heads tokens d_v"]:
    """softmax(QKᵀ/√d_k)V over the `window` tokens around each token or, if causal, over the last `window` up to it.

    Keys at which the mask is False are left out, but a token attends to itself in any case: a window of padding alone
    has a key. `window` is odd where it is not causal.
    """
    tokens = q.shape[2]
    if not torch.compiler.is_compiling():  # a program is for any number of tokens
        if is_causal and window >= tokens and mask is None:
            return scaled_dot_product_attention(q, k, v, None, dropout_p, is_causal)
        if window < tokens and (size := _block_size(q, window, dropout_p, is_causal)):
            return window_attention_by_blocks(q, k, v, window, mask, dropout_p, is_causal, size)
    return scaled_dot_product_attention(q, k, v, window_mask(tokens, window, mask, is_causal, q.device), dropout_p)


def window_mask(
    tokens: int,
    window: int,
    mask: Bool[Tensor, "#batch 1 1 tokens"] | None = None,
    is_causal: bool = False,
    device: torch.device | None = None,
) -> Bool[Tensor, "#batch 1 tokens tokens"]:
    """Return True where a query (the third axis) attends to a key (the last one)."""
    before, after = _reach(window, is_causal)
    position = torch.arange(tokens, device=device)
    distance = position - position[:, None]
    band = ((distance >= -before) & (distance <= after))[None, None]
    return band if mask is None else band & mask | (distance == 0)


def window_attention_by_blocks(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    window: int,
    mask: Tensor | None,
    dropout_p: float,
    is_causal: bool,
    size: int,
) -> Tensor:
    """The same, block by block: the blocks of all examples are the batch of one attention."""
    batch, _, tokens, _ = q.shape
    before, after = _reach(window, is_causal)
    blocks = -(-tokens // size)
    unfilled = blocks * size - tokens
    width = before + size + after

    def keys_of_blocks(x: Tensor) -> Tensor:  # (B, H, N, d) -> (B · blocks, H, width, d)
        padded = F.pad(x, (0, 0, before, after + unfilled))
        return padded.unfold(2, width, size).permute(0, 2, 1, 4, 3).flatten(0, 1)

    queries = F.pad(q, (0, 0, 0, unfilled)).unflatten(2, (blocks, size)).transpose(1, 2).flatten(0, 1)
    own = q.new_ones(1, tokens, dtype=torch.bool) if mask is None else mask[:, 0, 0]
    own = F.pad(own, (before, after + unfilled)).unfold(1, width, size)  # (B, blocks, width)
    distance = torch.arange(width, device=q.device) - before - torch.arange(size, device=q.device)[:, None]
    band = (distance >= -before) & (distance <= after)
    seen = own[:, :, None] & band | (distance == 0)
    seen = seen.expand(batch, -1, -1, -1).flatten(0, 1)[:, None]
    y = scaled_dot_product_attention(queries, keys_of_blocks(k), keys_of_blocks(v), seen, dropout_p)
    return y.unflatten(0, (batch, blocks)).transpose(1, 2).flatten(2, 3)[:, :, :tokens]


def _reach(window: int, is_causal: bool) -> tuple[int, int]:
    """Return how many tokens before and after itself a token attends to."""
    return (window - 1, 0) if is_causal else (window // 2, window // 2)


def _block_size(q: Tensor, window: int, dropout_p: float, is_causal: bool) -> int:
    """Return the queries of a block; 0 for full attention that is masked.

    On meta tensors, on which operations are counted, a block is one query: W keys each, which is what windows cost.
    """
    tokens = q.shape[2]
    if q.device.type == "meta":
        return 1
    if not eager_cpu(q):  # elsewhere, blocks of W queries where they compute half of the scores at most
        return window if 4 * window <= tokens else 0
    chosen = _chosen_implementation(q, window, dropout_p, is_causal)
    return 0 if chosen == PLAIN else int(chosen)


def _chosen_implementation(q: Tensor, window: int, dropout_p: float, is_causal: bool) -> str:
    batch, heads, tokens, dim = q.shape
    examples = min(size_class(batch), 8)
    sizes = examples, heads, size_class(tokens), dim

    def candidates() -> dict[str, Callable[[], object]]:
        tensors = [torch.randn(sizes, dtype=q.dtype) for _ in "qkv"]
        band = window_mask(sizes[2], window, None, is_causal)
        found = {PLAIN: step(lambda q, k, v: scaled_dot_product_attention(q, k, v, band, dropout_p), *tensors)}
        for size in (size for size in BLOCKS if size < sizes[2]):
            found[str(size)] = step(
                lambda q, k, v, size=size: window_attention_by_blocks(
                    q, k, v, window, None, dropout_p, is_causal, size
                ),
                *tensors,
            )
        return found

    name = "window attention training" if torch.is_grad_enabled() else "window attention"
    kinds = "causal" if is_causal else "both sides", "dropout" if dropout_p else "no dropout"
    return choose((name, dtype_name(q.dtype), *sizes, window, *kinds), candidates)
