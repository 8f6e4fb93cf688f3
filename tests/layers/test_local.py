"""Local heads over texts: causal or under a padding mask, all at once and token by token."""

import pytest
import torch
from conftest import wake
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from glocal.errors import GlocalError
from glocal.layers.attention import MultiHeadAttention
from glocal.layers.block import Block, BlockConfig, half_local, interleave_windows, uniform_blocks
from glocal.layers.cache import SPARE, LastTokens
from glocal.layers.convolution import LocalConvolution

DIM = 8
KINDS = ["conv1d", "window"]
CLOSE = {"atol": 1e-6, "rtol": 1e-6}


def layer(kind, kernel_size, causal):
    if kind == "window":
        return MultiHeadAttention(DIM, 2, window=kernel_size, causal=causal)
    return wake(LocalConvolution(DIM, kernel_size, expand_ratio=2, norm="layer", causal=causal))


def new_cache(local, rows):
    return local.new_window_cache(rows) if isinstance(local, MultiHeadAttention) else local.new_cache(rows)


def test_a_causal_local_head_is_its_formula():
    """K - 1 zeros in front, and LayerNorm over the channels of each token."""
    local, x = layer("conv1d", 4, causal=True), torch.randn(3, 9, DIM)
    value, gate = F.conv1d(x.mT, local.expand.weight[..., None], local.expand.bias).chunk(2, dim=1)
    weight = local.depthwise.weight.squeeze(2)
    y = F.conv1d(F.pad(value * gate.sigmoid(), (3, 0)), weight, local.depthwise.bias, groups=len(weight)).mT
    y = F.layer_norm(y, (2 * DIM,), local.norm.weight, local.norm.bias)
    expected = (y * y.sigmoid()) @ local.contract.weight.T + local.contract.bias
    torch.testing.assert_close(local(x), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=30, deadline=None)
@given(tokens=st.integers(1, 12), at=st.integers(0, 11), kernel_size=st.integers(1, 6), seed=st.integers(0, 2**31))
def test_a_causal_head_reads_the_last_tokens_and_no_later_one(kind, tokens, at, kernel_size, seed):
    torch.manual_seed(seed)
    local = layer(kind, kernel_size, causal=True)
    x = torch.randn(1, tokens, DIM)
    other = x.clone()
    other[:, min(at, tokens - 1)] += 1
    changed = (local(x) - local(other)).abs().amax((0, 2)) > 1e-6
    reached = range(min(at, tokens - 1), min(min(at, tokens - 1) + kernel_size, tokens))
    assert changed.nonzero().flatten().tolist() == list(reached)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=30, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=4).map(torch.tensor),
    kernel_size=st.sampled_from([1, 3, 5, 9]),
    seed=st.integers(0, 2**31),
)
def test_padding_changes_nothing(kind, causal, lengths, kernel_size, seed):
    """Behind the texts of an encoder, in front of the prompts of a decoder."""
    torch.manual_seed(seed)
    local = layer(kind, kernel_size, causal)
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    mask = mask.flip(1) if causal else mask
    x = torch.randn(*mask.shape, DIM)
    y = local(x, mask=mask[:, None, None])
    assert y.isfinite().all()
    for row, own in enumerate(mask):
        torch.testing.assert_close(y[row, own], local(x[[row]][:, own])[0], **CLOSE)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=10, deadline=None)
@given(
    news=st.lists(st.integers(1, 4) | st.just(40), min_size=1, max_size=4),
    ones=st.sampled_from([0, 3, SPARE + 1]),
    kernel_size=st.integers(1, 6),
    data=st.data(),
)
@torch.no_grad()
def test_with_a_cache_it_is_all_tokens_at_once_whichever_rows_go_on(kind, news, ones, kernel_size, data):
    """Some tokens, then one at a time, until the buffer has been filled more than once."""
    torch.manual_seed(sum(news))
    local = layer(kind, kernel_size, causal=True)
    rows = 3
    cache = new_cache(local, rows)
    pads = torch.tensor(data.draw(st.lists(st.integers(0, news[0]), min_size=rows, max_size=rows)))
    x = torch.empty(rows, 0, DIM)
    mask = torch.empty(rows, 0, dtype=torch.bool)
    for new in news + [1] * ones:
        some = torch.randn(len(x), new, DIM)
        own = torch.arange(x.shape[1], x.shape[1] + new) >= pads[:, None]
        x, mask = torch.cat([x, some], dim=1), torch.cat([mask, own], dim=1)
        y = local(some, mask=own[:, None, None], cache=cache)
        if new > 1:
            expected = local(x, mask=mask[:, None, None])[:, -new:]
            torch.testing.assert_close(y[own], expected[own], atol=1e-5, rtol=1e-5)
            chosen = torch.tensor(data.draw(st.lists(st.integers(0, len(x) - 1), min_size=1, max_size=len(x))))
            cache.select(chosen)
            x, mask, pads = x[chosen], mask[chosen], pads[chosen]
    expected = local(x, mask=mask[:, None, None])[:, -new:]
    if new == 1:
        torch.testing.assert_close(y[own], expected[own], atol=1e-5, rtol=1e-5)


@settings(deadline=None)
@given(size=st.integers(0, 5), news=st.lists(st.integers(1, 9) | st.just(50), max_size=12), beams=st.integers(1, 2))
def test_last_tokens_are_the_end_of_a_list_that_grows(size, news, beams):
    kept, expected = LastTokens.zeros(torch.empty(0), 2, size, 3), torch.zeros(2, size, 3)
    for new in news:
        some = torch.randn(len(expected), new, 3)
        expected = torch.cat([expected[:, expected.shape[1] - size :], some], dim=1)
        assert torch.equal(kept.append(some), expected)
    kept.repeat(beams)
    assert torch.equal(
        kept.append(torch.ones(2 * beams, 1, 3))[:, :size],
        expected[:, expected.shape[1] - size :].repeat_interleave(beams, 0),
    )


@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_block_is_the_same_token_by_token(kind, heads):
    config = BlockConfig(
        embed_dim=DIM, num_heads=2, local_heads=heads, local=kind, local_norm="layer", kernel_size=4, causal=True
    )
    block, x = wake(Block(config)).eval(), torch.randn(2, 9, DIM)
    cache = block.new_cache(2, 9)
    steps = torch.cat([block(token, cache=cache) for token in x.split(1, dim=1)], dim=1)
    torch.testing.assert_close(steps, block(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("causal", [False, True])
def test_weights_of_a_masked_head_are_norms_of_what_tokens_add(causal):
    local, x = layer("conv1d", 3, causal), torch.randn(2, 7, DIM)
    local.depthwise.bias.data.zero_()
    mask = torch.tensor([[True] * 7, [True] * 4 + [False] * 3])
    gated = F.glu(local.expand(x)).masked_fill(~mask[..., None], 0)
    norms = torch.empty(2, 7, 7)
    for token in range(7):  # what the depthwise convolution makes of this token alone
        alone = torch.zeros_like(gated)
        alone[:, token] = gated[:, token]
        alone = F.pad(alone, (0, 0, 2, 0)) if causal else alone
        norms[:, :, token] = local.depthwise(alone.mT[:, :, None])[:, :, 0].norm(dim=1)
    own = mask[:, :, None] & mask[:, None]
    expected = torch.where(own, norms / norms.sum(-1, keepdim=True), torch.eye(7))
    torch.testing.assert_close(local.weights(x, mask[:, None, None]), expected)


def test_weights_of_a_window_are_those_that_forward_uses():
    local, x = layer("window", 3, causal=True), torch.randn(2, 7, DIM)
    mask = (torch.arange(7) >= torch.tensor([[0], [4]]))[:, None, None]
    *_, v = local.project(x, None)
    weights = local.weights(x, mask=mask)
    torch.testing.assert_close(local.join(weights @ v, x), local(x, mask=mask))
    assert ((weights > 0).sum(-1) <= 3).all()


@pytest.mark.parametrize("causal", [False, True])
def test_a_slice_of_a_kernel_is_what_reads_the_nearest_tokens(causal):
    """A longer kernel whose far ends are zero computes the same."""
    local = layer("conv1d", 7, causal)
    config = BlockConfig(
        embed_dim=DIM, num_heads=2, local_heads=2, kernel_size=3, expand_ratio=2, local_norm="layer", causal=causal
    )
    short = LocalConvolution(DIM, 3, 2, norm="layer", causal=causal)
    short.load_state_dict(local.slice_for(config))
    far = slice(0, 4) if causal else [0, 1, 5, 6]
    local.depthwise.weight.data[..., far] = 0
    x = torch.randn(2, 9, DIM)
    torch.testing.assert_close(short(x), local(x), **CLOSE)


def test_a_slice_of_heads_is_those_heads_of_the_block():
    whole = layer("conv1d", 3, causal=True)
    config = BlockConfig(
        embed_dim=DIM, num_heads=2, local_heads=1, kernel_size=3, expand_ratio=1, local_norm="layer", causal=True
    )
    head = LocalConvolution(DIM // 2, 3, 1, norm="layer", causal=True)
    head.load_state_dict(whole.slice_for(config))
    channels, hidden = (
        slice(DIM // 2, DIM),
        slice(DIM, DIM + DIM // 2),
    )  # of the second head, the first half of its width
    assert torch.equal(head.contract.weight, whole.contract.weight[channels, hidden])
    assert torch.equal(head.depthwise.weight, whole.depthwise.weight[hidden])
    value, gate = whole.expand.weight.chunk(2)
    assert torch.equal(head.expand.weight, torch.cat([value[hidden, channels], gate[hidden, channels]]))


def test_what_local_heads_over_texts_cannot_do_is_said():
    fields = {"embed_dim": DIM, "num_heads": 2, "local_heads": 1, "kernel_size": 3}
    with pytest.raises(GlocalError, match="set local_norm 'layer'"):
        Block(BlockConfig(**fields, causal=True))
    with pytest.raises(GlocalError, match="a grid of patches has no order"):
        Block(BlockConfig(**fields, local="conv2d", local_norm="layer", causal=True))
    with pytest.raises(GlocalError, match="4 of a window; expected an odd number"):
        Block(BlockConfig(**fields | {"local": "window", "kernel_size": 4}))
    Block(BlockConfig(**fields | {"local": "window", "kernel_size": 4, "causal": True}))
    mask = torch.ones(1, 4, dtype=torch.bool)
    with pytest.raises(GlocalError, match="set local_norm 'layer', or give inputs of one length"):
        Block(BlockConfig(**fields))(torch.randn(1, 4, DIM), token_mask=mask)
    with pytest.raises(GlocalError, match="whose grid has no padding"):
        Block(BlockConfig(**fields, local="conv2d", local_norm="layer"))(torch.randn(1, 4, DIM), token_mask=mask)
    for kind in KINDS:
        with pytest.raises(GlocalError, match=r"keep no cache|keeps no window"):
            Block(BlockConfig(**fields, local=kind, local_norm="layer")).new_cache(1, 4)


def test_half_of_the_heads_are_local_or_five_of_six_blocks():
    blocks = uniform_blocks(13, embed_dim=DIM, num_heads=4)
    assert {(b.local_heads, b.local, b.local_norm, b.kernel_size) for b in half_local(blocks, 7)} == {
        (2, "conv1d", "layer", 7)
    }
    windows = interleave_windows(blocks, 9)
    assert [number for number, block in enumerate(windows) if not block.local_heads] == [5, 11, 12]
    assert {(b.local_heads, b.local, b.kernel_size) for b in windows if b.local_heads} == {(4, "window", 9)}
