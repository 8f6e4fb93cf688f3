"""The parts of a block for one call of `ops`: its modules and, for decoding, the tensors of its caches."""

from torch import nn

from glocal import ops
from glocal.layers.attention import KeysValues, MultiHeadAttention
from glocal.layers.block import Block
from glocal.layers.cache import LastTokens, WindowCache
from glocal.layers.convolution import LocalConvolution
from glocal.layers.mixer import Mixer, MixerCache
from glocal.layers.mlp import MLP
from glocal.ops.stack import BlockParts, LocalParts


def block_parts(block: Block, cache: MixerCache | None = None, context: KeysValues | None = None) -> BlockParts | None:
    """Return the parts of a block; None in training, or where a part of it is not as this project builds it."""
    attention = block.mixer.attention
    cross = block.cross
    mlp = block.mlp
    activation = ops.activation_name(mlp.act)
    linear = [mlp.fc1, mlp.fc2, *_linear_layers(attention), *_linear_layers(block.mixer.local), *_linear_layers(cross)]
    attentions = [part for part in (attention, cross) if part is not None]
    plain = (
        ops.is_plain(block, Block)
        and ops.is_plain(block.mixer, Mixer)
        and ops.is_plain(mlp, MLP)
        and all(ops.is_plain(layer, ops.Linear) for layer in linear)
        and all(ops.is_plain(part, MultiHeadAttention) for part in attentions)
        and all(ops.is_plain(norm, nn.LayerNorm) for norm in (block.norm1, block.norm2))
    )
    if activation is None or not plain or block.training:
        return None
    keys_values = None if cache is None else cache.attention
    return BlockParts(
        pre_norm=block.pre_norm,
        activation=activation,
        norm1=block.norm1,
        norm2=block.norm2,
        fc1=mlp.fc1,
        fc2=mlp.fc2,
        causal=attention is not None and attention.causal,
        heads=0 if attention is None else attention.num_heads,
        qkv=None if attention is None else attention.qkv,
        proj=None if attention is None else attention.proj,
        keys=None if keys_values is None else keys_values.keys,
        values=None if keys_values is None else keys_values.values,
        local=None if cache is None else _local_parts(block.mixer, cache),
        norm_cross=block.norm_cross,
        cross_heads=0 if cross is None else cross.num_heads,
        cross_q=None if cross is None else cross.q,
        cross_proj=None if cross is None else cross.proj,
        cross_keys=None if context is None else context.keys,
        cross_values=None if context is None else context.values,
    )


def _local_parts(mixer: Mixer, cache: MixerCache) -> LocalParts | None:
    local = mixer.local
    if isinstance(local, LocalConvolution) and isinstance(cache.local, LastTokens):
        return LocalParts(
            size=cache.local.size,
            tokens=cache.local.tokens.flatten(2),
            into=local.expand,
            out=local.contract,
            depthwise=local.depthwise,
            norm=local.norm,
        )
    if isinstance(local, MultiHeadAttention) and isinstance(cache.local, WindowCache):
        keys, values, own = cache.local.parts
        return LocalParts(
            size=keys.size,
            tokens=keys.tokens.flatten(2),
            into=local.qkv,
            out=local.proj,
            heads=local.num_heads,
            values=values.tokens.flatten(2),
            own=own.tokens,
        )
    return None


def _linear_layers(part: MultiHeadAttention | LocalConvolution | None) -> list[nn.Module]:
    if part is None:
        return []
    if isinstance(part, LocalConvolution):
        return [part.expand, part.contract]
    return [part.proj, part.qkv if hasattr(part, "qkv") else part.q]
