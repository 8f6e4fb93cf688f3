"""Where tokens meet: global heads (attention) beside local heads (Chen et al. 2021, GLiT, section 3.1).

    channels of a token:  [ G·D/N for the global heads | L·D/N for the local heads ]        N = G + L

Each part sees its own channels and nothing else; their outputs are joined again. With G = N this is the Transformer's
multi-head attention, with G = 0 a convolutional network over tokens.
"""

from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from glocal.errors import GlocalError
from glocal.layers.attention import Cache, Mask, MultiHeadAttention
from glocal.layers.convolution import LocalConvolution

Local = Literal["conv1d", "conv2d", "window"]


class Mixer(nn.Module):
    """`num_heads` heads, the last `local_heads` of them local; a branch without heads is not built.

    `kernel_size` is how far a local head sees: K tokens along the sequence (`conv1d`, the paper's; `window`, attention
    that is masked to them) or K×K patches (`conv2d`). `attention` holds further arguments of MultiHeadAttention.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        local_heads: int = 0,
        local: Local = "conv1d",
        kernel_size: int = 31,
        expand_ratio: int = 1,
        **attention: Any,
    ) -> None:
        super().__init__()
        if embed_dim % num_heads:
            raise GlocalError(f"embed_dim {embed_dim} is not divisible by num_heads {num_heads}")
        if not 0 <= local_heads <= num_heads:
            raise GlocalError(f"local_heads {local_heads} of num_heads {num_heads}; expected 0 to {num_heads}")
        if local_heads and attention.get("causal"):
            raise GlocalError("local heads look to both sides, so a causal block has none: set local_heads 0")
        head_dim, global_heads = embed_dim // num_heads, num_heads - local_heads
        self.local_heads, self.widths = local_heads, [global_heads * head_dim, local_heads * head_dim]
        far, near = self.widths
        self.attention = MultiHeadAttention(far, global_heads, **attention) if far else None
        self.local: nn.Module | None = None
        if near and local == "window":
            self.local = MultiHeadAttention(near, local_heads, window=kernel_size, **attention)
        elif near:
            self.local = LocalConvolution(near, kernel_size, expand_ratio, planar=local == "conv2d")

    def forward(
        self,
        x: Float[Tensor, "batch tokens dim"],
        mask: Mask | None = None,
        keep: int | None = None,
        cache: Cache | None = None,
    ) -> Float[Tensor, "batch kept dim"]:
        """Mix the tokens, or only the first `keep` of them; those that a `cache` remembers stand before them."""
        if self.local is not None and mask is not None:
            raise GlocalError("a mask on local heads: they see padding as tokens; give inputs of one length, unpadded")
        far, near = x.split(self.widths, dim=-1)
        if self.local is None:
            return self.attention(far, mask=mask, keep=keep, cache=cache)  # type: ignore[misc]
        y = self.local(near)[:, :keep]
        return y if self.attention is None else torch.cat([self.attention(far, keep=keep), y], dim=-1)

    def weights(
        self, x: Float[Tensor, "batch tokens dim"], mask: Mask | None = None, keep: int | None = None
    ) -> Float[Tensor, "batch heads kept tokens"]:
        """Return how much each head looks at each token, to be looked at: global heads, then local ones.

        The local heads of a convolution share its channels, so all of them have its one look.
        """
        far, near = x.split(self.widths, dim=-1)
        looks = [] if self.attention is None else [self.attention.weights(far, mask=mask, keep=keep)]
        if isinstance(self.local, LocalConvolution):
            looks.append(self.local.weights(near)[:, None, :keep].expand(-1, self.local_heads, -1, -1))
        elif isinstance(self.local, MultiHeadAttention):
            looks.append(self.local.weights(near, keep=keep))
        return torch.cat(looks, dim=1)
