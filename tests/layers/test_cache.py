"""The cache against a list that grows, and attention with it against attention over all tokens at once."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from glocal.errors import GlocalError
from glocal.layers.attention import Cache, MultiHeadAttention

ROWS, HEADS, MAX_LENGTH, DIM = 4, 2, 9, 3


def empty(rows=ROWS, heads=HEADS, max_length=MAX_LENGTH, dim=DIM):
    return Cache(
        torch.full((rows, heads, max_length, dim), torch.nan), torch.full((rows, heads, max_length, dim), torch.nan)
    )


@settings(deadline=None)
@given(news=st.lists(st.integers(1, 3), max_size=3), data=st.data())
def test_a_cache_holds_what_was_appended_to_the_rows_that_were_selected(news, data):
    cache = empty()
    keys = values = torch.empty(ROWS, HEADS, 0, DIM)
    for new in news:
        k, v = torch.randn(2, len(keys), HEADS, new, DIM)
        keys, values = torch.cat([keys, k], dim=2), torch.cat([values, v], dim=2)
        held = cache.append(k, v)
        assert torch.equal(held.keys, keys)
        assert torch.equal(held.values, values)
        rows = data.draw(st.lists(st.integers(0, len(keys) - 1), min_size=1, max_size=len(keys)))
        cache.select(torch.tensor(rows))
        keys, values = keys[rows], values[rows]
    assert cache.length == sum(news)


def test_appending_copies_nothing_that_was_there():
    cache = empty()
    new = torch.randn(ROWS, HEADS, 2, DIM)
    held = cache.append(new, new)
    assert held.keys.data_ptr() == cache.keys.data_ptr()
    assert held.values.data_ptr() == cache.values.data_ptr()


@pytest.mark.parametrize("new", [1, 2])
def test_a_full_cache_says_so_and_stays_as_it_was(new):
    cache = empty(max_length=3)
    cache.append(*torch.randn(2, ROWS, HEADS, 3, DIM))
    with pytest.raises(GlocalError, match=f"token {3 + new} in a cache of 3 tokens"):
        cache.append(*torch.randn(2, ROWS, HEADS, new, DIM))
    assert cache.length == 3


def test_more_rows_than_there_is_room_for_are_refused():
    with pytest.raises(GlocalError, match="5 rows selected from a cache of 4"):
        empty().select(torch.tensor([0, 0, 1, 2, 3]))


@settings(deadline=None)
@given(news=st.lists(st.integers(1, 4), min_size=1, max_size=4), masked=st.booleans(), seed=st.integers(0, 2**31))
@torch.no_grad()
def test_attention_with_a_cache_is_attention_over_all_tokens_at_once(news, masked, seed):
    torch.manual_seed(seed)
    module, tokens = MultiHeadAttention(8, 2, causal=True), sum(news)
    x, cache, outputs = torch.randn(2, tokens, 8), empty(2, 2, tokens, 4), []
    mask = torch.rand(2, 1, 1, tokens) < 0.7 if masked else None
    if mask is not None:
        mask[..., 0] = True  # every token sees at least one
    for part in x.split(news, dim=1):
        end = cache.length + part.shape[1]
        outputs.append(module(part, cache=cache, mask=None if mask is None else mask[..., :end]))
    torch.testing.assert_close(torch.cat(outputs, dim=1), module(x, mask=mask), atol=1e-6, rtol=1e-5)
