import pytest
import timm
import torch

from glocal.inference import count
from glocal.models import create_model

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
