"""The search from a recipe to an architecture: stages, resume, and what it may not see."""

import io
import json
from contextlib import redirect_stdout
from dataclasses import replace

import demo_page
import pytest
import torch

from glocal import runner
from glocal.cli import main
from glocal.data import DataConfig, open_images
from glocal.errors import GlocalError
from glocal.layers.block import uniform_blocks
from glocal.models import GLiT, ViTConfig, create_model, load_model
from glocal.models.cost import count
from glocal.recipes import load_recipe
from glocal.reports import page
from glocal.search.evaluator import Evaluator
from glocal.search.paths import BatchesWithPaths, PathSamplingData, SupernetObjective
from glocal.search.space import heads_space
from glocal.search.supernet import Supernet
from glocal.tasks.classification import ClassificationConfig, ClassificationObjective

TINY = {
    "model.embed_dim": 24,
    "model.depth": 2,
    "data.image_size": 8,
    "data.test_fraction": 0.6,
    "search.supernet.epochs": 1,
    "search.supernet.precision": "float32",
    "search.evolution.population": 6,
    "search.evolution.generations": 2,
    "search.evolution.parents": 3,
    "search.evolution.crossover": 3,
    "search.evolution.mutation": 3,
    "search.space.kernel_size": [3, 5],
    "search.space.expand_ratio": [1, 2],
    "search.space.qkv_ratio": [0.5, 1.0],
    "search.space.mlp_ratio": [2.0, 4.0],
    "search.budget.lower": None,
    "search.budget.upper": 80_000,
    "search.retrain": 2,
    "train.epochs": 1,
    "train.precision": "float32",
}


def run_search(folder, **fields):
    changed = {name.replace("__", "."): value for name, value in fields.items()}
    return runner.search("glit-digits", TINY | {"run.dir": str(folder)} | changed)


def report_of(folder):
    return json.loads((folder / "report.json").read_text())


def tell(folder):
    """All that a search has found, without the time and the place."""
    report = json.loads((folder / "report.json").read_text())
    lines = [(folder / stage / "journal.jsonl").read_text() for stage in report["stages"]]
    return {name: report[name] for name in ("found", "finalists", "stages", "reading")}, lines


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    folder = tmp_path_factory.mktemp("search") / "run"
    with redirect_stdout(io.StringIO()) as printed:
        run = run_search(folder)
    (folder.parent / "printed.txt").write_text(printed.getvalue())
    return run


def test_a_search_says_what_it_does_where_and_on_how_much(searched, capsys):
    printed = (searched.parent / "printed.txt").read_text()
    place = 0
    for line in (
        f"glit-digits in {searched}",
        "data: digits: 449 images to train on, 270 to validate, 1,078 to test, in 10 classes",
        f"stage heads: a supernet of 16 paths, in {searched / 'heads'}",
        "stage heads: 12 paths evaluated, the best ",
        "stage details: a supernet of ",
        f"finalist-1 in {searched / 'finalist-1'}",
    ):
        place = printed.index(line, place)
    main(["search", "--resume", str(searched)])
    printed = capsys.readouterr().out
    assert f"{searched} is finished; there is nothing left to search" in printed
    assert f"next: glocal test {searched}" in printed


def test_what_was_found_is_within_the_budget_and_trains_by_its_file(searched, tmp_path, capsys):
    report = json.loads((searched / "report.json").read_text())
    model = load_model(searched)
    assert count(model, (8, 8), 1).macs == report["found"]["cost"] <= 80_000
    assert len(report["finalists"]) == 2
    assert [report["stages"][name]["evaluated"] for name in ("heads", "details")] == [12, 12]
    candidates = json.loads((searched / "candidates.json").read_text())
    assert {stage: [len(each) for each in generations] for stage, generations in candidates.items()} == {
        "heads": [6, 6],
        "details": [6, 6],
    }
    for picture in ("architecture", "score-against-cost", "generations"):
        assert (searched / "figures" / f"{picture}.png").stat().st_size > 1000

    again = create_model(
        "glit-tiny", arch=searched / "arch.json", image_size=8, patch_size=4, in_chans=1, drop_path=0.1
    )
    assert again.config.blocks[-1].drop_path == 0.1
    assert [replace(block, drop_path=0.0) for block in again.config.blocks] == list(model.config.blocks)
    recipe = load_recipe("glit-digits", {"model.arch": str(searched / "arch.json")})
    blocks = create_model(**recipe.model, image_size=8, in_chans=1).config.blocks
    assert blocks == model.config.blocks  # and not what the recipe says of its start's blocks
    main(["test", str(searched)])
    assert "top1" in capsys.readouterr().out


def test_the_second_stage_keeps_the_heads_that_the_first_found(searched):
    first, second = (
        [json.loads(line) for line in (searched / stage / "journal.jsonl").read_text().splitlines()]
        for stage in ("heads", "details")
    )
    best = max(first[1:], key=lambda record: record["fitness"])
    found = [options[index] for options, index in zip(first[0]["fingerprint"]["space"], best["key"], strict=True)]
    offered = [{option["local_heads"] for option in options} for options in second[0]["fingerprint"]["space"]]
    assert offered == [{option["local_heads"]} for option in found]


def test_the_demo_shows_what_a_search_found(searched, monkeypatch):
    monkeypatch.setitem(demo_page.RUNS, demo_page.GLIT.name, searched)
    section = demo_page.searched(page.Table(["model"], []))
    captions = [part.caption for part in section.parts if isinstance(part, page.Picture)]
    assert any(caption.startswith("The 24 candidates that were evaluated") for caption in captions)


class Killed(Exception):
    pass


def test_a_search_that_is_killed_before_each_generation_ends_as_one_that_was_not(searched, tmp_path, monkeypatch):
    folder, evaluated, evaluate = tmp_path / "run", [], Evaluator.__call__

    def dying(self, paths):
        if len(evaluated) == generations:
            raise Killed
        evaluated.append(paths)
        return evaluate(self, paths)

    monkeypatch.setattr(Evaluator, "__call__", dying)
    for generations in range(4):
        with pytest.raises(Killed):
            runner.search(folder) if folder.exists() else run_search(folder)
        assert len(evaluated) == generations  # none is evaluated twice
    generations = 4  # two in each of two stages
    assert runner.search(folder) == folder
    assert len(evaluated) == 4
    assert tell(folder) == tell(searched)


@pytest.mark.parametrize("method", ["flat", "random"])
def test_baselines_evaluate_as_many_paths_in_one_stage(tmp_path, method):
    folder = run_search(tmp_path / "run", search__method=method, search__retrain=1)
    report = json.loads((folder / "report.json").read_text())
    assert {name: stage["evaluated"] for name, stage in report["stages"].items()} == {"whole": 24}


def test_a_search_without_a_supernet_trains_random_paths_for_longer_and_longer(tmp_path):
    folder = run_search(
        tmp_path / "run", search__method="halving", search__halving=2, search__retrain=1, train__epochs=4
    )
    report = json.loads((folder / "report.json").read_text())
    assert report["stages"] == {"drawn": {"evaluated": 0, "best": None}}
    rounds = {name: [report_of(run) for run in folder.glob(name)] for name in ("round-1/*", "round-2/*", "finalist-*")}
    lengths = {name: [each["epochs"] for each in reports] for name, reports in rounds.items()}
    assert lengths == {"round-1/*": [1] * 4, "round-2/*": [2] * 2, "finalist-*": [4]}
    assert not (folder / "whole").exists()
    candidates = json.loads((folder / "candidates.json").read_text())["drawn"][0]
    assert len(candidates) == 4
    assert all(cost <= 80_000 and fitness is None for cost, fitness in candidates)
    scores = {path.name: report_of(path)["val"]["top1"] for path in (folder / "round-2").iterdir()}
    best = max(scores, key=scores.get)
    assert (folder / "arch.json").read_text() == (folder / "round-2" / best / "arch.json").read_text()
    assert runner.search(folder) == folder


def test_a_search_sees_no_image_but_the_training_ones():
    images = open_images(DataConfig(source="digits", image_size=8, channels=1))
    held = images.hold_out(0.2)
    assert sorted(held.splits["train"] + held.splits["val"]) == sorted(images.splits["train"])
    assert len(held.splits["val"]) == round(0.2 * len(images.splits["train"]))
    assert set(held.splits) == {"train", "val"}
    with pytest.raises(GlocalError, match="no test images"):
        held.eval_batches("test", 8)


def test_a_batch_names_the_same_path_whenever_and_wherever_it_is_drawn():
    images = open_images(DataConfig(source="digits", image_size=8, channels=1)).hold_out(0.2)
    space = heads_space(uniform_blocks(4, embed_dim=24, num_heads=3))
    paths = PathSamplingData(images, space, seed=0)
    whole = [batch["path"].tolist() for batch in paths.train_batches(32, 1)]
    assert [batch["path"].tolist() for batch in paths.train_batches(32, 1, start=7)] == whole[7:]
    assert [batch["path"].tolist() for batch in paths.train_batches(16, 1, rank=1, world_size=2)] == whole
    assert len({tuple(path) for path in whole}) > len(whole) / 2
    assert [batch["path"].tolist() for batch in paths.train_batches(32, 2)] != whole
    epochs = [BatchesWithPaths([{}] * 40, space, f"0, train {epoch}") for epoch in range(30)]
    drawn = torch.tensor([batch["path"].tolist() for batches in epochs for batch in batches])
    shares = torch.stack([(drawn == option).float().mean(0) for option in range(4)])
    torch.testing.assert_close(shares, torch.full((4, 4), 0.25), atol=0.05, rtol=0)


def test_a_step_moves_only_the_weights_of_its_path():
    space = heads_space(uniform_blocks(2, embed_dim=24, num_heads=3, kernel_size=3))
    config = ViTConfig(
        image_size=(8, 8), in_chans=1, num_classes=3, patch_size=4, blocks=uniform_blocks(2, embed_dim=24, num_heads=3)
    )
    supernet = Supernet(GLiT(config), space)
    task = SupernetObjective(ClassificationObjective(ClassificationConfig(), 3), space)
    torch.nn.init.normal_(supernet.frame.head.classifier.weight)
    batch = {
        "pixel_values": torch.randn(4, 1, 8, 8),
        "labels": torch.tensor([0, 1, 2, 0]),
        "path": torch.tensor([0, 1]),
    }
    task.loss(supernet, batch).backward()
    assert all(p.grad is None for p in supernet.blocks[0].all_local.parameters())
    gradient = supernet.blocks[1].all_local.contract.weight.grad
    assert gradient[-8:, -8:].any()
    assert not gradient[:16].any()
    assert not gradient[:, :16].any()


def test_wrong_searches_are_one_clear_line(tmp_path):
    with pytest.raises(GlocalError, match=r"budget of any to 10 MACs: the nearest costs [\d,]+ MACs"):
        run_search(tmp_path / "a", search__budget__upper=10)
    with pytest.raises(GlocalError, match="epochs, not minutes"):
        run_search(tmp_path / "b", search__supernet__epochs=None, search__supernet__minutes=1)
    with pytest.raises(GlocalError, match="no ema"):
        run_search(tmp_path / "b", search__supernet__ema=0.9)
    with pytest.raises(GlocalError, match="finalists, but in a race only"):
        run_search(tmp_path / "b", search__retrain=4)
    with pytest.raises(GlocalError, match="glit-tiny is one"):
        runner.search("vit-digits", {"model.name": "timm:resnet18", "run.dir": str(tmp_path / "c")})
    with pytest.raises(GlocalError, match="continues a pre-trained one"):
        runner.search("bert-sst2", {"run.dir": str(tmp_path / "d")})
    assert not any(tmp_path.iterdir())  # so that the next attempt may have their names
    (tmp_path / "arch.json").write_text("{}")
    with pytest.raises(GlocalError, match="is not an architecture"):
        create_model("glit-tiny", arch=tmp_path / "arch.json")


def test_neither_a_search_nor_a_training_goes_on_as_the_other(searched, tmp_path):
    with pytest.raises(GlocalError, match="continue it with glocal search --resume"):
        runner.resume(searched)
    run = runner.train("glit-digits", TINY | {"run.dir": str(tmp_path / "run")})
    with pytest.raises(GlocalError, match="continue it with glocal train --resume"):
        runner.search(run)


def test_a_recipe_keeps_its_search_when_it_is_written_and_read(tmp_path):
    recipe = load_recipe("glit-digits")
    (tmp_path / "glit-digits.yaml").write_text(recipe.to_yaml())
    assert load_recipe(tmp_path / "glit-digits.yaml") == recipe
    assert "search" not in load_recipe("vit-digits").to_yaml()
