"""Their networks with random weights, saved by their own hands, answer the same when this house loads them: 1e-5."""

import json

import numpy as np
import pytest
import timm
import torch
import transformers
from conftest import wake
from PIL import Image
from timm.models import save_for_hf

from glocal.errors import GlocalError
from glocal.export.exporter import export
from glocal.interop import timm as timm_layout
from glocal.interop import transformers as transformers_layout
from glocal.models import Baseline, ViT, ViTConfig, create_model, load_model
from glocal.models.config import configure
from glocal.models.loading import load_state
from glocal.tasks import ImageClassifier

SMALL = {"depth": 2, "num_classes": 6}
TIMM = {
    "ViT-Tiny": ("vit_tiny_patch16_224", SMALL | {"img_size": 48}),
    "ViT-Small/32, not square": ("vit_small_patch32_224", SMALL | {"img_size": (64, 96)}),
    "ViT-Base/8 of another width, grey": (
        "vit_base_patch8_224",
        SMALL | {"img_size": 16, "embed_dim": 60, "num_heads": 5, "mlp_ratio": 2.6, "in_chans": 1},
    ),
    "without bias of queries, keys and values; ReLU": (
        "vit_tiny_patch16_224",
        SMALL | {"img_size": 32, "qkv_bias": False, "act_layer": "relu"},
    ),
    "without positions": ("vit_tiny_patch16_224", SMALL | {"img_size": 32, "pos_embed": "none"}),
    "mean of the patches": (
        "vit_tiny_patch16_224",
        SMALL | {"img_size": 32, "global_pool": "avg", "class_token": False, "fc_norm": False},
    ),
    "DeiT-Tiny": ("deit_tiny_patch16_224", SMALL | {"img_size": 32}),
    "DeiT-Tiny, distilled": ("deit_tiny_distilled_patch16_224", SMALL | {"img_size": 32}),
}


def assert_close(actual, expected):
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


@pytest.fixture(params=TIMM)
def theirs(request):
    name, args = TIMM[request.param]
    return wake(timm.create_model(name, **args)).eval()


@torch.no_grad()
def test_timm(theirs, tmp_path):
    save_for_hf(theirs, tmp_path, safe_serialization=True)
    ours = ViT.from_pretrained(tmp_path).eval()
    images = torch.randn(2, ours.config.in_chans, *ours.config.image_size)
    assert_close(ours(images), theirs(images))
    assert_close(ours.forward_features(images), theirs.forward_features(images))


@torch.no_grad()
def test_timm_gets_its_own_back(theirs, tmp_path):
    save_for_hf(theirs, tmp_path, safe_serialization=True)
    config = timm_layout.config_from(json.loads((tmp_path / "config.json").read_text()))
    state = timm_layout.state_to(timm_layout.state_from(theirs.state_dict(), config), config)
    assert state.keys() == theirs.state_dict().keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in theirs.state_dict().items())


@torch.no_grad()
@pytest.mark.parametrize("size", [(48, 48), (48, 80), (16, 32)])
def test_timm_at_another_resolution(size, tmp_path):
    theirs = wake(timm.create_model("deit_tiny_distilled_patch16_224", **SMALL, img_size=(64, 48))).eval()
    save_for_hf(theirs, tmp_path, safe_serialization=True)
    theirs.set_input_size(img_size=size)
    ours = ViT.from_pretrained(tmp_path, image_size=size).eval()
    images = torch.randn(2, 3, *size)
    assert_close(ours(images), theirs(images))
    assert ours.preprocessing["image_size"] == size


@torch.no_grad()
def test_timm_reads_what_is_exported(tmp_path):
    for name, fields in [("vit-tiny", {}), ("deit-tiny-distilled", {}), ("vit-tiny", {"pool": "mean"})]:
        ours = wake(create_model(name, depth=2, image_size=(32, 48), num_classes=5, in_chans=1, **fields)).eval()
        ours.save_pretrained(tmp_path / "ours")
        export(tmp_path / "ours", tmp_path, "timm")
        theirs = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
        images = torch.randn(2, 1, 32, 48)
        assert_close(ours(images), theirs(images))


def test_timm_network_that_is_not_ours_stays_timms(tmp_path):
    for name, args in [
        ("resnet18", {"num_classes": 5}),
        ("vit_tiny_patch16_224", SMALL | {"img_size": 32, "global_pool": "avg"}),  # normalises after the pooling
        ("vit_tiny_patch16_224", SMALL | {"img_size": 32, "init_values": 0.1}),
        ("vit_tiny_patch16_224", SMALL | {"img_size": 32, "act_layer": "silu"}),
        ("vit_tiny_patch16_224", SMALL | {"img_size": 32, "final_norm": False}),
    ]:
        theirs = wake(timm.create_model(name, **args)).eval()
        save_for_hf(theirs, tmp_path, safe_serialization=True)
        ours = load_model(tmp_path).eval()
        assert isinstance(ours, Baseline)
        images = torch.randn(2, 3, 32, 32)
        torch.testing.assert_close(ours(images), theirs(images), atol=1e-5, rtol=0)  # ours lies channels last
        with pytest.raises(GlocalError, match="holds a timm model"):
            ViT.from_pretrained(tmp_path)


def test_timm_pickle_holds_tensors_or_is_refused(theirs, tmp_path):
    save_for_hf(theirs, tmp_path, safe_serialization=False)
    ours = ViT.from_pretrained(tmp_path)
    assert torch.equal(ours.norm.weight, theirs.norm.weight)
    torch.save({"norm.weight": theirs}, tmp_path / "pytorch_model.bin")
    with pytest.raises(GlocalError, match=r"pytorch_model\.bin"):
        ViT.from_pretrained(tmp_path)


def test_timm_older_config_is_flat():
    config = timm_layout.config_from(
        {"architecture": "vit_small_patch32_384", "num_classes": 7, "input_size": [3, 384, 384]}
    )
    assert config["model"] == "vit"
    assert config["config"]["image_size"] == [384, 384]
    assert config["config"]["blocks"][0]["embed_dim"] == 384
    assert config["config"]["num_classes"] == 7


SHAPE = {
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 100,
    "image_size": [32, 48],
    "patch_size": 16,
}
LABELS = {"id2label": dict(enumerate("abcde"))}
TRANSFORMERS = {
    "ViTForImageClassification": (transformers.ViTConfig, LABELS),
    "DeiTForImageClassification": (transformers.DeiTConfig, LABELS | {"hidden_act": "relu"}),
    "DeiTForImageClassificationWithTeacher": (transformers.DeiTConfig, LABELS | {"qkv_bias": False}),
    "ViTModel": (transformers.ViTConfig, {"num_channels": 1}),
    "DeiTModel": (transformers.DeiTConfig, {}),
}


@pytest.fixture(params=TRANSFORMERS)
def transformer(request):
    config, fields = TRANSFORMERS[request.param]
    return wake(getattr(transformers, request.param)(config(**SHAPE, **fields))).eval()


@torch.no_grad()
def test_transformers(transformer, tmp_path):
    transformer.save_pretrained(tmp_path)
    ours = ViT.from_pretrained(tmp_path).eval()
    images = torch.randn(2, ours.config.in_chans, 32, 48)
    expected = transformer(images)
    if type(transformer).__name__.endswith("Model"):
        assert_close(ours.forward_features(images), expected.last_hidden_state)
        assert (ours.config.num_classes, ours.labels) == (0, None)
    else:
        assert_close(ours(images), expected.logits)
        assert ours.labels == list("abcde")


@torch.no_grad()
def test_transformers_names_in_memory_are_read_too(transformer):
    """Version 5 has other names in memory than on disk; a checkpoint of a training loop may hold either."""
    config = transformers_layout.config_from(transformer.config.to_dict())
    state = transformers_layout.state_from(transformer.state_dict(), config)
    ours = ViT(configure(ViTConfig, config["config"])).eval()
    load_state(ours, state, ignore_keys=["head.*"])
    images = torch.randn(2, ours.config.in_chans, 32, 48)
    theirs = transformer.base_model(images).last_hidden_state
    assert_close(ours.forward_features(images), theirs)


@torch.no_grad()
@pytest.mark.parametrize("name", ["vit-tiny", "deit-tiny-distilled"])
def test_transformers_reads_what_is_exported(name, tmp_path):
    ours = wake(create_model(name, depth=2, image_size=(32, 48), num_classes=5)).eval()
    ours.save_pretrained(tmp_path / "ours")
    export(tmp_path / "ours", tmp_path, "transformers")
    kind = json.loads((tmp_path / "config.json").read_text())["architectures"][0]
    theirs, report = getattr(transformers, kind).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    images = torch.randn(2, 3, 32, 48)
    assert_close(ours(images), theirs.eval()(images).logits)


SQUASHED = {"image_processor_type": "ViTImageProcessor", "size": {"height": 32, "width": 32}, "resample": 2}
CROPPED = {
    "image_processor_type": "CLIPImageProcessor",
    "size": {"shortest_edge": 38},
    "resample": 3,
    "do_center_crop": True,
    "crop_size": {"height": 32, "width": 32},
}
PROCESSORS = {
    "squashed": SQUASHED,
    "sizes in whole numbers": SQUASHED | {"size": 32},
    "lanczos": SQUASHED | {"resample": 1},
    "not normalised": SQUASHED | {"do_normalize": False},
    "rescaled otherwise": SQUASHED | {"rescale_factor": 1 / 127.5},
    "not rescaled": SQUASHED | {"do_rescale": False, "image_mean": [100, 110, 120], "image_std": [50, 60, 70]},
    "shorter side, then cropped": CROPPED,
    "shorter side alone as a number": CROPPED | {"size": 36},
    "squashed, then cropped": CROPPED | {"image_processor_type": "DeiTImageProcessor", "size": 37, "crop_size": 32},
    "an old feature extractor": {"feature_extractor_type": "ViTFeatureExtractor", "size": 32, "resample": 3},
}


@pytest.mark.parametrize("name", PROCESSORS)
def test_an_image_processor_of_transformers_gives_their_pixels(name, tmp_path):
    """To rounding: Pillow and torchvision, which they use by turns, differ by one in 255, and by their ringing."""
    processor = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4]} | PROCESSORS[name]
    fields = SHAPE | {"image_size": 32, "patch_size": 8}
    transformers.ViTForImageClassification(transformers.ViTConfig(**fields, **LABELS)).save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    predictor = ImageClassifier(load_model(tmp_path), "cpu")
    theirs = transformers.AutoImageProcessor.from_pretrained(tmp_path)
    coarse = np.random.default_rng(0).integers(0, 255, (9, 12, 3), np.uint8)
    for size in ((32, 32), (80, 47), (41, 93)):
        image = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)
        expected = theirs(image, return_tensors="pt")["pixel_values"]
        level = (expected.max() - expected.min()) / 255
        assert (predictor.pixels([image]) - expected).abs().max() < 2.5 * level


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"resample": 9}, "resample 9"),
        ({"image_mean": [0.5]}, "image_mean .* expected 3 numbers"),
        ({"image_std": 0}, "image_std 0"),
        ({"size": {"longest_edge": 32}}, "size .* expected a number, height and width"),
        ({"do_center_crop": True, "do_resize": False}, "without do_resize"),
        ({"do_pad": True}, "do_pad"),
        ({"do_normalize": "no"}, "do_normalize 'no'"),
        ({"image_processor_type": "ConvNextImageProcessor"}, "'ConvNextImageProcessor'; ours are"),
        ({"image_processor_type": "CLIPImageProcessor", "resample": None}, "without do_center_crop, resample"),
    ],
)
def test_an_image_processor_that_ours_is_not_is_refused(fields, message, tmp_path):
    transformers.ViTForImageClassification(transformers.ViTConfig(**SHAPE, **LABELS)).save_pretrained(tmp_path)
    processor = SQUASHED | {"image_mean": [0.5] * 3, "image_std": [0.5] * 3} | fields
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    with pytest.raises(GlocalError, match=message):
        load_model(tmp_path)
