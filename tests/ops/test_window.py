"""Attention to a window by blocks of queries, against full attention that is masked."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from glocal import ops
from glocal.ops import attention, window

fast = st.integers(0, 2**31)


@pytest.fixture(autouse=True)
def _plain(monkeypatch):
    monkeypatch.setattr(attention, "choose", lambda *_, **__: "plain")


@pytest.mark.parametrize("is_causal", [False, True])
@settings(max_examples=40, deadline=None)
@given(tokens=st.integers(1, 20), reach=st.integers(0, 5), size=st.integers(1, 8), masked=st.booleans(), seed=fast)
def test_blocks_of_queries_are_masked_attention(is_causal, tokens, reach, size, masked, seed):
    torch.manual_seed(seed)
    q, k, v = (torch.randn(2, 3, tokens, d, dtype=torch.float64, requires_grad=True) for d in (4, 4, 6))
    width = 2 * reach + 1
    mask = torch.rand(2, 1, 1, tokens) < 0.6 if masked else None
    by_blocks = window.window_attention_by_blocks(q, k, v, width, mask, 0.0, is_causal, size)
    seen = ops.window_mask(tokens, width, mask, is_causal)
    scores = (q @ k.mT / 2).masked_fill(~seen, float("-inf"))
    expected = scores.softmax(-1) @ v
    torch.testing.assert_close(by_blocks, expected)
    factor = torch.randn_like(expected)
    gradients = [torch.autograd.grad((y * factor).sum(), (q, k, v), retain_graph=True) for y in (by_blocks, expected)]
    torch.testing.assert_close(*gradients)


def test_a_window_sees_its_tokens_and_a_masked_token_itself():
    causal = ops.window_mask(5, 2, None, True)[0, 0]
    assert causal.nonzero().tolist() == [[0, 0], [1, 0], [1, 1], [2, 1], [2, 2], [3, 2], [3, 3], [4, 3], [4, 4]]
    mask = torch.tensor([True, True, True, False, False]).view(1, 1, 1, 5)
    both = ops.window_mask(5, 3, mask)[0, 0]
    assert [row.nonzero().flatten().tolist() for row in both] == [[0, 1], [0, 1, 2], [1, 2], [2, 3], [4]]


@pytest.mark.parametrize("path", ["plain", "32"])
@pytest.mark.parametrize("is_causal", [False, True])
def test_each_path_that_may_be_chosen(path, is_causal, monkeypatch):
    taken = []
    monkeypatch.setattr(window, "choose", lambda key, candidates: taken.append(key) or path)
    q, k, v = torch.randn(3, 2, 2, 70, 8)
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, ops.window_mask(70, 5, None, is_causal))
    torch.testing.assert_close(ops.window_attention(q, k, v, 5, is_causal=is_causal), expected)
    assert len(taken) == 1


def test_the_path_is_chosen_by_timing(monkeypatch):
    timed = {}
    monkeypatch.setattr(window, "choose", lambda key, candidates: timed.update(candidates()) or "plain")
    q, k, v = torch.randn(3, 1, 2, 200, 8)
    ops.window_attention(q, k, v, 16, is_causal=True)
    assert list(timed) == ["plain", "32", "128"]
    for run in timed.values():
        run()


@pytest.mark.parametrize(("tokens", "keys"), [(5, 5), (7, 7), (8, 7), (64, 7)])
def test_its_cost_is_counted_as_that_of_the_window(tokens, keys):
    q = torch.empty(2, 3, tokens, 4, device="meta")
    for is_causal in (False, True):
        with FlopCounterMode(display=False) as counter:
            ops.window_attention(q, q, q, 7, is_causal=is_causal)
        assert counter.get_total_flops() == 2 * 2 * (2 * 3 * tokens * keys * 4)
