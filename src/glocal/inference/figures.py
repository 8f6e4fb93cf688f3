"""Pictures of runs and models in one style: little ink, and colours that every eye tells apart.

Every function returns a matplotlib `Figure` of its own, to be written with `figure.savefig(path)` or put in a page; no
window opens, and matplotlib's global settings stay as they were.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Any, ParamSpec

import numpy as np
from jaxtyping import Float, Int
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator, MaxNLocator, NullLocator, PercentFormatter
from numpy import ndarray
from torch import Tensor

from glocal.inference.cost import Cost

INK, MUTED, HAIRLINE = "#22211f", "#77736b", "#d9d5cc"
# Okabe and Ito 2008, in an order that keeps neighbours apart in grey print as well.
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
RIGHT, WRONG = SERIES[0], SERIES[1]
STYLE: Any = {
    "figure.dpi": 200,
    "figure.facecolor": "white",
    "figure.constrained_layout.use": True,
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": INK,
    "text.parse_math": False,  # a class may be called "$"
    "axes.facecolor": "none",
    "axes.edgecolor": HAIRLINE,
    "axes.labelcolor": MUTED,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 9.5,
    "axes.titlepad": 8,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.xmargin": 0,
    "grid.color": HAIRLINE,
    "grid.linewidth": 0.5,
    "xtick.color": HAIRLINE,
    "xtick.labelcolor": MUTED,
    "xtick.major.size": 3,
    "ytick.color": HAIRLINE,
    "ytick.labelcolor": MUTED,
    "ytick.major.size": 0,
    "lines.linewidth": 1.6,
    "lines.solid_capstyle": "round",
}
# A single hue that grows out of nothing: the image stays visible where nobody looks.
GLOW = LinearSegmentedColormap.from_list(
    "glow",
    [(*to_rgb("#3b0f70"), 0.0), (*to_rgb("#b5367a"), 0.45), (*to_rgb("#fb8861"), 0.75), (*to_rgb("#fcfdbf"), 0.9)],
)

Args = ParamSpec("Args")


def styled(draw: Callable[Args, Figure]) -> Callable[Args, Figure]:
    """Draw in this module's style, ticks included, which matplotlib would else make later in whatever style holds."""

    @wraps(draw)
    def drawn(*args: Args.args, **kwargs: Args.kwargs) -> Figure:
        with rc_context(STYLE):
            figure = draw(*args, **kwargs)
            figure.draw_without_rendering()
        return figure

    return drawn


@styled
def training_curves(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure:
    """Loss and accuracy against the epoch, one colour a run.

    `runs` maps a run's name to the rows of its `metrics.jsonl`; rows without an epoch's validation are passed over.
    """
    figure = Figure(figsize=(7.2, 2.7))
    loss, accuracy = figure.subplots(1, 2)
    ends: dict[str, float] = {}
    for (name, rows), colour in zip(runs.items(), SERIES * len(runs), strict=False):
        rows = [row for row in rows if "val_top1" in row]
        epochs = [row["epoch"] for row in rows]
        loss.plot(epochs, [row["train_loss"] for row in rows], color=colour, linewidth=0.8, alpha=0.5)
        loss.plot(epochs, [row["val_loss"] for row in rows], color=colour)
        (line,) = accuracy.plot(epochs, [row["val_top1"] for row in rows], color=colour)
        line.set(marker="o", markersize=3, markevery=[-1], clip_on=False)  # a dot at the end, whole at the edge too
        ends[name] = rows[-1]["val_top1"]
    loss.set(title="Loss, validation (thin: training)", yscale="log", xlabel="epoch")
    loss.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    loss.yaxis.set_major_formatter(FormatStrFormatter("%g"))
    loss.yaxis.set_minor_locator(NullLocator())
    accuracy.set(title="Accuracy, validation", xlabel="epoch")
    accuracy.yaxis.set_major_formatter(PercentFormatter(1.0))
    for axes in (loss, accuracy):
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    name_ends(accuracy, ends)
    return figure


def name_ends(axes: Axes, ends: Mapping[str, float]) -> None:
    """Write each line's name beside its end, in its colour, one below the other where they would overlap."""
    low, high = axes.get_ylim()
    colours = dict(zip(ends, SERIES * len(ends), strict=False))
    ceiling = np.inf
    for name, end in sorted(ends.items(), key=lambda item: -item[1]):
        height = min(end, ceiling)
        ceiling = height - (high - low) * 0.085  # a line of text
        axes.annotate(
            f"{name}  {end:.1%}",
            xy=(1, height),
            xycoords=("axes fraction", "data"),
            xytext=(6, 0),
            textcoords="offset points",
            color=colours[name],
            va="center",
        )


@styled
def confusion_matrix(matrix: Int[ndarray, "true predicted"] | Sequence[Sequence[int]], labels: Sequence[str]) -> Figure:
    """How often each true class (rows) was given each label (columns), for 2 to some 100 classes.

    A cell's strength is the square root of its share of the row, so that the rare errors, which one looks for, show
    beside the diagonal. The recall of each class stands at the end of its row.
    """
    matrix, count = np.asarray(matrix), len(labels)
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    strength = np.sqrt(share)
    cells = np.empty((count, count, 4))
    cells[..., :3] = np.where(np.eye(count, dtype=bool)[..., None], to_rgb(RIGHT), to_rgb(WRONG))
    cells[..., 3] = strength

    side = float(np.clip(0.32 * count, 2.2, 8.5))
    size = float(np.clip(0.75 * 72 * side / count, 3.5, 8))
    figure = Figure(figsize=(side + 1.5, side + 1.0))
    axes = figure.subplots()
    axes.imshow(cells, interpolation="none")
    if count <= 30:
        for (row, column), number in np.ndenumerate(matrix):
            colour = "white" if strength[row, column] > 0.6 else INK
            if number:
                axes.text(column, row, f"{number}", ha="center", va="center", fontsize=size, color=colour)
    beside: dict[str, Any] = {"xytext": (6, 0), "textcoords": "offset points", "fontsize": size, "color": MUTED}
    for row, recall in enumerate(share.diagonal()):
        axes.annotate(f"{recall:.0%}", (count - 0.5, row), va="center", **beside)
    axes.annotate("recall", (count - 0.5, -0.5), va="bottom", **beside)
    upright = 90 if max(map(len, labels)) > 3 else 0
    axes.set_xticks(range(count), labels, rotation=upright, fontsize=size)
    axes.set_yticks(range(count), labels, fontsize=size)
    axes.set(xlabel="predicted", ylabel="true")
    axes.tick_params(length=0)
    axes.grid(False)
    axes.spines["bottom"].set_visible(False)
    return figure


@styled
def attention_map(image: ndarray, weights: Float[Tensor, "rows columns"], title: str = "") -> Figure:
    """One head's map, or the rollout, over the image, which stands beside it.

    `image` is (H, W) or (H, W, 3), float, 0 to 1. The map covers it whatever its shape.
    """
    height, width = image.shape[:2]
    figure = Figure(figsize=(5.4, 2.7 * min(height / width, 2) + 0.2))
    plain, over = figure.subplots(1, 2)
    show(plain, image)
    show(over, image, weights)
    plain.set_title(title)
    return figure


@styled
def attention_heads(
    image: ndarray, weights: Float[Tensor, "layers heads rows columns"], layers: Sequence[int] | None = None
) -> Figure:
    """A grid of maps over the image, a layer a row and a head a column; `layers` names the rows, 0, 1, ... by default.

    Every map has its own scale: from its least to its greatest weight.
    """
    depth, heads = weights.shape[:2]
    height, width = image.shape[:2]
    cell = min(1.15, 7.2 / heads)
    figure = Figure(figsize=(cell * heads + 0.5, cell * height / width * depth + 0.4))
    grid = figure.subplots(depth, heads, squeeze=False)
    for row, layer in enumerate(range(depth) if layers is None else layers):
        for head in range(heads):
            show(grid[row, head], image, weights[row, head])
        grid[row, 0].set_ylabel(f"layer {layer}")
    for head in range(heads):
        grid[0, head].set_title(f"head {head}", loc="center", color=MUTED, fontsize=9)
    return figure


@styled
def attention_examples(
    images: Sequence[ndarray], weights: Sequence[Float[Tensor, "rows columns"]], captions: Sequence[str]
) -> Figure:
    """Several images in a row, each above its map."""
    height = max(image.shape[0] / image.shape[1] for image in images)
    cell = min(1.4, 7.2 / len(images))
    figure = Figure(figsize=(cell * len(images), 2 * cell * height + 0.35))
    above, below = figure.subplots(2, len(images), squeeze=False)
    for column, (image, map_, caption) in enumerate(zip(images, weights, captions, strict=True)):
        show(above[column], image)
        show(below[column], image, map_)
        above[column].set_title(caption, loc="center", fontsize=8.5)
    return figure


def show(axes: Axes, image: ndarray, weights: Float[Tensor, "rows columns"] | None = None) -> None:
    """Show an image; with weights, it turns grey and they glow over it, from the least to the greatest of them."""
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
    """Cosine similarity of each position embedding with all others, laid out as the patches lie in the image.

    This is figure 7, centre, of Dosovitskiy et al. 2020. `positions` are those of the patches, without class token;
    of a finer grid, `tiles` rows and columns are shown, evenly spread.
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


@styled
def macs_bars(cost: Cost) -> Figure:
    """MACs of each part as bars, a block's mixer and MLP end to end, and the resolution that they hold for."""
    rows = [row for row in cost.rows if row.macs]
    reached = dict.fromkeys((row.name for row in rows), 0.0)
    figure = Figure(figsize=(6.4, 0.6 + 0.2 * len(reached)))
    axes = figure.subplots()
    fills = {"": MUTED, "mixer": "#1b6ca8", "mlp": "#8fc3e8"}
    named = {""}
    for row in rows:
        bar = axes.barh(row.name, row.macs / 1e6, left=reached[row.name], height=0.7, color=fills[row.part])
        reached[row.name] += row.macs / 1e6
        if row.part not in named:
            axes.bar_label(bar, [row.part], label_type="center", color="white" if row.part == "mixer" else "black")
            named.add(row.part)
    axes.invert_yaxis()
    axes.grid(axis="x")
    axes.grid(visible=False, axis="y")
    axes.spines["bottom"].set_visible(False)
    height, width = cost.image_size
    axes.set_title(f"Million MACs for an image of {height}×{width}: {cost.macs / 1e6:,.0f} in all")
    return figure
