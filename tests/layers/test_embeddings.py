import pytest
import torch
from timm.layers import resample_abs_pos_embed
from torch.nn import functional as F

from glocal.errors import GlocalError
from glocal.layers.embeddings import ConvStem, PatchEmbedding
from glocal.layers.positions import resize_positions


@pytest.mark.parametrize("patch_size", [1, 2, 4])
def test_patch_embedding_is_a_convolution_of_stride_p(patch_size):
    embedding = PatchEmbedding(3, patch_size, 10)
    images = torch.randn(2, 3, 8, 12)
    kernel = embedding.proj.weight.unflatten(1, (3, patch_size, patch_size))
    expected = F.conv2d(images, kernel, embedding.proj.bias, stride=patch_size).flatten(2).mT
    torch.testing.assert_close(embedding(images), expected)


def test_patches_come_row_by_row_and_channel_by_channel():
    embedding = PatchEmbedding(2, 2, 8)
    torch.nn.init.eye_(embedding.proj.weight)
    torch.nn.init.zeros_(embedding.proj.bias)
    images = torch.arange(2 * 4 * 6.0).reshape(1, 2, 4, 6)
    patches = embedding(images)[0]
    assert patches[1].tolist() == images[0, :, :2, 2:4].flatten().tolist()
    assert patches[3].tolist() == images[0, :, 2:, :2].flatten().tolist()


@pytest.mark.parametrize("stride", [2, 4, 8, 16])
def test_conv_stem_spans_its_stride(stride):
    stem = ConvStem(3, 32, stride)
    assert stem(torch.randn(2, 3, 32, 48)).shape == (2, 32, 32 // stride, 48 // stride)


@pytest.mark.parametrize("stride", [1, 3, 12])
def test_conv_stem_refuses_what_is_no_power_of_two(stride):
    with pytest.raises(GlocalError, match=f"power of two, not {stride}"):
        ConvStem(3, 32, stride)


@pytest.mark.parametrize("prefix", [0, 1, 2])
@pytest.mark.parametrize(("grid", "size"), [((14, 14), (24, 24)), ((7, 7), (5, 9)), ((3, 8), (7, 2)), ((1, 5), (5, 1))])
def test_positions_are_resized_as_timm_does(grid, size, prefix):
    positions = torch.randn(1, prefix + grid[0] * grid[1], 6)
    ours = resize_positions(positions, grid, size, prefix)
    theirs = resample_abs_pos_embed(positions, list(size), list(grid), num_prefix_tokens=prefix)
    torch.testing.assert_close(ours, theirs)
    assert torch.equal(ours[:, :prefix], positions[:, :prefix])


def test_positions_of_the_same_grid_are_untouched():
    positions = torch.randn(1, 1 + 6, 4)
    assert resize_positions(positions, (2, 3), (2, 3), 1) is positions


def test_positions_keep_their_precision():
    assert resize_positions(torch.randn(1, 4, 4).bfloat16(), (2, 2), (3, 3), 0).dtype == torch.bfloat16
