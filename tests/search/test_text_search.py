"""A search of a language model, from a recipe to an architecture: stages, finalists, resume, and what it reports."""

import json
import random

import pytest
import torch

from glocal import runner
from glocal.cli import main
from glocal.layers.block import BlockConfig, uniform_blocks
from glocal.models import create_model, load_model
from glocal.models.cost import count
from glocal.recipes import load_recipe
from glocal.runner.finalists import Finals, shortened
from glocal.search.evaluator import Evaluator
from glocal.search.paths import distill, fair_path, sandwich_paths
from glocal.search.space import SpaceConfig, full_space
from glocal.search.stages import EvaluatedPath
from glocal.tasks.causal_lm import CausalLMObjective
from glocal.training import RunFolder

TINY = {
    "model.embed_dim": 16,
    "model.depth": 2,
    "model.num_heads": 2,
    "data.max_length": 16,
    "search.space.kernel_size": [3],
    "search.space.mlp_ratio": [2.0, 4.0],
    "search.space.qkv_ratio": [1.0, 2.0],
    "search.budget.lower": None,
    "search.budget.upper": 140_000,
    "search.supernet.steps": 8,
    "search.supernet.precision": "float32",
    "search.evolution.population": 5,
    "search.evolution.generations": 2,
    "search.evolution.parents": 4,
    "search.evolution.crossover": 2,
    "search.evolution.mutation": 2,
    "search.batch_size": 16,
    "search.val_fraction": 0.1,
    "search.retrain": 2,
    "train.steps": 4,
    "train.precision": "float32",
}


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    draw = random.Random(0)
    words = ["to", "be", "or", "not", "that", "is", "the", "question", "whether", "nobler"]
    file = tmp_path_factory.mktemp("text") / "input.txt"
    file.write_text("".join(draw.choice(words) + draw.choice(" \n") for _ in range(3000)))
    return file


def run_search(folder, text, **fields):
    given = {"data.source": str(text), "run.dir": str(folder)}
    changed = {name.replace("__", "."): value for name, value in fields.items()}
    return runner.search("search-gpt-shakespeare-char", TINY | given | changed)


@pytest.fixture(scope="module")
def searched(tmp_path_factory, text):
    return run_search(tmp_path_factory.mktemp("search") / "run", text)


def tell(folder):
    report = json.loads((folder / "report.json").read_text())
    lines = [(folder / stage / "journal.jsonl").read_text() for stage in report["stages"]]
    return {name: report[name] for name in ("found", "stages", "reading")}, lines


def test_a_language_model_is_searched_by_its_loss(searched, capsys):
    report = json.loads((searched / "report.json").read_text())
    found = report["found"]
    assert found["score"] == "negative loss"
    assert found["val"] == max(-each["val"]["loss"] for each in report["finalists"])
    assert set(report["stages"]) == {"heads", "details"}
    assert -5 < report["stages"]["details"]["best"] < 0
    model = load_model(searched)
    assert count(model, 16).macs == found["cost"] <= 140_000
    for picture in ("architecture", "score-against-cost", "generations"):
        assert (searched / "figures" / f"{picture}.png").stat().st_size > 1000
    tokens = dict.fromkeys(("pad_id", "bos_id", "eos_id"))
    again = create_model("gpt-tiny", arch=searched / "arch.json", vocab_size=model.config.vocab_size, **tokens)
    assert again.config.blocks == model.config.blocks
    main(["test", str(searched)])
    assert "nats per token" in capsys.readouterr().out
    main(["search", "--resume", str(searched)])
    assert f"negative loss {found['val']:.4f} on validation after training" in capsys.readouterr().out


class Killed(Exception):
    pass


@pytest.mark.slow
def test_a_search_that_is_killed_ends_as_one_that_was_not(searched, text, tmp_path, monkeypatch):
    folder, evaluated, evaluate = tmp_path / "run", [], Evaluator.__call__

    def dying(self, paths):
        if len(evaluated) == 3:
            raise Killed
        evaluated.append(paths)
        return evaluate(self, paths)

    with monkeypatch.context() as patch:
        patch.setattr(Evaluator, "__call__", dying)
        with pytest.raises(Killed):
            run_search(folder, text)
    runner.search(folder)
    assert tell(folder) == tell(searched)


@pytest.mark.slow
def test_finalists_are_halved_and_trained_with_several_seeds(text, tmp_path, capsys):
    fields = {"search__method": "heads", "search__sampling": "sandwich", "search__halving": 1, "search__seeds": 2}
    folder = run_search(tmp_path / "run", text, **fields)
    assert "round 1: 2 of 4 finalists go on" in capsys.readouterr().out
    report = json.loads((folder / "report.json").read_text())
    assert len(list(folder.glob("round-1/*/report.json"))) == len(report["finalists"]) * 2 == 4
    for number, finalist in enumerate(report["finalists"], start=1):
        runs = [folder / f"finalist-{number}", folder / f"finalist-{number}-seed-1"]
        scores = [-json.loads((run / "report.json").read_text())["val"]["loss"] for run in runs]
        assert finalist["scores"] == scores
        assert scores[0] != scores[1]
    means = [sum(finalist["scores"]) / 2 for finalist in report["finalists"]]
    assert report["found"]["val"] == pytest.approx(max(means))
    steps = [json.loads(file.read_text())["steps"] for file in folder.glob("round-1/*/report.json")]
    assert set(steps) == {2}


def test_each_round_trains_twice_as_long_and_keeps_the_better_half(tmp_path, monkeypatch):
    fields = {"search.halving": 2, "search.retrain": 1, "search.seeds": 2, "search.race": False}
    recipe = load_recipe("search-gpt-shakespeare-char", fields)
    ranking = [EvaluatedPath((BlockConfig(kernel_size=worth),), 0.0, worth) for worth in (3, 9, 7, 5, 11)]
    trained = []

    def train_one(self, name, candidate, share=1.0, seed=0):
        trained.append((name, share, seed))
        return float(candidate.cost + seed)

    monkeypatch.setattr(Finals, "train_one", train_one)
    (found,) = Finals(recipe, RunFolder(tmp_path), None, CausalLMObjective()).train(ranking)
    assert found.candidate.cost == 9  # the best of the first four
    assert (found.scores, found.score) == ((9, 10), 9.5)
    assert trained == [
        *((f"round-1/{rank}", 0.25, 0) for rank in (1, 2, 3, 4)),
        *((f"round-2/{rank}", 0.5, 0) for rank in (2, 3)),
        ("finalist-1", 1.0, 0),
        ("finalist-1-seed-1", 1.0, 1),
    ]
    short = shortened(load_recipe("transformer-multi30k").train, 0.25)
    assert (short.epochs, short.average, short.schedule.warmup_steps) == (15, 10, 500)
    assert shortened(recipe.train, 0.5).steps == 1000


def test_a_fair_row_of_paths_has_every_option_of_a_block_once():
    space = full_space(uniform_blocks(3, embed_dim=12, num_heads=3), SpaceConfig(kernel_size=(3,), expand_ratio=(1,)))
    options = len(space[0])
    rows = [[fair_path(space, "0, train 0", row * options + i) for i in range(options)] for row in range(3)]
    for row in rows:
        for block in range(3):
            assert sorted(path[block] for path in row) == list(range(options))
    assert rows[0] != rows[1]
    assert rows[0] == [fair_path(space, "0, train 0", i) for i in range(options)]
    assert rows[0] != [fair_path(space, "1, train 0", i) for i in range(options)]


def test_a_sandwich_has_the_largest_path_and_the_smallest_between_which_the_others_lie():
    space = full_space(uniform_blocks(3, embed_dim=12, num_heads=3), SpaceConfig(kernel_size=(3,), local_heads=(0,)))
    paths = sandwich_paths(space, "0, train 0", 5, size=lambda option: option.mlp_ratio + option.qkv_ratio)
    ratios = [[(space[0][index].mlp_ratio, space[0][index].qkv_ratio) for index in path] for path in paths]
    assert ratios[0] == [(6.0, 2.0)] * 3
    assert ratios[1] == [(2.0, 0.5)] * 3
    assert paths[2] != paths[3]
    assert paths == sandwich_paths(space, "0, train 0", 5, size=lambda option: option.mlp_ratio + option.qkv_ratio)


def test_what_is_distilled_is_the_divergence_of_the_labelled_predictions():
    labels = torch.tensor([[1, -100, 2], [0, 0, -100]])
    student, teacher = torch.randn(2, 3, 5, requires_grad=True), torch.randn(2, 3, 5)
    (loss,) = distill((student, labels), (teacher, labels))
    p, q = teacher.softmax(-1), student.softmax(-1)
    expected = (p * (p.log() - q.log())).sum(-1)[labels != -100].mean()
    torch.testing.assert_close(loss, expected)
    assert distill((teacher, labels), (teacher, labels)).item() == pytest.approx(0, abs=1e-6)
