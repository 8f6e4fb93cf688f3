"""Operations over a vocabulary, in pieces and at once, against torch's: values, gradients, error in bf16."""

import importlib
import inspect

import pytest
import torch
from torch.nn import functional as F

from glocal.ops import cross_entropy, logsumexp, topk
from glocal.ops.vocabulary import COLUMNS, cross_entropy_in_pieces, logsumexp_in_pieces, topk_of_maxima

vocabulary = importlib.import_module("glocal.ops.vocabulary")

pieces = pytest.mark.parametrize("piece", [30, 2**18], ids=["some pieces", "one piece"])
paths = pytest.mark.parametrize("path", ["plain", "pieces", "maxima"])


def drawn(kind=torch.float64):
    logits, labels = (9 * torch.randn(23, 11)).to(kind).requires_grad_(), torch.randint(0, 11, (23,))
    labels[::5] = -100
    return logits, labels


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pieces
def test_loss_and_gradient_are_torchs(smoothing, piece, monkeypatch):
    monkeypatch.setattr(vocabulary, "PIECE", piece)
    for kind, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        logits, labels = drawn(kind)
        ours = cross_entropy_in_pieces(logits, labels, smoothing)
        torchs = F.cross_entropy(logits, labels, label_smoothing=smoothing)
        torch.testing.assert_close(ours, torchs, atol=tolerance, rtol=tolerance)
        for factor in (1, 3):
            a, b = (torch.autograd.grad(factor * y, logits, retain_graph=True)[0] for y in (ours, torchs))
            torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance)


def test_in_bf16_it_is_as_exact_as_torchs():
    logits = torch.randn(64, 500).bfloat16().requires_grad_()
    labels = torch.randint(0, 500, (64,))
    exact = F.cross_entropy(logits.double(), labels, label_smoothing=0.1)
    ours = cross_entropy_in_pieces(logits, labels, 0.1)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours.double(), exact, atol=1e-5, rtol=0)
    gradients = [torch.autograd.grad(loss, logits)[0].double() for loss in (ours, exact)]
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-2)


@paths
@pytest.mark.parametrize("grad", [True, False])
def test_each_path_is_cross_entropy(path, grad, take):
    take(path)
    logits, labels = drawn(torch.float32)
    with torch.set_grad_enabled(grad):
        y, expected = (
            cross_entropy(logits, labels, label_smoothing=0.1),
            F.cross_entropy(logits, labels, label_smoothing=0.1),
        )
    torch.testing.assert_close(y, expected)
    assert ("_CrossEntropy" in type(y.grad_fn).__name__) == (grad and path != "plain")


def test_labels_that_are_no_class_are_errors():
    logits, labels = drawn(torch.float32)
    for wrong in (-1, 11):
        labels[3] = wrong
        with pytest.raises((RuntimeError, IndexError), match="out of"):
            cross_entropy_in_pieces(logits, labels, 0.0)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("rows", [23, 0])
@pytest.mark.parametrize("path", [cross_entropy_in_pieces, vocabulary.cross_entropy_at_once])
def test_no_label_costs_nothing(path, rows, smoothing):
    logits, labels = drawn(torch.float32)
    loss = path(logits[:rows], torch.full_like(labels, -100)[:rows], smoothing)
    loss.backward()
    assert loss == 0
    assert logits.grad.eq(0).all()


@pieces
def test_each_loss_is_torchs(piece, monkeypatch):
    monkeypatch.setattr(vocabulary, "PIECE", piece)
    logits, labels = drawn(torch.bfloat16)
    expected = F.cross_entropy(logits.float(), labels, reduction="none")
    torch.testing.assert_close(cross_entropy(logits, labels, reduction="none"), expected)
    assert cross_entropy(logits[:0], labels[:0], reduction="none").shape == (0,)


@paths
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16], ids=["float32", "bf16"])
def test_log_p_is_that_of_softmax(kind, path, monkeypatch, take):
    take(path)
    monkeypatch.setattr(vocabulary, "PIECE", 2 * 300)  # rows in pieces, the last one shorter
    logits = (torch.randn(5, 300) * 9).to(kind)
    expected = logits.double().log_softmax(-1)
    torch.testing.assert_close((logits - logsumexp(logits)).double(), expected, atol=1e-4, rtol=1e-6)
    assert torch.equal(logsumexp_in_pieces(logits), logits.float().logsumexp(dim=1, keepdim=True))


@paths
@pytest.mark.parametrize("columns", [7, 8 * COLUMNS, 8 * COLUMNS + 77, 5000])
def test_the_best_columns_of_a_large_vocabulary(columns, path, take):
    take(path)
    scores = torch.randn(3, columns)
    for k in (1, 4):
        best, places = topk(scores, k)
        expected = scores.topk(k)
        assert torch.equal(best, expected.values)
        assert torch.equal(places, expected.indices)
    scores[:, -1] = 9.0  # behind the last whole piece
    assert topk(scores, 2)[1][:, 0].tolist() == [columns - 1] * 3


def test_the_best_by_maxima_are_those_that_are_no_number_first():
    scores = torch.randn(2, 10 * COLUMNS)
    scores[0, 700] = float("nan")
    scores[1] = -float("inf")
    scores[1, 5] = 0.0
    best, places = topk_of_maxima(scores, 3)
    assert best[0, 0].isnan()
    assert places[:, 0].tolist() == [700, 5]
    torch.testing.assert_close(best, scores.topk(3).values, equal_nan=True)


def test_other_devices_are_torchs_own(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("timed on another device")

    monkeypatch.setattr(vocabulary, "choose", refuse)
    scores = torch.randn(3, 5000, device="meta")
    assert inspect.unwrap(topk)(scores, 2)[0].shape == (3, 2)
    assert logsumexp(scores).shape == (3, 1)
    assert cross_entropy(scores, torch.zeros(3, dtype=torch.long, device="meta")).shape == ()


def test_a_timed_path_is_torchs():
    logits = torch.randn(4, 3000, requires_grad=True)
    labels = torch.randint(0, 3000, (4,))
    torch.testing.assert_close(cross_entropy(logits, labels), F.cross_entropy(logits, labels))
    with torch.no_grad():
        torch.testing.assert_close(logsumexp(logits), logits.logsumexp(1, keepdim=True))
        assert torch.equal(topk(logits, 2)[1], logits.topk(2).indices)
