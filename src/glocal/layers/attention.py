"""Attention: softmax(QKᵀ/√d_k)V, and its multi-head module (Vaswani et al. 2017, section 3.2)."""

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from glocal import ops
from glocal.errors import GlocalError
from glocal.layers.cache import LastTokens, WindowCache
from glocal.layers.config import BlockConfig
from glocal.layers.slicing import StateDict, slice_heads

Mask = Bool[Tensor, "#batch #heads #queries keys"]
"""True where a query may attend to a key."""


def attention_weights(
    q: Float[Tensor, "batch heads queries d_k"],
    k: Float[Tensor, "batch heads keys d_k"],
    mask: Mask | None = None,
    causal: bool = False,
) -> Float[Tensor, "batch heads queries keys"]:
    """Return softmax(QKᵀ/√d_k), equation 1 without V: the weight of each key for each query; every row sums to one.

    `mask` is True where a query may attend. With `causal`, the queries are the last ones of the sequence: the last
    query attends to all keys, the one before it to all but the last.
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
    """Return softmax(QKᵀ/√d_k)V, equation 1, by the kernel that is fastest for its shape, type and device."""
    if q.shape[-2] == 1:
        causal = False  # a single query is the last one, which attends to all keys
    if causal and (mask is not None or q.shape[-2] != k.shape[-2]):
        # the kernel takes a mask or `causal`, and `causal` only for as many queries as keys
        mask = causal_mask(q, k, mask)
        causal = False
    return ops.scaled_dot_product_attention(q, k, v, mask, dropout, causal)


def causal_mask(q: Tensor, k: Tensor, mask: Mask | None = None) -> Mask:
    """Return True where a key does not come after the query and `mask` allows it; the last query sees all keys."""
    queries = q.shape[-2]
    keys = k.shape[-2]
    past = torch.ones(1, 1, queries, keys, dtype=torch.bool, device=q.device).tril(keys - queries)
    return past if mask is None else mask & past


def cache_dtype(weight: Tensor) -> torch.dtype:
    """Return the type of keys and values in a cache: the weights', but float32 in place of bf16 on a CPU."""
    return torch.float32 if (weight.device.type, weight.dtype) == ("cpu", torch.bfloat16) else weight.dtype


class KeysValues(NamedTuple):
    """Projected keys and values of a context, computed once and attended to many times."""

    keys: Float[Tensor, "batch heads tokens d_k"]
    values: Float[Tensor, "batch heads tokens d_v"]


@dataclass
class Cache:
    """Preallocated KV cache: keys and values of the tokens so far."""

    keys: Float[Tensor, "batch heads max_length d_k"]
    values: Float[Tensor, "batch heads max_length d_v"]
    length: int = 0
    """Tokens so far."""

    def append(
        self, keys: Float[Tensor, "batch heads new d_k"], values: Float[Tensor, "batch heads new d_v"]
    ) -> KeysValues:
        """Add tokens, and return keys and values of all tokens so far, as views.

        Raises GlocalError if the cache is full.
        """
        end = self.end_of(keys.shape[2])
        self.keys[:, :, self.length : end] = keys
        self.values[:, :, self.length : end] = values
        self.length = end
        return KeysValues(self.keys[:, :, :end], self.values[:, :, :end])

    def end_of(self, new: int) -> int:
        """Return the length after `new` more tokens. Raises GlocalError if they do not fit into the cache."""
        end = self.length + new
        if end > self.keys.shape[2]:  # a single key would be broadcast into an empty slice, and be lost
            raise GlocalError(f"token {end} in a cache of {self.keys.shape[2]} tokens; give a larger max_length")
        return end

    def select(self, rows: Int[Tensor, " rows"]) -> None:
        """Replace the rows of the batch by the given ones, each of which may occur once, never or many times.

        Raises GlocalError for more rows than the cache has.
        """
        if len(rows) > len(self.keys):
            raise GlocalError(f"{len(rows)} rows selected from a cache of {len(self.keys)}; select at most as many")
        for tensor in (self.keys, self.values):
            tensor[: len(rows), :, : self.length] = tensor[:, :, : self.length].index_select(0, rows)
        self.keys = self.keys[: len(rows)]
        self.values = self.values[: len(rows)]

    def repeat(self, beams: int) -> None:
        """Replace each row by `beams` copies."""
        self.keys = self.keys.repeat_interleave(beams, dim=0)
        self.values = self.values.repeat_interleave(beams, dim=0)

    def advance(self) -> None:
        """Count a token that was written behind the others."""
        self.length += 1

    def share(self) -> "Cache":
        """Return a cache over the same memory, with a separate count of the tokens."""
        return replace(self)


Context = Float[Tensor, "batch keys dim"] | KeysValues
"""Tokens to attend to, or their projection by `keys_values`."""


class MultiHeadAttention(nn.Module):
    """`num_heads` attentions in parallel, each over its own projection of the tokens (section 3.2.2).

    Queries come from `x`; keys and values from `x` too (self-attention) or, with `cross`, from `context`. The
    projections are stacked, queries before keys before values, so that one matrix product computes them.

    `qkv_ratio` is the width of queries, keys and values in multiples of `embed_dim` (GLiT's d_k). With `window`, a
    token attends only to the `window` tokens around it or, if `causal`, to the last `window` up to itself (sliding
    windows, Beltagy et al. 2020, section 3.1); it then attends to itself even where a mask leaves it out.

    Raises GlocalError for widths that the heads do not divide, and for a window that needs a middle and has none.
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
            raise GlocalError(
                f"queries of width {width} are not divisible by {num_heads} heads; change qkv_ratio or num_heads"
            )
        if window is not None and (window < 1 or (window % 2 == 0 and not causal)):
            raise GlocalError(f"kernel_size {window} of a window; expected an odd number, which has a middle")
        self.num_heads = num_heads
        self.window = window
        self.cross = cross
        self.causal = causal
        self.dropout = dropout
        if cross:
            self.q = ops.Linear(embed_dim, width, bias=bias)
            self.kv = ops.Linear(embed_dim, 2 * width, bias=bias)
        else:
            self.qkv = ops.Linear(embed_dim, 3 * width, bias=bias)
        self.proj = ops.Linear(width, embed_dim)

    def forward(
        self,
        x: Float[Tensor, "batch tokens dim"],
        context: Context | None = None,
        mask: Mask | None = None,
        num_queries: int | None = None,
        cache: Cache | WindowCache | None = None,
    ) -> Float[Tensor, "batch queries dim"]:
        """Return the outputs of all tokens of `x`, or of the first `num_queries` of them.

        With a `cache`, the tokens of `x` come after the tokens in the cache, attend to them too, and are added to it.
        The mask then has all tokens as its keys, or, with a window, the new ones.
        """
        q, k, v = self.project(x, context)
        if self.window is not None:
            return self.join(self.attend_window(q, k, v, mask, cache)[:, :, :num_queries], x)
        if isinstance(cache, Cache):
            k, v = cache.append(k, v)
            q = q.to(k.dtype)
        if num_queries is not None and not self.causal:  # a causal mask is right-aligned: slice after it
            q = q[:, :, :num_queries]
            mask = None if mask is None else mask[:, :, :num_queries]
        y = attention(q, k, v, mask, self.causal, self.dropout if self.training else 0.0)[:, :, :num_queries]
        return self.join(y, x)

    def join(self, y: Float[Tensor, "batch heads queries d_v"], x: Tensor) -> Float[Tensor, "batch queries dim"]:
        """Return the projection of all heads' outputs, in the type of `x`."""
        return self.proj(y.transpose(1, 2).flatten(2).to(x.dtype))  # (B, H, N, D/H) -> (B, N, D)

    def attend_window(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Mask | None, cache: Cache | WindowCache | None
    ) -> Float[Tensor, "batch heads queries d_v"]:
        """Return the outputs of attention to the window, which begins in the cache if there is one."""
        assert self.window is not None
        if not isinstance(cache, WindowCache):
            dropout = self.dropout if self.training else 0.0
            return ops.window_attention(q, k, v, self.window, mask, dropout, self.causal)
        keys, values, own = cache.append(k, v, mask)
        q = q.to(keys.dtype)
        if q.shape[2] == 1:
            return attention(q, keys, values, own)  # of the last W tokens, the newest is the query
        before = self.window - 1
        q = F.pad(q, (0, 0, before, 0))  # as many queries as keys
        return ops.window_attention(q, keys, values, self.window, own, 0.0, self.causal)[:, :, before:]

    def weights(
        self,
        x: Float[Tensor, "batch tokens dim"],
        context: Context | None = None,
        mask: Mask | None = None,
        num_queries: int | None = None,
    ) -> Float[Tensor, "batch heads queries keys"]:
        """Return the attention weights that `forward` uses for the same arguments; every row sums to one."""
        q, k, _ = self.project(x, context)
        if self.window is not None:
            mask = ops.window_mask(k.shape[2], self.window, mask, self.causal, k.device)
            return attention_weights(q, k, mask)[:, :, :num_queries]
        return attention_weights(q, k, mask, self.causal)[:, :, :num_queries]

    def project(self, x: Tensor, context: Context | None) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values, each (batch, heads, tokens, d_k)."""
        if context is None:
            qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, -1))  # (B, N, 3, H, D/H)
            q, k, v = (t.transpose(1, 2) for t in qkv.unbind(2))  # their gradients stack without a permuted copy
            return q, k, v
        q = self.q(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        return q, *(context if isinstance(context, KeysValues) else self.keys_values(context))

    def new_cache(self, rows: int, max_length: int) -> Cache:
        """Return an empty cache of `max_length` tokens for each of `rows`.

        On a CPU, keys and values in bf16 are kept as float32: a single query attends to them in a quarter of the time
        (64 queries, heads of 64), since nothing is converted to float32 and back.
        """
        like = self.proj.weight
        shape = rows, self.num_heads, max_length, self.proj.in_features // self.num_heads
        dtype = cache_dtype(like)
        return Cache(like.new_empty(shape, dtype=dtype), like.new_empty(shape, dtype=dtype))

    def new_window_cache(self, rows: int) -> WindowCache:
        """Return an empty cache of the last W - 1 tokens of each of `rows`.

        Raises GlocalError if the layer is not causal, or has no window.
        """
        if self.window is None or not self.causal:
            raise GlocalError("attention that is not causal, or has no window, keeps no window of tokens")
        like = self.proj.weight
        size, shape = self.window - 1, (self.num_heads, self.proj.in_features // self.num_heads)
        keys, values = (LastTokens.zeros(like, rows, size, *shape, dtype=cache_dtype(like)) for _ in range(2))
        return WindowCache(keys, values, LastTokens.zeros(like, rows, size, dtype=torch.bool))

    def keys_values(self, context: Float[Tensor, "batch keys dim"]) -> KeysValues:
        """Return the keys and values of a context, to be given to `forward` in its place."""
        kv = self.kv(context).unflatten(-1, (2, self.num_heads, -1))
        return KeysValues(*(t.transpose(1, 2) for t in kv.unbind(2)))

    def slice_for(self, config: BlockConfig) -> StateDict:
        """Return the weights of the same attention in a block with fewer heads or narrower ones (see `slicing`).

        The first heads are the global ones and the last the local ones (attention with a window), in the order of the
        mixer's channels. Cross-attention has all heads, however many of them are local in self-attention.
        """
        heads = slice(None)
        channels = slice(None)
        if not self.cross:
            heads = slice(config.global_heads) if self.window is None else slice(config.global_heads, config.num_heads)
            channels = slice(config.global_dim) if self.window is None else slice(config.global_dim, config.embed_dim)
        width = config.qkv_head_dim
        sliced = {
            "proj.weight": slice_heads(self.proj.weight, 1, 1, self.num_heads, heads, width)[channels],
            "proj.bias": self.proj.bias[channels],
        }
        for name, parts in {"q": 1, "kv": 2}.items() if self.cross else {"qkv": 3}.items():
            linear = getattr(self, name)
            sliced[f"{name}.weight"] = slice_heads(linear.weight, 0, parts, self.num_heads, heads, width)[:, channels]
            if config.qkv_bias:
                sliced[f"{name}.bias"] = slice_heads(linear.bias, 0, parts, self.num_heads, heads, width)
        return sliced
