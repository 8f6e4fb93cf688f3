"""What is the Transformer's own: its sizes, its one matrix of embeddings, its limits, its step from token to token."""

import math
from dataclasses import replace

import pytest
import torch
from conftest import wake
from safetensors.torch import load_file
from torch import nn

from glocal.errors import GlocalError
from glocal.layers.block import BlockConfig
from glocal.models import Transformer, TransformerConfig, create_model, load_model
from glocal.search.stages import save_arch

SMALL = {"vocab_size": 19, "max_length": 16, "embed_dim": 24, "num_heads": 3, "depth": 2}


@pytest.fixture(params=["pre", "post"])
def model(request):
    torch.manual_seed(0)
    return wake(create_model("transformer-tiny", **SMALL, norm=request.param)).eval()


def ids(*shape):
    return torch.randint(3, SMALL["vocab_size"], shape)


# Vaswani et al. 2017, table 3. The count is for 37,000 tokens, as section 5.1 has them, "approximately".
TABLE_3 = {  #           N  d_model d_ff  h  P_drop  params
    "transformer-base": (6, 512, 2048, 8, 0.1, 65e6),
    "transformer-big": (6, 1024, 4096, 16, 0.3, 213e6),
}


@pytest.mark.parametrize("name", TABLE_3)
def test_named_sizes_are_the_papers(name):
    depth, d_model, d_ff, heads, dropout, parameters = TABLE_3[name]
    with torch.device("meta"):
        model = create_model(name)
    for blocks in (model.encoder, model.decoder):
        assert len(blocks) == depth
        for block in blocks:
            assert block.norm1.weight.shape == (d_model,)
            assert block.mixer.attention.qkv.weight.shape == (3 * heads * 64, d_model)
            assert block.mixer.attention.num_heads == heads
            assert block.mlp.fc1.weight.shape == (d_ff, d_model)
            assert isinstance(block.mlp.act, nn.ReLU)
            assert not block.pre_norm
            assert block.drop[0].p == dropout
    assert model.drop.p == dropout
    assert model.embedding.weight.shape == (37000, d_model)
    assert sum(parameter.numel() for parameter in model.parameters()) == pytest.approx(parameters, rel=0.03)


@torch.no_grad()
def test_one_matrix_embeds_source_and_target_and_answers(model, tmp_path):
    model.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    assert [name for name, tensor in state.items() if SMALL["vocab_size"] in tensor.shape] == ["embedding.weight"]
    assert sum(tensor.numel() for tensor in state.values()) == sum(p.numel() for p in model.parameters())

    source, target = ids(1, 5), ids(1, 4)
    features = model.forward_features(source, target)
    torch.testing.assert_close(model(source, target), features @ model.embedding.weight.T)
    expected = model.embedding.weight[source] * math.sqrt(24) + model.positions[:5]
    torch.testing.assert_close(model.embed(source), expected)


def test_embeddings_start_at_size_one_and_weights_as_glorot_says():
    model = create_model("transformer-tiny", vocab_size=2000)
    assert (model.embedding.weight * math.sqrt(128)).std().item() == pytest.approx(1, abs=0.01)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            bound = math.sqrt(6 / (module.in_features + module.out_features))
            assert 0.95 * bound < module.weight.abs().max() <= bound
            assert not module.bias.any()


@pytest.mark.parametrize("norm", ["pre", "post"])
@torch.no_grad()
def test_encoder_and_decoder_end_normalised_whichever_norm(norm):
    model = create_model("transformer-tiny", **SMALL, norm=norm).eval()
    assert {block.pre_norm for block in [*model.encoder, *model.decoder]} == {norm == "pre"}
    for tokens in (model.encode(ids(3, 7)), model.forward_features(ids(3, 7), ids(3, 5))):
        torch.testing.assert_close(tokens.mean(-1), torch.zeros(tokens.shape[:2]), atol=1e-6, rtol=0)
        torch.testing.assert_close(tokens.std(-1, correction=0), torch.ones(tokens.shape[:2]), atol=1e-3, rtol=0)


@torch.no_grad()
def test_a_sentence_too_long_is_refused_wherever_it_comes_in(model):
    message = "a sentence of 17 tokens; this model takes 16"
    mask = torch.ones(1, 3, dtype=torch.bool)
    for run in (
        lambda: model(ids(1, 17), ids(1, 3)),
        lambda: model(ids(1, 3), ids(1, 17)),
        lambda: model.start(ids(1, 17), torch.ones(1, 17, dtype=torch.bool), 1, 1),
    ):
        with pytest.raises(GlocalError, match=message):
            run()
    state = model.start(ids(1, 3), mask, beams=1, max_new_tokens=20)
    for _ in range(16):
        model.step(ids(1), state)
    with pytest.raises(GlocalError, match=message):
        model.step(ids(1), state)


@torch.no_grad()
def test_loaded_for_longer_sentences_it_answers_the_same_and_takes_them(model, tmp_path):
    model.save_pretrained(tmp_path)
    longer = load_model(tmp_path, max_length=40).eval()
    source, target = ids(2, 16), ids(2, 16)
    assert torch.equal(longer(source, target), model(source, target))
    assert longer(ids(2, 40), ids(2, 40)).shape == (2, 40, 19)


def test_a_bias_of_the_logits_is_there_when_asked_for():
    model = wake(create_model("transformer-tiny", **SMALL, logit_bias=True)).eval()
    source, target = ids(1, 5), ids(1, 4)
    plain = model.forward_features(source, target) @ model.embedding.weight.T
    torch.testing.assert_close(model(source, target), plain + model.logit_bias)


def block(**fields):
    return BlockConfig(embed_dim=8, num_heads=2, **fields)


@pytest.mark.parametrize(
    ("encoder", "decoder", "message"),
    [
        (block(), block(cross=True), "causal=True and cross=True"),
        (block(), block(causal=True), "causal=True and cross=True"),
        (block(cross=True), block(causal=True, cross=True), "encoder.s cross=False"),
        (block(), BlockConfig(embed_dim=12, num_heads=2, causal=True, cross=True), "the same embed_dim"),
        (block(local_heads=1), block(causal=True, cross=True, local_heads=1), "set local_norm 'layer'"),
    ],
)
def test_blocks_that_are_no_encoder_and_decoder_are_refused(encoder, decoder, message):
    with pytest.raises(GlocalError, match=message):
        Transformer(TransformerConfig(encoder=(encoder,), decoder=(decoder,)))


def test_an_odd_width_is_refused():
    with pytest.raises(GlocalError, match="odd width 27"):
        create_model("transformer-tiny", **SMALL | {"embed_dim": 27})


def test_an_architecture_of_both_stacks_is_read_from_a_file(tmp_path):
    start = create_model("transformer-tiny", depth=2, vocab_size=20)
    encoder, decoder = (
        tuple(replace(block, mlp_ratio=ratio) for block in stack)
        for ratio, stack in ((1.0, start.config.encoder), (3.0, start.config.decoder))
    )
    save_arch(tmp_path / "arch.json", start.config, encoder + decoder)
    read = create_model("transformer-tiny", arch=tmp_path / "arch.json", vocab_size=20).config
    assert (read.encoder, read.decoder) == (encoder, decoder)
    with pytest.raises(GlocalError, match="is not an architecture"):
        create_model("gpt-tiny", arch=tmp_path / "arch.json")
    with pytest.raises(GlocalError, match="a model without blocks"):
        create_model("lstm-tiny", arch=tmp_path / "arch.json")
