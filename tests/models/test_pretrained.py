import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file

from glocal.errors import GlocalError
from glocal.models import ViT, create_model, load_model

CONFIG, WEIGHTS = "config.json", "model.safetensors"


@pytest.fixture
def folder(tiny_vit, tmp_path):
    tiny_vit.labels = list("abcde")
    tiny_vit.preprocessing = {"image_size": (32, 32), "channels": 3, "mean": [0.5], "std": [0.5]}
    tiny_vit.save_pretrained(tmp_path)
    return tmp_path


def rewrite(folder, **changes):
    """Change tensors of a saved model; None removes one."""
    state = load_file(folder / WEIGHTS) | changes
    save_file({name: tensor for name, tensor in state.items() if tensor is not None}, folder / WEIGHTS)


def test_overrides_keep_labels_and_preprocessing_true(folder):
    same = ViT.from_pretrained(folder, drop_path=0.2)
    assert same.labels == list("abcde")
    assert [block.drop_path for block in same.config.blocks] == [0, 0.2]
    wider = ViT.from_pretrained(folder, image_size=[32, 64])
    assert wider.preprocessing["image_size"] == (32, 64)
    assert wider.preprocessing["mean"] == [0.5]


def test_a_kept_head_is_kept_and_a_new_one_is_fresh(folder, tiny_vit):
    assert torch.equal(
        ViT.from_pretrained(folder, num_classes=5).head.classifier.weight, tiny_vit.head.classifier.weight
    )
    assert not ViT.from_pretrained(folder, num_classes=6).head.classifier.weight.any()
    assert not ViT.from_pretrained(folder, ignore_keys="head.*").head.classifier.weight.any()


def test_missing_surplus_and_unfit_weights_are_listed(folder):
    rewrite(folder, **{"norm.bias": None, "norm.extra": torch.ones(1), "pos_embed": torch.ones(1, 3, 24)})
    with pytest.raises(GlocalError) as error:
        ViT.from_pretrained(folder)
    assert "- norm.bias, + norm.extra, ± pos_embed (1, 3, 24) instead of (1, 17, 24);" in str(error.value)
    assert "\n" not in str(error.value)
    model = ViT.from_pretrained(folder, ignore_keys=["norm.*", "pos_embed"])
    with pytest.raises(GlocalError, match="pos_embed"):
        ViT.from_pretrained(folder, ignore_keys="norm.*")
    assert not model.norm.bias.any()
    assert model.pos_embed.std() < 0.03


def test_a_long_list_is_cut(folder):
    rewrite(folder, **{f"extra.{i:02}": torch.ones(1) for i in range(20)})
    with pytest.raises(GlocalError, match=r"extra\.11, and 8 more"):
        ViT.from_pretrained(folder)


def test_an_unfinished_save_leaves_the_old_model(folder, tiny_vit, monkeypatch):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def full_disk(*args, **kwargs):
        raise OSError("No space left on device")

    monkeypatch.setattr("glocal.models.folders.save_file", full_disk)
    with pytest.raises(GlocalError, match="No space left on device; what was saved before is whole"):
        create_model("vit-tiny", depth=1).save_pretrained(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        (CONFIG, "{", "Expecting property name"),
        (CONFIG, "{}", "none of model"),
        (CONFIG, '{"model_type": "t5"}', "'t5' of transformers; known are vit, deit, marian"),
        (CONFIG, '{"model_type": "vit", "hidden_act": "silu"}', "hidden_act 'silu'"),
        (CONFIG, '{"glocal": "9", "model": "vit", "config": {"embed_din": 3}}', "'embed_din'"),
        (CONFIG, '{"glocal": "9", "model": "gist", "config": {}}', "holds a gist model"),
        (WEIGHTS, "no tensors", "model.safetensors"),
    ],
)
def test_a_broken_folder_is_one_clear_line(folder, file, text, message):
    (folder / file).write_text(text)
    for load in (ViT.from_pretrained, load_model):
        with pytest.raises(GlocalError, match=message) as error:
            load(folder)
        assert "\n" not in str(error.value)


def test_a_file_that_holds_no_tensors_is_not_run(tmp_path):
    (tmp_path / "arch.json").write_text('{"blocks": []}')
    with pytest.raises(GlocalError, match=r"arch\.json is not a file of torch"):
        load_model(tmp_path / "arch.json")
    torch.save({"model": os.system}, tmp_path / "trap.pth")
    with pytest.raises(GlocalError, match=r"trap\.pth names code, \w+\.system, which is not run"):
        load_model(tmp_path / "trap.pth")


@pytest.mark.parametrize("file", [CONFIG, WEIGHTS])
def test_a_missing_file_is_named(folder, file):
    (folder / file).unlink()
    with pytest.raises(GlocalError, match=file):
        ViT.from_pretrained(folder)


@pytest.mark.parametrize("source", ["no-such-folder", "./no/such", "/no/such/folder"])
def test_what_is_no_folder_and_no_id_reaches_for_no_network(source, monkeypatch):
    monkeypatch.setattr("glocal.models.folders.snapshot_download", lambda *a, **k: pytest.fail("asked the hub"))
    with pytest.raises(GlocalError, match="neither a run, nor a folder, nor a hub id"):
        ViT.from_pretrained(source)


def test_offline_a_hub_id_is_one_clear_line():
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    with pytest.raises(GlocalError, match="no folder nobody/nothing here, and the hub gave no model") as error:
        ViT.from_pretrained("nobody/nothing")
    assert "\n" not in str(error.value)


def test_the_config_says_what_wrote_it(folder):
    config = json.loads((folder / CONFIG).read_text())
    assert config.keys() == {"glocal", "format", "model", "config", "labels", "problem_type", "preprocessing"}
    assert config["model"] == "vit"
    assert config["config"]["blocks"][1]["embed_dim"] == 24
