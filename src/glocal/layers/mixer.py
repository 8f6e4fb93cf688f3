"""How tokens exchange information: global heads (attention) beside local heads (Chen et al. 2021, GLiT, section 3.1).

    channels of a token:  [ G·D/N for the global heads | L·D/N for the local heads ]        N = G + L

Each part reads its own channels only; their outputs are concatenated. With G = N this is the Transformer's multi-head
attention, with G = 0 a convolutional network over tokens. Over texts, two published models have such halves: Lite
Transformer (Wu et al. 2020, *Lite Transformer with Long-Short Range Attention*, https://arxiv.org/abs/2004.11886) and
ConvBERT (Jiang et al. 2020, https://arxiv.org/abs/2008.02496).
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from glocal.errors import GlocalError
from glocal.layers.attention import Cache, Mask, MultiHeadAttention
from glocal.layers.cache import CacheGroup, LastTokens, WindowCache
from glocal.layers.config import Local, LocalNorm
from glocal.layers.convolution import LocalConvolution

TokenMask = Bool[Tensor, "#batch tokens"]
"""True at an example's own tokens, False at padding."""


@dataclass
class MixerCache(CacheGroup):
    """What the heads of a causal mixer keep of the tokens so far."""

    attention: Cache | None
    """Keys and values of the global heads: of all tokens."""
    local: LastTokens | WindowCache | None
    """Of the last K - 1 tokens: the hidden channels of a convolution, or the keys and values of a window."""

    @property
    def parts(self) -> list[Cache | LastTokens | WindowCache]:
        """The caches of the heads that there are."""
        return [part for part in (self.attention, self.local) if part is not None]

    @property
    def device(self) -> torch.device:
        """The device of the caches."""
        part = self.parts[0]
        return part.keys.device if isinstance(part, Cache) else part.parts[0].tokens.device

    def share(self) -> "MixerCache":
        """Return a cache over the same memory, with a separate count of the tokens."""
        return MixerCache(
            None if self.attention is None else self.attention.share(),
            None if self.local is None else self.local.share(),
        )


class Mixer(nn.Module):
    """`num_heads` heads, the last `local_heads` of them local; a branch without heads is not built.

    `kernel_size` is the range of a local head: K tokens along the sequence (`conv1d`, the paper's; `window`, attention
    to them) or K×K patches (`conv2d`). `local_norm` is the convolution's, `qkv_ratio`, `bias` and `dropout` are the
    attention's, and `causal` is for all heads.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        local_heads: int = 0,
        local: Local = "conv1d",
        kernel_size: int = 31,
        expand_ratio: int = 1,
        local_norm: LocalNorm = "batch",
        *,
        qkv_ratio: float = 1.0,
        bias: bool = True,
        causal: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if embed_dim % num_heads:
            raise GlocalError(f"embed_dim {embed_dim} is not divisible by num_heads {num_heads}")
        if not 0 <= local_heads <= num_heads:
            raise GlocalError(f"local_heads {local_heads} of num_heads {num_heads}; expected 0 to {num_heads}")
        global_heads = num_heads - local_heads
        local_dim = embed_dim // num_heads * local_heads
        global_dim = embed_dim - local_dim
        self.local_heads = local_heads
        self.widths = [global_dim, local_dim]
        self.attention: MultiHeadAttention | None = None
        self.local: MultiHeadAttention | LocalConvolution | None = None
        if global_heads:
            self.attention = MultiHeadAttention(
                global_dim, global_heads, qkv_ratio=qkv_ratio, bias=bias, causal=causal, dropout=dropout
            )
        if local_heads and local == "window":
            self.local = MultiHeadAttention(
                local_dim,
                local_heads,
                qkv_ratio=qkv_ratio,
                window=kernel_size,
                bias=bias,
                causal=causal,
                dropout=dropout,
            )
        elif local_heads:
            self.local = LocalConvolution(
                local_dim, kernel_size, expand_ratio, planar=local == "conv2d", norm=local_norm, causal=causal
            )

    def forward(
        self,
        x: Float[Tensor, "batch tokens dim"],
        mask: Mask | None = None,
        num_queries: int | None = None,
        cache: MixerCache | None = None,
        token_mask: TokenMask | None = None,
    ) -> Float[Tensor, "batch queries dim"]:
        """Return the mixed tokens, or the first `num_queries` of them; the tokens in a `cache` precede them.

        `mask` is for global heads, and `token_mask`, False at the tokens of `x` that are padding, for local ones.
        Raises GlocalError if local heads cannot leave padding out (`LocalConvolution.check_mask`).
        """
        global_x, local_x = x.split(self.widths, dim=-1)
        outputs = []
        if self.attention is not None:
            attention_cache = None if cache is None else cache.attention
            outputs.append(self.attention(global_x, mask=mask, num_queries=num_queries, cache=attention_cache))
        if self.local is not None:
            local_cache = None if cache is None else cache.local
            own = None if token_mask is None else token_mask[:, None, None]
            outputs.append(self.local(local_x, mask=own, cache=local_cache)[:, :num_queries])
        return torch.cat(outputs, dim=-1) if len(outputs) > 1 else outputs[0]

    def weights(
        self,
        x: Float[Tensor, "batch tokens dim"],
        mask: Mask | None = None,
        num_queries: int | None = None,
        token_mask: TokenMask | None = None,
    ) -> Float[Tensor, "batch heads queries tokens"]:
        """Return the weight of each token in each token's output: global heads, then local ones.

        The local heads of one convolution share its channels, so all of them have the same weights.
        """
        global_x, local_x = x.split(self.widths, dim=-1)
        own = None if token_mask is None else token_mask[:, None, None]
        weights = []
        if self.attention is not None:
            weights.append(self.attention.weights(global_x, mask=mask, num_queries=num_queries))
        if isinstance(self.local, LocalConvolution):
            shares = self.local.weights(local_x, own)[:, None, :num_queries]
            weights.append(shares.expand(-1, self.local_heads, -1, -1))
        elif isinstance(self.local, MultiHeadAttention):
            weights.append(self.local.weights(local_x, mask=own, num_queries=num_queries))
        return torch.cat(weights, dim=1)

    def new_cache(self, rows: int, max_length: int) -> MixerCache:
        """Return an empty cache for `rows`: of `max_length` tokens for global heads, and of the last ones for local.

        Raises GlocalError for local heads that are not causal.
        """
        attention = None if self.attention is None else self.attention.new_cache(rows, max_length)
        if isinstance(self.local, MultiHeadAttention):
            return MixerCache(attention, self.local.new_window_cache(rows))
        return MixerCache(attention, None if self.local is None else self.local.new_cache(rows))
