"""A path within a supernet, and cut out of it."""

import random
from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch import nn

from glocal.layers.block import uniform_blocks
from glocal.models import GLiT, ViTConfig
from glocal.search.budget import random_path
from glocal.search.space import SpaceConfig, details_space, full_space, heads_space
from glocal.search.supernet import Supernet

START = uniform_blocks(3, drop_path=0.2, embed_dim=12, num_heads=3, kernel_size=3)
CONFIG = ViTConfig(image_size=(16, 16), num_classes=4, patch_size=4, blocks=START)
SPACE = full_space(
    START, SpaceConfig(kernel_size=(3, 5), expand_ratio=(1, 2), qkv_ratio=(0.5, 1.0, 2.0), mlp_ratio=(1.0, 2.0))
)


def waken(supernet):
    """No weight is where it was drawn, nor any statistic of BatchNorm."""
    for tensor in [*supernet.parameters(), *supernet.buffers()]:
        if tensor.is_floating_point():
            nn.init.uniform_(tensor, 0.2, 0.4)
            tensor.data *= torch.randint(0, 2, tensor.shape) * 2 - 1 if tensor.requires_grad else 1
    return supernet


@pytest.mark.parametrize("sharing", ["entangled", "separate"])
@pytest.mark.parametrize("local", ["conv1d", "conv2d", "window"])
@pytest.mark.parametrize("training", [False, True])
def test_any_path_cut_out_answers_and_learns_as_within(sharing, local, training):
    space = tuple(tuple(replace(option, local=local, drop_path=0.0) for option in options) for options in SPACE)
    supernet, images = waken(Supernet(GLiT(CONFIG), space, sharing)).train(training), torch.randn(6, 3, 16, 16)
    for seed in range(12):
        path = random_path(space, random.Random(seed))
        model = supernet.extract_subnet(path)
        assert model.config.blocks == path
        expected, answer = model.forward_classifiers(images), supernet.subnet(path).forward_classifiers(images)
        torch.testing.assert_close(answer, expected, atol=1e-5, rtol=0)
        supernet.zero_grad()
        answer.square().sum().backward()
        expected.square().sum().backward()
        moved = sum((p.grad.square().sum() for p in supernet.parameters() if p.grad is not None), torch.zeros(()))
        torch.testing.assert_close(moved, sum(p.grad.square().sum() for p in model.parameters()), rtol=1e-3, atol=1e-6)


def test_entangled_weights_are_no_more_than_the_largest_paths_and_shared():
    entangled, separate = (Supernet(GLiT(CONFIG), SPACE, sharing) for sharing in ("entangled", "separate"))
    count = [sum(p.numel() for p in net.parameters()) for net in (entangled, separate)]
    assert count[0] < count[1] / 5
    large = SPACE[0][-1]
    assert large.local_heads == 3
    store = entangled.blocks[0]
    for option in SPACE[0]:
        for name, tensor in store.weights(option).items():
            if tensor.is_floating_point() and "mixer" not in name:
                assert tensor.data_ptr() == store.weights(large)[name].data_ptr()  # first rows of one and the same


def test_a_stage_offers_what_it_searches():
    first = heads_space(START)
    assert [[option.local_heads for option in options] for options in first] == [[0, 1, 2, 3]] * 3
    config = SpaceConfig()
    sizes = [len(options) for options in details_space((first[0][0], first[0][1], first[0][3]), config)]
    assert sizes == [9, 81, 27]  # d_k, d_z; all four; K, E, d_z
    everything = full_space(START, config)
    assert len(set(everything[0])) == 9 + 81 + 81 + 27
    assert Counter(option.local_heads for option in everything[0]) == dict.fromkeys(range(4), 81)  # each G as likely
    assert {option.drop_path for option in everything[2]} == {0.2}
