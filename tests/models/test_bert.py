"""What is BERT's own: its sizes, its four heads, what stays where the head is another, its limits."""

import pytest
import torch
from conftest import wake

from glocal.errors import GlocalError
from glocal.models import BERT, create_model, load_model

SMALL = {"vocab_size": 19, "max_length": 16, "embed_dim": 24, "num_heads": 3, "depth": 2}
HEADS = {"pretraining": {}, "classification": {"num_classes": 3}, "tagging": {"num_classes": 5}, "spans": {}}


def bert(head="pretraining", **fields):
    return wake(create_model("bert-tiny", **SMALL, head=head, **HEADS[head], **fields)).eval()


def ids(*shape):
    return torch.randint(1, SMALL["vocab_size"], shape)


# Devlin et al. 2018, section 3, and Turc et al. 2019, table 1: layers, width, heads, parameters of encoder and pooler
SIZES = {
    "bert-tiny": (2, 128, 2, 4.4e6),
    "bert-mini": (4, 256, 4, 11.2e6),
    "bert-small": (4, 512, 8, 28.8e6),
    "bert-medium": (8, 512, 8, 41.4e6),
    "bert-base": (12, 768, 12, 109.5e6),
    "bert-large": (24, 1024, 16, 335.1e6),
}


@pytest.mark.parametrize("name", SIZES)
def test_named_sizes_are_the_papers(name):
    depth, width, heads, parameters = SIZES[name]
    with torch.device("meta"):
        model = create_model(name)
    assert len(model.blocks) == depth
    for block in model.blocks:
        assert block.mixer.attention.num_heads == heads
        assert block.mixer.attention.qkv.weight.shape == (3 * width, width)
        assert block.mlp.fc1.weight.shape == (4 * width, width)
        assert (block.norm1.eps, block.drop[0].p, block.mixer.attention.dropout) == (1e-12, 0.1, 0.1)
        assert not block.pre_norm
    body = sum(
        p.numel() for name, p in model.named_parameters() if not name.startswith(("mlm_head.", "head.classifier."))
    )
    assert body == pytest.approx(parameters, rel=0.005)


@torch.no_grad()
def test_each_head_answers_its_question():
    text, mask, segment = ids(3, 7), torch.arange(7) < torch.tensor([[7], [4], [1]]), torch.arange(7).repeat(3, 1) % 2
    shapes = {"pretraining": (3, 7, 19), "classification": (3, 3), "tagging": (3, 7, 5), "spans": (3, 7, 2)}
    for head, shape in shapes.items():
        model = bert(head)
        answer = model(text, mask, segment)
        assert answer.shape == shape
        features = model.forward_features(text, mask, segment)
        expected = model.mlm_logits(features) if head == "pretraining" else model.head(features)
        torch.testing.assert_close(answer, expected.view(shape))


@torch.no_grad()
def test_words_are_asked_of_the_embeddings_and_of_chosen_tokens_alone():
    model, text = bert(), ids(2, 7)
    features, masked = model.forward_features(text), torch.rand(2, 7) > 0.5
    words = model.mlm_logits(features)
    torch.testing.assert_close(model.mlm_logits(features[masked]), words[masked])
    hidden = model.mlm_head.norm(torch.nn.functional.gelu(model.mlm_head.transform(features)))
    torch.testing.assert_close(words, hidden @ model.embedding.weight.T + model.mlm_head.bias)
    assert [name for name, tensor in model.state_dict().items() if 19 in tensor.shape] == [
        "embedding.weight",
        "mlm_head.bias",
    ]


def test_both_objectives_together_reach_every_parameter():
    model = bert().train()
    features = model.forward_features(ids(3, 7), None, torch.arange(7).repeat(3, 1) % 2)
    assert model.nsp_logits(features).shape == (3, 2)
    (model.mlm_logits(features).square().sum() + model.nsp_logits(features).square().sum()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


@torch.no_grad()
def test_segments_and_places_are_told_apart():
    model, text = bert(), ids(1, 6)
    assert torch.equal(model(text), model(text, None, torch.zeros_like(text)))
    for other in (model(text, None, torch.ones_like(text)), model(text.flip(1)).flip(1)):
        assert not torch.allclose(model(text), other, atol=1e-3)


@pytest.mark.parametrize("norm", ["pre", "post"])
@torch.no_grad()
def test_it_ends_normalised_whichever_norm(norm):
    tokens = create_model("bert-tiny", **SMALL, norm=norm).eval().forward_features(ids(3, 7))
    torch.testing.assert_close(tokens.mean(-1), torch.zeros(3, 7), atol=1e-6, rtol=0)
    torch.testing.assert_close(tokens.std(-1, correction=0), torch.ones(3, 7), atol=1e-3, rtol=0)


def test_it_starts_as_the_authors_code_does():
    model = create_model("bert-tiny")
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            assert parameter.abs().max() <= 0.04
            assert parameter.std().item() == pytest.approx(0.0176, rel=0.15), name  # of a normal cut at 2σ: 0.88 σ
        elif not name.endswith("weight"):
            assert not parameter.any(), name


@pytest.mark.parametrize("before", HEADS)
@pytest.mark.parametrize("after", HEADS)
def test_another_head_keeps_the_encoder_and_a_pooler_that_both_have(before, after, tmp_path):
    model = bert(before)
    model.labels = list("abcde")[: HEADS[before].get("num_classes", 2)]
    model.save_pretrained(tmp_path)
    loaded = load_model(tmp_path, head=after, num_classes=HEADS[after].get("num_classes", 2))
    assert loaded.labels == (model.labels if before == after else None)
    own, given = loaded.state_dict(), model.state_dict()
    kept = {name for name in own.keys() & given.keys() if torch.equal(own[name], given[name])}
    answers = {name for name in own if name.startswith(("mlm_head.", "head.classifier."))}
    pooler = {"head.pooler.weight", "head.pooler.bias"} & own.keys()
    if before == after:
        assert kept == own.keys()
    elif "head.pooler.bias" in given:
        assert kept == own.keys() - answers
    else:
        assert kept == own.keys() - answers - pooler


def test_words_without_a_next_sentence_are_read_and_nothing_else_may_be_missing(tmp_path):
    model = bert()
    state = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("head.")}
    model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(state, tmp_path / "pytorch_model.bin")
    text = ids(2, 5)
    assert torch.equal(load_model(tmp_path).eval()(text), model(text))
    torch.save({n: t for n, t in state.items() if not n.startswith("mlm_head.norm.")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(
        GlocalError,
        match=r"- mlm_head\.norm\.bias, - mlm_head\.norm\.weight; name the weights to leave out by ignore_keys",
    ):
        load_model(tmp_path)
    assert isinstance(load_model(tmp_path, head="spans"), BERT)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_classes": 3}, "num_classes 3 of a head for pretraining, which has 2"),
        ({"num_classes": 3, "head": "spans"}, "'classification' or 'tagging'"),
        ({"head": "regression"}, "'pretraining' or 'classification' or 'tagging' or 'spans'"),
        ({"causal": True}, "causal=False, cross=False"),
        ({"cross": True}, "causal=False, cross=False"),
    ],
)
def test_what_is_no_bert_is_refused(fields, message):
    with pytest.raises(GlocalError, match=message):
        create_model("bert-tiny", **SMALL, **fields)


@torch.no_grad()
def test_what_it_cannot_do_is_refused():
    with pytest.raises(GlocalError, match="a text of 17 tokens; this BERT has learned 16 positions"):
        bert()(ids(1, 17))
    with pytest.raises(GlocalError, match="a head for spans predicts no words"):
        bert("spans").mlm_logits(torch.randn(1, 3, 24))
