"""The block beside PyTorch's own encoder and decoder layers, and its stochastic depth."""

import pytest
import torch
from torch import nn

from glocal.errors import GlocalError
from glocal.layers.block import Block, BlockConfig, DropPath, override_blocks, uniform_blocks

DIM, HEADS = 24, 4


def with_weights_of(layer, config):
    """Build our block with the weights of an nn.TransformerEncoderLayer or nn.TransformerDecoderLayer."""
    block = Block(config)
    state = {}
    for name, tensor in layer.state_dict().items():
        if not config.cross:
            table = {"norm1.": "norm1.", "norm2.": "norm2."}
        else:
            table = {"norm1.": "norm1.", "norm2.": "norm_cross.", "norm3.": "norm2."}
        table |= {
            "self_attn.in_proj_": "mixer.attention.qkv.",
            "self_attn.out_proj.": "mixer.attention.proj.",
            "multihead_attn.out_proj.": "cross.proj.",
            "linear1.": "mlp.fc1.",
            "linear2.": "mlp.fc2.",
        }
        if name.startswith("multihead_attn.in_proj_"):
            kind = name.rpartition("_")[2]
            state |= {f"cross.q.{kind}": tensor[:DIM], f"cross.kv.{kind}": tensor[DIM:]}
            continue
        theirs = next(prefix for prefix in table if name.startswith(prefix))
        state[name.replace(theirs, table[theirs])] = tensor
    block.load_state_dict(state)
    return block.eval()


def randomise(layer):
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.3)
    return layer.eval()


def config_of(norm, activation, **fields):
    return BlockConfig(
        embed_dim=DIM, num_heads=HEADS, mlp_ratio=2.0, norm=norm, activation=activation, norm_eps=1e-5, **fields
    )


@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize("activation", ["gelu", "relu"])
@pytest.mark.parametrize("padded", [False, True])
def test_block_is_the_encoder_layer(norm, activation, padded):
    layer = randomise(
        nn.TransformerEncoderLayer(DIM, HEADS, 2 * DIM, 0.0, activation, batch_first=True, norm_first=norm == "pre")
    )
    block = with_weights_of(layer, config_of(norm, activation))
    x, mask = torch.randn(3, 7, DIM), None
    if padded:
        mask = torch.arange(7)[None] < torch.tensor([[7], [5], [2]])
        layer.train()  # its fast path zeroes padded tokens, which nobody reads; there is no dropout to switch on
    ours = block(x, mask=None if mask is None else mask[:, None, None])
    theirs = layer(x, src_key_padding_mask=None if mask is None else ~mask)
    torch.testing.assert_close(ours, theirs, atol=5e-6, rtol=5e-7)


@pytest.fixture(params=["pre", "post"])
def decoder(request):
    """nn.TransformerDecoderLayer, our block with its weights, tokens, a padded context, its mask, and their answer."""
    norm = request.param
    layer = randomise(
        nn.TransformerDecoderLayer(DIM, HEADS, 2 * DIM, 0.0, "relu", batch_first=True, norm_first=norm == "pre")
    )
    block = with_weights_of(layer, config_of(norm, "relu", cross=True, causal=True))
    x, context = torch.randn(3, 6, DIM), torch.randn(3, 8, DIM)
    mask = torch.arange(8)[None] < torch.tensor([[8], [3], [5]])
    future = nn.Transformer.generate_square_subsequent_mask(6)
    theirs = layer(x, context, tgt_mask=future, tgt_is_causal=True, memory_key_padding_mask=~mask)
    return block, x, context, mask[:, None, None], theirs


@torch.no_grad()
def test_block_is_the_decoder_layer(decoder):
    block, x, context, mask, theirs = decoder
    ours = block(x, context=context, context_mask=mask)
    torch.testing.assert_close(ours, theirs, atol=5e-6, rtol=5e-7)
    assert torch.equal(block(x, context=block.keys_values(context), context_mask=mask), ours)


@torch.no_grad()
def test_token_by_token_it_is_the_decoder_layer_too(decoder):
    block, x, context, mask, theirs = decoder
    cache = block.new_cache(3, 6)
    context = block.keys_values(context)
    for t in range(6):
        y = block(x[:, t : t + 1], context=context, context_mask=mask, cache=cache)
        torch.testing.assert_close(y, theirs[:, t : t + 1], atol=5e-6, rtol=5e-7)


@torch.no_grad()
def test_rows_that_share_a_context_look_at_it_together(decoder):
    block, _, context, mask, _ = decoder
    beams = torch.randn(3 * 4, 1, DIM)
    alone = block(beams, context=context.repeat_interleave(4, 0), context_mask=mask.repeat_interleave(4, 0))
    together = block(beams, context=block.keys_values(context), context_mask=mask)
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=1e-6)


def test_a_context_goes_with_cross_attention(decoder):
    block, x, *_ = decoder
    with pytest.raises(GlocalError, match="needs a context"):
        block(x)
    with pytest.raises(GlocalError, match="without cross-attention"):
        Block(config_of("pre", "relu")).keys_values(x)


def test_what_is_said_of_attention_holds_for_both_kinds():
    block = Block(config_of("pre", "relu", cross=True, attn_drop=0.5, qkv_ratio=0.5, qkv_bias=False))
    for attention in (block.mixer.attention, block.cross):
        assert attention.dropout == 0.5
        assert attention.proj.in_features == DIM // 2
    assert block.cross.q.bias is None
    assert block.cross.kv.bias is None


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(GlocalError, match="embed_dim 24 is not divisible by num_heads 5"):
        Block(BlockConfig(embed_dim=24, num_heads=5))


def test_drop_path_zeroes_whole_examples_and_keeps_the_mean():
    drop = DropPath(0.3)
    x = torch.ones(20_000, 2, 3)
    y = drop(x)
    per_example = y.flatten(1)
    assert ((per_example == 0).all(1) | (per_example == per_example[:, :1]).all(1)).all()
    assert per_example.unique().tolist() == pytest.approx([0, 1 / 0.7])
    assert y.mean().item() == pytest.approx(1, abs=0.02)
    assert drop.eval()(x) is x


def test_a_block_that_is_always_dropped_is_the_identity():
    block = Block(config_of("pre", "gelu", drop_path=1.0 - 1e-7))
    x = torch.randn(4, 5, DIM)
    assert torch.equal(block(x), x)


def test_dropout_is_on_the_sublayers_output():
    block = Block(config_of("pre", "gelu", dropout=1.0))
    x = torch.randn(4, 5, DIM)
    assert torch.equal(block(x), x)
    assert not torch.equal(block.eval()(x), x)


def test_uniform_blocks_raise_stochastic_depth_linearly():
    blocks = uniform_blocks(5, drop_path=0.4, embed_dim=DIM)
    assert [block.drop_path for block in blocks] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    assert uniform_blocks(1, drop_path=0.4)[0].drop_path == 0
    changed = override_blocks(blocks, depth=3, num_heads=2)
    assert [block.drop_path for block in changed] == pytest.approx([0, 0.2, 0.4])
    assert {(block.embed_dim, block.num_heads) for block in changed} == {(DIM, 2)}
