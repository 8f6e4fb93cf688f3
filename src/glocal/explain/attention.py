"""Attention weights of any model of ours, from one forward pass."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from threading import get_ident
from typing import Literal, Protocol, TypeVar, cast, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from glocal.data.tokenizer import Tokenizer
from glocal.errors import GlocalError
from glocal.layers.attention import MultiHeadAttention
from glocal.layers.mixer import Mixer
from glocal.models import Model
from glocal.models.lstm import GlobalAttention

AttentionKind = Literal["blocks", "encoder", "decoder", "cross"]
"""Which tokens attend to which: those of a stack of blocks, of the encoder or of the decoder to each other, or
(`cross`) those of the target to those of the source."""

Recorded = TypeVar("Recorded")


@runtime_checkable
class TextModel(Protocol):
    """A text model with its tokenizer: a predictor."""

    @property
    def model(self) -> Model:
        """The model."""
        ...

    tokenizer: Tokenizer
    device: torch.device


@dataclass(frozen=True)
class TokenAttention:
    """How much each token attends to each other token."""

    queries: list[str]
    """The tokens that attend. A decoder's are named by the tokens that they predict."""
    keys: list[str]
    """The tokens that are attended to. A decoder's are its inputs, beginning with the begin token."""
    weights: Float[Tensor, "layers heads queries keys"] = field(repr=False)
    """Attention weights, on the CPU; the weights of each query sum to one."""
    local_heads: list[int] = field(default_factory=list)
    """Number of local heads of each layer, which are its last ones. Empty if no layer has any."""


def attention_weights(
    model: Model, *inputs: Tensor | None, layers: Sequence[int] | None = None
) -> dict[AttentionKind, Float[Tensor, "_layers batch _heads _queries _keys"]]:
    """softmax(QKᵀ/√d_k) in the chosen `layers`: all by default, negative numbers count from the last.

    `inputs` are those of the model's `forward_features`: pixel values; or ids, mask and segments; or ids of the source
    and of the target. The forward pass uses its fast kernel, which does not return these weights; each chosen layer
    computes them as well, from its input. A local head, which is no attention, has weights by
    `LocalConvolution.weights`. Raises GlocalError if the model has no attention, or not that many layers.
    """
    found = _record(model, inputs, layers, lambda attention, *args, **given: attention.weights(*args, **given))
    return {kind: torch.stack(weights) for kind, weights in found.items()}


@dataclass(frozen=True)
class Projections:
    """Queries, keys and values of a layer's attention heads; a local head, which is no attention, has none."""

    queries: Float[Tensor, "batch heads queries d_k"]
    keys: Float[Tensor, "batch heads keys d_k"]
    values: Float[Tensor, "batch heads keys d_v"]


def attention_projections(
    model: Model, *inputs: Tensor | None, layers: Sequence[int] | None = None
) -> dict[AttentionKind, list[Projections | None]]:
    """Return Q, K and V, of which `attention_weights` returns softmax(QKᵀ/√d_k), for the same arguments.

    A layer of local heads alone is None. Raises GlocalError as `attention_weights` does.
    """
    return _record(model, inputs, layers, _project)


def _project(
    attention: nn.Module, x: Tensor, context: Tensor | None = None, *_: object, **__: object
) -> Projections | None:
    """Return what an attention projects its tokens to."""
    if isinstance(attention, GlobalAttention):  # the LSTM's, one head: the context is its own keys and values
        assert context is not None
        return Projections(attention.score(x)[:, None], context[:, None], context[:, None])
    if isinstance(attention, Mixer):
        heads, x = attention.attention, x.split(attention.widths, dim=-1)[0]
    else:
        heads = cast(MultiHeadAttention, attention)
    return None if heads is None else Projections(*heads.project(x, context))


def readable(tokens: Sequence[str]) -> list[str]:
    """Tokens for the axes of a picture, without the sign of the space before a word."""
    return [token.removeprefix("▁") or token for token in tokens]


def _attentions(model: Model) -> dict[AttentionKind, list[nn.Module]]:
    """A model's attentions, in the order of its layers."""
    found: dict[AttentionKind, list[nn.Module]] = {}
    for name, module in model.named_modules():
        if isinstance(module, Mixer):
            found.setdefault(cast(AttentionKind, name.partition(".")[0]), []).append(module)
        elif name.endswith("cross") and isinstance(module, MultiHeadAttention | GlobalAttention):
            found.setdefault("cross", []).append(module)
    if not found:
        raise GlocalError(
            f"a {type(model).__name__} has no attention weights to show; only this project's own models do"
        )
    return found


def _choose(attentions: Sequence[nn.Module], layers: Sequence[int] | None) -> list[nn.Module]:
    for layer in layers or ():
        if not -len(attentions) <= layer < len(attentions):
            raise GlocalError(f"layer {layer}; this model has layers 0 to {len(attentions) - 1}")
    return [attentions[layer] for layer in (range(len(attentions)) if layers is None else layers)]


def _record(
    model: Model, inputs: Sequence[Tensor | None], layers: Sequence[int] | None, compute: Callable[..., Recorded]
) -> dict[AttentionKind, list[Recorded]]:
    """Return `compute` of each chosen attention and its arguments, in one forward pass.

    Other threads may use the model at the same time: their passes are not recorded.
    """
    chosen = {kind: _choose(attentions, layers) for kind, attentions in _attentions(model).items()}
    recorded: dict[nn.Module, Recorded] = {}
    own = get_ident()

    def hook(attention: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        if get_ident() != own:
            return
        given = {name: value for name, value in kwargs.items() if name != "cache"}  # a whole forward pass has none
        recorded[attention] = compute(attention, *args, **given)

    hooked = {attention for attentions in chosen.values() for attention in attentions}
    hooks = [attention.register_forward_pre_hook(hook, with_kwargs=True) for attention in hooked]
    try:
        model.forward_features(*inputs)  # all tokens, where the logits alone would need few of the last layer's
    finally:
        for handle in hooks:
            handle.remove()
    return {kind: [recorded[attention] for attention in attentions] for kind, attentions in chosen.items()}
