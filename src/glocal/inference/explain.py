"""Where a Vision Transformer looks: attention weights a layer and a head, and their rollout through the depth."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from glocal.errors import GlocalError
from glocal.inference.predictor import Answer, ImageLike, Predictor
from glocal.models import Model


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
    mixers = _mixers(model)
    chosen = range(len(mixers)) if layers is None else layers
    for layer in chosen:
        if not -len(mixers) <= layer < len(mixers):
            raise GlocalError(f"layer {layer} was asked for; this model has {len(mixers)}: 0 to {len(mixers) - 1}")
    seen: dict[nn.Module, Tensor] = {}

    def look(mixer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen[mixer] = mixer.weights(*args, **kwargs)

    hooks = [mixer.register_forward_pre_hook(look, with_kwargs=True) for mixer in {mixers[layer] for layer in chosen}]
    try:
        model.forward_features(pixel_values)  # all tokens, where the logits alone would need few of the last layer's
    finally:
        for hook in hooks:
            hook.remove()
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


def _mixers(model: Model) -> list[nn.Module]:
    mixers = [block.mixer for block in getattr(model, "blocks", ()) if hasattr(block, "mixer")]
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
