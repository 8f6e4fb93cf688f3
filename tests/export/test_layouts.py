"""What the command writes for others; that they compute the same with it is tested in tests/interop."""

import json

import jaxtyping
import numpy as np
import pytest
import timm
import torch
from conftest import wake
from PIL import Image
from timm.data import create_transform, resolve_data_config
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

from glocal.cli import main
from glocal.errors import GlocalError
from glocal.export.exporter import export
from glocal.models import create_model
from glocal.tasks import load

TINY = {"embed_dim": 16, "depth": 1, "num_heads": 2}


def test_a_classifier_of_texts_is_exported_with_its_tokenizer_and_labels(speller, tmp_path, capsys):
    model = create_model("bert-tiny", **TINY, head="classification", num_classes=3, vocab_size=speller.vocab_size)
    model.labels = ["bad", "fair", "good"]
    model.save_pretrained(tmp_path / "ours")
    speller.save(tmp_path / "ours")
    main(["export", str(tmp_path / "ours"), "--to", "transformers", "-o", str(tmp_path / "theirs")])
    assert capsys.readouterr().out == f"{tmp_path / 'theirs'}\n"
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path / "theirs")
    assert list(theirs.config.id2label.values()) == model.labels
    text = "any words 42"
    assert AutoTokenizer.from_pretrained(tmp_path / "theirs")(text)["input_ids"] == speller.encode([text])[0]


@pytest.fixture(params=["vit-tiny", "deit-tiny-distilled"])
def images_model(request, tmp_path):
    """The folder of a model of images with labels."""
    model = wake(create_model(request.param, **TINY, image_size=32, patch_size=8, num_classes=3))
    model.labels = ["cat", "dog", "owl"]
    model.save_pretrained(tmp_path / "ours")
    return tmp_path / "ours"


@pytest.fixture
def photo() -> Image.Image:
    coarse = np.random.default_rng(0).integers(0, 255, (7, 9, 3), np.uint8)
    return Image.fromarray(coarse).resize((88, 70), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("crop", [{}, {"crop_mode": "center", "crop_pct": 0.8}, {"crop_pct": 0.8}])
def test_a_model_of_images_answers_the_same_there_and_back(images_model, photo, crop, tmp_path):
    config = json.loads((images_model / "config.json").read_text())
    config["preprocessing"] |= crop | {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4]}
    (images_model / "config.json").write_text(json.dumps(config))
    expected = load(images_model, "cpu").predict(photo)[0]
    for to in ("transformers", "timm"):
        export(images_model, tmp_path / to, to)
        back = load(tmp_path / to, "cpu").predict(photo)[0]
        assert [label for label, _ in back] == [label for label, _ in expected]
        assert [p for _, p in back] == pytest.approx([p for _, p in expected], abs=1e-5)
    answers = pipeline("image-classification", str(tmp_path / "transformers"), device="cpu")(photo)
    assert [each["label"] for each in answers] == [label for label, _ in expected]
    assert [each["score"] for each in answers] == pytest.approx([p for _, p in expected], abs=0.01)
    theirs = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True).eval()
    pixels = create_transform(**resolve_data_config({}, model=theirs))(photo)[None]
    with torch.no_grad():
        probabilities = theirs(pixels)[0].softmax(dim=0)
    names = theirs.pretrained_cfg.get("label_names") or ["cat", "dog", "owl"]
    assert dict(zip(names, probabilities.tolist(), strict=True)) == pytest.approx(dict(expected), abs=1e-4)


def test_a_created_model_is_saved_with_its_preprocessing(photo, tmp_path):
    for name, fields in (
        ("vit-tiny", TINY | {"in_chans": 1}),
        ("timm:resnet10t", {"num_classes": 3}),
        ("glit-tiny", {"num_classes": 3}),
    ):
        create_model(name, **fields).save_pretrained(tmp_path)
        assert len(load(tmp_path, "cpu").predict(photo, top=3)[0]) == 3


def test_a_crop_that_theirs_have_not_is_refused(tiny_vit, tmp_path):
    tiny_vit.preprocessing["crop_mode"] = "border"
    tiny_vit.save_pretrained(tmp_path)
    with pytest.raises(GlocalError, match="no crop_mode 'border' at 32×32 pixels"):
        export(tmp_path, tmp_path / "out", "transformers")


def test_what_others_have_not_is_one_line(tiny_vit, tmp_path, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as where no test checks types
    create_model("lstm-tiny", vocab_size=20, embed_dim=16, hidden_dim=8).save_pretrained(tmp_path / "lstm")
    with pytest.raises(
        GlocalError, match=r"cannot be written for transformers: transformers has no lstm; it can be for glocal$"
    ):
        export(tmp_path / "lstm", tmp_path / "out", "transformers")
    tiny_vit.save_pretrained(tmp_path / "vit")
    for to in ("keras", np.zeros((2, 2))):
        with pytest.raises(
            GlocalError, match=r"^format .*; expected one of glocal, transformers, timm, onnx, gguf, ctranslate2$"
        ):
            export(tmp_path / "vit", tmp_path / "out", to)
    config = json.loads((tmp_path / "vit" / "config.json").read_text())
    config["config"]["blocks"][0]["norm"] = "post"
    (tmp_path / "vit" / "config.json").write_text(json.dumps(config))
    with pytest.raises(GlocalError, match=r"cannot be written for transformers: .*norm 'post'"):
        export(tmp_path / "vit", tmp_path / "out", "transformers")
    assert not (tmp_path / "out").exists()
