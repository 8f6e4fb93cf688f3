import pytest
import torch
from torch.nn import functional as F

from glocal.tasks import cross_entropy as room
from glocal.tasks.cross_entropy import cross_entropies, cross_entropy


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("piece", [30, 2**18], ids=["in pieces", "at once"])
def test_loss_and_gradient_are_torchs(smoothing, piece, monkeypatch):
    monkeypatch.setattr(room, "PIECE", piece)
    logits = torch.randn(23, 11, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(0, 11, (23,))
    labels[::5] = -100
    ours = cross_entropy(logits, labels, smoothing)
    torchs = F.cross_entropy(logits, labels, label_smoothing=smoothing)
    torch.testing.assert_close(ours, torchs)
    for a, b in zip(*(torch.autograd.grad(3 * loss, logits) for loss in (ours, torchs)), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("piece", [30, 2**18], ids=["in pieces", "at once"])
def test_each_loss_is_torchs(piece, monkeypatch):
    monkeypatch.setattr(room, "PIECE", piece)
    logits, labels = torch.randn(23, 11).bfloat16(), torch.randint(0, 11, (23,))
    labels[::5] = -100
    expected = F.cross_entropy(logits.float(), labels, reduction="none")
    torch.testing.assert_close(cross_entropies(logits, labels), expected)
    assert cross_entropies(logits[:0], labels[:0]).shape == (0,)


def test_in_bf16_it_is_as_exact_as_torchs():
    logits = torch.randn(64, 500).bfloat16().requires_grad_()
    labels = torch.randint(0, 500, (64,))
    exact = F.cross_entropy(logits.double(), labels, label_smoothing=0.1)
    ours = cross_entropy(logits, labels, 0.1)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours.double(), exact, atol=1e-5, rtol=0)
    gradients = [torch.autograd.grad(loss, logits)[0].double() for loss in (ours, exact)]
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-2)


def test_without_gradients_it_is_the_same_number():
    logits, labels = torch.randn(7, 5), torch.randint(0, 5, (7,))
    with torch.no_grad():
        torch.testing.assert_close(
            cross_entropy(logits, labels, 0.1), F.cross_entropy(logits, labels, label_smoothing=0.1)
        )
