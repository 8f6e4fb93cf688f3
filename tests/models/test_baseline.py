"""timm's networks behind our interface."""

import pytest
import torch

from glocal.models import create_model

SWIN = {"image_size": (56, 112), "args": {"depths": [1, 1], "num_heads": [1, 2], "embed_dim": 16}}


@pytest.mark.parametrize(
    ("name", "fields", "chans_at"),
    [("timm:resnet18", {"image_size": (64, 96)}, 1), ("timm:swin_tiny_patch4_window7_224", SWIN, 3)],
)
@torch.no_grad()
def test_a_feature_map_becomes_tokens_row_by_row(name, fields, chans_at):
    model = create_model(name, num_classes=5, **fields).eval()
    images = torch.randn(1, 3, *fields["image_size"])
    tokens = model.forward_features(images)
    cells = model.net.forward_features(images).movedim(chans_at, -1)
    rows, columns, width = cells.shape[1:]
    assert rows < columns
    assert tokens.shape == (1, rows * columns, width)
    assert torch.equal(tokens[:, columns + 1], cells[:, 1, 1])


def test_the_head_is_timms_classifier_or_both_of_them():
    assert create_model("timm:resnet18", num_classes=5).head_names() == ["net.fc.weight", "net.fc.bias"]
    distilled = create_model("timm:deit_tiny_distilled_patch16_224", num_classes=5, args={"depth": 1})
    assert {name.split(".")[1] for name in distilled.head_names()} == {"head", "head_dist"}
    assert "net.pos_embed" in distilled.no_weight_decay()


def test_drop_path_and_image_size_reach_the_network():
    model = create_model("timm:vit_tiny_patch16_224", image_size=(32, 48), drop_path=0.2, args={"depth": 3})
    assert model.net.patch_embed.grid_size == (2, 3)
    assert model.net.blocks[2].drop_path1.drop_prob == pytest.approx(0.2)
