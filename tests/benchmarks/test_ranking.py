"""The benchmark of rankings: its figures by hand, and the whole of it in small, which goes on where it was."""

import csv
import sys

import numpy as np
import pytest
import ranking
import torch
from conftest import TINY
from ranking import ceiling, compare, synflow

from glocal.layers.block import uniform_blocks
from glocal.models import GPT, GPTConfig, create_model
from glocal.models.cost import Example


def test_a_perfect_ranking_has_no_regret_and_its_reverse_has_the_most():
    scores = np.linspace(0.5, 0.9, 20)
    same, reverse = compare("same", scores.tolist(), scores), compare("reverse", (-scores).tolist(), scores)
    assert (same["tau"], same["regret"]) == ("1.000", "0.000")
    assert reverse["tau"] == "-1.000"
    assert float(reverse["regret"]) == pytest.approx(0.9 - scores[4], abs=1e-3)
    noise = compare("noise", np.random.default_rng(0).normal(size=20).tolist(), scores)
    assert float(noise["tau_5"]) < float(noise["tau"]) < float(noise["tau_95"])


def test_the_ceiling_is_one_where_seeds_agree():
    scores = np.linspace(0.5, 0.9, 12)
    assert ceiling(np.stack([scores, scores + 0.1, scores], axis=1))["tau"] == "1.000"
    noise = np.random.default_rng(0).normal(size=(12, 3))
    assert abs(float(ceiling(noise)["tau"])) < 0.5


def test_synflow_grows_with_the_width_and_needs_no_data():
    def score(ratio):
        blocks = uniform_blocks(2, embed_dim=12, num_heads=3, causal=True, mlp_ratio=ratio)
        torch.manual_seed(0)
        model = GPT(GPTConfig(13, 8, blocks=blocks, dropout=0.0, pad_id=None, bos_id=None, eos_id=None))
        return synflow(model, Example.of(model, 8))

    assert 0 < score(2.0) < score(4.0)


def test_synflow_of_a_classifier_that_starts_at_zero_is_a_number_of_its_own():
    def score(ratio):
        torch.manual_seed(0)
        model = create_model("vit-tiny", **TINY | {"mlp_ratio": ratio})
        assert not model.head.classifier.weight.any()
        return synflow(model, Example.of(model, (32, 32), 3))

    assert 0 < score(1.0) != score(2.0)


@pytest.mark.slow
def test_a_small_ranking_is_measured_and_goes_on_where_it_was(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(ranking, "RESULTS", tmp_path)
    written = []
    monkeypatch.setattr(ranking, "write", lambda rows, name, columns: written.append(rows))
    fields = ["--train.epochs", "1", "--search.supernet.epochs", "1", "--search.calibration", "32"]
    words = ["ranking.py", "digits", "--archs", "3", "--seeds", "2", "--folder", str(tmp_path / "runs"), *fields]
    monkeypatch.setattr(sys, "argv", words)
    ranking.main()
    (rows,) = written
    assert [row["what"] for row in rows] == ["ceiling", "supernet", "parameters", "macs", "synflow", "tenth"]
    with (tmp_path / "ranking-digits-trainings.csv").open(newline="") as file:
        trainings = list(csv.DictReader(file))
    assert [(row["arch"], row["seed"]) for row in trainings] == [(str(a), str(s)) for s in range(2) for a in range(3)]
    monkeypatch.setattr(ranking.Finals, "train_one", None)  # nothing is trained again
    ranking.main()
    assert written[0] == written[1]
    assert "architecture 2, seed 1" in capsys.readouterr().out
