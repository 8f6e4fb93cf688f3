"""Pictures of words show every head, word and distance; the gradients that they show are gradients."""

from itertools import combinations, pairwise

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.font_manager import fontManager
from torch.nn import functional as F

from glocal.explain.reach import gradient_reach
from glocal.layers.positions import sinusoids
from glocal.models import create_model
from glocal.reports import figures

SHAPE = {"vocab_size": 20, "embed_dim": 8, "depth": 2}
KINDS = {"transformer-tiny": SHAPE | {"num_heads": 2}, "lstm-tiny": SHAPE | {"hidden_dim": 12}}
WORDS = ["bảy", "trăm", "bốn", "mươi", "mốt", "nghìn", "</s>"]


def texts(figure):
    return [text.get_text() for text in figure.findobj(matplotlib.text.Text) if text.get_text()]


def sentences(*lengths):
    """A batch of translation: targets of these lengths, padded behind."""
    real = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    ids = torch.randint(3, 20, real.shape)
    source = torch.randint(3, 20, (len(lengths), 5))
    return {
        "input_ids": source,
        "attention_mask": torch.ones_like(source, dtype=torch.bool),
        "decoder_input_ids": ids.masked_fill(~real, 0),
        "labels": torch.randint(3, 20, real.shape).masked_fill(~real, -100),
    }


@pytest.mark.parametrize("heads", [1, 4, 5, 16])
def test_each_head_is_a_map_between_the_words(heads, tmp_path):
    weights = torch.rand(heads, 7, 9).softmax(-1)
    keys = ["seven", "hundred", "and", "forty", "one", "thousand", "$", "a_b", "</s>"]
    figure = figures.attention_words(weights, WORDS, keys, [f"head {i}" for i in range(heads)])
    maps = [axes.collections[0].get_array() for axes in figure.axes if axes.get_visible() and axes.collections]
    for shown, expected in zip(maps[:heads], weights, strict=True):
        np.testing.assert_array_equal(shown, expected)
    assert {*WORDS, *keys, f"head {heads - 1}"} <= set(texts(figure))
    figure.savefig(tmp_path / "words.png")  # a letter that the font lacks would warn


@pytest.mark.parametrize("words", [3, 60])
def test_words_of_short_and_long_sentences_do_not_overlap(words):
    figure = figures.attention_words(torch.rand(4, words, words), *[["nghiêng"] * words] * 2, list("abcd"))
    rows = [label.get_window_extent() for label in figure.axes[0].get_yticklabels()]
    assert all(above.y0 >= below.y1 - 1 for above, below in pairwise(rows))
    assert figure.get_figwidth() < 10.5


def test_very_long_words_and_sentences_fit_a_page():
    keys = ["word"] * 239 + ["x" * 99 + "\x1b"]
    figure = figures.attention_words(torch.rand(1, 9, 240), ["x" * 99] * 9, keys, ["layer 0, mean of its heads"])
    assert figure.get_figwidth() < 12
    assert max(len(text.get_text()) for text in figure.findobj(matplotlib.text.Text)) <= 26


def test_twelve_heads_over_a_long_sentence_fit_a_page_that_can_be_read():
    figure = figures.attention_words(torch.rand(12, 40, 40), ["word"] * 40, ["word"] * 40, list("abcdefghijkl"))
    assert figure.get_figwidth() < 8.5
    assert figure.get_figheight() < 24
    assert all(label.get_fontsize() > 3.7 for label in figure.axes[0].get_yticklabels())


@pytest.mark.parametrize("heads", [1, 2, 12])
def test_titles_of_patterns_do_not_overlap_and_are_whole(heads):
    names = ["previous", "next", "same", "first", "separator"]
    figure = figures.head_patterns({name: torch.rand(2, heads) for name in names}, torch.rand(2, heads))
    boxes = [axes._left_title.get_window_extent() for axes in figure.axes if axes.get_title(loc="left")]
    assert len(boxes) == 6
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))
    assert all(box.x0 >= 0 and box.x1 <= figure.bbox.x1 for box in boxes)


@pytest.mark.parametrize(("names", "heads"), [(["previous", "next", "same", "first", "separator"], 16), (["same"], 2)])
def test_head_patterns_are_a_map_each_and_name_the_heads_that_do_most(names, heads):
    shares = {name: torch.rand(6, heads) * 0.4 for name in names}
    shares["same"][2, 1] = 0.97
    figure = figures.head_patterns(shares, torch.rand(6, heads) * 3)
    maps = [axes for axes in figure.axes if axes.collections and axes.get_title(loc="left")]
    for axes, share in zip(maps, shares.values(), strict=False):
        np.testing.assert_array_equal(axes.collections[0].get_array(), share)
    assert len(maps) == len(shares) + 1
    scales = {(axes.collections[0].norm.vmin, axes.collections[0].norm.vmax) for axes in maps[:-1]}
    assert scales == {(0, 1)}
    (written,) = [text for axes in maps for text in axes.texts]
    assert (written.get_text(), *written.get_position()) == ("97", 1.5, 2.5)
    assert maps[0].yaxis_inverted()  # the first layer stands on top


def test_letters_that_the_font_lacks_are_lent_by_another(tmp_path):
    figure = figures.attention_words(torch.rand(1, 2, 2), ["⌒", "mươi"], ["⌒", "mươi"], ["head 0"])
    lent, own = figure.axes[0].get_yticklabels()
    assert "DejaVu Sans Mono" in lent.get_fontfamily()
    assert own.get_fontfamily() == ["sans-serif"]
    figure.savefig(tmp_path / "lent.png")  # would warn of a box


def test_a_letter_that_no_font_has_is_said_aloud(monkeypatch):
    shipped = [font for font in fontManager.ttflist if "mpl-data" in font.fname]
    monkeypatch.setattr(fontManager, "ttflist", shipped)
    with pytest.warns(UserWarning, match="no installed font has 語; install"):
        figures.attention_words(torch.rand(1, 1, 1), ["語"], ["a"], ["head 0"])


@pytest.mark.parametrize("layout", ["interleaved", "halves"])
def test_dot_products_of_positions_depend_on_the_distance_alone(layout):
    table, products = (axes.images[0].get_array() for axes in figures.sinusoids(sinusoids(30, 16, layout)).axes[:2])
    np.testing.assert_array_equal(table, sinusoids(30, 16, layout))
    for distance in range(30):
        expected = np.cos(distance * 10000.0 ** (-np.arange(8) / 8)).mean()
        np.testing.assert_allclose(products.diagonal(distance), expected, atol=1e-5)


@pytest.mark.parametrize("name", KINDS)
def test_the_reach_is_the_gradient(name):
    model, batch = create_model(name, **KINDS[name]).double().eval(), sentences(4)
    reach = gradient_reach(model, [batch])

    @torch.no_grad()
    def loss(position, dim, step):
        def nudge(embedding, args, output):
            if args[0] is batch["decoder_input_ids"]:
                output[:, position, dim] += step
            return output

        hook = model.embedding.register_forward_hook(nudge)
        logits = model(batch["input_ids"], batch["decoder_input_ids"])[0, -1]
        hook.remove()
        return F.cross_entropy(logits, batch["labels"][0, -1]).item()

    slopes = [[(loss(3 - n, dim, 1e-5) - loss(3 - n, dim, -1e-5)) / 2e-5 for dim in range(8)] for n in range(4)]
    np.testing.assert_allclose(reach[0], np.linalg.norm(slopes, axis=1), rtol=1e-4)


@pytest.mark.parametrize("name", KINDS)
def test_a_sentence_reaches_as_far_alone_as_among_longer_ones(name):
    model, batch = create_model(name, **KINDS[name]), sentences(4, 9, 2)
    reach = gradient_reach(model, [batch, sentences(11)])
    assert reach.shape == (4, 11)
    for row, length in enumerate((4, 9, 2)):
        assert np.isnan(reach[row, length:]).all()
        cut = {"decoder_input_ids": length, "labels": length}
        alone = {key: tensor[[row], : cut.get(key)] for key, tensor in batch.items()}
        np.testing.assert_allclose(gradient_reach(model, [alone])[0], reach[row, :length], rtol=1e-3)


def test_over_a_distance_the_transformer_keeps_what_the_lstm_forgets():
    models = {name: create_model(name, **KINDS[name]) for name in KINDS}
    for name, parameter in models["lstm-tiny"].named_parameters():
        if "bias" in name:
            torch.nn.init.zeros_(parameter)  # forget gates let half of the cells through
    far = {name: gradient_reach(model, [sentences(*[60] * 4)]) for name, model in models.items()}
    left = {name: np.median(reach[:, 50] / reach[:, 0]) for name, reach in far.items()}
    assert left["lstm-tiny"] < 0.01 * left["transformer-tiny"]


def test_curves_show_the_middle_of_the_sentences_and_the_paths():
    norms = np.full((4, 9), np.nan)
    norms[:2, :3], norms[2, :6], norms[3] = [[2, 1, 0.5]], 0.0, 5.0  # the third has no gradient left
    figure = figures.gradient_reach({"LSTM": norms, "Transformer": norms[:2]}, {"LSTM": "O(n)", "Transformer": "O(1)"})
    lstm, transformer = figure.axes[0].lines
    np.testing.assert_allclose(lstm.get_ydata(), [1, 0.5, 0.25])
    np.testing.assert_allclose(transformer.get_ydata(), [1, 0.5, 0.25])
    assert {"LSTM", "Transformer", "LSTM: O(n) steps", "Transformer: O(1) steps"} <= set(texts(figure))
    chain, star = (axes.patches for axes in figure.axes[1:])
    assert len(chain) == len(star) == 6
    names = [text.get_window_extent() for text in figure.axes[0].texts]
    assert not names[0].overlaps(names[1])  # though both lines end at one height


@pytest.mark.parametrize(("least", "ticks"), [(1e-6, {"1", "0.1", "10⁻⁴", "10⁻⁶"}), (0.1, {"1", "0.5", "0.2"})])
def test_the_scale_of_gradients_has_marks_over_any_range(least, ticks):
    norms = np.geomspace(1, least, 9)[None]
    figure = figures.gradient_reach({"LSTM": norms}, {"LSTM": "O(n)"})
    assert ticks <= set(texts(figure))
