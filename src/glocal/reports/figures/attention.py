"""Figures of attention over images, and of position embeddings."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_rgb
from matplotlib.figure import Figure
from numpy import ndarray
from torch import Tensor

from glocal.errors import shortened
from glocal.reports.figures.style import LOCAL, MUTED, percent, styled

# Transparent at 0, so that the image is visible where there is little attention.
GLOW = LinearSegmentedColormap.from_list(
    "glow",
    [(*to_rgb("#3b0f70"), 0.0), (*to_rgb("#b5367a"), 0.45), (*to_rgb("#fb8861"), 0.75), (*to_rgb("#fcfdbf"), 0.9)],
)


@styled
def attention_map(
    image: ndarray, weights: Float[Tensor, "rows columns"], title: str = "", drawn: str = "attention"
) -> Figure:
    """Draw an image with its title, and beside it a head's map or the rollout over the image, with the title `drawn`.

    `image` is (H, W) or (H, W, 3), float, 0 to 1. The scale is a patch's share of the attention.
    """
    height, width = image.shape[:2]
    figure = Figure(figsize=(5.9, 2.6 * min(height / width, 2) + 0.3))
    plain, over = figure.subplots(1, 2)
    show(plain, image)
    show(over, image, weights)
    plain.set_title(shortened(title, 36))
    over.set_title(drawn)
    bar = figure.colorbar(over.images[-1], ax=over, pad=0.02, aspect=20, format=percent)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=7.5)
    return figure


@styled
def attention_heads(
    image: ndarray,
    weights: Float[Tensor, "layers heads rows columns"],
    layers: Sequence[int] | None = None,
    local_heads: Sequence[int] | None = None,
) -> Figure:
    """Draw a grid of maps over the image, a row for each layer and a column for each head.

    `layers` are the numbers of the layers, by default 0, 1, ... Every map has its own scale, from its least to its
    greatest weight. The last `local_heads` of each row are marked as local.
    """
    depth, heads = weights.shape[:2]
    height, width = image.shape[:2]
    cell = min(1.15, 7.2 / heads)
    figure = Figure(figsize=(cell * heads + 0.5, cell * height / width * depth + 0.4))
    grid = figure.subplots(depth, heads, squeeze=False)
    for row, layer in enumerate(range(depth) if layers is None else layers):
        for head in range(heads):
            show(grid[row, head], image, weights[row, head])
            if local_heads is not None and head >= heads - local_heads[row]:
                grid[row, head].set_xlabel("local", color=LOCAL, fontsize=7.5, labelpad=2)
        grid[row, 0].set_ylabel(f"layer {layer}")
    for head in range(heads):
        grid[0, head].set_title(f"head {head}", loc="center", color=MUTED, fontsize=9)
    return figure


@styled
def attention_examples(
    images: Sequence[ndarray], weights: Sequence[Float[Tensor, "rows columns"]], captions: Sequence[str]
) -> Figure:
    """Draw several images in a row, each above its map."""
    height = max(image.shape[0] / image.shape[1] for image in images)
    cell = min(1.4, 7.2 / len(images))
    figure = Figure(figsize=(cell * len(images), 2 * cell * height + 0.35))
    above, below = figure.subplots(2, len(images), squeeze=False)
    for column, (image, map_, caption) in enumerate(zip(images, weights, captions, strict=True)):
        show(above[column], image)
        show(below[column], image, map_)
        above[column].set_title(shortened(caption, 20), loc="center", fontsize=8.5)
    return figure


def show(axes: Axes, image: ndarray, weights: Float[Tensor, "rows columns"] | None = None) -> None:
    """Draw an image; with weights, draw it in grey with a map of the weights over it."""
    height, width = image.shape[:2]
    if weights is not None and image.ndim == 3:
        image = image @ [0.299, 0.587, 0.114]
    axes.imshow(image, cmap="gray", vmin=0, vmax=1)
    if weights is not None:
        axes.imshow(weights.numpy(), cmap=GLOW, extent=(-0.5, width - 0.5, height - 0.5, -0.5), interpolation="bicubic")
    axes.set(xticks=[], yticks=[], xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.grid(False)


@styled
def position_similarity(
    positions: Float[Tensor, "patches dim"], grid: tuple[int, int], tiles: tuple[int, int] = (7, 7)
) -> Figure:
    """Draw the cosine similarity of each position embedding with all others, arranged as the patches of the image.

    This is figure 7, centre, of Dosovitskiy et al. 2020. `positions` are those of the patches, without the class token.
    Of a larger grid, `tiles` evenly spaced rows and columns are drawn.
    """
    unit = positions.detach().cpu() / positions.detach().cpu().norm(dim=-1, keepdim=True)
    similarity = (unit @ unit.T).view(*grid, *grid).numpy()
    rows, columns = (
        np.linspace(0, n - 1, min(n, most)).round().astype(int) for n, most in zip(grid, tiles, strict=True)
    )
    figure = Figure(figsize=(4.6, 1.2 + 3.8 * len(rows) * grid[0] / (len(columns) * grid[1])))
    axes = figure.subplots(len(rows), len(columns), squeeze=False)
    for at, row in zip(axes, rows, strict=True):
        for tile, column in zip(at, columns, strict=True):
            picture = tile.imshow(similarity[row, column], cmap="viridis", vmin=-1, vmax=1, interpolation="none")
            tile.set(xticks=[], yticks=[], xlabel=column, ylabel=row)
            tile.label_outer()
            tile.spines["bottom"].set_visible(False)
            tile.grid(False)
    figure.supylabel("row of the patch", color=MUTED, fontsize=9)
    figure.supxlabel("column of the patch", color=MUTED, fontsize=9)
    bar = figure.colorbar(picture, ax=axes, location="top", shrink=0.5, aspect=30, ticks=[-1, 0, 1])
    bar.outline.set_visible(False)
    bar.set_label("cosine similarity")
    return figure
