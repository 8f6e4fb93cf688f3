"""Where a model looks in an image: what the class token sees, layer by layer, and its rollout through the depth."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from glocal.data.decoding import ImageLike
from glocal.explain.attention import attention_weights
from glocal.models import Model


@runtime_checkable
class ImageModel(Protocol):
    """An image model with its preprocessing: a predictor."""

    model: Model

    def probabilities(self, image: ImageLike) -> list[tuple[str, float]]:
        """Return the most probable labels of an image; none where the model predicts no classes."""
        ...

    def pixels(self, images: Sequence[ImageLike]) -> Float[Tensor, "batch chans height width"]:
        """Return images as the model takes them."""
        ...

    def picture(self, pixel_values: Float[Tensor, "chans height width"]) -> np.ndarray:
        """Return pixel values as an image."""
        ...


@dataclass(frozen=True)
class ImageExplanation:
    """An image, the model's prediction, and its attention; all on the CPU."""

    image: np.ndarray = field(repr=False)
    """The image as the model saw it, resized and cropped: (H, W) or (H, W, 3), 0 to 1."""
    probabilities: list[tuple[str, float]]
    """The most probable labels; none where the model is an encoder without a classifier."""
    heads: Float[Tensor, "layers heads rows columns"] = field(repr=False)
    """How much each head of each layer looks at each patch, of a block's heads the global ones first."""
    local_heads: list[int]
    """Of each layer's heads, so many are local."""
    rollout: Float[Tensor, "rows columns"] = field(repr=False)
    """How much of each patch reaches the head through all layers."""


@torch.inference_mode()
def explain_image(predictor: ImageModel, image: ImageLike) -> ImageExplanation:
    """Predict one image, and keep where every head looked."""
    pixel_values = predictor.pixels([image])
    weights = attention_weights(predictor.model, pixel_values)["blocks"].float().cpu()
    return ImageExplanation(
        image=predictor.picture(pixel_values[0]),
        probabilities=predictor.probabilities(image),
        heads=patch_map(predictor.model, weights[:, 0]),
        local_heads=[block.local_heads for block in predictor.model.config.blocks],
        rollout=patch_map(predictor.model, rollout(weights)[0]),
    )


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
