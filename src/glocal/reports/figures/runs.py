"""Figures of runs: training curves, confusion matrix, cost."""

from collections.abc import Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any

import numpy as np
from jaxtyping import Int
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator, MaxNLocator, NullLocator
from numpy import ndarray

from glocal.errors import shortened
from glocal.models.cost import Cost
from glocal.reports.figures.style import INK, MUTED, SERIES, percent, styled

RIGHT, WRONG = SERIES[0], SERIES[1]

QUALITY = {
    "top1": "Accuracy",
    "accuracy": "Accuracy",
    "map": "Mean average precision",
    "pearson": "Pearson correlation",
}
"""Metrics that training curves show beside the loss, and their titles; the first that a run has is shown."""


@styled
def training_curves(
    runs: Mapping[str, Sequence[Mapping[str, int | float]]], kept: Mapping[str, float] = MappingProxyType({})
) -> Figure:
    """Draw the loss and a metric (see `QUALITY`) by epoch, a colour for each run; a dot marks the kept weights.

    `runs` maps a run's name to the rows of its `metrics.jsonl`, of which those of a validation are drawn. `kept` maps
    it to the epoch of the kept weights, by default that of the best metric.
    """
    figure = Figure(figsize=(7.2, 2.7))
    loss, accuracy = figure.subplots(1, 2)
    ends: dict[str, float] = {}
    losses: list[float] = []
    metric = "accuracy"
    for (name, rows), colour in zip(runs.items(), SERIES * len(runs), strict=False):
        rows = [row for row in rows if "val_loss" in row]
        if not rows:
            continue
        metric = next(name for name in QUALITY if f"val_{name}" in rows[0])
        right = [row[f"val_{metric}"] for row in rows]
        epochs = [row["epoch"] for row in rows]
        best = epochs.index(kept[name]) if kept.get(name) in epochs else int(np.argmax(right))
        dot: dict[str, Any] = {"marker": "o", "markersize": 3, "markevery": [best], "clip_on": False}
        for part, alone in (("train_loss", {"linewidth": 0.8, "alpha": 0.5}), ("val_loss", {})):
            losses += [row[part] for row in rows]
            loss.plot(epochs, [row[part] for row in rows], color=colour, **alone, **dot)
        accuracy.plot(epochs, right, color=colour, **dot)
        ends[name] = right[best]
    loss.set(title="Loss, validation (thin: training)", xlabel="epoch")
    if losses and 0 < 8 * min(losses) < max(losses):
        loss.set_yscale("log")
        loss.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        loss.yaxis.set_minor_locator(NullLocator())
    else:
        loss.yaxis.set_major_locator(MaxNLocator(5))
    loss.yaxis.set_major_formatter(FormatStrFormatter("%g"))
    accuracy.set(title=f"{QUALITY[metric]}, validation", xlabel="epoch")
    accuracy.yaxis.set_major_locator(MaxNLocator(5))
    accuracy.yaxis.set_major_formatter(FormatStrFormatter("%.2g") if metric == "pearson" else percent)
    for axes in (loss, accuracy):
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        if axes.lines and len({*np.concatenate([line.get_xdata() for line in axes.lines])}) == 1:
            axes.set_xticks(axes.lines[0].get_xdata()[:1])  # one validation so far
    name_ends(accuracy, ends)
    return figure


def name_ends(axes: Axes, ends: Mapping[str, float]) -> None:
    """Write each line's name and value beside its end, in its colour; names that would overlap move down."""
    low, high = axes.get_ylim()
    colours = dict(zip(ends, SERIES * len(ends), strict=False))
    ceiling = np.inf
    for name, end in sorted(ends.items(), key=lambda item: -item[1]):
        height = min(end, ceiling)
        ceiling = height - (high - low) * 0.085  # a line of text
        axes.annotate(
            f"{shortened(name, 24)}  {end:.1%}",
            xy=(1, height),
            xycoords=("axes fraction", "data"),
            xytext=(6, 0),
            textcoords="offset points",
            color=colours[name],
            va="center",
        )


@styled
def confusion_matrix(matrix: Int[ndarray, "true predicted"] | Sequence[Sequence[int]], labels: Sequence[str]) -> Figure:
    """Draw how often each true class (rows) is predicted as each class (columns), for 2 to some 100 classes.

    The opacity of a cell is the square root of its share of the row, so that rare errors are visible. The recall of
    each class is at the end of its row.
    """
    matrix, count = np.asarray(matrix), len(labels)
    labels = [shortened(label, 24) for label in labels]
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
    beside = partial(axes.annotate, xytext=(6, 0), textcoords="offset points", fontsize=size, color=MUTED)
    for row, recall in enumerate(share.diagonal()):
        beside(f"{recall:.0%}", (count - 0.5, row), va="center")
    beside("recall", (count - 0.5, -0.5), va="bottom")
    upright = 90 if max(map(len, labels)) > 3 else 0
    axes.set_xticks(range(count), labels, rotation=upright, fontsize=size)
    axes.set_yticks(range(count), labels, fontsize=size)
    axes.set(xlabel="predicted", ylabel="true")
    axes.tick_params(length=0)
    axes.grid(False)
    axes.spines["bottom"].set_visible(False)
    return figure


@styled
def macs_bars(cost: Cost) -> Figure:
    """Draw the MACs of each part as bars, with the sublayers of a block in one bar."""
    rows = [row for row in cost.rows if row.macs]
    reached = dict.fromkeys((row.name for row in rows), 0.0)
    figure = Figure(figsize=(6.4, 0.6 + 0.2 * len(reached)))
    axes = figure.subplots()
    fills = {"": MUTED, "mixer": "#1b6ca8", "cross": "#4f97cc", "mlp": "#8fc3e8"}
    named = {""}
    for row in rows:
        bar = axes.barh(row.name, row.macs / 1e6, left=reached[row.name], height=0.7, color=fills[row.part])
        reached[row.name] += row.macs / 1e6
        if row.part not in named:
            axes.bar_label(bar, [row.part], label_type="center", color="black" if row.part == "mlp" else "white")
            named.add(row.part)
    axes.invert_yaxis()
    axes.grid(axis="x")
    axes.grid(visible=False, axis="y")
    axes.spines["bottom"].set_visible(False)
    axes.set_title(f"Million MACs for {cost.example}: {cost.macs / 1e6:,.0f} in all")
    return figure
