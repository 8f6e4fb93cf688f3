import pytest
import timm
import torch

from glocal.models import create_model
from glocal.models.cost import count

PUBLISHED = {  # parameters in millions, MACs in thousands of millions, as timm and the papers print them
    "deit-tiny": (5.7, 1.3),
    "deit-small": (22.1, 4.6),
    "vit-base": (86.6, 17.6),
    "vit-base-32": (88.2, 4.4),
    "timm:resnet18": (11.7, 1.8),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_costs_are_those_that_were_published(name):
    with torch.device("meta"):
        model = create_model(name)
    cost = count(model, (224, 224))
    assert (round(cost.parameters / 1e6, 1), round(cost.macs / 1e9, 1)) == PUBLISHED[name]


def test_every_part_costs_what_it_costs_in_timm():
    with torch.device("meta"):
        ours, theirs = create_model("deit-tiny"), timm.create_model("deit_tiny_patch16_224")
    assert (
        count(ours, (224, 224))
        == count(theirs, (224, 224))
        == count(create_model("timm:deit_tiny_patch16_224"), (224, 224))
    )


def test_a_block_by_hand(tiny_vit):
    cost = count(tiny_vit, (32, 32))
    dim, tokens = 24, 17
    macs = {(row.name, row.part): row.macs for row in cost.rows}
    assert macs["embedding", ""] == 16 * (8 * 8 * 3) * dim
    assert macs["block 1", "mixer"] == tokens * 4 * dim**2 + 2 * tokens**2 * dim
    assert macs["block 1", "mlp"] == tokens * 8 * dim**2
    assert cost.parameters == sum(p.numel() for p in tiny_vit.parameters())


def test_counting_leaves_the_model_as_it_was():
    model = create_model("timm:resnet18", num_classes=3).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    count(model, (64, 64))
    assert model.training
    assert all(tensor.equal(before[name]) for name, tensor in model.state_dict().items())


def test_a_decoder_block_by_hand():
    with torch.device("meta"):
        cost = count(create_model("transformer-base"), 25)
    macs = {(row.name, row.part): row.macs for row in cost.rows}
    assert macs["decoder 0", "mixer"] == macs["decoder 0", "cross"] == 25 * 4 * 512**2 + 2 * 25**2 * 512
    assert macs["encoder 5", "mlp"] == 25 * 2 * 512 * 2048
    assert macs["head", ""] == 25 * 512 * 37000
    assert cost.example == "25 tokens and 25 of their translation"


def test_an_lstm_uses_each_weight_once_a_token():
    model = create_model("lstm-tiny", vocab_size=50)
    macs = {row.name: row.macs for row in count(model, 7).rows}
    for name in ("encoder", "decoder"):
        assert macs[name] == 7 * sum(w.numel() for w in getattr(model, name).parameters() if w.ndim == 2)


def test_a_bert_by_hand():
    with torch.device("meta"):
        words = count(create_model("bert-base"), 128)
        classes = count(create_model("bert-base", head="classification", num_classes=3), 128)
    macs = {(row.name, row.part): row.macs for row in words.rows}
    for cost in (words, classes):
        block = {row.part: row.macs for row in cost.rows if row.name == "block 11"}
        assert block == {"mixer": 128 * 4 * 768**2 + 2 * 128**2 * 768, "mlp": 128 * 8 * 768**2}
        assert [row.name for row in cost.rows if not row.part] == ["embedding", "head"]
    assert macs["head", ""] == 128 * 768 * (768 + 30522)
    assert classes.rows[-1].macs == 768 * (768 + 3)
    assert words.example == "128 tokens"


def test_a_gpt_by_hand():
    with torch.device("meta"):
        model = create_model("gpt2")
        cost = count(model, 64)
    macs = {(row.name, row.part): row.macs for row in cost.rows}
    assert macs["block 0", "mixer"] == 64 * 4 * 768**2 + 2 * 64**2 * 768
    assert macs["head", ""] == 64 * 768 * 50257
    assert cost.parameters == sum(p.numel() for p in model.parameters())


def test_local_heads_of_a_gpt_by_hand():
    """A window costs W keys a token, or as many as there are; a convolution its three products."""
    tokens, width, window = 60, 64, 16
    half, windows = (
        create_model(f"gpt-tiny-{kind}", vocab_size=5, pad_id=0, bos_id=0, eos_id=0) for kind in ("half", "windows")
    )
    mixer = {row.name: row.macs for row in count(half, tokens).rows if row.part == "mixer"}
    convolution = tokens * (2 * width * width + 7 * width + width * width)
    assert mixer["block 0"] == tokens * 4 * width**2 + 2 * tokens**2 * width + convolution
    mixer = {row.name: row.macs for row in count(windows, tokens).rows if row.part == "mixer"}
    assert mixer["block 0"] == tokens * 4 * 128**2 + 2 * tokens * window * 128
    assert mixer["block 3"] == tokens * 4 * 128**2 + 2 * tokens**2 * 128
    short = {row.name: row.macs for row in count(windows, 9).rows if row.part == "mixer"}
    assert short["block 0"] == short["block 3"] == 9 * 4 * 128**2 + 2 * 9**2 * 128
