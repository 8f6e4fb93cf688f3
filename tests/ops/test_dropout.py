"""Dropout by fewer random numbers: its share, its scale, its gradient and its seed."""

import pytest
import torch
from torch.nn import functional as F

from glocal.ops import dropout


@pytest.mark.parametrize("path", ["plain", "16 bits"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("p", [0.1, 0.5])
def test_dropout_zeroes_its_share_and_keeps_the_expectation(dtype, p, path, take):
    take(path)
    x = torch.ones(301, 333, dtype=dtype, requires_grad=True)
    y = dropout(x, p)
    assert y.dtype == dtype
    assert (y == 0).float().mean().item() == pytest.approx(p, abs=5 * (p * (1 - p) / x.numel()) ** 0.5)
    assert y.float().mean().item() == pytest.approx(1, abs=0.02)
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())  # the same numbers are zero in the backward pass
    assert not torch.equal(dropout(x, p), y)
    torch.manual_seed(1)
    first = dropout(x, p)
    torch.manual_seed(1)
    assert torch.equal(dropout(x, p), first)


def test_fewer_random_numbers_are_drawn(take):
    x = torch.ones(1000)
    take("plain")
    state = torch.get_rng_state()
    y = dropout(x, 0.5)
    torch.set_rng_state(state)
    assert torch.equal(y, F.dropout(x, 0.5))
    take("16 bits")
    torch.set_rng_state(state)
    assert not torch.equal(dropout(x, 0.5), y)


@pytest.mark.parametrize("path", ["plain", "16 bits"])
def test_none_and_all(path, take):
    take(path)
    x = torch.randn(5, 3)
    assert torch.equal(dropout(x, 0.0), x)
    assert torch.equal(dropout(x, 1.0), torch.zeros(5, 3))
    assert dropout(x[:0], 0.5).shape == (0, 3)


def test_a_timed_path_keeps_the_seed():
    x = torch.ones(64, 100)
    torch.manual_seed(1)
    first = dropout(x, 0.3)
    torch.manual_seed(1)
    assert torch.equal(dropout(x, 0.3), first)
    assert dropout(x.to("meta"), 0.3).device.type == "meta"
