"""What model folders may look like: read as others write them, or refused in one line before memory is taken."""

import json
import stat
import time
from pathlib import Path

import pytest
import timm
import torch
import transformers
from conftest import wake
from safetensors.torch import load_file, save_file
from timm.models import save_for_hf

from glocal.errors import GlocalError
from glocal.models import BERT, ViT, create_model, load_model
from glocal.tasks import load

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
SHAPE = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
VIT = SHAPE | {"image_size": 16, "patch_size": 8}
BERT_SHAPE = SHAPE | {"vocab_size": 40, "max_position_embeddings": 16}


@pytest.fixture
def bert(tmp_path):
    """A classifier as transformers writes it."""
    model = transformers.BertForSequenceClassification(transformers.BertConfig(**BERT_SHAPE))
    wake(model).save_pretrained(tmp_path)
    return tmp_path


def change(folder, file=CONFIG, **fields):
    """Change fields of a JSON file; None removes one."""
    values = json.loads((folder / file).read_text()) | fields
    (folder / file).write_text(json.dumps({name: value for name, value in values.items() if value is not None}))


def assert_read(folder, expected):
    state = load_model(folder).state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in state)


@pytest.mark.parametrize("file", [WEIGHTS, "pytorch_model.bin", "checkpoint.pth", "epoch-3.pt", "model.pth.tar"])
@pytest.mark.parametrize("prefix", ["", "_orig_mod.", "module.", "module._orig_mod."])
def test_weights_are_read_as_they_were_saved(bert, file, prefix):
    expected, state = load_model(bert).state_dict(), load_file(bert / WEIGHTS)
    (bert / WEIGHTS).unlink()
    state = {prefix + name: tensor for name, tensor in state.items()}
    if file == WEIGHTS:
        save_file(state, bert / file)
    else:
        holder = {"checkpoint.pth": "state_dict", "epoch-3.pt": "model_state_dict", "model.pth.tar": "model"}.get(file)
        torch.save({holder: state, "epoch": 1} if holder else state, bert / file)
    assert_read(bert, expected)


@pytest.mark.parametrize("pickled", [False, True])
def test_shards_are_read_by_their_index(bert, pickled):
    expected, state = load_model(bert).state_dict(), load_file(bert / WEIGHTS)
    (bert / WEIGHTS).unlink()
    first, ending = ("pytorch_model", "bin") if pickled else ("model", "safetensors")
    places = {name: f"{first}-{1 + i % 2:05}-of-00002.{ending}" for i, name in enumerate(state)}
    for file in set(places.values()):
        part = {name: state[name] for name in state if places[name] == file}
        (torch.save if pickled else save_file)(part, bert / file)
    index = bert / f"{first}.{ending}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    assert_read(bert, expected)
    (bert / places["classifier.bias"]).unlink()
    with pytest.raises(GlocalError, match="of-00002"):
        load_model(bert)
    outside, itself = {"a": "../../etc/passwd"}, {"a": index.name}
    for damaged in ({}, {"weight_map": 5}, {"weight_map": outside}, {"weight_map": itself}):
        index.write_text(json.dumps(damaged))
        with pytest.raises(GlocalError, match=r"index\.json (names the file|has no weight_map)"):
            load_model(bert)


@pytest.mark.parametrize("kind", ["ViTModel", "DeiTModel", "timm", "distilled timm"])
@torch.no_grad()
def test_an_encoder_of_images_gets_a_head(kind, tmp_path):
    images = torch.randn(2, 3, 16, 16)
    if kind.endswith("timm"):
        name = f"deit_tiny{'_distilled' if ' ' in kind else ''}_patch16_224"
        args = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}
        theirs = wake(timm.create_model(name, num_classes=0, **args)).eval()
        save_for_hf(theirs, tmp_path, model_args=args)
        expected, pooled = theirs.forward_features(images), theirs(images)
    else:
        config = (transformers.ViTConfig if kind == "ViTModel" else transformers.DeiTConfig)(**VIT)
        theirs = wake(getattr(transformers, kind)(config)).eval()
        theirs.save_pretrained(tmp_path)
        expected = theirs(images).last_hidden_state
        pooled = expected[:, : 1 if kind == "ViTModel" else 2].mean(dim=1)
    ours = ViT.from_pretrained(tmp_path).eval()
    assert ours.config.num_classes == 0
    assert ours.labels is None
    torch.testing.assert_close(ours.forward_features(images), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours(images), pooled, atol=1e-5, rtol=1e-5)
    fresh = load_model(tmp_path, num_classes=5)
    assert fresh(images).shape == (2, 5)
    torch.testing.assert_close(fresh.eval().forward_features(images), expected, atol=1e-5, rtol=1e-5)
    ours.save_pretrained(tmp_path / "ours")
    assert_read(tmp_path / "ours", ours.state_dict())


def test_an_encoder_predicts_nothing_and_is_explained(tmp_path):
    create_model("vit-tiny", depth=1, num_classes=0).save_pretrained(tmp_path)
    predictor = load(tmp_path, "cpu")
    with pytest.raises(GlocalError, match="encoder without a classifier"):
        predictor.predict("any.png")


@torch.no_grad()
def test_one_channel_is_the_sum_of_three(tmp_path):
    grey = torch.randn(2, 1, 16, 16)
    for model in (
        create_model("vit-tiny", depth=1, image_size=16, patch_size=8),
        create_model("vit-tiny", depth=1, image_size=16, patch_size=2, stem={"kind": "conv", "stride": 4}),
        create_model("timm:resnet10t", num_classes=3),
    ):
        wake(model).eval().save_pretrained(tmp_path)
        one = load_model(tmp_path, in_chans=1).eval()
        torch.testing.assert_close(one(grey), model(grey.expand(-1, 3, -1, -1)), atol=1e-4, rtol=1e-4)
        assert one.preprocessing["channels"] == len(one.preprocessing["mean"]) == len(one.preprocessing["std"]) == 1
        one.save_pretrained(tmp_path)
        again = load_model(tmp_path, in_chans=3).eval()
        torch.testing.assert_close(again(grey.expand(-1, 3, -1, -1)), one(grey), atol=1e-4, rtol=1e-4)


DAMAGED = [
    "5",
    "[]",
    "null",
    "[" * 100_000,
    '{"model": "vit", "config": []}',
    '{"model": [], "config": {}}',
    '{"model": "vit", "config": {"blocks": []}}',
    '{"model": "vit", "config": {"blocks": [5]}}',
    '{"model": "vit", "config": {"blocks": [{"embed_dim": -3}]}}',
    '{"model": "vit", "config": {"blocks": [{"embed_dim": 12, "num_heads": 0}]}}',
    '{"model": "vit", "config": {"blocks": [{"mlp_ratio": NaN}]}}',
    '{"model": "vit", "config": {"blocks": [{"embed_dim": 12, "num_heads": 3}, {"embed_dim": 24, "num_heads": 3}]}}',
    '{"model": "vit", "config": {"patch_size": 1e9}}',
    '{"model": "vit", "config": {"stem": "conv:x"}}',
    '{"model": "vit", "config": {"num_classes": 3}, "labels": ["a", "b"]}',
    '{"model": "vit", "config": {}, "labels": [1, 2]}',
    '{"model": "bert", "config": {"pad_id": -1}}',
    '{"model": "timm", "config": {"name": "resnet18", "args": {"checkpoint_path": "/etc/passwd"}}}',
    '{"model_type": []}',
    '{"model_type": "vit", "hidden_size": 0}',
    '{"model_type": "bert", "architectures": []}',
    '{"model_type": "bert", "num_hidden_layers": 1000000000}',
    '{"model_type": "bert", "id2label": {"0": "a", "7": "b"}, "architectures": ["BertForTokenClassification"]}',
    '{"model_type": "gpt2", "eos_token_id": [1]}',
    '{"model_type": "marian", "d_model": "512"}',
    '{"architecture": 5}',
    '{"architecture": "vit_tiny_patch16_224", "model_args": {"depth": 1000000000}}',
    '{"architecture": "vit_tiny_patch16_224", "pretrained_cfg": {"input_size": [3]}}',
]


@pytest.mark.parametrize("config", DAMAGED)
def test_a_damaged_config_is_one_line_that_names_it(bert, config):
    (bert / CONFIG).write_text(config)
    with pytest.raises(GlocalError, match=str(bert)) as error:
        load_model(bert)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 1000


LARGE = [{"vocab_size": 2 * 10**7}, {"hidden_size": 2**20}, {"intermediate_size": 2**30}, {"num_hidden_layers": 900}]


@pytest.mark.parametrize("fields", LARGE)
def test_sizes_are_compared_before_memory_is_taken(bert, fields):
    change(bert, **fields)
    before, start = Path("/proc/self/statm").read_text().split()[0], time.monotonic()
    with pytest.raises(GlocalError, match=r"describes a model of|tensors"):
        load_model(bert)
    assert time.monotonic() - start < 10
    assert int(Path("/proc/self/statm").read_text().split()[0]) - int(before) < 2**28 / 4096


def test_positions_that_no_file_holds_have_a_limit(tmp_path):
    create_model("transformer-tiny", depth=1, embed_dim=16, num_heads=2, vocab_size=20).save_pretrained(tmp_path)
    values = json.loads((tmp_path / CONFIG).read_text())
    values["config"]["max_length"] = 10**9
    (tmp_path / CONFIG).write_text(json.dumps(values))
    with pytest.raises(GlocalError, match=r"describes a model of 64\.0 GB"):
        load_model(tmp_path)


def test_files_of_a_model_have_the_permissions_of_new_files(tiny_vit, tmp_path):
    tiny_vit.save_pretrained(tmp_path)
    (tmp_path / "other").touch()
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in (CONFIG, WEIGHTS, "other")}
    assert len(modes) == 1


def test_a_mistyped_path_is_not_looked_up(tmp_path, monkeypatch):
    monkeypatch.setattr("glocal.models.folders.snapshot_download", lambda *a, **k: pytest.fail("reached for the hub"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    with pytest.raises(GlocalError, match="runs has no typo"):
        load_model("runs/typo")
    for odd in ("x" * 5000, "a\0b"):
        with pytest.raises(GlocalError) as error:
            load_model(odd)
        assert "\n" not in str(error.value)


def test_quantised_weights_are_no_weights(bert):
    state = load_file(bert / WEIGHTS)
    state["classifier.weight"] = state["classifier.weight"].to(torch.int8)
    save_file(state, bert / WEIGHTS)
    with pytest.raises(GlocalError, match=r"head\.classifier\.weight of torch\.int8 instead of torch\.float32"):
        BERT.from_pretrained(bert)


def test_a_pickle_gives_tensors_alone(bert):
    (bert / WEIGHTS).unlink()
    for wrong in (5, [torch.zeros(2)], {}, {"a": 5}, {1: torch.zeros(2)}, torch.zeros(2)):
        torch.save(wrong, bert / "pytorch_model.bin")
        with pytest.raises(GlocalError, match="expected tensors by their names"):
            load_model(bert)
    torch.save({"a": torch.zeros(1).expand(10**12)}, bert / "pytorch_model.bin")
    with pytest.raises(GlocalError, match="fewer numbers than the shape"):
        load_model(bert)
