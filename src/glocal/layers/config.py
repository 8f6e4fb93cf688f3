"""The config of one block. An architecture is a tuple of `BlockConfig`s, and a search chooses their fields."""

from dataclasses import dataclass
from typing import Literal

Local = Literal["conv1d", "conv2d", "window"]
LocalNorm = Literal["batch", "layer"]
Activation = Literal["gelu", "gelu_tanh", "relu", "silu"]

MAX_DEPTH = 1000
"""Blocks of the longest stack; the deepest published models have some 100."""


@dataclass(frozen=True)
class BlockConfig:
    """One block. The defaults are ViT-Base's (Dosovitskiy et al. 2020, table 1)."""

    embed_dim: int = 768
    """Width D of a token."""
    num_heads: int = 12
    """Heads N that the mixer splits D into; each has D/N channels."""
    local_heads: int = 0
    """How many of them are local, L; the other G = N - L are attention (Chen et al. 2021, GLiT)."""
    local: Local = "conv1d"
    """What a local head is: a convolution along the tokens (GLiT), over the patches' grid, or windowed attention."""
    kernel_size: int = 31
    """Number K of tokens that a local head reads: the tokens around each token or, in a causal block, the last K."""
    local_norm: LocalNorm = "batch"
    """Norm within a convolution: over a batch (GLiT), or over the channels of each token. Texts need the latter:
    statistics of a batch would make a token depend on later tokens and on padding."""
    expand_ratio: int = 1
    """Hidden width of the local heads, as a multiple E of their width."""
    qkv_ratio: float = 1.0
    """Width of queries, keys and values, as a multiple of the global heads' width (GLiT's d_k)."""
    mlp_ratio: float = 4.0
    """Hidden width of the MLP, as a multiple of D."""
    qkv_bias: bool = True
    """Whether queries, keys and values have a bias."""
    activation: Activation = "gelu"
    """Non-linearity of the MLP."""
    norm: Literal["pre", "post"] = "pre"
    """x + f(norm(x)) (ViT, GPT-2) or norm(x + f(x)) (the Transformer, BERT)."""
    norm_eps: float = 1e-6
    """Added to the variance in LayerNorm."""
    dropout: float = 0.0
    """Rate on the output of each sublayer, before it is added (Vaswani et al. 2017, section 5.4)."""
    attn_drop: float = 0.0
    """Rate on the attention weights."""
    drop_path: float = 0.0
    """Rate at which an example skips a sublayer in training (Huang et al. 2016, stochastic depth)."""
    causal: bool = False
    """Whether a token's heads, global and local, read itself and earlier tokens only."""
    cross: bool = False
    """Whether the block also attends to a context, as the Transformer's decoder does."""

    @property
    def global_heads(self) -> int:
        """Heads G = N - L of attention."""
        return self.num_heads - self.local_heads

    @property
    def head_dim(self) -> int:
        """Channels D/N of a head."""
        return self.embed_dim // self.num_heads

    @property
    def qkv_head_dim(self) -> int:
        """Width of the queries, keys and values of a head."""
        return round(self.head_dim * self.qkv_ratio)

    @property
    def global_dim(self) -> int:
        """Channels of the global heads; the channels after them belong to the local heads."""
        return self.global_heads * self.head_dim

    @property
    def hidden_dim(self) -> int:
        """Hidden width of the MLP."""
        return round(self.embed_dim * self.mlp_ratio)
