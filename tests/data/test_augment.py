"""The published recipe is timm's, its parts work on every image, and contradictions are refused."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser
from PIL import Image
from timm.data.auto_augment import RandAugment
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import RandomResizedCropAndInterpolation
from torchvision.transforms import Compose, InterpolationMode, Normalize, RandomCrop, RandomHorizontalFlip, ToTensor

from glocal.data import DEIT, LIGHT, AugmentConfig, DataConfig, Preprocessing, eval_transform
from glocal.data.augment import mixing, seed_generators, train_transform
from glocal.errors import GlocalError

SMALL = Preprocessing.of(DataConfig(image_size=32))


def parts(config: AugmentConfig, preprocessing: Preprocessing = SMALL) -> dict[type, object]:
    return {type(part): part for part in train_transform(preprocessing, config).transforms}


def test_deit_is_the_published_recipe():
    found = parts(DEIT, Preprocessing.of(DataConfig(image_size=224)))
    crop, policy, erasing = (found[kind] for kind in (RandomResizedCropAndInterpolation, RandAugment, RandomErasing))
    assert (crop.scale, crop.interpolation) == ((0.08, 1.0), InterpolationMode.BICUBIC)
    assert found[RandomHorizontalFlip].p == 0.5
    assert (policy.num_layers, policy.ops[0].magnitude, policy.ops[0].magnitude_std) == (2, 9, 0.5)
    assert "ShearX" in {operation.name for operation in policy.ops}
    assert "PosterizeIncreasing" in {operation.name for operation in policy.ops}
    assert (erasing.probability, erasing.per_pixel) == (0.25, True)
    mix = mixing(DEIT, 1000).args[0]
    assert (mix.mixup_alpha, mix.cutmix_alpha, mix.mix_prob, mix.switch_prob) == (0.8, 1.0, 1.0, 0.5)
    assert DEIT.repeats == 3


def test_light_is_pad_crop_and_flip():
    found = parts(LIGHT)
    assert (found[RandomCrop].size, found[RandomCrop].padding) == ((32, 32), (4, 4))
    assert RandomHorizontalFlip in found
    assert RandomHorizontalFlip not in parts(replace(LIGHT, flip=0.0))


def test_no_augmentation_is_evaluation():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 40, 3), dtype=np.uint8))
    assert torch.equal(train_transform(SMALL, AugmentConfig())(image), eval_transform(SMALL)(image))


@pytest.mark.parametrize("channels", [1, 3])
def test_scaled_and_normalised_as_torchvision_does_to_the_bit(channels):
    preprocessing = Preprocessing.of(DataConfig(image_size=16, channels=channels))
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3)[: 2 + channels // 3], dtype=np.uint8)
    theirs = Compose([ToTensor(), Normalize(preprocessing.mean, preprocessing.std)])
    image = Image.fromarray(pixels)
    assert torch.equal(eval_transform(preprocessing)(image), theirs(image))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("policy", ["rand-m9-mstd0.5-inc1", "rand-m0-n4-p1.0", "augmix-m5-w4-d2", "original-mstd0.5"])
def test_policies_work_on_colour_and_grey(channels, policy):
    preprocessing = Preprocessing.of(DataConfig(image_size=16, channels=channels))
    transform = train_transform(preprocessing, AugmentConfig(crop="pad", auto_augment=policy))
    image = Image.new("RGB" if channels == 3 else "L", (16, 16), "gray")
    for position in range(150):
        seed_generators(0, 0, position)
        assert transform(image).shape == (channels, 16, 16)


def test_one_key_one_augmentation():
    transform = train_transform(SMALL, DEIT)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 40, 3), dtype=np.uint8))

    def draw(*key):
        seed_generators(*key)
        return transform(image)

    assert torch.equal(draw(0, 1, 2), draw(0, 1, 2))
    for other in ((0, 2, 1), (1, 0, 2), (0, 1, 3), (0, 12), (0, 1, 2, "mix")):
        assert not torch.equal(draw(0, 1, 2), draw(*other))


@pytest.mark.parametrize(
    "fields",
    [
        {"auto_augment": "rand-m9", "color_jitter": 0.3},
        {"flip": 1.5},
        {"random_erasing": -0.1},
        {"mixup": -1.0},
        {"repeats": 0},
        {"crop": (0.5, 0.2)},
    ],
)
def test_contradictions_are_refused(fields):
    with pytest.raises(GlocalError, match=r"augment\.\w+ .*; "):
        AugmentConfig(**fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"image_size": 0},
        {"crop_pct": 0.0},
        {"mean": (0.5,)},
        {"std": (1.0, 1.0, 0.0)},
        {"val_fraction": 0.5, "test_fraction": 0.5},
        {"val_fraction": -0.1},
        {"workers": -1},
    ],
)
def test_impossible_data_is_refused(fields):
    with pytest.raises(GlocalError, match=r"data\.\w+ .*; "):
        DataConfig(**fields)


def test_unknown_policy():
    with pytest.raises(GlocalError, match="'strong' is not a policy of timm"):
        train_transform(SMALL, AugmentConfig(auto_augment="strong"))


def test_preprocessing_survives_json():
    stored = Preprocessing.of(DataConfig(image_size=(16, 24), channels=1, crop_pct=0.9))
    assert Preprocessing.from_dict(json.loads(json.dumps(asdict(stored)))) == stored
    with pytest.raises(GlocalError, match="no usable preprocessing"):
        Preprocessing.from_dict({"image_size": [8, 8]})


def test_configs_are_read_from_recipes_and_command_lines():
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--data", type=DataConfig)
    for config in (DataConfig(), DataConfig(image_size=(16, 24), mean=(0.5,) * 3, augment=DEIT)):
        fields = json.loads(json.dumps(asdict(config)))
        assert parser.instantiate(parser.parse_object({"data": fields})).data == config
    words = ["--data.image_size=32", "--data.augment.crop=[0.2, 1.0]", "--data.augment.mixup=0.8"]
    data = parser.instantiate(parser.parse_args(words)).data
    assert data == DataConfig(image_size=32, augment=AugmentConfig(crop=(0.2, 1.0), mixup=0.8))
