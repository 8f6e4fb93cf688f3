"""Attention over an image: of the class token to each patch, by layer and head, and its rollout through all layers."""

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
    """The model's input, resized and cropped: (H, W) or (H, W, 3), 0 to 1."""
    probabilities: list[tuple[str, float]]
    """The most probable labels; none where the model is an encoder without a classifier."""
    heads: Float[Tensor, "layers heads rows columns"] = field(repr=False)
    """Attention of each head of each layer to each patch; a block's global heads come first."""
    local_heads: list[int]
    """Number of local heads of each layer."""
    rollout: Float[Tensor, "rows columns"] = field(repr=False)
    """Share of each patch in the classified token, through all layers."""


@torch.inference_mode()
def explain_image(predictor: ImageModel, image: ImageLike) -> ImageExplanation:
    """Return the prediction for an image, and the attention of every head."""
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
    """Return the attention rollout (Abnar and Zuidema 2020, section 3): the share of each input token in each output.

    A layer is ½A + ½I, the mean of its heads and the residual connection, normalised by rows. The rollout is the
    product of all layers, the last one leftmost.
    """
    attention = weights.mean(dim=2)
    passed = (attention + torch.eye(attention.shape[-1], device=attention.device)) / 2
    passed = passed / passed.sum(dim=-1, keepdim=True)
    total = passed[0]
    for layer in passed[1:]:
        total = layer @ total
    return total


def patch_map(model: Model, weights: Float[Tensor, "*n tokens tokens"]) -> Float[Tensor, "*n rows columns"]:
    """Return the attention of the class token to each patch, its row of `weights`, as (H/P, W/P).

    Its attention to itself and to a distillation token is left out. For a model without class token, which averages its
    tokens, the map is the mean of all rows.
    """
    prefix, grid = model.num_prefix_tokens, model.grid
    reader = weights[..., 0, :] if prefix else weights.mean(dim=-2)
    return reader[..., prefix:].unflatten(-1, grid)
