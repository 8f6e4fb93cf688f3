"""Where a model looks: attention weights a layer and a head.

Of an image, what the class token sees, and its rollout through the depth; of a translation, what every token of the
source and of the target sees.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from glocal.errors import GlocalError
from glocal.inference.predictor import Answer, ImageLike, Predictor
from glocal.inference.translator import Translator
from glocal.models import LSTM, Model, Transformer


@dataclass(frozen=True)
class Explanation:
    """One image, the model's answer, and where it looked; all on the CPU."""

    image: np.ndarray
    """The image as the model saw it, resized and cropped: (H, W) or (H, W, 3), 0 to 1."""
    answer: Answer
    """The most probable labels."""
    heads: Float[Tensor, "layers heads rows columns"]
    """How much each head of each layer looks at each patch."""
    rollout: Float[Tensor, "rows columns"]
    """How much of each patch reaches the head through all layers."""


@torch.inference_mode()
def explain(predictor: Predictor, image: ImageLike) -> Explanation:
    """Predict one image, and keep where every head looked."""
    pixel_values = predictor.pixels([image])
    weights = attention_weights(predictor.model, pixel_values).float().cpu()
    return Explanation(
        image=predictor.picture(pixel_values[0]),
        answer=predictor.predict([image])[0],
        heads=patch_map(predictor.model, weights[:, 0]),
        rollout=patch_map(predictor.model, rollout(weights)[0]),
    )


def attention_weights(
    model: Model, pixel_values: Float[Tensor, "batch chans height width"], layers: Sequence[int] | None = None
) -> Float[Tensor, "layers batch heads tokens tokens"]:
    """softmax(QKᵀ/√d_k) in the chosen `layers`: all by default, negative numbers count from the last.

    The forward pass keeps its fast kernel, which never writes these weights down, in every layer; a chosen block
    computes them beside it, from the tokens that enter its mixer. Raises GlocalError where the model has no attention
    or not that many layers.
    """
    mixers = _self_attentions(model, getattr(model, "blocks", ()))
    chosen = range(len(mixers)) if layers is None else layers
    for layer in chosen:
        if not -len(mixers) <= layer < len(mixers):
            raise GlocalError(f"layer {layer} was asked for; this model has {len(mixers)}: 0 to {len(mixers) - 1}")
    with _watch(mixers[layer] for layer in chosen) as seen:
        model.forward_features(pixel_values)  # all tokens, where the logits alone would need few of the last layer's
    return torch.stack([seen[mixers[layer]] for layer in chosen])


def rollout(weights: Float[Tensor, "layers batch heads tokens tokens"]) -> Float[Tensor, "batch tokens tokens"]:
    """Attention rollout (Abnar and Zuidema 2020, section 3): what of each first token is in each last one.

    A layer passes on ½A + ½I, the heads' mean and the residual connection, each row of which sums to one; the layers
    follow one another as a product of matrices, the last layer leftmost.
    """
    attention = weights.mean(dim=2)
    passed = (attention + torch.eye(attention.shape[-1], device=attention.device)) / 2
    passed = passed / passed.sum(dim=-1, keepdim=True)
    total = passed[0]
    for layer in passed[1:]:
        total = layer @ total
    return total


def patch_map(model: Model, weights: Float[Tensor, "*n tokens tokens"]) -> Float[Tensor, "*n rows columns"]:
    """Lay what the class token sees over the image: its row of `weights` at the patches, as (H/P, W/P).

    What it gives to itself, and to a distillation token, is left out. A model that averages its tokens has no class
    token: there the map is the mean over all tokens' rows.
    """
    prefix, grid = model.num_prefix_tokens, model.grid
    reader = weights[..., 0, :] if prefix else weights.mean(dim=-2)
    return reader[..., prefix:].unflatten(-1, grid)


Sight = Literal["encoder", "decoder", "cross"]
"""Who looks at whom: the source at itself, the target at itself, the target at the source."""


@dataclass(frozen=True)
class TokenAttention:
    """How much each of some tokens looks at each of others, or of the same."""

    queries: list[str]
    """The tokens that look. The decoder's are named by what they write: the token that follows them."""
    keys: list[str]
    """The tokens that are looked at. The decoder's are those it has read, beginning with the one it starts from."""
    weights: Float[Tensor, "layers heads queries keys"]
    """Attention weights, on the CPU; the weights of each query sum to one."""


@dataclass(frozen=True)
class TranslationExplanation:
    """A sentence, its translation, and where the model looked."""

    source: str
    translation: str
    attention: dict[Sight, TokenAttention]
    """All that the model has: an LSTM looks at the source alone, in one layer, with one head."""


@torch.inference_mode()
def explain_translation(translator: Translator, source: str, translation: str | None = None) -> TranslationExplanation:
    """Translate one sentence, and keep where every head looked; or where it looks as it writes a given translation."""
    if translation is None:
        translation = translator.predict([source])[0].text
    tokenizer = translator.tokenizer
    (source_ids,), (written_ids,) = tokenizer.encode([source]), tokenizer.encode([translation], target=True)
    read_ids = [tokenizer.bos_id, *written_ids[:-1]]
    weights = translation_weights(
        translator.model, *(torch.tensor([ids], device=translator.device) for ids in (source_ids, read_ids))
    )
    heard, read, written = (
        [token.removeprefix("▁") or token for token in tokenizer.tokens(ids)]
        for ids in (source_ids, read_ids, written_ids)
    )
    ends: dict[Sight, tuple[list[str], list[str]]] = {
        "encoder": (heard, heard),
        "decoder": (written, read),
        "cross": (written, heard),
    }
    attention = {sight: TokenAttention(*ends[sight], looks[:, 0].float().cpu()) for sight, looks in weights.items()}
    return TranslationExplanation(source, translation, attention)


def translation_weights(
    model: Model, input_ids: Int[Tensor, "batch source"], decoder_input_ids: Int[Tensor, "batch target"]
) -> dict[Sight, Float[Tensor, "_layers batch _heads _queries _keys"]]:
    """softmax(QKᵀ/√d_k) of each attention in an encoder-decoder, from one forward pass with its fast kernels.

    Raises GlocalError where the model is none.
    """
    if isinstance(model, Transformer):
        attentions: dict[Sight, list[nn.Module]] = {
            "encoder": _self_attentions(model, model.encoder),
            "decoder": _self_attentions(model, model.decoder),
            "cross": [block.get_submodule("cross") for block in model.decoder],
        }
    elif isinstance(model, LSTM):
        attentions = {"cross": [model.cross]}
    else:
        raise GlocalError(f"a {type(model).__name__} does not translate; a Transformer or an LSTM does")
    with _watch(module for modules in attentions.values() for module in modules) as seen:
        model.forward_features(input_ids, decoder_input_ids)
    return {sight: torch.stack([seen[module] for module in modules]) for sight, modules in attentions.items()}


def _self_attentions(model: Model, blocks: Iterable[Any]) -> list[nn.Module]:
    mixers = [block.mixer for block in blocks if hasattr(block, "mixer")]
    if not mixers:
        raise GlocalError(
            f"a {type(model).__name__} has no attention weights to show; only this project's own Transformers do"
        )
    if local := [i for i, mixer in enumerate(mixers) if mixer.local is not None]:
        raise GlocalError(
            f"blocks {', '.join(map(str, local))} have local heads, which weigh tokens without attention; "
            "attention is shown of models whose heads are all global"
        )
    return [mixer.attention for mixer in mixers]


@contextmanager
def _watch(attentions: Iterable[nn.Module]) -> Iterator[dict[nn.Module, Tensor]]:
    """Gather the weights of each attention that runs inside, by its method of that name, for the same tokens."""
    seen: dict[nn.Module, Tensor] = {}

    def look(attention: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = {name: value for name, value in kwargs.items() if name != "cache"}  # a whole forward pass has none
        seen[attention] = attention.weights(*args, **given)

    hooks = [attention.register_forward_pre_hook(look, with_kwargs=True) for attention in set(attentions)]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()
