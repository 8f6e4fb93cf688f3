"""Regression and multi-label classification, of texts and of images: metrics, and runs from a table to results."""

import json
import random

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import average_precision_score, f1_score, log_loss, mean_squared_error
from torch import nn

import glocal
from glocal.cli import main
from glocal.errors import GlocalError
from glocal.models import create_model, load_model
from glocal.recipes import Recipe, load_recipe
from glocal.runner.model_source import prepare
from glocal.tasks import (
    ImageRegressor,
    MultiLabelImageClassifier,
    MultiLabelTextClassifier,
    TextRegressor,
    text_regression,
)
from glocal.tasks.multi_label import MultiLabelObjective
from glocal.tasks.regression import RegressionObjective
from glocal.training import RunFolder


class Given(nn.Module):
    """A model whose outputs are its inputs."""

    def forward(self, pixel_values):
        return pixel_values


def batches(outputs, labels, sizes):
    cuts = zip(outputs.split(sizes), labels.split(sizes), strict=True)
    return [{"pixel_values": output, "labels": label} for output, label in cuts]


def measure(objective, some):
    metrics = objective.metrics()
    for batch in some:
        metrics.update(*objective.predictions_and_targets(Given(), batch))
    return metrics


def assert_batches_and_ranks_add_up(objective, outputs, labels, expected):
    """The metrics of all at once, of batches, and of two ranks whose states are put together; and the loss's mean."""
    parts = batches(outputs, labels, [13, 4, 1, 12])
    whole = {"pixel_values": outputs, "labels": labels}
    ranks = [measure(objective, parts[rank::2]) for rank in range(2)]
    both = objective.metrics()
    for name, metric in both.items():
        states = [rank[name].metric_state for rank in ranks]
        for key, reduce in metric._reductions.items():
            one, other = (state[key] for state in states)
            setattr(metric, key, [*one, *other] if isinstance(one, list) else reduce(torch.stack([one, other])))
        metric._update_count = 2
    for metrics in (measure(objective, [whole]), measure(objective, parts), both):
        found = metrics.compute()
        for name, value in expected.items():
            np.testing.assert_allclose(found[name].numpy(), value, rtol=1e-4, atol=1e-6, err_msg=name)
    sizes = [objective.size(part) for part in parts]
    losses = [objective.loss(Given(), part).item() for part in parts]
    assert objective.loss(Given(), whole).item() == pytest.approx(np.average(losses, weights=sizes), rel=1e-5)
    assert objective.loss(Given(), whole).item() == pytest.approx(expected["loss"], rel=1e-5)


def test_regression_is_measured_as_by_scipy():
    outputs, labels = torch.randn(30, 1), torch.randn(30)
    labels[:10] = outputs[:10, 0].round()  # ties
    x, y = outputs[:, 0].numpy(), labels.numpy()
    expected = {"loss": mean_squared_error(y, x), "pearson": pearsonr(x, y)[0], "spearman": spearmanr(x, y)[0]}
    assert_batches_and_ranks_add_up(RegressionObjective(), outputs, labels, expected)


def test_constant_numbers_have_no_correlation():
    found = measure(RegressionObjective(), batches(torch.randn(4, 1), torch.ones(4), [4])).compute()
    assert (found["pearson"], found["spearman"]) == (0, 0)


def test_several_classes_are_measured_as_by_sklearn():
    outputs, labels = torch.randn(30, 4), (torch.rand(30, 4) < torch.tensor([0.5, 0.2, 0.7, 0.0])).float()
    right, said = labels.numpy(), (outputs > 0).numpy()
    scores = outputs.sigmoid().numpy()
    precision = [average_precision_score(right[:, k], scores[:, k]) for k in range(3)]  # the fourth never occurs
    expected = {
        "loss": np.mean([log_loss(right[:, k], scores[:, k].astype(float), labels=[0, 1]) for k in range(4)]),
        "micro_f1": f1_score(right, said, average="micro", zero_division=0),
        "macro_f1": f1_score(right, said, average="macro", zero_division=0),
        "f1": f1_score(right, said, average=None, zero_division=0),
        "map": np.mean(precision),
    }
    assert_batches_and_ranks_add_up(MultiLabelObjective(4), outputs, labels, expected)


# ----------------------------------------------------------------------------------------------------------- whole runs

WORDS = ["cat", "dog", "sat", "ran", "old", "red"]
TASKS = {
    "text-regression": TextRegressor,
    "multi-label-text-classification": MultiLabelTextClassifier,
    "image-regression": ImageRegressor,
    "multi-label-image-classification": MultiLabelImageClassifier,
}


@pytest.fixture(params=TASKS)
def run(request, tmp_path, speller, monkeypatch):
    """A run of the task, two epochs long."""
    monkeypatch.chdir(tmp_path)
    task, draw = request.param, random.Random(0)
    image = "image" in task
    rows = []
    for number in range(40):
        names = [name for name in ("cat", "dog") if draw.random() < 0.5]
        if image:
            pixels = np.zeros((8, 8), np.uint8)
            pixels[:4] = 200 * ("cat" in names)
            pixels[:, 4:] += 50 * ("dog" in names)
            Image.fromarray(pixels).save(f"{number}.png")
        given = {"file_name": f"{number}.png"} if image else {"text": " ".join([*names, draw.choice(WORDS[2:])])}
        label = {"score": len(names) - 0.5} if "regression" in task else {"labels": names}
        rows.append(given | label)
    (tmp_path / "all.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if image:
        model = {"name": "vit-tiny", "depth": 1, "embed_dim": 16, "num_heads": 2, "patch_size": 4}
        data = {"image_size": 8, "channels": 1}
    else:
        base = create_model("bert-tiny", vocab_size=speller.vocab_size, depth=1, embed_dim=16, num_heads=2)
        base.save_pretrained("base")
        speller.save(tmp_path / "base")
        model, data = {"from": "base"}, {"max_length": 32}
    train = {"epochs": 2, "batch_size": 8, "lr": 1e-3, "precision": "float32", "average": 0}
    sections = {"model": model, "data": {"source": "all.jsonl"} | data, "task": {"name": task}, "train": train}
    (tmp_path / "mine.yaml").write_text(json.dumps(sections))
    recipe = load_recipe(tmp_path / "mine.yaml")
    assert isinstance(recipe, Recipe)
    return glocal.train(recipe), task, rows


def test_a_run_is_trained_tested_saved_and_predicts(run, tmp_path, capsys):
    folder, task, rows = run
    regression = "regression" in task
    config = json.loads((folder / "model" / "config.json").read_text())
    assert config["problem_type"] == ("regression" if regression else "multi_label_classification")
    assert (config["labels"], config["config"]["num_classes"]) == ((None, 1) if regression else (["cat", "dog"], 2))
    assert (folder / "figures" / "training.png").stat().st_size > 1000
    key = "file_name" if "image" in task else "text"
    splits = json.loads((folder / "splits.json").read_text())["splits"]
    test = [rows[number] for number in splits["test"]]
    predictor = glocal.load(folder, "cpu")
    assert type(predictor) is TASKS[task]
    inputs = [row[key] for row in test]
    found = predictor.predict(inputs)
    measured = glocal.test(folder)
    assert measured["examples"] == len(test) == 4
    if regression:
        error = mean_squared_error([row["score"] for row in test], found)
        assert (measured["loss"], measured["rmse"]) == (
            pytest.approx(error, rel=1e-4),
            pytest.approx(error**0.5, rel=1e-4),
        )
    else:
        said = np.array([[name in dict(result) for name in ("cat", "dog")] for result in found])
        right = np.array([[name in row["labels"] for name in ("cat", "dog")] for row in test])
        assert measured["micro_f1"] == pytest.approx(f1_score(right, said, average="micro", zero_division=0))
        everything = predictor.predict(inputs, top=2)
        assert [{name for name, p in result if p >= 0.5} for result in everything] == [set(dict(r)) for r in found]
        assert all(len(result) == 2 and result[0][1] >= result[1][1] for result in everything)
    load_model(folder).save_pretrained(tmp_path / "again")
    if "text" in task:
        predictor.tokenizer.save(tmp_path / "again")
    again = glocal.load(tmp_path / "again", "cpu")
    assert type(again) is TASKS[task]
    assert again.predict(inputs) == found
    elsewhere = glocal.test(folder, source="all.jsonl")
    assert elsewhere["examples"] == 40
    capsys.readouterr()
    main(["test", str(folder)])
    printed = capsys.readouterr().out
    assert ("Pearson correlation" if regression else "micro F1") in printed
    main(["predict", str(folder), inputs[0], "--json", "--precision", "float32"])
    record = json.loads(capsys.readouterr().out)
    assert record["input"] == inputs[0]
    if regression:
        assert record["score"] == pytest.approx(found[0], rel=1e-4)
    else:
        assert [each["label"] for each in record["labels"]] == [label for label, _ in found[0]]
        main(["predict", str(folder), inputs[0], "--json", "--precision", "float32", "--top", "2"])
        both = json.loads(capsys.readouterr().out)["labels"]
        assert {each["label"] for each in both} == {"cat", "dog"}
    main(["predict", str(folder), "all.jsonl", "--json", "--precision", "float32"])
    assert len(capsys.readouterr().out.splitlines()) == 40


def test_a_wrong_number_and_a_wrong_class_are_one_line(run, tmp_path):
    folder, task, rows = run
    bad = {"score": "high"} if "regression" in task else {"labels": ["cat", "cow"]}
    (tmp_path / "bad.jsonl").write_text(json.dumps(rows[0]) + "\n" + json.dumps(rows[1] | bad) + "\n")
    message = (
        "has label 'high'; expected a number"
        if "regression" in task
        else "class 'cow' of .* not one of the training classes"
    )
    with pytest.raises(GlocalError, match=message) as error:
        glocal.test(folder, source=str(tmp_path / "bad.jsonl"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("label", [1e39, -1e300, 10**400])
def test_a_number_beyond_float32_is_one_line(label, tmp_path, speller):
    (tmp_path / "some.jsonl").write_text(
        "".join(json.dumps({"text": "a", "label": each}) + "\n" for each in (1, label))
    )
    config = text_regression.TextRegressionDataConfig(str(tmp_path / "some.jsonl"))
    with pytest.raises(GlocalError, match=r"some.jsonl example 2 has .*; expected numbers up to 3.4e\+38"):
        text_regression.open_data(config, None, speller)


@pytest.mark.parametrize("start", ["image-classification", "multi-label-image-classification"])
def test_an_image_models_head_starts_anew_where_outputs_mean_something_else(start, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = {"name": "vit-tiny", "depth": 1, "embed_dim": 16, "num_heads": 2, "patch_size": 4}
    shared = {"data": {"source": "digits", "image_size": 8, "channels": 1, "val_fraction": 0.02, "test_fraction": 0.9}}
    shared["train"] = {"steps": 1, "epochs": None, "batch_size": 8, "precision": "float32", "average": 0}

    def train(folder, task, model):
        sections = shared | {"model": model, "task": {"name": task}, "run": {"dir": folder}}
        (tmp_path / f"{folder}.yaml").write_text(json.dumps(sections))
        return load_model(glocal.train(tmp_path / f"{folder}.yaml"))

    first = train("first", start, model)
    number = train("number", "image-regression", {"from": "first"})
    assert (number.config.num_classes, number.labels, number.problem_type) == (1, None, "regression")
    assert (first.config.num_classes, len(first.labels)) == (10, 10)


@pytest.mark.parametrize("task", ["text-classification", "multi-label-text-classification"])
def test_a_text_models_head_starts_anew_where_outputs_mean_something_else(task, speller, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shape = {"depth": 1, "embed_dim": 16, "num_heads": 2, "max_length": 16, "vocab_size": speller.vocab_size}
    start = create_model("bert-tiny", **shape, head="classification", num_classes=2)
    start.labels = ["cat", "dog"]
    torch.nn.init.constant_(start.head.classifier.weight, 7.0)
    start.save_pretrained("start")
    speller.save("start")
    (tmp_path / "some.tsv").write_text("text\tlabel\n" + "a\tcat\nb\tdog\n" * 20)
    sections = {"model": {"from": "start"}, "data": {"source": "some.tsv", "max_length": 16}, "task": {"name": task}}
    (tmp_path / "recipe.yaml").write_text(json.dumps(sections))
    recipe = load_recipe(tmp_path / "recipe.yaml")
    model = prepare(recipe, RunFolder.create(tmp_path / "run", recipe.to_yaml())).model
    assert model.labels == ["cat", "dog"]
    assert bool((model.head.classifier.weight == 7.0).all()) == (task == "text-classification")


@pytest.mark.parametrize(
    "objective", [RegressionObjective(), MultiLabelObjective(3)], ids=["regression", "multi-label"]
)
def test_the_scores_of_examples_average_to_the_negative_loss(objective):
    classes = 1 if isinstance(objective, RegressionObjective) else 3
    outputs = torch.randn(30, classes)
    labels = outputs[:, 0].round() if classes == 1 else (outputs > 0.5).float()
    batch = {"pixel_values": outputs, "labels": labels}
    scores, weights = objective.example_scores(Given(), batch)
    assert scores.shape == weights.shape == (30,)
    torch.testing.assert_close((scores * weights).sum() / weights.sum(), -objective.loss(Given(), batch))
