"""Global and local heads beside each other; the local head against its formula."""

from copy import deepcopy

import pytest
import torch
from torch.nn import functional as F

from glocal.errors import GlocalError
from glocal.layers.attention import MultiHeadAttention
from glocal.layers.block import Block, BlockConfig, override_blocks, uniform_blocks
from glocal.layers.convolution import LocalConvolution
from glocal.layers.mixer import Mixer


def local_by_formula(local, x, training):
    """Pointwise, GLU, depthwise, BatchNorm, Swish, pointwise: as sequences of channels, by torch's 1-D convolution."""
    x = F.conv1d(x.mT, local.expand.weight[..., None], local.expand.bias)
    value, gate = x.chunk(2, dim=1)
    weight = local.depthwise.weight.squeeze(2)
    x = F.conv1d(
        value * gate.sigmoid(), weight, local.depthwise.bias, padding=weight.shape[-1] // 2, groups=len(weight)
    )
    norm = local.norm
    x = F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, training)
    return F.conv1d(x * x.sigmoid(), local.contract.weight[..., None], local.contract.bias).mT


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("kernel_size", "tokens"), [(5, 9), (31, 10)])
def test_a_local_head_is_its_formula(kernel_size, tokens, training):
    local, x = LocalConvolution(6, kernel_size, expand_ratio=2).train(training), torch.randn(3, tokens, 6)
    local.norm.running_mean.normal_()
    local.norm.running_var.uniform_(0.5, 2)
    twin = deepcopy(local)
    expected = local_by_formula(twin, x.requires_grad_(), training)
    y = local(x)
    torch.testing.assert_close(y, expected, atol=1e-5, rtol=0)
    for part in (slice(None), slice(0, 1)):  # a gradient of the class token alone lies otherwise in memory
        factor = torch.randn(3, tokens, 6)[:, part]
        gradients = torch.autograd.grad((y[:, part] * factor).sum(), [x, *local.parameters()], retain_graph=True)
        expectations = torch.autograd.grad(
            (expected[:, part] * factor).sum(), [x, *twin.parameters()], retain_graph=True
        )
        torch.testing.assert_close(gradients, expectations, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("prefix", [0, 1])
@pytest.mark.parametrize("planar", [False, True])
def test_weights_of_a_local_head_are_norms_of_what_tokens_add(planar, prefix):
    local, x = LocalConvolution(6, 3, expand_ratio=2, planar=planar), torch.randn(2, 9 + prefix, 6)
    local.depthwise.bias.data.zero_()
    let_through = F.glu(local.expand(x))
    norms = torch.empty(2, 9 + prefix, 9 + prefix)
    for token in range(9 + prefix):  # what the depthwise convolution makes of this token alone
        alone = torch.zeros_like(let_through)
        alone[:, token] = let_through[:, token]
        patches = alone[:, prefix:].mT.unflatten(2, (3, 3))
        added = local.depthwise(patches).flatten(2) if planar else local.depthwise(alone.mT[:, :, None])[:, :, 0]
        norms[:, :, token] = F.pad(added.norm(dim=1), (prefix, 0)) if planar else added.norm(dim=1)
    if planar and prefix:
        norms[:, 0, 0] = 1.0  # the class token is left to itself
    torch.testing.assert_close(local.weights(x), norms / norms.sum(-1, keepdim=True))


@pytest.mark.parametrize("local_heads", [0, 1, 2, 3])
def test_channels_are_split_global_first(local_heads):
    mixer, x = Mixer(12, 3, local_heads, kernel_size=3).eval(), torch.randn(2, 7, 12)
    cut = 12 - 4 * local_heads
    parts = [mixer.attention(x[..., :cut])] if cut else []
    parts += [mixer.local(x[..., cut:])] if local_heads else []
    torch.testing.assert_close(mixer(x), torch.cat(parts, dim=-1))
    assert (mixer.attention is None, mixer.local is None) == (local_heads == 3, local_heads == 0)


@pytest.mark.parametrize("qkv_ratio", [0.5, 1.0, 2.0])
def test_qkv_ratio_widens_heads_but_not_the_output(qkv_ratio):
    attention = MultiHeadAttention(12, 3, qkv_ratio=qkv_ratio)
    q, k, v = attention.project(torch.randn(2, 7, 12), None)
    assert {t.shape for t in (q, k, v)} == {(2, 3, 7, int(4 * qkv_ratio))}
    assert attention(torch.randn(2, 7, 12)).shape == (2, 7, 12)


def reach(layer, tokens, at):
    """The tokens that the output of one token depends on."""
    x = torch.randn(2, tokens, 6, requires_grad=True)
    layer(x)[:, at].sum().backward()
    return set(x.grad.abs().sum((0, 2)).nonzero().flatten().tolist())


def test_a_local_head_sees_what_its_kind_says():
    near = set(range(8, 13))
    assert reach(LocalConvolution(6, 5).eval(), 17, at=10) == near
    assert reach(MultiHeadAttention(6, 2, window=5), 17, at=10) == near
    planar = LocalConvolution(6, 3, planar=True).eval()
    token = 1 + 4 * 1 + 2  # row 1, column 2 of 4 × 4 patches behind the class token
    rows = (0, 1, 2)
    assert reach(planar, 17, at=token) == {1 + 4 * row + column for row in rows for column in (1, 2, 3)}
    assert reach(planar, 17, at=0) == {0}


@pytest.mark.parametrize("local", ["conv1d", "conv2d", "window"])
def test_a_block_of_each_kind_keeps_the_first_tokens(local):
    config = BlockConfig(embed_dim=12, num_heads=3, local_heads=2, local=local, kernel_size=3)
    block, x = Block(config).eval(), torch.randn(2, 10, 12)
    torch.testing.assert_close(block(x, num_queries=1), block(x)[:, :1])


def test_what_local_heads_cannot_do_is_said():
    with pytest.raises(GlocalError, match="expected 0 to 3"):
        Block(BlockConfig(embed_dim=12, num_heads=3, local_heads=4))
    with pytest.raises(GlocalError, match="no square grid"):
        LocalConvolution(6, 3, planar=True)(torch.randn(2, 33, 6))
    with pytest.raises(GlocalError, match="odd"):
        Block(BlockConfig(embed_dim=12, num_heads=3, local_heads=1, kernel_size=4))


def test_blocks_that_differ_are_changed_one_by_one():
    blocks = (BlockConfig(local_heads=2), BlockConfig(mlp_ratio=2.0), BlockConfig())
    changed = override_blocks(blocks, drop_path=0.2, embed_dim=24)
    assert [block.drop_path for block in changed] == [0, 0.1, 0.2]
    assert [(block.local_heads, block.mlp_ratio, block.embed_dim) for block in changed] == [
        (2, 4, 24),
        (0, 2, 24),
        (0, 4, 24),
    ]
    with pytest.raises(GlocalError, match="differ"):
        override_blocks(blocks, depth=5)
    assert override_blocks(uniform_blocks(3, 0.1), depth=5) == uniform_blocks(5, 0.1)
