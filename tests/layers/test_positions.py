"""Sinusoidal positions against their formula, and why they were chosen: what lies further is a rotation away."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from glocal.errors import GlocalError
from glocal.layers.positions import sinusoids


@pytest.mark.parametrize("dim", [2, 6, 512])
@pytest.mark.parametrize("t", [0, 1, 7, 4999])
def test_sinusoids_are_their_formula(t, dim):
    expected = []
    for k in range(dim // 2):
        angle = t / 10000 ** (2 * k / dim)
        expected += [math.sin(angle), math.cos(angle)]
    torch.testing.assert_close(sinusoids(5000, dim)[t], torch.tensor(expected), atol=1e-7, rtol=0)


def test_halves_are_the_same_numbers_with_all_sines_first():
    interleaved, halves = sinusoids(9, 6), sinusoids(9, 6, "halves")
    assert torch.equal(halves, interleaved[:, [0, 2, 4, 1, 3, 5]])


@given(start=st.integers(0, 200), further=st.integers(0, 50))
def test_what_lies_further_is_a_rotation_away_whatever_the_position(start, further):
    positions = sinusoids(256, 8).double()
    for k in range(4):
        angle = further / 10000 ** (2 * k / 8)
        rotation = torch.tensor([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]]).double()
        here, there = positions[[start, start + further], 2 * k : 2 * k + 2]
        torch.testing.assert_close(rotation @ here, there, atol=1e-6, rtol=0)


def test_odd_width_is_refused():
    with pytest.raises(GlocalError, match="odd width 7"):
        sinusoids(3, 7)
