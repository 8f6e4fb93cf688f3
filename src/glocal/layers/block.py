"""The Transformer block. All models are stacks of it, except the LSTM and timm's models.

    pre-norm                    post-norm
    x = x + mixer(norm(x))      x = norm(x + mixer(x))      tokens exchange information
    x = x + mlp(norm(x))        x = norm(x + mlp(x))        each token is transformed by itself

In an encoder-decoder, a block of the decoder has cross-attention between the two. `BlockConfig` in `layers/config.py`
describes one block. An architecture is a tuple of `BlockConfig`s, and an architecture search chooses the `BlockConfig`
of each block.
"""

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from jaxtyping import Bool, Float
from torch import Tensor, nn

from glocal.errors import GlocalError
from glocal.layers.attention import Context, KeysValues, Mask, MultiHeadAttention
from glocal.layers.config import MAX_DEPTH, BlockConfig
from glocal.layers.dropout import Dropout, DropPath
from glocal.layers.mixer import Mixer, MixerCache, TokenMask
from glocal.layers.mlp import MLP
from glocal.layers.slicing import StateDict, named_tensors, prefixed


def uniform_blocks(depth: int, drop_path: float = 0.0, **fields: Any) -> tuple[BlockConfig, ...]:
    """Return `depth` block configs with the same `fields`; their `drop_path` grows linearly to the given one.

    Raises GlocalError for a depth below 1 or above 1,000.
    """
    if not 1 <= depth <= MAX_DEPTH:
        raise GlocalError(f"depth {depth}; a stack has 1 to {MAX_DEPTH} blocks")
    return with_drop_path([BlockConfig(**fields)] * depth, drop_path)


def with_drop_path(blocks: Sequence[BlockConfig], rate: float) -> tuple[BlockConfig, ...]:
    """Return block configs whose `drop_path` grows linearly from 0 to `rate`; a single one has 0."""
    last = max(len(blocks) - 1, 1)
    return tuple(replace(block, drop_path=rate * i / last) for i, block in enumerate(blocks))


def override_blocks(
    blocks: Sequence[BlockConfig], depth: int | None = None, drop_path: float | None = None, **changes: Any
) -> tuple[BlockConfig, ...]:
    """Return block configs with fields changed in all of them; `drop_path` is the rate of the last block.

    Raises GlocalError if `depth` is not `len(blocks)` and the blocks differ in more than `drop_path`.
    """
    rate = blocks[-1].drop_path if drop_path is None else drop_path
    blocks = [replace(block, **changes, drop_path=0.0) for block in blocks]
    if depth is None or depth == len(blocks):
        return with_drop_path(blocks, rate)
    if len(set(blocks)) > 1:
        raise GlocalError(
            f"depth cannot be changed to {depth}: the {len(blocks)} blocks of the model differ; give all blocks instead"
        )
    fields = asdict(blocks[0])
    fields["drop_path"] = rate
    return uniform_blocks(depth, **fields)


def half_local(blocks: tuple[BlockConfig, ...], kernel_size: int) -> tuple[BlockConfig, ...]:
    """Return block configs for texts: half of the heads are attention heads, the other half convolutions.

    Wu et al. 2020, *Lite Transformer with Long-Short Range Attention*, section 4.
    """
    return tuple(
        replace(block, local_heads=block.num_heads // 2, local_norm="layer", kernel_size=kernel_size)
        for block in blocks
    )


def interleave_windows(blocks: tuple[BlockConfig, ...], window: int) -> tuple[BlockConfig, ...]:
    """Return block configs with sliding-window attention, and with full attention in every sixth block.

    Gemma Team 2025, *Gemma 3 Technical Report*, section 2, https://arxiv.org/abs/2503.19786. In addition, the last
    block always has full attention.
    """
    return tuple(
        block
        if number % 6 == 0 or number == len(blocks)
        else replace(block, local_heads=block.num_heads, local="window", kernel_size=window)
        for number, block in enumerate(blocks, start=1)
    )


class Block(nn.Module):
    """Mixer and MLP, each on a residual branch; between them cross-attention, if the config has it.

    In the shapes below, `rows` and `contexts` are the batch size. In a beam search, `rows` is batch × beams, and
    `contexts` is the batch size, since the beams of an example share one context.
    """

    def __init__(self, config: BlockConfig) -> None:
        super().__init__()
        dim = config.embed_dim
        if config.hidden_dim < 1:
            raise GlocalError(
                f"mlp_ratio {config.mlp_ratio} of {dim} channels gives a hidden width of 0; make it larger"
            )
        self.pre_norm = config.norm == "pre"
        self.norm1 = nn.LayerNorm(dim, config.norm_eps)
        self.mixer = Mixer(
            embed_dim=dim,
            num_heads=config.num_heads,
            local_heads=config.local_heads,
            local=config.local,
            kernel_size=config.kernel_size,
            expand_ratio=config.expand_ratio,
            local_norm=config.local_norm,
            qkv_ratio=config.qkv_ratio,
            bias=config.qkv_bias,
            causal=config.causal,
            dropout=config.attn_drop,
        )
        self.cross: MultiHeadAttention | None = None
        self.norm_cross: nn.LayerNorm | None = None
        if config.cross:
            self.cross = MultiHeadAttention(
                dim,
                config.num_heads,
                qkv_ratio=config.qkv_ratio,
                bias=config.qkv_bias,
                cross=True,
                dropout=config.attn_drop,
            )
            self.norm_cross = nn.LayerNorm(dim, config.norm_eps)
        self.norm2 = nn.LayerNorm(dim, config.norm_eps)
        self.mlp = MLP(dim, config.hidden_dim, config.activation)
        self.drop = nn.Sequential(Dropout(config.dropout), DropPath(config.drop_path))

    def forward(
        self,
        x: Float[Tensor, "rows tokens dim"],
        mask: Mask | None = None,
        context: Context | None = None,
        context_mask: Bool[Tensor, "contexts 1 1 keys"] | None = None,
        num_queries: int | None = None,
        cache: MixerCache | None = None,
        token_mask: TokenMask | None = None,
    ) -> Float[Tensor, "rows queries dim"]:
        """Return the output tokens, or the first `num_queries` of them.

        `mask`, which only global heads use, and `context_mask` are True where a query may attend to a key. Local heads
        use `token_mask`, which is False at padding tokens. With a `cache`, the tokens of `x` come
        after the tokens in the cache. Raises GlocalError if cross-attention has no context.
        """
        if self.pre_norm:  # the residual sum itself is never normalised
            y = self.mixer(self.norm1(x), mask=mask, num_queries=num_queries, cache=cache, token_mask=token_mask)
            x = x[:, :num_queries] + self.drop(y)
            if self.norm_cross is not None:
                x = x + self.drop(self.attend_context(self.norm_cross(x), context, context_mask))
            return x + self.drop(self.mlp(self.norm2(x)))

        # post-norm: each sum is normalised
        y = self.mixer(x, mask=mask, num_queries=num_queries, cache=cache, token_mask=token_mask)
        x = self.norm1(x[:, :num_queries] + self.drop(y))
        if self.norm_cross is not None:
            x = self.norm_cross(x + self.drop(self.attend_context(x, context, context_mask)))
        return self.norm2(x + self.drop(self.mlp(x)))

    def attend_context(
        self, x: Float[Tensor, "rows queries dim"], context: Context | None, mask: Mask | None
    ) -> Float[Tensor, "rows queries dim"]:
        """Return the output of cross-attention. The beams of an example are consecutive rows, and share one context."""
        if self.cross is None or context is None:
            raise GlocalError("a block with cross-attention needs a context to attend to")
        contexts = (context.keys if isinstance(context, KeysValues) else context).shape[0]
        # Beams of one example attend to the same context: fold them into the query axis instead of repeating keys and
        # values.
        return self.cross(x.reshape(contexts, -1, x.shape[-1]), context, mask).view_as(x)

    def keys_values(self, context: Float[Tensor, "contexts keys dim"]) -> KeysValues:
        """Return the keys and values of a context; `forward` takes them in place of the context.

        Raises GlocalError if the block has no cross-attention.
        """
        if self.cross is None:
            raise GlocalError("a block without cross-attention takes no context")
        return self.cross.keys_values(context)

    def new_cache(self, rows: int, max_length: int) -> MixerCache:
        """Return an empty cache for up to `max_length` tokens in each of `rows` rows."""
        return self.mixer.new_cache(rows, max_length)

    def slice_for(self, config: BlockConfig) -> StateDict:
        """Return slices of this block's weights for a smaller `Block(config)`, without its local heads.

        `search.supernet` calls this method on a block that has global heads alone, and slices the local heads from a
        module beside it. The slices keep the first heads (in cross-attention all heads), the first
        channels of each head, and the first hidden channels of the MLP.
        """
        sliced = {name: tensor for name, tensor in named_tensors(self).items() if name.startswith("norm")}
        sliced |= prefixed("mlp", self.mlp.slice_for(config))
        if self.mixer.attention is not None and config.global_heads:
            sliced |= prefixed("mixer.attention", self.mixer.attention.slice_for(config))
        if self.cross is not None:
            sliced |= prefixed("cross", self.cross.slice_for(config))
        return sliced
