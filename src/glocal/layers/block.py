"""The block: every model is a stack of it.

    x = x + mixer(norm(x))        tokens look at each other
    x = x + mlp(norm(x))          each token thinks for itself

`BlockConfig` is an architecture's unit: a model is a tuple of them, and whoever designs or searches a model
enumerates this dataclass and nothing else.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from jaxtyping import Bool, Float
from torch import Tensor, nn

from glocal.errors import GlocalError
from glocal.layers.attention import Cache, Context, KeysValues, Mask, MultiHeadAttention
from glocal.layers.dropout import Dropout, DropPath
from glocal.layers.mixer import Local, Mixer
from glocal.layers.mlp import MLP, Activation

DEEPEST = 1000
"""Blocks of the longest stack; the deepest published models have some 100."""


@dataclass(frozen=True)
class BlockConfig:
    """One block. The defaults are ViT-Base's (Dosovitskiy et al. 2020, table 1)."""

    embed_dim: int = 768
    """Width D of a token."""
    num_heads: int = 12
    """Heads N that the mixer splits D into; D/N is the width of one."""
    local_heads: int = 0
    """How many of them are local, L; the others, G = N - L, are attention (Chen et al. 2021, GLiT)."""
    local: Local = "conv1d"
    """What a local head is: a convolution along the tokens (GLiT), over the patches' grid, or windowed attention."""
    kernel_size: int = 31
    """Tokens K that a local head sees."""
    expand_ratio: int = 1
    """Hidden width of the local heads, E times their own."""
    qkv_ratio: float = 1.0
    """Width of queries, keys and values, in multiples of the global heads' own (GLiT's d_k)."""
    mlp_ratio: float = 4.0
    """Hidden width of the MLP, in multiples of D."""
    qkv_bias: bool = True
    """Whether queries, keys and values have a bias."""
    activation: Activation = "gelu"
    """The MLP's non-linearity."""
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
    """Whether a token sees only itself and those before it."""
    cross: bool = False
    """Whether the block also looks at a context, as the Transformer's decoder does."""


def stack(depth: int, drop_path: float = 0.0, **block: Any) -> tuple[BlockConfig, ...]:
    """`(block,) * depth`, but that stochastic depth grows linearly from 0 to `drop_path` at the last block."""
    if not 1 <= depth <= DEEPEST:
        raise GlocalError(f"depth {depth}; a stack has 1 to {DEEPEST} blocks")
    return tuple(BlockConfig(**block, drop_path=drop_path * i / max(depth - 1, 1)) for i in range(depth))


def restack(
    blocks: tuple[BlockConfig, ...], depth: int | None = None, drop_path: float | None = None, **changes: Any
) -> tuple[BlockConfig, ...]:
    """Change any field of all blocks, the last one's `drop_path`, or, where the blocks are alike, their number."""
    rate = blocks[-1].drop_path if drop_path is None else drop_path
    blocks = tuple(replace(block, **changes, drop_path=0.0) for block in blocks)
    if depth not in (None, len(blocks)):
        if len(set(blocks)) > 1:
            raise GlocalError(f"depth {depth} of a model whose {len(blocks)} blocks differ; give its blocks instead")
        return stack(**vars(blocks[0]) | {"depth": depth, "drop_path": rate})
    last = max(len(blocks) - 1, 1)
    return tuple(replace(block, drop_path=rate * i / last) for i, block in enumerate(blocks))


class Block(nn.Module):
    """Mixer, then MLP, each on a residual branch; between them cross-attention where the config asks for it."""

    def __init__(self, config: BlockConfig) -> None:
        super().__init__()
        dim, heads = config.embed_dim, config.num_heads
        hidden = round(dim * config.mlp_ratio)
        if hidden < 1:
            raise GlocalError(f"mlp_ratio {config.mlp_ratio} of {dim} channels is a hidden width of 0; make it larger")
        self.pre_norm = config.norm == "pre"
        self.norm1 = nn.LayerNorm(dim, config.norm_eps)
        attention: dict[str, Any] = {
            "qkv_ratio": config.qkv_ratio,
            "bias": config.qkv_bias,
            "dropout": config.attn_drop,
        }
        self.mixer = Mixer(
            dim,
            heads,
            config.local_heads,
            config.local,
            config.kernel_size,
            config.expand_ratio,
            causal=config.causal,
            **attention,
        )
        self.cross = MultiHeadAttention(dim, heads, cross=True, **attention) if config.cross else None
        self.norm_cross = nn.LayerNorm(dim, config.norm_eps) if config.cross else None
        self.norm2 = nn.LayerNorm(dim, config.norm_eps)
        self.mlp = MLP(dim, hidden, config.activation)
        self.drop = nn.Sequential(Dropout(config.dropout), DropPath(config.drop_path))

    def forward(
        self,
        x: Float[Tensor, "batch tokens dim"],
        mask: Mask | None = None,
        context: Context | None = None,
        context_mask: Bool[Tensor, "contexts 1 1 keys"] | None = None,
        keep: int | None = None,
        cache: Cache | None = None,
    ) -> Float[Tensor, "batch kept dim"]:
        """Refine the tokens, or only the first `keep` of them; masks are True where a token may attend.

        With a `cache`, the tokens come after those that it remembers.
        """
        x = self.residual(x, self.norm1, lambda y: self.mixer(y, mask=mask, keep=keep, cache=cache), keep)
        if self.norm_cross is not None:
            x = self.residual(x, self.norm_cross, lambda y: self.look(y, context, context_mask))
        return self.residual(x, self.norm2, self.mlp)

    def look(
        self, x: Float[Tensor, "rows queries dim"], context: Context | None, mask: Mask | None
    ) -> Float[Tensor, "rows queries dim"]:
        """Look at the context. Rows that share one, as the beams of a sentence do, stand together and look at once."""
        if self.cross is None or context is None:
            raise GlocalError("a block with cross-attention needs a context to look at")
        batch = (context.keys if isinstance(context, KeysValues) else context).shape[0]
        return self.cross(x.reshape(batch, -1, x.shape[-1]), context, mask).view_as(x)

    def keys_values(self, context: Float[Tensor, "batch keys dim"]) -> KeysValues:
        """Project a context once, for many calls that look at it."""
        if self.cross is None:
            raise GlocalError("a block without cross-attention has no context to look at")
        return self.cross.keys_values(context)

    def new_cache(self, rows: int, room: int) -> Cache:
        """Make room to remember `room` tokens in each of `rows`."""
        if self.mixer.attention is None:
            raise GlocalError("a block without attention remembers no tokens")
        return self.mixer.attention.new_cache(rows, room)

    def residual(
        self, x: Tensor, norm: nn.Module, sublayer: Callable[[Tensor], Tensor], keep: int | None = None
    ) -> Tensor:
        """Pre-norm keeps the sum itself unnormalised from the first block to the last; post-norm normalises it."""
        if self.pre_norm:
            return x[:, :keep] + self.drop(sublayer(norm(x)))
        return norm(x[:, :keep] + self.drop(sublayer(x)))
