"""Folders that earlier versions saved are read."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from glocal.errors import GlocalError
from glocal.interop import earlier
from glocal.models import create_model, load_model

SMALL = {"embed_dim": 24, "num_heads": 2, "depth": 2}
IMAGES = SMALL | {"image_size": 32, "num_classes": 3}
TEXTS = SMALL | {"vocab_size": 11, "max_length": 8}
FORMER = {  # of the first layout: names of tensors, present to former
    "pos_embed": "positions",
    "patch_embed.proj.weight": "patches.proj.weight",
    "patch_embed.proj.bias": "patches.proj.bias",
    "token_type_embed.weight": "segments.weight",
    "mlm_head.transform.weight": "words.transform.weight",
    "mlm_head.transform.bias": "words.transform.bias",
    "mlm_head.norm.weight": "words.norm.weight",
    "mlm_head.norm.bias": "words.norm.bias",
    "mlm_head.bias": "words.bias",
}
CONV = {"kind": "conv", "stride": 4, "name": ""}
MODELS = {
    "vit": ("vit-tiny", IMAGES),
    "stem": ("vit-tiny", IMAGES | {"stem": CONV, "patch_size": 2}),
    "mean": ("vit-tiny", IMAGES | {"pool": "mean", "positions": False}),
    "distilled": ("deit-tiny-distilled", IMAGES),
    "glit": ("glit-tiny", {"image_size": 32, "num_classes": 3}),
    "bert": ("bert-tiny", TEXTS),
    "classifier": ("bert-tiny", TEXTS | {"head": "classification"}),
    "gpt": ("gpt2", TEXTS | {"pad_id": 0, "bos_id": 0, "eos_id": 0}),
    "transformer": ("transformer-tiny", TEXTS),
}


def save_in_first_layout(model, folder):
    model.save_pretrained(folder)
    description = json.loads((folder / "config.json").read_text())
    assert description.pop("format") == 2
    if "stem" in description["config"]:
        description["config"]["stem"] = "conv:4" if description["config"]["stem"] == CONV else "pixels"
    (folder / "config.json").write_text(json.dumps(description))
    state = {FORMER.get(name, name): t for name, t in load_file(folder / "model.safetensors").items()}
    if tokens := [state.pop(name) for name in ("cls_token", "dist_token") if name in state]:
        state["prefix"] = torch.cat(tokens, dim=1)
    save_file(state, folder / "model.safetensors")


@pytest.mark.parametrize("case", MODELS)
def test_a_folder_of_the_first_layout_is_the_same_model(case, tmp_path):
    name, fields = MODELS[case]
    model = create_model(name, **fields).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    save_in_first_layout(model, tmp_path)
    loaded = load_model(tmp_path)
    assert loaded.config == model.config
    assert loaded.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in model.state_dict().items())
    loaded.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["format"] == earlier.FORMAT
    assert load_model(tmp_path).config == model.config


def test_positions_of_the_first_layout_are_resized_for_other_images(tmp_path):
    save_in_first_layout(create_model("vit-tiny", **IMAGES), tmp_path)
    assert load_model(tmp_path, image_size=48).pos_embed.shape == (1, 1 + 9, 24)


@pytest.mark.parametrize("written", [3, "2", None, [2]])
def test_a_layout_that_is_unknown_is_refused(written, tmp_path):
    create_model("vit-tiny", **IMAGES).save_pretrained(tmp_path)
    description = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(description | {"format": written}))
    with pytest.raises(GlocalError, match="this version of glocal reads 1 and 2: install a later one"):
        load_model(tmp_path)


@pytest.mark.parametrize("stem", ["conv:x", "cnn", "", "timm:"])
def test_a_stem_of_the_first_layout_that_means_nothing_is_refused(stem, tmp_path):
    save_in_first_layout(create_model("vit-tiny", **IMAGES), tmp_path)
    description = json.loads((tmp_path / "config.json").read_text())
    description["config"]["stem"] = stem
    (tmp_path / "config.json").write_text(json.dumps(description))
    with pytest.raises(GlocalError, match=r"stem|timm|power of two"):
        load_model(tmp_path)
