import numpy as np
import pytest
import torch
from conftest import TINY, wake

from glocal.errors import GlocalError
from glocal.explain import attention_weights, patch_map, rollout
from glocal.models import create_model
from glocal.tasks import ImageClassifier, explain


@pytest.fixture
def wide_vit():
    """Two rows and four columns of patches."""
    return wake(create_model("vit-tiny", **TINY | {"image_size": (16, 32)})).eval()


def test_weights_are_those_that_the_forward_pass_uses(tiny_vit):
    seen = []
    mixer = tiny_vit.blocks[1].mixer.attention
    hook = mixer.register_forward_hook(lambda module, args, output: seen.append((args[0], output)))
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        weights = attention_weights(tiny_vit, images, layers=[-1])["blocks"]
        hook.remove()
        x, output = seen[0]
        _, _, v = mixer.project(x, None)
        torch.testing.assert_close(mixer.proj((weights[0] @ v).transpose(1, 2).flatten(2)), output)


def test_rows_sum_to_one_in_every_layer(tiny_vit):
    with torch.no_grad():
        weights = attention_weights(tiny_vit, torch.randn(2, 3, 32, 32))["blocks"]
    assert weights.shape == (2, 2, 3, 17, 17)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 2, 3, 17))


def test_looking_changes_no_answer_and_leaves_no_hook(tiny_vit):
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        before = tiny_vit(images)
        attention_weights(tiny_vit, images)
        assert tiny_vit(images).equal(before)
    assert not any(module._forward_pre_hooks for module in tiny_vit.modules())


def test_rollout_by_hand():
    first = torch.tensor([[1.0, 0.0], [0.5, 0.5]])
    second = torch.tensor([[0.0, 1.0], [0.0, 1.0]])
    # ½A + ½I: [[1, 0], [¼, ¾]] and [[½, ½], [0, 1]]; the second times the first:
    expected = torch.tensor([[[0.625, 0.375], [0.25, 0.75]]])
    torch.testing.assert_close(rollout(torch.stack([first, second])[:, None, None]), expected)


def test_rollout_averages_heads_and_keeps_rows_at_one():
    weights = torch.randn(4, 2, 3, 5, 5).softmax(-1)
    total = rollout(weights)
    torch.testing.assert_close(total.sum(-1), torch.ones(2, 5))
    torch.testing.assert_close(total, rollout(weights.mean(2, keepdim=True)))


@pytest.mark.parametrize(("extra", "prefix"), [({}, 1), ({"distilled": True}, 2), ({"pool": "mean"}, 0)])
def test_a_map_lies_as_the_patches_lie(extra, prefix):
    model = create_model("vit-tiny", **TINY | {"image_size": (16, 32)} | extra)
    weights = torch.zeros(prefix + 8, prefix + 8)
    weights[0, prefix + 5] = 1.0  # the second row's second patch
    expected = torch.zeros(2, 4)
    expected[1, 1] = 1.0 if prefix else 1 / 8  # without a class token, the mean over all eight
    assert patch_map(model, weights).equal(expected)


def test_explanation_of_an_image_that_is_not_square(wide_vit):
    wide_vit.preprocessing = {"image_size": (16, 32), "channels": 3, "mean": (0.5,) * 3, "std": (0.5,) * 3}
    image = (torch.rand(16, 32, 3) * 255).byte().numpy()
    seen = explain(ImageClassifier(wide_vit, "cpu"), image)
    assert seen.heads.shape == (2, 3, 2, 4)
    assert seen.rollout.shape == (2, 4)
    assert len(seen.probabilities) == 5
    torch.testing.assert_close(torch.tensor(seen.image), torch.tensor(image) / 255)


def test_a_network_without_attention_is_named():
    with pytest.raises(GlocalError, match="Baseline has no attention"):
        attention_weights(create_model("timm:resnet18", num_classes=2), torch.zeros(1, 3, 32, 32))


@pytest.mark.parametrize("local", ["conv1d", "conv2d", "window"])
def test_local_heads_are_shown_beside_global_ones(local):
    blocks = [
        {"embed_dim": 24, "num_heads": 3, "local_heads": heads, "local": local, "kernel_size": 3} for heads in (0, 2, 3)
    ]
    model = create_model("glit-tiny", image_size=32, patch_size=8, num_classes=2, blocks=blocks).eval()
    model.preprocessing = {"image_size": (32, 32), "channels": 3, "mean": (0.5,) * 3, "std": (0.5,) * 3}
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        weights = attention_weights(model, images)["blocks"]
    assert weights.shape == (3, 2, 3, 17, 17)
    torch.testing.assert_close(weights.sum(-1), torch.ones(3, 2, 3, 17))
    far = torch.ones(17, 17).triu(6).bool()  # beyond a neighbour in any direction of a grid of 4 × 4
    assert weights[0, ..., far].gt(0).all()
    assert weights[1, :, 0, far].gt(0).all()
    assert weights[1, :, 1:, far].eq(0).all()
    assert weights[2, ..., far].eq(0).all()
    seen = explain(ImageClassifier(model, "cpu"), np.zeros((32, 32, 3), dtype=np.uint8))
    assert seen.local_heads == [0, 2, 3]
    assert seen.heads.shape == (3, 3, 4, 4)
    assert seen.rollout.shape == (4, 4)


def test_a_layer_that_is_not_there_is_named(tiny_vit):
    with pytest.raises(GlocalError, match="layer 2; this model has layers 0 to 1"):
        attention_weights(tiny_vit, torch.zeros(1, 3, 32, 32), layers=[2])
