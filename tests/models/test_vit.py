"""What is ViT's own: its prefix tokens, its positions, its stems."""

import pytest
import torch
from conftest import TINY, wake

from glocal.errors import GlocalError
from glocal.models import StemConfig, create_model
from glocal.models.loading import load_state


def shuffled(images, patch_size):
    """Return the images with their patches in another order, the same for all."""
    columns = images.unfold(2, patch_size, patch_size).unfold(3, patch_size, patch_size)  # (B, C, rows, cols, P, P)
    rows, cols = columns.shape[2:4]
    patches = columns.flatten(2, 3)[:, :, torch.randperm(rows * cols)].unflatten(2, (rows, cols))
    return patches.permute(0, 1, 2, 4, 3, 5).reshape(images.shape)


@pytest.mark.parametrize("pool", ["token", "mean"])
@torch.no_grad()
def test_without_positions_shuffled_patches_are_the_same_image(pool):
    images = torch.randn(2, 3, 32, 32)
    other = shuffled(images, TINY["patch_size"])
    assert not torch.equal(images, other)
    for positions in (False, True):
        model = create_model("vit-tiny", **TINY, pool=pool, positions=positions).eval()
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
        assert torch.allclose(model(images), model(other), atol=1e-5) != positions


def test_tokens_are_prefix_and_patches():
    for fields, prefix in [({}, 1), ({"distilled": True}, 2), ({"pool": "mean"}, 0)]:
        model = create_model("vit-tiny", **TINY | {"image_size": (16, 40)}, **fields)
        assert model.forward_features(torch.randn(2, 3, 16, 40)).shape == (2, prefix + 2 * 5, 24)


@torch.no_grad()
def test_a_distilled_model_answers_with_the_mean_of_its_heads():
    model = wake(create_model("deit-tiny-distilled", **TINY)).eval()
    images = torch.randn(2, 3, 32, 32)
    heads = model.forward_classifiers(images)
    assert heads.shape == (2, 2, 5)
    assert not torch.allclose(heads[:, 0], heads[:, 1])
    torch.testing.assert_close(model(images), heads.mean(dim=1))
    tokens = model.forward_features(images)
    torch.testing.assert_close(heads[:, 1], model.head.distillation(tokens[:, 1]))


@pytest.mark.parametrize("pool", ["token", "mean"])
def test_the_logits_are_the_heads_of_all_tokens_though_the_last_block_skips_some(pool):
    model = wake(create_model("vit-tiny", **TINY, pool=pool)).eval()
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(model.forward_classifiers(images), model.head(model.forward_features(images)))


def test_training_starts_undecided():
    model = create_model("vit-tiny", **TINY)
    assert not model(torch.randn(2, 3, 32, 32)).any()
    assert model.no_weight_decay() <= {name for name, _ in model.named_parameters()}


@pytest.mark.parametrize(
    ("stem", "patch_size", "grid"),
    [
        ({"kind": "conv", "stride": 4}, 2, (4, 8)),
        (StemConfig("conv", stride=8), 1, (4, 8)),
        ({"kind": "timm", "name": "resnet18"}, 1, (1, 2)),
    ],
)
def test_stems_give_the_grid_that_positions_expect(stem, patch_size, grid):
    fields = TINY | {"image_size": (32, 64), "patch_size": patch_size, "stem": stem}
    model = wake(create_model("vit-tiny", **fields))
    assert model.grid == grid
    tokens = model.forward_features(torch.randn(2, 3, 32, 64))
    assert tokens.shape == (2, 1 + grid[0] * grid[1], 24)
    tokens.sum().backward()
    assert all(parameter.grad is not None for parameter in model.stem.parameters())


def test_a_hybrid_is_loaded_at_another_resolution(tmp_path):
    fields = TINY | {"stem": {"kind": "conv", "stride": 4}, "patch_size": 2}
    model = wake(create_model("vit-tiny", **fields))
    model.save_pretrained(tmp_path)
    larger = type(model).from_pretrained(tmp_path, image_size=(48, 64))
    assert larger(torch.randn(1, 3, 48, 64)).shape == (1, 5)


def test_sizes_that_patches_do_not_divide_are_refused():
    with pytest.raises(GlocalError, match="image size 30×32 is not divisible by patches of 8 pixels; use 32×32"):
        create_model("vit-tiny", **TINY | {"image_size": (30, 32)})


@pytest.mark.parametrize("shape", [(2, 3, 40, 32), (2, 1, 32, 32), (2, 3, 16, 64)])
def test_an_image_of_another_shape_is_refused(tiny_vit, shape):
    with pytest.raises(GlocalError, match="3×32×32"):
        tiny_vit(torch.randn(shape))


def test_load_state_ignores_keys_by_pattern(tiny_vit):
    state = {name: tensor for name, tensor in tiny_vit.state_dict().items() if not name.startswith("blocks.1.")}
    with pytest.raises(GlocalError, match=r"- blocks\.1\.mixer\.attention\.proj\.bias"):
        load_state(tiny_vit, state)
    load_state(tiny_vit, state, ignore_keys=["blocks.1.*"])
