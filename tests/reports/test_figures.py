from itertools import pairwise

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image

from glocal.models import create_model
from glocal.models.cost import count
from glocal.reports import figures

ROWS = [{"step": 1, "epoch": 1, "train_loss": 2.0}] + [
    {"step": 9 * e, "epoch": e, "train_loss": 2 / e, "val_loss": 2.1 / e, "val_top1": 1 - 0.9 / e} for e in range(1, 9)
]


def texts(figure):
    return [text.get_text() for text in figure.findobj(matplotlib.text.Text) if text.get_text()]


def test_training_curves_show_epochs_and_name_every_run(tmp_path):
    figure = figures.training_curves({"ours": ROWS, "timm:resnet18": ROWS[:5]})
    loss, accuracy = figure.axes
    assert [len(line.get_xdata()) for line in loss.lines] == [8, 8, 4, 4]
    assert accuracy.lines[0].get_ydata()[-1] == 1 - 0.9 / 8
    assert {"ours  88.8%", "timm:resnet18  77.5%"} <= set(texts(figure))
    figure.savefig(tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as image:
        assert image.size == (1440, 540)


def test_shares_at_an_axis_have_no_empty_digits():
    rows = [row | {"val_top1": 0.2} for row in ROWS]
    figure = figures.training_curves({"run": rows})
    figure.canvas.draw()
    labels = [label.get_text() for label in figure.axes[1].get_yticklabels()]
    assert "20%" in labels
    assert not any(label.endswith("0%") and "." in label for label in labels)


@pytest.mark.parametrize(("rows", "kept"), [(ROWS, 3), (ROWS[:2], 1)])
def test_the_kept_epoch_is_marked_and_the_loss_has_a_scale(rows, kept):
    loss, accuracy = figures.training_curves({"run": rows}, {"run": float(kept)}).axes
    for line in (*loss.lines, *accuracy.lines):
        assert (line.get_marker(), line.get_markevery()) == ("o", [kept - 1])  # seen where there is one validation
    assert f"run  {1 - 0.9 / kept:.1%}" in texts(accuracy.figure)
    low, high = sorted(loss.get_ylim())
    assert sum(low <= tick <= high for tick in loss.get_yticks()) >= 3


def test_names_of_lines_that_end_together_do_not_overlap():
    figure = figures.training_curves(dict.fromkeys("abcd", ROWS))
    boxes = [text.get_window_extent() for text in figure.axes[1].texts]
    assert all(upper.y0 >= lower.y1 for upper, lower in pairwise(boxes))


@pytest.mark.parametrize("classes", [2, 10, 100])
def test_confusion_matrix_holds_every_class(classes, tmp_path):
    matrix = np.eye(classes, dtype=np.int64) * 7
    matrix[1, 0] = 7
    assert "xxxxxxxxxxxx…xxxxxxxxxxx" in texts(figures.confusion_matrix(np.eye(2, dtype=np.int64), ["a", "x" * 99]))
    labels = [f"${i}$ a_b" for i in range(classes)]
    figure = figures.confusion_matrix(matrix.tolist(), labels)
    (axes,) = figure.axes
    for ticks in (axes.get_xticklabels(), axes.get_yticklabels()):
        assert [text.get_text() for text in ticks] == labels
        boxes = [text.get_window_extent() for text in ticks]
        assert not any(a.overlaps(b) for a, b in pairwise(boxes))
    assert "50%" in texts(figure)
    figure.savefig(tmp_path / "confusion.png")
    cells = axes.images[0].get_array()
    assert cells[1, 0, 3] == cells[1, 1, 3] == pytest.approx(0.5**0.5)
    assert cells[0, 1, 3] == 0


def test_maps_cover_images_that_are_not_square():
    image, weights = np.random.default_rng(0).random((16, 48, 3)), torch.rand(2, 3, 2, 6)
    single, grid = figures.attention_map(image, weights[0, 0]), figures.attention_heads(image, weights, [3, 7])
    examples = figures.attention_examples([image, image[..., 0]], [weights[0, 0], weights[0, 1]], ["a", "b"])
    maps = [axes.images for figure in (single, grid, examples) for axes in figure.axes if len(axes.images) == 2]
    assert len(maps) == 1 + 6 + 2
    for image in (image for pair in maps for image in pair):
        assert list(image.get_extent()) == [-0.5, 47.5, 15.5, -0.5]
    assert {"layer 3", "layer 7", "head 2"} <= set(texts(grid))


def test_positions_are_most_similar_to_themselves():
    figure = figures.position_similarity(torch.randn(4 * 9, 16), (4, 9))
    tiles = [axes.images[0].get_array() for axes in figure.axes if axes.images and axes.images[0].get_array().ndim == 2]
    assert len(tiles) == 4 * 7  # of nine columns, seven are shown
    assert all(tile.shape == (4, 9) and tile.max() == pytest.approx(1, abs=1e-5) for tile in tiles)
    assert np.unravel_index(tiles[-1].argmax(), (4, 9)) == (3, 8)


def test_bars_add_up_to_the_macs():
    cost = count(create_model("vit-tiny", image_size=32, depth=2), (32, 32))
    figure = figures.macs_bars(cost)
    assert sum(bar.get_width() for bar in figure.axes[0].patches) == pytest.approx(cost.macs / 1e6)
    assert any("32×32" in text for text in texts(figure))


def test_the_users_own_style_stays():
    before = dict(matplotlib.rcParams)
    figures.training_curves({"ours": ROWS})
    assert dict(matplotlib.rcParams) == before
