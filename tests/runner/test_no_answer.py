"""SQuAD 2.0 from the command line: a reader that learns which questions its texts do not answer."""

import json
import shutil

import pytest
import torch

import glocal
from glocal.cli import main
from glocal.models import create_model
from glocal.recipes import load_recipe
from glocal.tasks.question_answering import find_best_spans, open_data, usable_questions
from glocal.tasks.squad import squad2_scores
from glocal.training import RunFolder

NAMES, TOWNS = ["lan", "minh", "huy", "nam"], ["hue", "vinh", "hanoi"]


@pytest.fixture(scope="module")
def squad2(tmp_path_factory):
    """A file of SQuAD 2.0: of each context, one question is answered, and one, about work, is not."""
    paragraphs = []
    for number in range(24):
        name, town = NAMES[number % 4], TOWNS[number % 3]
        context = f"{name} was born in {town}"
        answer = {"text": town, "answer_start": context.index(town)}
        born = {"id": f"{number}a", "question": f"where was {name} born", "answers": [answer], "is_impossible": False}
        works = {"id": f"{number}b", "question": "who pays", "answers": [], "is_impossible": True}
        paragraphs.append({"context": context, "qas": [born, works]})
    path = tmp_path_factory.mktemp("squad2") / "born.json"
    path.write_text(json.dumps({"version": "v2.0", "data": [{"title": "lives", "paragraphs": paragraphs}]}))
    return path


@pytest.fixture(scope="module")
def run(squad2, speller, tmp_path_factory):
    """A run of a small reader, trained for long enough to tell the two kinds of questions apart."""
    base, folder = tmp_path_factory.mktemp("base"), tmp_path_factory.mktemp("runs") / "reader"
    torch.manual_seed(0)
    shape = {"embed_dim": 32, "depth": 2, "num_heads": 2, "max_length": 64, "dropout": 0.0, "attn_drop": 0.0}
    create_model("bert-tiny", vocab_size=speller.vocab_size, **shape).save_pretrained(base)
    speller.save(base)
    fields = ["--data.max_length=64", "--data.val_fraction=0.25", "--data.test_fraction=0.25"]
    short = ["--train.epochs=30", "--train.batch_size=8", "--train.lr=3e-3", "--train.precision=float32"]
    main(["train", "bert-squad", f"--from={base}", f"--data={squad2}", *fields, *short, f"--run.dir={folder}"])
    return folder


def questions_of(run, split):
    predictor = glocal.load(run, "cpu")
    data = open_data(load_recipe(run / "recipe.yaml").data, run, predictor.tokenizer)
    asked = usable_questions(data.examples(split))
    return predictor, find_best_spans(predictor, data, asked), [each.answers for each in asked]


def test_the_threshold_is_chosen_on_the_validation_split_and_kept(run):
    kept = RunFolder(run).read_report()["no_answer"]
    predictor, spans, references = questions_of(run, "val")
    assert predictor.may_have_none
    assert predictor.threshold == kept["threshold"]
    assert kept["total"] == len(references) == 12
    candidates = [kept["threshold"], *(span.no_answer_score + shift for span in spans for shift in (-1e-3, 0, 1e-3))]
    scores = [squad2_scores(spans, references, threshold)["f1"] for threshold in candidates]
    assert scores[0] == max(scores) == pytest.approx(kept["f1"])


def test_test_measures_what_the_official_script_does(run, capsys):
    main(["test", str(run)])
    printed, measured = capsys.readouterr().out, RunFolder(run).read_report()["test"]
    predictor, spans, references = questions_of(run, "test")
    expected = squad2_scores(spans, references, predictor.threshold)
    assert {name: measured[name] for name in expected} == pytest.approx(expected, abs=1e-3)
    assert measured["HasAns_total"] == measured["NoAns_total"] == 6
    assert measured["best_f1"] >= measured["f1"] > 60  # it has learned to tell the two kinds apart
    assert f"12 test questions: exact match {measured['exact']:.2f}, F1 {measured['f1']:.2f}" in printed
    assert f"6 without an answer: exact match {measured['NoAns_exact']:.2f}" in printed
    rows = [line.split("\t") for line in (run / "answers.tsv").read_text().splitlines()[1:]]
    empty = [answer == "" for _, _, answer in rows]
    assert empty == [span.no_answer_score > predictor.threshold for span in spans]


def test_predict_answers_by_the_threshold(run, tmp_path, capsys):
    asked = "who pays\tlan was born in hue"
    (span,) = glocal.load(run, "cpu").best_spans([tuple(asked.split("\t"))])
    assert span.text
    shutil.copytree(run, tmp_path / "run")
    for threshold, expected in ((span.no_answer_score - 0.1, "no answer"), (span.no_answer_score + 0.1, span.text)):
        report = RunFolder(run).read_report() | {"no_answer": {"threshold": threshold}}
        (tmp_path / "run" / "report.json").write_text(json.dumps(report))
        main(["predict", str(tmp_path / "run"), asked, "--precision", "float32", "--top", "1"])
        assert capsys.readouterr().out.startswith(f"{expected} ")
        predictor = glocal.load(tmp_path / "run", "cpu")
        ((found,),) = predictor.predict([tuple(asked.split("\t"))])
        assert (found.text or "no answer") == expected
        assert found.score > 0


def test_a_threshold_may_be_given(run):
    predictor, asked = glocal.load(run, "cpu"), [("who pays", "lan was born in hue")]
    ((none,),) = predictor.predict(asked, threshold=-1000)
    assert none.text == ""
    ((some,),) = predictor.predict(asked, threshold=1000)
    assert some.text == predictor.best_spans(asked)[0].text
    ((other,),) = predictor.predict(asked, threshold=-1000, may_have_none=False)
    assert other.text == some.text
    with pytest.raises(glocal.GlocalError, match="threshold 'high'; expected a number"):
        predictor.predict(asked, threshold="high")


def test_data_of_version_1_has_its_two_scores(run, tmp_path, squad2):
    content = json.loads(squad2.read_text())
    for paragraph in content["data"][0]["paragraphs"]:
        del paragraph["qas"][1]
    (tmp_path / "old.json").write_text(json.dumps(content))
    measured = glocal.test(run, str(tmp_path / "old.json"))
    assert measured["exact_match"] <= measured["f1"]
    assert measured["questions"] == 24
    assert "HasAns_f1" not in measured
