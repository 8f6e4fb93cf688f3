"""Figures of a search: the architecture, the candidates, the generations, and the rank correlation."""

import math
from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from matplotlib.ticker import EngFormatter, MaxNLocator

from glocal.errors import GlocalError
from glocal.layers.block import BlockConfig
from glocal.reports.figures.style import GLOBAL, HAIRLINE, INK, LOCAL, MUTED, SERIES, percent, styled

REACH = {"conv1d": "see $K$ tokens", "conv2d": "see $K$×$K$ patches", "window": "attend to $K$ tokens"}
"""Labels of local heads by their kind."""

Point = tuple[float | int, float | int]
"""A candidate: what it costs, and its score, such as an accuracy from 0 to 1; NaN if it has none."""
Stages = Mapping[str, Sequence[Sequence[Point]]]
"""The candidates of each generation of each stage of a search."""


@styled
def architecture(blocks: Sequence[BlockConfig]) -> Figure:
    """Draw an architecture, a column for each block, from left to right.

    Above the line are the N heads of each block's mixer, a cell for each head, in the order of their channels from the
    bottom: global heads, with d_k below them, then local heads, with K and E above them. The filled part of a local
    head's cell is as wide as K; a global head's cell is filled. Below the line is the MLP, as
    deep as d_z. All of it is Chen et al. 2021's (GLiT), section 3.1.
    """
    # All lengths are points. The line is at height 0, and the heads are from `foot` to `foot + tall`.
    pitch, foot, deep = float(np.clip(450 / len(blocks), 20, 40)), 18.0, 10.0
    tall = float(np.clip(26 * max(block.num_heads for block in blocks), 52, 130))
    widest = max((block.kernel_size for block in blocks if block.local_heads), default=1)
    figure = Figure()
    figure.set_layout_engine("none")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    for column, block in enumerate(blocks):
        x, cell, share = pitch * (column + 0.5), 0.8 * pitch, tall / block.num_heads
        for head in range(block.num_heads):
            bounds = (foot + share * head, foot + share * (head + 1))
            if head < block.num_heads - block.local_heads:
                fill(axes, x, cell, *bounds, GLOBAL)
            else:
                fill(axes, x, cell, *bounds, LOCAL, alpha=0.22)
                fill(axes, x, cell * 0.75 * block.kernel_size / widest, *bounds, LOCAL)
        fill(axes, x, cell, -deep * block.mlp_ratio, -1.0, HAIRLINE)

    def write(row: str, height: float, colour: str, values: Sequence[float | int | None], size: int = 9) -> None:
        axes.text(-10, height, row, color=colour, ha="right", va="center", fontsize=size, parse_math=True)
        for column, value in enumerate(values):
            if value is not None:
                place = (pitch * (column + 0.5), height)
                axes.text(*place, f"{value:g}", color=colour, ha="center", va="center", fontsize=8 if pitch > 24 else 7)

    write("MLP $d_z$", -11.0, INK, [block.mlp_ratio for block in blocks])
    attends = [block.local_heads < block.num_heads or block.local == "window" for block in blocks]
    write("width $d_k$", 9.0, GLOBAL, [b.qkv_ratio if yes else None for b, yes in zip(blocks, attends, strict=True)])
    write("global heads", foot + 14, GLOBAL, [])
    write("see all tokens", foot + 4, GLOBAL, [], size=7)
    top = foot + tall
    if kinds := [block.local for block in blocks if block.local_heads]:
        write("local heads", top - 10, LOCAL, [])
        write(REACH[kinds[0]], top - 20, LOCAL, [], size=7)
        write("kernel $K$", top + 8, LOCAL, [block.kernel_size if block.local_heads else None for block in blocks])
        top += 12
        if kinds[0] != "window":
            write("expansion $E$", top + 8, LOCAL, [b.expand_ratio if b.local_heads else None for b in blocks])
            top += 12
        top += 6
    write("block", top + 8, MUTED, range(len(blocks)))

    left, right, bottom = -92, pitch * len(blocks) + 14, -deep * max(block.mlp_ratio for block in blocks) - 4
    arrow = {"arrowstyle": "-|>", "color": MUTED, "linewidth": 0.7}
    axes.annotate("", (right - 2, 0), (-4, 0), arrowprops=arrow)
    axes.set(xlim=(left, right), ylim=(bottom, top + 16))
    figure.set_size_inches((right - left) / 72, (top + 16 - bottom) / 72)
    return figure


def fill(axes: Axes, x: float, width: float, low: float, high: float, colour: str, alpha: float = 1.0) -> None:
    """Fill a cell with rounded corners around `x`, with a gap to the one above."""
    shape = FancyBboxPatch((x - width / 2, low + 0.75), width, high - low - 1.5, "round,pad=0,rounding_size=1.5")
    axes.add_patch(shape).set(facecolor=colour, alpha=alpha, linewidth=0)


@styled
def score_against_cost(
    stages: Stages,
    unit: str = "MACs",
    found: Point | None = None,
    budget: tuple[float | int | None, float | int | None] = (None, None),
    score: str = "accuracy",
) -> Figure:
    """Draw every candidate's score by its cost, with the Pareto front of each stage.

    `stages` maps the name of a stage, or of a search, to its generations. Each stage has a colour, which is stronger in
    later generations, and a front of its own, because scores of two supernets are not comparable. The `budget` has a
    lower and an upper bound in `unit`; None is no bound. `score` names the score; an accuracy is shown in percent.
    """
    figure = Figure(figsize=(5.6, 3.5))
    axes = figure.subplots()
    for (stage, generations), colour in zip(stages.items(), SERIES * len(stages), strict=False):
        for number, generation in enumerate(generations, start=1):
            strength = 0.15 + 0.75 * number / len(generations)
            label = stage if number == len(generations) else None
            costs, scores = zip(*generation, strict=True)
            axes.scatter(costs, scores, s=14, color=colour, alpha=strength, linewidth=0, label=label)
        best = front([point for generation in generations for point in generation])
        axes.plot(*zip(*best, strict=True), color=colour, linewidth=0.9, drawstyle="steps-post")
    axes.plot([], [], color=MUTED, linewidth=0.9, label="front" if len(stages) == 1 else "fronts")
    axes.margins(0.04, 0.12)
    if budget != (None, None):
        for bound in budget:
            if bound is not None:
                axes.axvline(bound, linewidth=0)  # widens the axis to where the bound is
        low, high = axes.get_xlim()
        lower, upper = (low if budget[0] is None else budget[0]), (high if budget[1] is None else budget[1])
        axes.axvspan(lower, upper, color=HAIRLINE, alpha=0.4, linewidth=0, zorder=0)
        axes.set_xlim(low, high)
        corner = ("data", "axes fraction")
        axes.annotate("budget", (lower, 0), (4, 4), xycoords=corner, textcoords="offset points", color=MUTED)
    if found is not None:
        axes.plot(*found, marker="o", markersize=9, markeredgecolor=INK, markerfacecolor="none", linestyle="none")
        to_left = found[0] > sum(axes.get_xlim()) / 2
        place, side = ((-5, 9), "right") if to_left else ((5, 9), "left")
        axes.annotate(f"found  {written(found[1], score)}", found, place, textcoords="offset points", ha=side)
    axes.set(xlabel=unit, ylabel=f"{score}, inherited weights")
    if "accuracy" in score:
        axes.yaxis.set_major_formatter(percent)
    if axes.get_xlim()[1] >= 1000:
        axes.xaxis.set_major_formatter(EngFormatter())
    compact = {"borderpad": 0, "borderaxespad": 0, "handlelength": 1.2, "handletextpad": 0.5, "columnspacing": 1.5}
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1.03), ncols=3, frameon=False, **compact)
    return figure


def written(score: float, name: str) -> str:
    """Write an accuracy in percent, and any other score as a number."""
    return f"{score:.1%}" if "accuracy" in name else f"{score:.3f}"


def front(points: Sequence[Point]) -> list[Point]:
    """Return the Pareto front: the points that no other beats in both cost and accuracy, the cheapest first."""
    best: list[Point] = []
    for point in sorted(points, key=lambda point: (point[0], -point[1])):
        if not math.isnan(point[1]) and (not best or point[1] > best[-1][1]):
            best.append(point)
    return best


@styled
def score_by_generation(searches: Mapping[str, Sequence[Sequence[float]]], score: str = "accuracy") -> Figure:
    """Draw the scores of each generation, a panel for each search or stage.

    `searches` maps a name to its generations of scores; NaN is left out. An accuracy, 0 to 1, is shown in percent.
    """
    figure = Figure(figsize=(7.2, 2.8))
    lengths = [max(len(generations), 2) for generations in searches.values()]  # all generations have the same width
    panels = figure.subplots(1, len(searches), sharey=True, squeeze=False, width_ratios=lengths)[0]
    for axes, (search, generations), colour in zip(panels, searches.items(), SERIES * len(searches), strict=False):
        numbers = range(1, len(generations) + 1)
        low, middle, high, best = np.transpose([np.nanquantile(each, (0.25, 0.5, 0.75, 1)) for each in generations])
        record = np.fmax.accumulate(best)
        axes.fill_between(numbers, low, high, color=colour, alpha=0.2, linewidth=0, label="middle half")
        axes.plot(numbers, middle, color=colour, linewidth=0.8, label="median")
        axes.plot(numbers, best, color=colour, marker="o", markersize=2.5, linestyle="none", label="best")
        axes.plot(numbers, record, color=colour, label="best so far")
        axes.set_title(f"{search}  {written(record[-1], score)}", color=colour)
        axes.set_xlabel("generation")
        axes.margins(0.04, 0.06)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        if "accuracy" in score:
            axes.yaxis.set_major_formatter(percent)
    panels[0].set_ylabel(score)
    legend = figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside lower right", ncols=4, frameon=False, labelcolor=MUTED
    )
    for patch in legend.get_patches():
        patch.set(color=MUTED, alpha=0.25)
    for line in legend.get_lines():
        line.set_color(MUTED)
    return figure


@styled
def rank_correlation(inherited: Sequence[float], retrained: Sequence[float], score: str = "accuracy") -> Figure:
    """Draw scores after retraining by those with inherited weights, with Kendall's τ of the two.

    A thin line joins two candidates whose order differs. Kendall's τ is 1 without such pairs, and -1 if all pairs are
    such.

    Raises GlocalError for fewer than two candidates.
    """
    # The import takes half a second, and no other figure needs it.
    from scipy.stats import kendalltau

    if len(inherited) < 2:
        raise GlocalError(f"{len(inherited)} candidate has no rank; a rank correlation needs two or more")
    points = list(zip(inherited, retrained, strict=True))
    swapped = [(a, b) for a, b in combinations(points, 2) if (a[0] - b[0]) * (a[1] - b[1]) < 0]
    figure = Figure(figsize=(3.8, 3.6))
    axes = figure.subplots()
    axes.add_collection(LineCollection(swapped, color=SERIES[1], linewidth=0.7, alpha=min(1, 8 / len(points))))
    axes.scatter(inherited, retrained, s=26, color=SERIES[0], linewidth=0, zorder=2)
    axes.margins(0.08)
    axes.set_title(f"Kendall's τ = {kendalltau(inherited, retrained).statistic:.2f}")
    pairs = math.comb(len(points), 2)
    axes.set_title(f"{len(swapped):,} of {pairs:,} pairs swapped", loc="right", color=SERIES[1], fontsize=8)
    axes.set(xlabel=f"{score}, inherited weights", ylabel="validation score, retrained")
    axes.grid(axis="x")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(5, steps=(1, 2, 5, 10)))
        if "accuracy" in score:
            axis.set_major_formatter(percent)
    return figure
