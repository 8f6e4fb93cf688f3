"""How tokens exchange information: global heads (attention) beside local heads (Chen et al. 2021, GLiT, section 3.1).

    channels of a token:  [ G·D/N for the global heads | L·D/N for the local heads ]        N = G + L

Each part reads its own channels only; their outputs are concatenated. With G = N this is the Transformer's multi-head
attention, with G = 0 a convolutional network over tokens.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from glocal.errors import GlocalError
from glocal.layers.attention import Cache, Mask, MultiHeadAttention
from glocal.layers.config import Local
from glocal.layers.convolution import LocalConvolution


class Mixer(nn.Module):
    """`num_heads` heads, the last `local_heads` of them local; a branch without heads is not built.

    `kernel_size` is the range of a local head: K tokens along the sequence (`conv1d`, the paper's; `window`, attention
    that is masked to them) or K×K patches (`conv2d`). `qkv_ratio`, `bias`, `causal` and `dropout` are the attention's.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        local_heads: int = 0,
        local: Local = "conv1d",
        kernel_size: int = 31,
        expand_ratio: int = 1,
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
        if local_heads and causal:
            raise GlocalError("local heads read tokens on both sides, so a causal block has none: set local_heads 0")
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
                local_dim, local_heads, qkv_ratio=qkv_ratio, window=kernel_size, bias=bias, dropout=dropout
            )
        elif local_heads:
            self.local = LocalConvolution(local_dim, kernel_size, expand_ratio, planar=local == "conv2d")

    def forward(
        self,
        x: Float[Tensor, "batch tokens dim"],
        mask: Mask | None = None,
        num_queries: int | None = None,
        cache: Cache | None = None,
    ) -> Float[Tensor, "batch queries dim"]:
        """Return the mixed tokens, or the first `num_queries` of them; the tokens in a `cache` precede them.

        Raises GlocalError for a mask on local heads.
        """
        if self.local is not None and mask is not None:
            raise GlocalError("a mask on local heads: they read padding as tokens; give inputs of one length, unpadded")
        global_x, local_x = x.split(self.widths, dim=-1)
        outputs = []
        if self.attention is not None:
            outputs.append(self.attention(global_x, mask=mask, num_queries=num_queries, cache=cache))
        if self.local is not None:
            outputs.append(self.local(local_x)[:, :num_queries])
        return torch.cat(outputs, dim=-1) if len(outputs) > 1 else outputs[0]

    def weights(
        self, x: Float[Tensor, "batch tokens dim"], mask: Mask | None = None, num_queries: int | None = None
    ) -> Float[Tensor, "batch heads queries tokens"]:
        """Return the weight of each token in each token's output: global heads, then local ones.

        The local heads of one convolution share its channels, so all of them have the same weights.
        """
        global_x, local_x = x.split(self.widths, dim=-1)
        weights = []
        if self.attention is not None:
            weights.append(self.attention.weights(global_x, mask=mask, num_queries=num_queries))
        if isinstance(self.local, LocalConvolution):
            shares = self.local.weights(local_x)[:, None, :num_queries]
            weights.append(shares.expand(-1, self.local_heads, -1, -1))
        elif isinstance(self.local, MultiHeadAttention):
            weights.append(self.local.weights(local_x, num_queries=num_queries))
        return torch.cat(weights, dim=1)
