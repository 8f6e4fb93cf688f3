"""What the layers of a model do with an input: attention weights, queries, keys and values; and its positions.

A file holds at most `MAX_BYTES` of them. Of a large model or a long text it holds the weights of some layers, spread
evenly over the depth, or of the first heads of the last layer. Queries, keys and values get the remaining bytes, the
last layers first. The page names what is missing, and a server sends a missing layer on request.
"""

from math import prod
from typing import get_args

from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from glocal.errors import GlocalError
from glocal.explain import AttentionKind, Projections, pattern_shares, rollout
from glocal.layers.block import BlockConfig
from glocal.models import Model
from glocal.page.arrays import pack_numbers, pack_weights
from glocal.page.contract import Architecture, Attention, Block, Positions, Stack, Vectors
from glocal.page.readings import Reading

MAX_BYTES = 1_800_000
"""Bytes of attention weights, queries, keys and values together, before base64 makes 4 characters of 3 bytes."""
SHOWN_POSITIONS, SHOWN_PATCHES, SHOWN_CHANNELS = 64, 256, 128
"""Position embeddings that are kept of a text and of an image, and their channels."""
Weights = dict[AttentionKind, Float[Tensor, "_layers batch _heads _queries _keys"]]
"""What `explain.attention_weights` returns."""


def describe_model(model: Model) -> Architecture:
    """Return a model's family, size and blocks."""
    config = model.config
    blocks = [describe_block(stack, block) for stack in get_args(Stack) for block in getattr(config, stack, ())]
    return {
        "family": model.family,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "blocks": blocks,
    }


def describe_block(stack: Stack, block: BlockConfig) -> Block:
    """Return the fields of a block that the page draws."""
    return {
        "stack": stack,
        "global_heads": block.global_heads,
        "local_heads": block.local_heads,
        "local": block.local,
        "kernel_size": block.kernel_size,
        "expand_ratio": block.expand_ratio,
        "qkv_ratio": block.qkv_ratio,
        "mlp_ratio": block.mlp_ratio,
    }


def describe_attention(
    model: Model, reading: Reading, weights: Weights, layer: int | None = None
) -> dict[AttentionKind, Attention]:
    """Return the weights of as many layers as fit, or of one `layer`."""
    limit = MAX_BYTES // len(weights)
    return {
        kind: describe_kind(model, reading, kind, each[:, 0].float(), layer, limit) for kind, each in weights.items()
    }


def describe_kind(
    model: Model,
    reading: Reading,
    kind: AttentionKind,
    weights: Float[Tensor, "layers heads queries keys"],
    layer: int | None,
    limit: int,
) -> Attention:
    """Return one kind of attention."""
    depth, heads, queries, keys = weights.shape
    size = queries * keys
    if size > limit:
        raise GlocalError(f"an input of {keys} tokens; the page shows up to {int(limit**0.5):,}: give a shorter one")
    has_rollout = "grid" in reading.given and 2 * size <= limit
    limit -= size if has_rollout else 0
    layers = fitting_layers(depth, heads * size, limit) if layer is None else [check_layer(layer, depth)]
    kept = min(heads, limit // size)
    blocks = getattr(model.config, "decoder" if kind == "cross" else kind, None)
    names = reading.tokens[kind]
    attention: Attention = {
        "queries": names[0],
        "keys": names[1],
        "causal": blocks is not None and kind != "cross" and blocks[0].causal,
        "layers": layers,
        "depth": depth,
        "heads": kept,
        "all_heads": heads,
        "weights": pack_weights(weights[layers, :kept]),
        "local_heads": [0 if blocks is None or kind == "cross" else blocks[i].local_heads for i in layers],
    }
    if has_rollout:
        attention["rollout"] = pack_weights(rollout(weights[:, None])[0])
    if reading.separators is not None and keys > 1:
        attention["patterns"] = find_patterns(weights[layers], reading.separators, attention["causal"])
    return attention


def find_patterns(
    weights: Float[Tensor, "layers heads tokens tokens"], separators: Bool[Tensor, " tokens"], causal: bool
) -> dict[str, list[list[float]]]:
    """Return what the heads give to the previous token, the next, ..., in the mean over the text's tokens."""
    shares = pattern_shares(weights, separators, causal)
    return {name: [[round(x, 4) for x in row] for row in share.mean(dim=-1).tolist()] for name, share in shares.items()}


def describe_vectors(
    projections: dict[AttentionKind, list[Projections | None]], layer: int | None = None, limit: int = MAX_BYTES
) -> dict[AttentionKind, list[Vectors]]:
    """Return queries, keys and values of the last layers that fit, or of one `layer`."""
    limit //= len(projections)
    found: dict[AttentionKind, list[Vectors]] = {}
    for kind, layers in projections.items():
        chosen = range(len(layers)) if layer is None else [check_layer(layer, len(layers))]
        left = limit
        found[kind] = []
        for number in reversed(chosen):
            vectors = layers[number]
            left -= 0 if vectors is None else 2 * sum(each.numel() for each in vars(vectors).values())
            if vectors is not None and (left >= 0 or layer is not None):
                queries, keys, values = (pack_numbers(each[0].float()) for each in vars(vectors).values())
                found[kind].insert(0, {"layer": number, "queries": queries, "keys": keys, "values": values})
    return found


def fitting_layers(depth: int, size: int, limit: int) -> list[int]:
    """Return as many layers of `size` bytes as fit into `limit`, at least the last, spread evenly over the depth."""
    count = max(min(depth, limit // size), 1)
    return [depth - 1] if count == 1 else [round(i * (depth - 1) / (count - 1)) for i in range(count)]


def check_layer(layer: int, depth: int) -> int:
    """Return a layer. Raises GlocalError if the model has no such layer."""
    if not 0 <= layer < depth:
        raise GlocalError(f"layer {layer}; this model has layers 0 to {depth - 1}")
    return layer


def bytes_of(attention: dict[AttentionKind, Attention]) -> int:
    """Return the bytes of the weights."""
    return sum(prod(each["weights"]["shape"]) for each in attention.values())


def describe_positions(model: Model) -> Positions | None:
    """Return a model's position embeddings; None where it has none, as the LSTM."""
    computed = getattr(model, "positions", None)
    values = getattr(model, "pos_embed", None) if computed is None else computed
    if values is None:
        return None
    values = values.detach().float().reshape(-1, values.shape[-1])
    shown = values[: SHOWN_PATCHES if hasattr(model, "grid") else SHOWN_POSITIONS]
    direction = F.normalize(shown, dim=-1)
    return {
        "kind": "learned" if computed is None else "sinusoidal",
        "values": pack_numbers(shown[:, :SHOWN_CHANNELS]),
        "similarity": pack_numbers(direction @ direction.mT),
        "total": [*values.shape],
        "prefix": getattr(model, "num_prefix_tokens", 0),
    }
