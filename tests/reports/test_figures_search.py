"""Pictures of a search show its data: every head, every candidate, the true front, scipy's τ."""

import random
from itertools import combinations, pairwise

import numpy as np
import pytest
from matplotlib.colors import to_rgba
from scipy.stats import kendalltau

from glocal.errors import GlocalError
from glocal.layers.block import BlockConfig
from glocal.models.glit import NAMED_CONFIGS
from glocal.reports import figures
from glocal.reports.figures.search import GLOBAL, LOCAL, front
from glocal.reports.figures.style import HAIRLINE, SERIES

TINY = NAMED_CONFIGS["glit-tiny"].blocks


def blocks(depth, heads, seed=0):
    rng = random.Random(seed)
    return [
        BlockConfig(
            embed_dim=16 * heads,
            num_heads=heads,
            local_heads=rng.randint(0, heads),
            kernel_size=rng.choice([17, 31, 45]),
            expand_ratio=rng.choice([1, 2, 4]),
            qkv_ratio=rng.choice([0.5, 1.0, 2.0]),
            mlp_ratio=rng.choice([2.0, 4.0, 6.0]),
        )
        for _ in range(depth)
    ]


def cells(figure, colour):
    """The filled cells of a colour, from the left and from below; a faint one is none."""
    shapes = [patch for patch in figure.axes[0].patches if patch.get_facecolor() == to_rgba(colour)]
    return sorted(shapes, key=lambda shape: (shape.get_x() + shape.get_width() / 2, shape.get_y()))


def row(figure, name):
    """What is written in the row of this name, by the block's number."""
    written = [(*text.get_position(), text.get_text()) for text in figure.axes[0].texts]

    def values(name):
        height = next(y for _, y, text in written if text == name)
        return {x: text for x, y, text in written if y == height and x > 0}

    numbers = values("block")
    return {int(numbers[x]): text for x, text in values(name).items()}


@pytest.mark.parametrize("found", [TINY, blocks(4, 4), blocks(24, 12), blocks(1, 2)], ids=len)
def test_every_head_is_a_cell_and_every_choice_is_written(found):
    figure = figures.architecture(found)
    assert len(cells(figure, GLOBAL)) == sum(block.num_heads - block.local_heads for block in found)
    assert len(cells(figure, LOCAL)) == sum(block.local_heads for block in found)
    depths = [cell.get_height() for cell in cells(figure, HAIRLINE)]
    assert (
        np.argsort(depths, kind="stable").tolist() == np.argsort([b.mlp_ratio for b in found], kind="stable").tolist()
    )
    numbered = list(enumerate(found))
    assert row(figure, "kernel $K$") == {i: str(b.kernel_size) for i, b in numbered if b.local_heads}
    assert row(figure, "expansion $E$") == {i: str(b.expand_ratio) for i, b in numbered if b.local_heads}
    assert row(figure, "width $d_k$") == {i: f"{b.qkv_ratio:g}" for i, b in numbered if b.local_heads < b.num_heads}
    assert row(figure, "MLP $d_z$") == {i: f"{b.mlp_ratio:g}" for i, b in numbered}
    boxes = [text.get_window_extent() for text in figure.axes[0].texts if text.get_text()]
    assert not any(a.overlaps(b) for a, b in combinations(boxes, 2))
    assert all(figure.bbox.x0 < box.x0 and box.x1 < figure.bbox.x1 and box.y1 < figure.bbox.y1 for box in boxes)


def test_global_heads_stand_below_local_ones_and_kernels_have_their_width():
    figure = figures.architecture(TINY)
    third = [cell for cell in figure.axes[0].patches if cell.get_facecolor() in (to_rgba(GLOBAL), to_rgba(LOCAL))][6:9]
    assert [cell.get_facecolor() for cell in sorted(third, key=lambda cell: cell.get_y())] == [
        to_rgba(GLOBAL),
        to_rgba(LOCAL),
        to_rgba(LOCAL),
    ]
    widths = {cell.get_width() for cell in cells(figure, LOCAL)}
    assert max(widths) / min(widths) == pytest.approx(45 / 31)
    assert max(widths) < min(cell.get_width() for cell in cells(figure, GLOBAL))


def test_rows_that_nobody_needs_are_left_out():
    vit = figures.architecture([BlockConfig(embed_dim=48, num_heads=3)] * 2)
    window = figures.architecture([BlockConfig(embed_dim=48, num_heads=3, local_heads=3, local="window")] * 2)
    written = [{text.get_text() for text in figure.axes[0].texts} for figure in (vit, window)]
    assert not {"kernel $K$", "expansion $E$", "local heads"} & written[0]
    assert {"kernel $K$", "attend to $K$ tokens"} <= written[1]
    assert "expansion $E$" not in written[1]
    assert row(window, "width $d_k$") == {0: "1", 1: "1"}


def candidates(generations=3, population=20, seed=0):
    rng = np.random.default_rng(seed)
    return [
        list(zip(rng.integers(60, 80, population).tolist(), rng.random(population).tolist(), strict=True))
        for _ in range(generations)
    ]


def test_the_front_is_what_nobody_beats():
    points = [point for generation in candidates(10) for point in generation] + [(1, float("nan"))]
    best = front(points)
    assert set(best) == {
        point
        for point in points[:-1]
        if not any(o[0] <= point[0] and o[1] >= point[1] and o != point for o in points[:-1])
    }
    assert all(cheap[0] < dear[0] and cheap[1] < dear[1] for cheap, dear in pairwise(best))


def test_every_candidate_stands_at_its_cost_and_accuracy():
    stages = {"stage 1": candidates(seed=1), "stage 2": candidates(seed=2)}
    found = stages["stage 2"][1][4]
    figure = figures.score_against_cost(stages, "ms", found, (55, None))
    (axes,) = figure.axes
    everyone = [generation for generations in stages.values() for generation in generations]
    assert [collection.get_offsets().tolist() for collection in axes.collections] == [
        [list(point) for point in generation] for generation in everyone
    ]
    strengths = [collection.get_alpha() for collection in axes.collections]
    assert strengths[:3] == strengths[3:] == sorted(strengths[:3])
    *fronts, mark = axes.lines[0], axes.lines[1], axes.lines[-1]
    for line, generations in zip(fronts, stages.values(), strict=True):
        assert list(zip(*line.get_data(), strict=True)) == front([point for each in generations for point in each])
    assert (mark.get_xdata()[0], mark.get_ydata()[0]) == found
    assert f"found  {found[1]:.1%}" in {text.get_text() for text in axes.texts}
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["stage 1", "stage 2", "fronts"]
    (band,) = axes.patches
    assert (band.get_x(), band.get_x() + band.get_width()) == pytest.approx((55, axes.get_xlim()[1]))
    assert axes.get_xlim()[0] < 55
    assert axes.get_xlabel() == "ms"


def test_large_costs_are_written_short():
    (axes,) = figures.score_against_cost({"flat": [[(1_200_000_000, 0.5), (1_500_000_000, 0.6)]]}).axes
    ticks = [text.get_text() for text in axes.get_xticklabels()]
    assert "1.4 G" in ticks
    assert not axes.patches


def test_generations_show_their_best_and_their_middle_half():
    first = [[0.1, 0.2, 0.3, 0.4, 0.5], [0.5, 0.6, 0.7, 0.8, 0.9], [0.2, 0.3, 0.4, 0.5, float("nan")]]
    searches = {"hierarchical": first, "random": [[0.1, 0.3]]}
    panels = figures.score_by_generation(searches).axes
    assert [axes.get_title("left") for axes in panels] == ["hierarchical  90.0%", "random  30.0%"]
    median, best, record = (line.get_ydata().tolist() for line in panels[0].lines)
    assert median == pytest.approx([0.3, 0.7, 0.35])
    assert best == [0.5, 0.9, 0.5]
    assert record == [0.5, 0.9, 0.9]
    corners = panels[0].collections[0].get_paths()[0].vertices
    assert {(1.0, 0.2), (1.0, 0.4), (2.0, 0.6), (2.0, 0.8)} <= set(map(tuple, corners.round(6).tolist()))
    assert panels[0].get_ylim() == panels[1].get_ylim()


def test_tau_is_scipys_and_swapped_pairs_are_joined():
    rng = np.random.default_rng(0)
    inherited = rng.random(12).tolist()
    retrained = [x + 0.5 * y for x, y in zip(inherited, rng.random(12).tolist(), strict=True)]
    (axes,) = figures.rank_correlation(inherited, retrained).axes
    tau = kendalltau(inherited, retrained).statistic
    assert axes.get_title("left") == f"Kendall's τ = {tau:.2f}"
    lines, points = axes.collections
    assert points.get_offsets().tolist() == [list(pair) for pair in zip(inherited, retrained, strict=True)]
    swapped = len(lines.get_segments())
    assert tau == pytest.approx(1 - 2 * swapped / 66)
    assert axes.get_title("right") == f"{swapped} of 66 pairs swapped"
    assert lines.get_color()[0][:3].tolist() == list(to_rgba(SERIES[1])[:3])


def test_one_candidate_has_no_rank():
    with pytest.raises(GlocalError, match="two or more"):
        figures.rank_correlation([0.5], [0.6])
