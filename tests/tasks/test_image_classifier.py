from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from glocal.errors import GlocalError
from glocal.tasks import ImageClassifier, load
from glocal.tasks.image_predictor import find_images

LABELS = ["ant", "bee", "cat", "dog", "elk"]


@pytest.fixture
def model(tiny_vit):
    tiny_vit.labels = LABELS
    tiny_vit.preprocessing = {"image_size": (32, 32), "channels": 3, "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4)}
    return tiny_vit


@pytest.fixture
def photos(tmp_path) -> Path:
    """Seven images of several shapes and modes in two folders, beside a file that is none."""
    random = np.random.default_rng(0)
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    (folder / "notes.txt").write_text("no image")
    for i in range(6):
        shape = (32 + 8 * i, 40, 3) if i % 2 else (40, 32 + 8 * i)
        Image.fromarray(random.integers(0, 256, shape, dtype=np.uint8)).save(folder / f"{i}.png")
    Image.new("RGBA", (50, 50), "red").save(folder / "more" / "6.PNG")
    return folder


@pytest.mark.parametrize("batch_size", [2, 32])
def test_a_batch_of_one_answers_as_a_batch_of_many(model, photos, batch_size):
    predictor = ImageClassifier(model, "cpu")
    together = predictor.predict(photos, batch_size=batch_size)
    assert len(together) == 7
    for file, answer in zip(find_images(photos), together, strict=True):
        (alone,) = predictor.predict(file)
        assert [label for label, _ in alone] == [label for label, _ in answer]
        np.testing.assert_allclose([p for _, p in alone], [p for _, p in answer], atol=1e-6)


def test_answers_are_the_models_own_best_first(model, photos):
    predictor = ImageClassifier(model, "cpu")
    image = Image.open(photos / "1.png")
    with torch.no_grad():
        probabilities = model(predictor.transform(image)[None])[0].softmax(-1)
    (answer,) = predictor.predict(image, top=3)
    assert len(answer) == 3
    for (label, p), i in zip(answer, probabilities.argsort(descending=True), strict=False):
        assert label == LABELS[i]
        assert p == pytest.approx(probabilities[i].item(), abs=1e-6)


def test_files_folders_patterns_images_and_arrays_are_one(model, photos):
    predictor = ImageClassifier(model, "cpu")
    array = np.asarray(Image.open(photos / "1.png"))
    forms = [photos / "1.png", str(photos / "1.png"), str(photos / "1*"), Image.fromarray(array), array]
    answers = predictor.predict(forms)
    assert len(answers) == 5
    assert all(answer == answers[0] for answer in answers)
    grey = np.asarray(Image.open(photos / "0.png"))
    assert predictor.predict(grey) == predictor.predict(grey[..., None])
    assert [file.name for file in find_images(photos)] == [
        "0.png",
        "1.png",
        "2.png",
        "3.png",
        "4.png",
        "5.png",
        "6.PNG",
    ]
    assert find_images([photos / "more", photos / "0.png"]) == [photos / "more" / "6.PNG", photos / "0.png"]


def test_pictures_are_what_went_in(model):
    predictor = ImageClassifier(model, "cpu")
    array = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    np.testing.assert_allclose(predictor.picture(predictor.pixels([array])[0]), array / 255, atol=1e-6)


def test_a_saved_model_and_its_run_answer_as_before(model, photos, tmp_path):
    run = tmp_path / "run"
    model.save_pretrained(run / "model")
    expected = ImageClassifier(model, "cpu").predict(photos)
    for folder in (run, str(run), run / "model"):
        assert load(folder, "cpu").predict(photos) == expected


def test_wrong_folders_are_named(tmp_path):
    with pytest.raises(GlocalError, match=r"nowhere is neither a run, nor a folder"):
        load(tmp_path / "nowhere")
    with pytest.raises(GlocalError, match=r"config\.json cannot be read: no such file"):
        load(tmp_path)
    (tmp_path / "recipe.yaml").touch()
    with pytest.raises(GlocalError, match="no finished model yet; finish it: glocal train --resume"):
        load(tmp_path)


def test_a_model_that_does_not_say_how_images_are_prepared(tiny_vit):
    tiny_vit.preprocessing = None
    with pytest.raises(GlocalError, match="preprocessing"):
        ImageClassifier(tiny_vit)


def test_wrong_inputs_are_named(model, photos, tmp_path):
    predictor = ImageClassifier(model, "cpu")
    for wrong, message in {
        "nowhere.jpg": "nowhere.jpg does not exist",
        str(tmp_path / "*.jpg"): "matches no image",
        photos / "notes.txt": "notes.txt cannot be read",
    }.items():
        with pytest.raises(GlocalError, match=message):
            predictor.predict(wrong)
    (tmp_path / "empty").mkdir()
    with pytest.raises(GlocalError, match="empty holds no image"):
        predictor.predict([tmp_path / "empty"])
    for array in (np.zeros((8, 8), np.float32), np.zeros((8, 8, 2), np.uint8), np.zeros((2, 8, 8, 3), np.uint8)):
        with pytest.raises(GlocalError, match="array of"):
            predictor.predict(array)
