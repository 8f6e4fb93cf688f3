"""A batch through blocks without a cache: by one call of the kernels a block as module by module."""

from copy import deepcopy

import pytest
import torch
from conftest import wake

from glocal.layers.block import Block, BlockConfig
from glocal.layers.encoder import MAX_TOKENS, BlockList
from glocal.ops import pack
from glocal.ops.block_encoder import BlockEncoder

pytestmark = pytest.mark.usefixtures("kernels")

BLOCKS = {
    "pre-norm": BlockConfig(embed_dim=48, num_heads=3),
    "post-norm": BlockConfig(embed_dim=48, num_heads=3, norm="post", activation="relu"),
    "causal": BlockConfig(embed_dim=48, num_heads=3, causal=True, activation="gelu_tanh"),
    "narrow heads, no bias": BlockConfig(embed_dim=48, num_heads=3, qkv_ratio=0.5, qkv_bias=False, mlp_ratio=1.5),
}


@pytest.fixture
def calls(monkeypatch):
    """Have one call always taken, and return the list of the calls."""
    taken = []
    encode = BlockEncoder.encode

    def counted(self, *args):
        taken.append(args)
        return encode(self, *args)

    monkeypatch.setattr(BlockEncoder, "encode", counted)
    monkeypatch.setattr(BlockEncoder, "is_faster", lambda *_: True)
    return taken


def build(config, depth=2):
    return wake(BlockList([Block(config) for _ in range(depth)])).eval()


def padded(batch, tokens):
    mask = torch.ones(batch, 1, 1, tokens, dtype=torch.bool)
    mask[-1, ..., tokens // 2 :] = False
    return mask


@pytest.mark.parametrize(
    ("batch", "tokens", "num_queries"), [(1, 1, None), (1, 37, 1), (3, 24, None), (2, 50, 2), (1, 3, 9), (0, 5, None)]
)
@pytest.mark.parametrize("name", BLOCKS)
def test_one_call_computes_what_the_modules_compute(name, batch, tokens, num_queries, calls):
    blocks = build(BLOCKS[name])
    x = torch.randn(batch, tokens, 48)
    mask = None if BLOCKS[name].causal or batch < 2 else padded(batch, tokens)
    with torch.inference_mode():
        expected = blocks(x, mask=mask, num_queries=num_queries)
        assert not calls  # the weights are not packed
        y = pack(blocks)(x, mask=mask, num_queries=num_queries)
    assert len(calls) == 2
    own = slice(None) if mask is None or num_queries else mask[:, 0, 0]
    torch.testing.assert_close(y[own], expected[own], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(("precision", "atol"), [("fp16", 5e-3), ("int8", 0.15)])
def test_in_lower_precision_the_output_is_close(precision, atol, calls):
    blocks = build(BLOCKS["pre-norm"])
    x = torch.randn(2, 20, 48)
    with torch.inference_mode():
        expected = blocks(x)
        y = pack(deepcopy(blocks), precision)(x)
    assert calls
    assert 0 < (y - expected).abs().max() < atol


@pytest.mark.parametrize("anew", [False, True], ids=["packed once", "packed anew"])
def test_changed_weights_are_read_anew(anew, calls):
    blocks = pack(build(BLOCKS["pre-norm"], depth=1))
    x = torch.randn(1, 9, 48)
    changes = [
        lambda block: block.mlp.fc2.weight.data.mul_(2),  # does not change the version
        lambda block: block.load_state_dict({name: 1.5 * tensor for name, tensor in block.state_dict().items()}),
        lambda block: setattr(block.norm1, "weight", torch.nn.Parameter(3 * block.norm1.weight.detach())),
    ]
    for change in changes:
        with torch.inference_mode():
            blocks(x)
        if anew:  # as the sample after each validation does
            pack(blocks)
        loss = blocks(x).sum()  # a step of training drops the layouts
        loss.backward()
        with torch.no_grad():
            change(next(iter(blocks)))
        before = len(calls)
        with torch.inference_mode():
            y = blocks(x)
            assert len(calls) == before + 1
            torch.testing.assert_close(y, deepcopy(blocks)(x), atol=2e-5, rtol=1e-4)


def test_hooks_are_called(calls):
    blocks = pack(build(BLOCKS["pre-norm"]))
    seen = []
    hook = next(iter(blocks)).mixer.attention.register_forward_hook(lambda *_: seen.append(True))
    with torch.inference_mode():
        blocks(torch.randn(1, 5, 48))
        assert seen == [True]
        assert len(calls) == 1  # the second block has no hook
        hook.remove()
        blocks(torch.randn(1, 5, 48))
    assert len(calls) == 3


@pytest.mark.parametrize(
    "case", ["training", "gradients", "a large batch", "local heads", "float64", "a mask for each query"]
)
def test_what_the_kernels_do_not_compute_goes_through_the_modules(case, calls):
    config = BlockConfig(embed_dim=48, num_heads=3, local_heads=1) if case == "local heads" else BLOCKS["pre-norm"]
    blocks = pack(build(config, depth=1))
    x = torch.randn(1, MAX_TOKENS + 1 if case == "a large batch" else 6, 48)
    mask = torch.ones(1, 1, 6, 6, dtype=torch.bool).tril() if case == "a mask for each query" else None
    if case == "training":
        blocks.train()
    if case == "float64":
        blocks, x = blocks.double(), x.double()
    with torch.set_grad_enabled(case == "gradients"):
        y = blocks(x, mask=mask)
        block = next(iter(blocks))
        torch.testing.assert_close(y, block(x, mask=mask))
    assert not calls
