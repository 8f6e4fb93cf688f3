"""Attention against its formula, written out once more as plainly as can be."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from glocal.layers.attention import MultiHeadAttention, attention, attention_weights


def by_hand(q, k, v, allowed):
    """Equation 1, one query at a time, over the keys that it may see."""
    y = torch.zeros(*q.shape[:-1], v.shape[-1], dtype=q.dtype)
    for b, h, i in torch.cartesian_prod(*map(torch.arange, q.shape[:3])).tolist():
        scores = [torch.dot(q[b, h, i], k[b, h, j]) / math.sqrt(q.shape[-1]) for j in range(k.shape[2])]
        exps = [math.exp(score) if allowed[b, h, i, j] else 0.0 for j, score in enumerate(scores)]
        y[b, h, i] = sum(e / sum(exps) * v[b, h, j] for j, e in enumerate(exps))
    return y


@pytest.mark.parametrize("kind", ["all", "causal", "padded", "padded and causal"])
def test_attention_is_equation_1(kind):
    q, k, v = (torch.randn(2, 3, 5, d, dtype=torch.float64) for d in (4, 4, 6))
    allowed, mask = torch.ones(2, 3, 5, 5, dtype=torch.bool), None
    if "padded" in kind:
        mask = torch.ones(2, 1, 1, 5, dtype=torch.bool)
        mask[1, ..., 3:] = False
        allowed = allowed & mask
    causal = "causal" in kind
    if causal:
        allowed = allowed.tril()
    expected = by_hand(q, k, v, allowed)
    torch.testing.assert_close(attention(q, k, v, mask, causal), expected, atol=1e-12, rtol=0)
    weights = attention_weights(q, k, mask, causal)
    torch.testing.assert_close(weights @ v, expected, atol=1e-12, rtol=0)
    assert not weights[~allowed].any()
    torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]))


def test_more_keys_than_queries_align_the_last_of_both_when_causal():
    q, k, v = torch.randn(1, 1, 2, 4), torch.randn(1, 1, 5, 4), torch.randn(1, 1, 5, 4)
    full = torch.cat([torch.zeros(1, 1, 3, 4), q], dim=2)
    expected = attention(full, k, v, causal=True)[:, :, 3:]
    torch.testing.assert_close(attention(q, k, v, causal=True), expected)
    torch.testing.assert_close(attention_weights(q, k, causal=True) @ v, expected)


@pytest.mark.parametrize("causal", [False, True])
def test_the_first_tokens_alone_are_what_they_are_among_all(causal):
    module, x = MultiHeadAttention(8, 2, causal=causal), torch.randn(2, 5, 8)
    for mask in (None, torch.tensor([True, True, False, True, True]).view(1, 1, 1, 5)):
        torch.testing.assert_close(module(x, mask=mask, num_queries=2), module(x, mask=mask)[:, :2])


def heads(module, x, context=None):
    """Multi-head attention, section 3.2.2, one head after another."""
    dim = x.shape[-1]
    if context is None:
        context, (wq, wk, wv), (bq, bk, bv) = x, module.qkv.weight.split(dim), module.qkv.bias.split(dim)
    else:
        wq, bq, (wk, wv), (bk, bv) = (
            module.q.weight,
            module.q.bias,
            module.kv.weight.split(dim),
            module.kv.bias.split(dim),
        )
    outputs = []
    for rows in torch.arange(dim).split(dim // module.num_heads):
        q, k, v = x @ wq[rows].T + bq[rows], context @ wk[rows].T + bk[rows], context @ wv[rows].T + bv[rows]
        outputs.append((q @ k.mT / math.sqrt(len(rows))).softmax(-1) @ v)
    return torch.cat(outputs, dim=-1) @ module.proj.weight.T + module.proj.bias


@pytest.mark.parametrize("num_heads", [1, 2, 6])
def test_multi_head_attention_is_its_heads_side_by_side(num_heads):
    module = MultiHeadAttention(12, num_heads).double()
    x = torch.randn(2, 7, 12, dtype=torch.float64)
    torch.testing.assert_close(module(x), heads(module, x), atol=1e-12, rtol=0)


def test_cross_attention_takes_keys_and_values_from_the_context():
    module = MultiHeadAttention(12, 3, cross=True).double()
    x, context = torch.randn(2, 4, 12, dtype=torch.float64), torch.randn(2, 9, 12, dtype=torch.float64)
    torch.testing.assert_close(module(x, context), heads(module, x, context), atol=1e-12, rtol=0)
    assert module.weights(x, context).shape == (2, 3, 4, 9)


@settings(max_examples=30, deadline=None)
@given(tokens=st.integers(1, 9), at=st.integers(0, 8), seed=st.integers(0, 2**31))
def test_no_later_token_changes_an_earlier_output(tokens, at, seed):
    torch.manual_seed(seed)
    module = MultiHeadAttention(8, 2, causal=True)
    at = min(at, tokens - 1)
    x = torch.randn(1, tokens, 8)
    y = x.clone()
    y[:, at:] += torch.randn(1, tokens - at, 8)
    torch.testing.assert_close(module(x)[:, :at], module(y)[:, :at], atol=1e-6, rtol=1e-6)
    assert not torch.allclose(module(x)[:, at:], module(y)[:, at:])


@settings(max_examples=30, deadline=None)
@given(tokens=st.integers(1, 9), padding=st.integers(1, 5), seed=st.integers(0, 2**31))
def test_padding_changes_nothing(tokens, padding, seed):
    torch.manual_seed(seed)
    module = MultiHeadAttention(8, 2)
    x = torch.randn(2, tokens, 8)
    padded = torch.cat([x, torch.randn(2, padding, 8)], dim=1)
    mask = (torch.arange(tokens + padding) < tokens)[None, None, None]
    torch.testing.assert_close(module(padded, mask=mask)[:, :tokens], module(x), atol=1e-6, rtol=1e-6)


def test_weights_are_those_that_forward_uses():
    module = MultiHeadAttention(12, 3, causal=True)
    x = torch.randn(2, 5, 12)
    _, _, v = module.project(x, None)
    torch.testing.assert_close(module.proj((module.weights(x) @ v).transpose(1, 2).flatten(2)), module(x))


def test_dropout_of_weights_is_the_trainings_alone():
    module = MultiHeadAttention(12, 3, dropout=0.5)
    x = torch.randn(2, 5, 12)
    assert not torch.equal(module(x), module(x))
    module.eval()
    assert torch.equal(module(x), module(x))
