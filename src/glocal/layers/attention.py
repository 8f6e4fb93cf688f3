"""Attention: softmax(QKᵀ/√d_k)V, and its multi-head module (Vaswani et al. 2017, section 3.2)."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from glocal import ops
from glocal.errors import GlocalError

Mask = Bool[Tensor, "#batch #heads #queries keys"]
"""True where a query may attend to a key."""


def attention_weights(
    q: Float[Tensor, "batch heads queries d_k"],
    k: Float[Tensor, "batch heads keys d_k"],
    mask: Mask | None = None,
    causal: bool = False,
) -> Float[Tensor, "batch heads queries keys"]:
    """softmax(QKᵀ/√d_k), equation 1 without V: how much each query looks at each key; every row sums to one.

    `mask` is True where a query may attend. With `causal`, the last query sees all keys, the one before it all but one.
    """
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
    if causal:
        mask = causal_mask(q, k, mask)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return scores.softmax(dim=-1)


def attention(
    q: Float[Tensor, "batch heads queries d_k"],
    k: Float[Tensor, "batch heads keys d_k"],
    v: Float[Tensor, "batch heads keys d_v"],
    mask: Mask | None = None,
    causal: bool = False,
    dropout: float = 0.0,
) -> Float[Tensor, "batch heads queries d_v"]:
    """softmax(QKᵀ/√d_k)V, equation 1, by whichever kernel is fastest for its shape, type and device."""
    if q.shape[-2] == 1:
        causal = False  # one query, the last, sees all keys: no mask need be made for it
    if causal and (mask is not None or q.shape[-2] != k.shape[-2]):  # the kernel takes one of both, and a square
        mask, causal = causal_mask(q, k, mask), False
    return ops.scaled_dot_product_attention(q, k, v, mask, dropout, causal)


def causal_mask(q: Tensor, k: Tensor, mask: Mask | None = None) -> Mask:
    """True where a query may look: not at keys that come after it, and where `mask` allows it."""
    queries, keys = q.shape[-2], k.shape[-2]
    past = torch.ones(1, 1, queries, keys, dtype=torch.bool, device=q.device).tril(keys - queries)
    return past if mask is None else mask & past


class KeysValues(NamedTuple):
    """What attention has made of a context, to be looked at again and again."""

    keys: Float[Tensor, "batch heads tokens d_k"]
    values: Float[Tensor, "batch heads tokens d_v"]


@dataclass
class Cache:
    """Keys and values of the tokens so far, in room that was made at once for all that may come."""

    keys: Float[Tensor, "batch heads room d_k"]
    values: Float[Tensor, "batch heads room d_v"]
    length: int = 0
    """Tokens so far."""

    def append(
        self, keys: Float[Tensor, "batch heads new d_k"], values: Float[Tensor, "batch heads new d_v"]
    ) -> KeysValues:
        """Remember further tokens, and return all of them as views."""
        end = self.length + keys.shape[2]
        if end > self.keys.shape[2]:  # one key would else be broadcast into no room at all, and be lost
            raise GlocalError(f"token {end} in a cache that has room for {self.keys.shape[2]}")
        self.keys[:, :, self.length : end] = keys
        self.values[:, :, self.length : end] = values
        self.length = end
        return KeysValues(self.keys[:, :, :end], self.values[:, :, :end])

    def select(self, rows: Int[Tensor, " rows"]) -> None:
        """Go on with some of the batch's rows, each once, never or many times."""
        if len(rows) > len(self.keys):
            raise GlocalError(f"{len(rows)} rows of a cache that has room for {len(self.keys)}")
        for tensor in (self.keys, self.values):
            tensor[: len(rows), :, : self.length] = tensor[:, :, : self.length].index_select(0, rows)
        self.keys, self.values = self.keys[: len(rows)], self.values[: len(rows)]


Context = Float[Tensor, "batch keys dim"] | KeysValues
"""Tokens to look at, or what `keys_values` made of them."""


class MultiHeadAttention(nn.Module):
    """`num_heads` attentions side by side, each over its own projection of the tokens (section 3.2.2).

    Queries come from `x`; keys and values from `x` too (self-attention) or, with `cross`, from `context`. The
    projections are stacked, queries before keys before values, so that one matrix product computes them.

    `qkv_ratio` widens or narrows queries, keys and values against `embed_dim` (GLiT's d_k); with `window`, a token sees
    only the `window` tokens around it.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        qkv_ratio: float = 1.0,
        window: int | None = None,
        bias: bool = True,
        cross: bool = False,
        causal: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        width = round(embed_dim * qkv_ratio)
        if width < 1 or width % num_heads:
            raise GlocalError(f"queries of width {width} are not divisible by {num_heads} heads")
        self.num_heads, self.window, self.causal, self.dropout = num_heads, window, causal, dropout
        if cross:
            self.q = ops.Linear(embed_dim, width, bias=bias)
            self.kv = ops.Linear(embed_dim, 2 * width, bias=bias)
        else:
            self.qkv = ops.Linear(embed_dim, 3 * width, bias=bias)
        self.proj = ops.Linear(width, embed_dim)

    def forward(
        self,
        x: Float[Tensor, "batch queries dim"],
        context: Context | None = None,
        mask: Mask | None = None,
        keep: int | None = None,
        cache: Cache | None = None,
    ) -> Float[Tensor, "batch kept dim"]:
        """Let the tokens of `x`, or only the first `keep` of them, look at each other, or at those of `context`.

        With a `cache`, they follow the tokens that it remembers, look at those too, and are remembered.
        """
        q, k, v = self.project(x, context)
        if cache is not None:
            k, v = cache.append(k, v)
            q = q.to(k.dtype)
        mask = self.near(k, mask)
        if keep is not None and not self.causal:  # a causal token knows its place by counting from the last
            q, mask = q[:, :, :keep], None if mask is None else mask[:, :, :keep]
        y = attention(q, k, v, mask, self.causal, self.dropout if self.training else 0.0)[:, :, :keep]
        return self.proj(y.transpose(1, 2).flatten(2).to(x.dtype))  # (B, H, N, D/H) -> (B, N, D)

    def weights(
        self,
        x: Float[Tensor, "batch queries dim"],
        context: Context | None = None,
        mask: Mask | None = None,
        keep: int | None = None,
    ) -> Float[Tensor, "batch heads kept keys"]:
        """Return the attention weights that `forward` uses for the same arguments, to be looked at."""
        q, k, _ = self.project(x, context)
        return attention_weights(q, k, self.near(k, mask), self.causal)[:, :, :keep]

    def near(self, k: Tensor, mask: Mask | None) -> Mask | None:
        """Restrict a mask to the window; self-attention has as many queries as keys."""
        if self.window is None:
            return mask
        place = torch.arange(k.shape[2], device=k.device)
        band = ((place - place[:, None]).abs() <= self.window // 2)[None, None]
        return band if mask is None else mask & band

    def project(self, x: Tensor, context: Context | None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, each (batch, heads, tokens, d_k)."""
        if context is None:
            qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, -1))  # (B, N, 3, H, D/H)
            q, k, v = (t.transpose(1, 2) for t in qkv.unbind(2))  # their gradients stack without a permuted copy
            return q, k, v
        q = self.q(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        return q, *(context if isinstance(context, KeysValues) else self.keys_values(context))

    def new_cache(self, rows: int, room: int) -> Cache:
        """Make room for `room` tokens in each of `rows`; on a CPU, keys and values in bf16 are kept as float32.

        There a single query looks at them in a quarter of the time (64 of them, in heads of 64): no number need be
        turned into float32 and back.
        """
        like = self.proj.weight
        kind = torch.float32 if (like.device.type, like.dtype) == ("cpu", torch.bfloat16) else like.dtype
        shape = rows, self.num_heads, room, self.proj.in_features // self.num_heads
        return Cache(like.new_empty(shape, dtype=kind), like.new_empty(shape, dtype=kind))

    def keys_values(self, context: Float[Tensor, "batch keys dim"]) -> KeysValues:
        """Project a context that many calls will look at."""
        kv = self.kv(context).unflatten(-1, (2, self.num_heads, -1))
        return KeysValues(*(t.transpose(1, 2) for t in kv.unbind(2)))
