import resource

import numpy as np
import pytest
import torch

from glocal.errors import GlocalError
from glocal.models import create_model, list_models, load_model, loading
from glocal.models.loading import meta_device

DEEP = ("vit-tiny", "glit-tiny", "transformer-tiny", "lstm-tiny", "bert-tiny", "gpt-tiny")


def test_list_models_takes_a_pattern():
    assert "vit-base" in list_models()
    assert list_models("deit-*-distilled") == ["deit-tiny-distilled", "deit-small-distilled", "deit-base-distilled"]


def test_overrides_reach_the_config_and_every_block():
    model = create_model(
        "deit-tiny", num_classes=10, image_size=[32, 48], depth=3, drop_path=0.1, mlp_ratio=2.0, patch_size=16
    )
    config = model.config
    assert (config.num_classes, config.image_size, config.patch_size) == (10, (32, 48), 16)
    assert [block.drop_path for block in config.blocks] == pytest.approx([0, 0.05, 0.1])
    assert {block.mlp_ratio for block in config.blocks} == {2.0}
    assert {block.embed_dim for block in config.blocks} == {192}
    assert create_model("vit-tiny", depth=1, image_size=64).config.image_size == (64, 64)


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("vit-tinny", {}, "vit-tiny"),
        ("timm:resnet81", {}, "resnet18"),
        ("hub:resnet18", {}, "unknown model"),
        ("vit-tiny", {"num_class": 10}, "num_classes"),
        ("vit-tiny", {"drop_paths": 0.1}, "drop_path"),
        ("timm:resnet18", {"embed_dim": 10}, "embed_dim"),
        ("vit-tiny", {"pool": "avg"}, "'token' or 'mean'"),
        ("vit-tiny", {"pool": np.zeros((2, 2))}, "'token' or 'mean'"),
        ("vit-tiny", {"activation": "swish"}, "'gelu' or 'gelu_tanh' or 'relu' or 'silu'"),
        ("vit-tiny", {"embed_dim": "wide"}, "expected of type int"),
        ("vit-tiny", {"image_size": "32x32"}, "height, width"),
        ("vit-tiny", {"depth": 0}, "depth 0 of a model; expected 1 or more"),
        ("timm:resnet18", {"args": {"depth": 6}}, "unexpected keyword"),
        ("timm:resnet18", {"pretrained": True}, "timm builds no resnet18"),
        ("vit-tiny", {"num_heads": 5}, "192 is not divisible by num_heads 5"),
        ("vit-tiny", {"image_size": 50}, "64×64"),
        ("vit-tiny", {"stem": {"kind": "conv", "stride": 3}}, "power of two"),
        ("vit-tiny", {"stem": "conv:4"}, "an object with kind, stride, name"),
        ("vit-tiny", {"stem": {"kind": "cnn"}}, "'pixels' or 'conv' or 'timm'"),
        ("vit-tiny", {"stem": {"kind": "conv", "strid": 4}}, "did you mean stride"),
        ("vit-tiny", {"stem": {"stride": 4}}, "only conv has one"),
        ("vit-tiny", {"stem": {"kind": "timm", "name": "resnet1"}}, "did you mean resnet1"),
        ("vit-tiny", {"pretrained": True}, "load_model"),
        ("deit-tiny-distilled", {"pool": "mean"}, "set pool to 'token'"),
        ("vit-tiny", {"mlp_ratio": 1e-9}, "mlp_ratio 1e-09 of 192 channels gives a hidden width of 0"),
        ("vit-tiny", {"patch_size": 2**31 - 1}, "not divisible by patches of 2147483647 pixels"),
    ],
)
def test_a_wrong_name_or_value_says_what_would_be_right(name, overrides, message):
    with pytest.raises(GlocalError, match=message) as error:
        create_model(name, **overrides)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        *((name, {"depth": 2**31 - 1}, "depth 2147483647 of a model; expected 1000 at most") for name in DEEP),
        ("vit-tiny", {"in_chans": 2**31 - 1}, "in_chans 2147483647 of a model; expected 65536 at most"),
        ("timm:vit_tiny_patch16_224", {"args": {"depth": 10**9}}, "depth 1000000000 in args of .*; expected 1000"),
        ("vit-tiny", {"image_size": 2**30}, "with image_size=1073741824 is a model of .* GB, .*pos_embed, is 1×"),
        ("glit-tiny", {"expand_ratio": 10**9}, r"largest part, blocks\.1\.mixer\.local\.expand\.weight"),
        ("bert-tiny", {"max_length": 10**9}, r"this machine has .* memory; .*pos_embed, is 1000000000×128"),
        ("gpt-tiny", {"vocab_size": 10**9}, r"embedding\.weight, is 1000000000×128"),
        ("transformer-tiny", {"max_length": 10**9}, "positions, is 1000000000×128"),
        ("lstm-tiny", {"hidden_dim": 2**31 - 2}, "lstm-tiny with hidden_dim=2147483646 cannot be built"),
        ("timm:resnet10t", {"num_classes": 10**9}, r"net\.fc\.weight, is 1000000000×512"),
    ],
)
def test_a_model_that_no_machine_holds_is_refused_before_it_takes_memory(name, overrides, message):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(GlocalError, match=message) as error:
        create_model(name, **overrides)
    assert "\n" not in str(error.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20  # in KiB


@pytest.mark.parametrize("file", ["memory.max", "memory/memory.limit_in_bytes"])
def test_a_containers_limit_is_the_memory_that_counts(file, tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "CGROUP", tmp_path)
    machine = loading.total_memory()
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text("max\n")
    assert loading.total_memory() == machine > 2**20
    (tmp_path / file).write_text(f"{2**20}\n")
    assert loading.total_memory() == 2**20
    with pytest.raises(GlocalError, match=r"this machine has 0\.0 GB of memory"):
        create_model("bert-tiny")


def test_planned_models_may_have_any_size():
    with meta_device():
        assert sum(weight.numel() for weight in create_model("gpt3-175b").parameters()) > 10**11


def test_a_loaded_model_is_measured_too(tmp_path):
    create_model("vit-tiny", image_size=32, depth=1, embed_dim=12, num_classes=2).save_pretrained(tmp_path)
    for overrides in ({"image_size": 16 * 10**5}, {"num_classes": 10**9}):
        with pytest.raises(GlocalError, match=r"describes a model of .* GB for weights of"):
            load_model(tmp_path, **overrides)


# Parameters as published: Dosovitskiy et al. 2020, table 1, and Touvron et al. 2021, table 1, to the last digit as
# timm and the authors' checkpoints have them; hybrids as timm's vit_base_resnet*d_224.
PUBLISHED = {
    "glit-tiny": 7_264_456,
    "vit-tiny": 5_717_416,
    "vit-small": 22_050_664,
    "vit-small-32": 22_878_952,
    "vit-base": 86_567_656,
    "vit-base-8": 86_576_872,
    "vit-base-32": 88_224_232,
    "vit-large": 304_326_632,
    "vit-large-32": 306_535_400,
    "vit-huge": 632_045_800,
    "vit-base-r26": 101_403_208,
    "vit-base-r50": 110_965_064,
    "deit-tiny": 5_717_416,
    "deit-small": 22_050_664,
    "deit-base": 86_567_656,
    "deit-tiny-distilled": 5_910_800,
    "deit-small-distilled": 22_436_432,
    "deit-base-distilled": 87_338_192,
}


@pytest.mark.parametrize("name", [*list_models("vit-*"), *list_models("deit-*"), *list_models("glit-*")])
def test_published_number_of_parameters(name):
    with torch.device("meta"):
        model = create_model(name)
    assert sum(parameter.numel() for parameter in model.parameters()) == PUBLISHED[name]
