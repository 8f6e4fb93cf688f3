"""Figures of texts: attention between tokens, positions, and how far a gradient reaches."""

from collections.abc import Mapping, Sequence
from math import ceil
from typing import Literal

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, PowerNorm
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator
from numpy import ndarray
from torch import Tensor

from glocal.errors import shortened
from glocal.reports.figures.style import HAIRLINE, INK, MUTED, SERIES, styled

DEPTHS = LinearSegmentedColormap.from_list("depths", ["#f5f3ee", "#a9cfe6", SERIES[0], "#00243d"])
BREADTHS = LinearSegmentedColormap.from_list("breadths", ["#f5f3ee", "#f0b77f", SERIES[1], "#4a1c00"])
WAVES = LinearSegmentedColormap.from_list("waves", [SERIES[0], "white", SERIES[1]])

SHARES = [0, 0.04, 0.25, 1], "{x:.0%}"
"""Ticks of the scale of attention, equally spaced in its square root, and how they are written."""

LONGEST_WORD = 16
"""Most letters of a word on the axes; longer words are shortened in the middle."""


@styled
def attention_words(
    weights: Float[Tensor, "heads queries keys"], queries: Sequence[str], keys: Sequence[str], titles: Sequence[str]
) -> Figure:
    """Draw the attention of one head or several, with the tokens on the axes.

    A row is a query, whose weights add up to 1, as in figure 3 of Bahdanau et al. 2015. All maps have one scale, in
    which the darkness of a cell is the square root of its weight, so that small weights are visible.
    """
    heads, height, width = weights.shape
    queries, keys = ([shortened(word, LONGEST_WORD) for word in words] for words in (queries, keys))
    rows = ceil(heads / min(heads, 4, max(60 // width, 2)))
    columns = ceil(heads / rows)
    cell = min(0.21, max(7.2 / (columns * width), 0.075), 9 / (columns * width), 12 / height)  # inches
    every = ceil(0.075 / cell - 1e-6)  # with very many words, only some are written
    size = min(35 * cell * every + 1.2, 8.0)  # points of a letter
    left, above = (max(map(len, words)) * size / 115 for words in (queries, keys))
    across = max(cell * width, 0.07 * max(map(len, titles)))
    figure = Figure(figsize=(columns * (across + 0.15) + left + 0.6, rows * (cell * height + 0.35) + above + 0.1))
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True, subplot_kw={"aspect": "equal"})
    for axes in grid.flat[heads:]:
        axes.set_visible(False)
    for axes, map_, title in zip(grid.flat, weights, titles, strict=False):
        cells = axes.pcolormesh(map_.numpy(), cmap=DEPTHS, norm=PowerNorm(0.5, 0, 1), edgecolors="white", linewidth=0.7)
        axes.set_title(title, color=MUTED, fontsize=9)
        axes.set_anchor("W")
        axes.tick_params(length=0, labelsize=size, labelcolor=INK, labelbottom=False, labeltop=True)
        axes.label_outer()
        axes.grid(False)
        axes.spines["bottom"].set_visible(False)
    for axes in grid[0]:
        places = np.arange(width)[::every] + 0.5
        axes.set_xticks(places, keys[::every], rotation=60, ha="left", rotation_mode="anchor")
    for axes in grid[:, 0]:
        axes.set_yticks(np.arange(height)[::every] + 0.5, queries[::every])
    grid[0, 0].invert_yaxis()  # all maps share it
    scale(figure, cells, grid[0], shares=True)
    return figure


@styled
def head_patterns(
    shares: Mapping[str, Float[Tensor, "layers heads"]], entropy: Float[Tensor, "layers heads"]
) -> Figure:
    """Draw the patterns of all heads, a row for each layer: a map of the attention to each place, and one of the
    entropy.

    `shares` maps the name of a place to the mean attention to it, from 0 to 1. These maps have one scale, in which the
    darkness of a cell is the square root of its share. Shares of one half or more are written into their cells.
    """
    layers, heads = entropy.shape
    columns = ceil((len(shares) + 1) / 2)
    cell = float(np.clip(6.2 / (columns * heads), 0.11, 0.24))
    across, down = max(cell * heads, 1.3), max(cell * layers, 0.7)  # inches, with titles and the scale's ticks
    figure = Figure(figsize=(columns * (across + 0.35) + 1.0, 2 * (down + 0.36) + 0.3))
    grid = figure.subplots(2, columns, squeeze=False, sharex=True, sharey=True, subplot_kw={"aspect": "equal"})
    *places, last = grid.flat[: len(shares) + 1]
    for axes in grid.flat[len(shares) + 1 :]:
        axes.set_visible(False)
    for axes, (name, share) in zip(places, shares.items(), strict=True):
        given = axes.pcolormesh(
            share.numpy(), cmap=DEPTHS, norm=PowerNorm(0.5, 0, 1), edgecolors="white", linewidth=0.7
        )
        axes.set_title(f"to the {name} token" if name != "separator" else "to the separator", fontsize=9)
        for layer, head in (share >= 0.5).nonzero().tolist():
            percent = f"{100 * share[layer, head]:.0f}"
            axes.text(head + 0.5, layer + 0.5, percent, color="white", fontsize=26 * cell, ha="center", va="center")
    spread = last.pcolormesh(entropy.numpy(), cmap=BREADTHS, vmin=0, edgecolors="white", linewidth=0.7)
    last.set_title("entropy, in nats", fontsize=9)
    for axes in grid.flat:
        axes.set_anchor("W")
        axes.set_xticks(np.arange(heads) + 0.5, range(heads), fontsize=6)
        axes.set_yticks(np.arange(layers) + 0.5, range(layers), fontsize=6)
        axes.tick_params(length=0)
        axes.grid(False)
        axes.spines["bottom"].set_visible(False)
        axes.label_outer()
    for axes in grid[:, 0]:
        axes.set_ylabel("layer")
    for axes in grid[-1]:
        axes.set_xlabel("head")
    grid[0, 0].invert_yaxis()
    scale(figure, given, grid[0], shares=True)
    scale(figure, spread, grid[1])
    return figure


def scale(figure: Figure, cells: ScalarMappable, beside: ndarray, shares: bool = False) -> None:
    """Draw the scale of the colours beside some maps."""
    ticks, form = SHARES if shares else (None, None)
    # panchor: the maps stay below their titles
    bar = figure.colorbar(cells, ax=beside, pad=0.02, aspect=20, panchor=False, ticks=ticks, format=form)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=7.5)


@styled
def sinusoids(positions: Float[Tensor, "tokens dim"]) -> Figure:
    """Draw the table of sinusoidal positions, and the dot products of its rows, divided by that of a row with itself.

    A product depends on the distance alone: cos a · cos b + sin a · sin b = cos(a - b) at every frequency, and a shift
    by n tokens is the same rotation for all positions (Vaswani et al. 2017, section 3.5).
    """
    table = positions.detach().cpu().float()
    products = table @ table.T / table[0].square().sum()
    figure = Figure(figsize=(7.2, 3.7))
    left, right = figure.subplots(1, 2)
    for axes, values, colours, low in ((left, table, WAVES, -1.0), (right, products, DEPTHS, products.min().item())):
        picture = axes.imshow(values.numpy(), cmap=colours, vmin=low, vmax=1, interpolation="none", aspect="auto")
        axes.grid(False)
        axes.spines["bottom"].set_visible(False)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(5, integer=True))
        bar = figure.colorbar(picture, ax=axes, location="bottom", shrink=0.5, aspect=25)
        bar.set_ticks([low, 1], labels=[f"{low:.2g}".replace("-", "−"), "1"])
        bar.outline.set_visible(False)
    left.set(title="Positions", xlabel="dimension", ylabel="position")
    right.set(title="Dot products", xlabel="position", ylabel="position")
    return figure


PathLength = Literal["O(1)", "O(n)"]
"""Steps between two tokens at a distance of n (Vaswani et al. 2017, table 1)."""


@styled
def gradient_reach(
    reaches: Mapping[str, Float[ndarray, "sentences distances"]], paths: Mapping[str, PathLength]
) -> Figure:
    """Draw the gradient with respect to the token n before, relative to n = 0: its median and middle half.

    `reaches` maps a model's name to the result of glocal.explain.reach, and `paths` to its decoder's path from token to
    token, which is drawn beside the curves. The curves end where half of the sentences are shorter.
    """
    figure = Figure(figsize=(7.2, 2.7))
    grid = figure.add_gridspec(len(reaches), 2, width_ratios=(1, 2.6))
    axes = figure.add_subplot(grid[:, 1])
    ends: list[tuple[float, str, str]] = []
    for row, ((name, norms), colour) in enumerate(zip(reaches.items(), SERIES * len(reaches), strict=False)):
        norms = norms[norms[:, 0] > 0]  # without a gradient at n = 0, there is no ratio
        shares = norms[:, np.isnan(norms).mean(axis=0) <= 0.5] / norms[:, :1]
        low, middle, high = np.nanquantile(shares, (0.25, 0.5, 0.75), axis=0)
        axes.fill_between(range(len(middle)), low, high, color=colour, alpha=0.2, linewidth=0)
        axes.plot(middle, color=colour)
        ends.append((middle[-1], name, colour))
        hops(figure.add_subplot(grid[row, 0]), f"{name}: {paths[name]} steps", paths[name], colour)
    axes.set_title("Gradient of a token's loss with respect to the token n before it")
    axes.set(yscale="log", xlabel="distance n", ylabel="relative to n = 0")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    bottom, top = np.log10(axes.get_ylim())
    axes.yaxis.set_major_locator(LogLocator(subs=(1,) if top - bottom > 2 else (1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(power_of_ten))
    axes.yaxis.set_minor_locator(NullLocator())
    ceiling = np.inf
    for end, name, colour in sorted(ends, reverse=True):  # names beside the ends of the lines, without overlaps
        height = min((np.log10(end) - bottom) / (top - bottom), ceiling)
        ceiling = height - 0.085  # a line of text
        axes.annotate(name, (1, height), (5, 0), "axes fraction", "offset points", color=colour, va="center")
    return figure


def power_of_ten(value: float, position: int | None = None) -> str:
    """Return a number as a text, below 0.001 as a power of ten in Unicode, since the style turns mathtext off."""
    if value >= 1e-3:
        return f"{value:g}"
    return "10" + f"{np.log10(value):.0f}".translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def hops(axes: Axes, title: str, path: PathLength, colour: str, tokens: int = 7) -> None:
    """Draw the path from the first of some tokens to the last: over each neighbour, or in one step, as from all."""
    last = tokens - 1
    steps = [(i, i + 1) for i in range(last)] if path == "O(n)" else [(i, last) for i in range(last)]
    for start, end in steps:
        arrow = FancyArrowPatch((start, 0), (end, 0), arrowstyle="-|>", mutation_scale=6, shrinkA=4, shrinkB=4)
        arrow.set(color=colour, linewidth=0.9, alpha=1.0 if start == 0 or path == "O(n)" else 0.3)
        arrow.set_connectionstyle("arc3", rad=-0.6 if path == "O(n)" else -0.3)
        axes.add_patch(arrow)
    axes.scatter(range(tokens), [0] * tokens, s=24, color=[colour, *[HAIRLINE] * (last - 1), colour], linewidth=0)
    axes.text(-0.2, -0.7, title, color=colour, va="top")
    axes.set(xlim=(-0.4, last + 0.4), ylim=(-1.6, 1.4), aspect="equal")
    axes.set_axis_off()
