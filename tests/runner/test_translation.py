"""The whole way of a translation, from a file of pairs to words, on the command line as a user goes it."""

import io
import json
from pathlib import Path
from runpy import run_path

import pytest
from num2words import num2words

import glocal
from glocal.cli import main
from glocal.errors import GlocalError
from glocal.training import RunFolder

TINY = [
    "--model.embed_dim=32",
    "--model.depth=1",
    "--model.num_heads=2",
    "--model.dropout=0.0",
    "--model.max_length=40",
    "--data.max_length=40",
]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """The numbers below 400, in English and in Vietnamese."""
    path = tmp_path_factory.mktemp("pairs") / "numbers.tsv"
    rows = [f"{num2words(n)}\t{num2words(n, lang='vi')}" for n in range(400)]
    path.write_text("\n".join(["en\tvi", *rows]) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def run(pairs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "numbers"
    fields = [f"--data={pairs}", "--data.languages=[en, vi]", "--data.vocab_size=300", f"--run.dir={folder}"]
    schedule = ["--train.minutes=null", "--train.epochs=30", "--train.batch_size=512", "--train.lr=5e-3"]
    main(["train", "transformer-numbers-en-vi", *TINY, *fields, *schedule, "--train.schedule.warmup_steps=20"])
    return folder


def test_a_run_folder_is_whole_and_can_be_moved(run):
    exchanged = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    assert sorted(path.name for path in (run / "model").iterdir()) == exchanged
    report = RunFolder(run).read_report()
    assert report["data"]["overlong"] == 0
    assert (run / "figures" / "training.png").is_file()


def test_test_measures_what_is_written(run, capsys):
    main(["test", str(run)])
    report = RunFolder(run).read_report()["test"]
    assert report["examples"] == 16  # 0.04 of 400
    assert report["bleu"] > 20
    printed = capsys.readouterr().out
    assert f"BLEU {report['bleu']:.2f}  {report['bleu_signature']}" in printed
    rows = (run / "translations.tsv").read_text(encoding="utf-8").splitlines()
    assert rows[0] == "en\tvi\ttranslation"
    assert len(rows) == 17
    assert report["exact"] == sum(row.split("\t")[1] == row.split("\t")[2] for row in rows[1:]) / 16


def test_other_data_is_translated_too(run, tmp_path):
    other = tmp_path / "other.tsv"
    other.write_text("en\tvi\nseven\tbảy\nnine\tchín\n", encoding="utf-8")
    assert glocal.test(run, str(other))["examples"] == 2


def test_predict_reads_sentences_files_and_standard_input(run, tmp_path, capsys, monkeypatch):
    (tmp_path / "in.txt").write_text("twelve\n\nthirteen\n", encoding="utf-8")
    main(["predict", str(run), "twelve", str(tmp_path / "in.txt")])
    alone, *lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == [alone, ""]
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"twelve\nthirteen\n")))
    main(["predict", str(run), "-", "--json", "--decoding.beams=3", "--decoding.nbest=2"])
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [answer["input"] for answer in answers] == ["twelve", "thirteen"]
    scores = [one["score"] for one in answers[0]["translations"]]
    assert scores == sorted(scores, reverse=True)
    assert len(scores) == 2


@pytest.mark.parametrize(
    "words", [[], ["--heads"], ["--attention", "encoder"], ["--attention", "decoder", "--head", "1"]]
)
def test_explain_draws_words_on_the_axes(run, words, tmp_path):
    main(["explain", str(run), "two hundred and three", "-o", str(tmp_path / "look.png"), *words])
    assert (tmp_path / "look.png").read_bytes()[:4] == b"\x89PNG"


def test_fine_tuning_goes_on_with_the_same_vocabulary(run, pairs, tmp_path):
    fields = [f"--data={pairs}", "--data.languages=[en, vi]", "--data.max_length=40"]
    fields += ["--train.minutes=null", "--train.epochs=1"]
    folder = tmp_path / "finetuned"
    main(["train", "transformer-numbers-en-vi", "--from", str(run), *fields, f"--run.dir={folder}"])
    assert (folder / "model" / "tokenizer.json").read_text() == (run / "model" / "tokenizer.json").read_text()
    before, after = (RunFolder(path).history() for path in (run, folder))
    assert after[-1]["val_loss"] < before[0]["train_loss"] / 2


def test_an_lstm_learns_by_the_same_recipe(pairs, tmp_path):
    fields = [f"--data={pairs}", "--data.languages=[en, vi]", "--data.vocab_size=300", f"--run.dir={tmp_path / 'lstm'}"]
    model = ["--model.name=lstm-tiny", "--model.hidden_dim=32", "--model.embed_dim=16"]
    main(["train", "transformer-numbers-en-vi", *model, *fields, "--train.minutes=null", "--train.epochs=2"])
    assert glocal.test(tmp_path / "lstm")["examples"] == 16


def test_a_page_sets_translators_side_by_side(run, pairs, tmp_path, monkeypatch):
    fields = [f"--data={pairs}", "--data.languages=[en, vi]", "--data.vocab_size=300", f"--run.dir={tmp_path / 'lstm'}"]
    model = ["--model.name=lstm-tiny", "--model.hidden_dim=32", "--model.embed_dim=16"]
    main(["train", "transformer-numbers-en-vi", *model, *fields, "--train.minutes=null", "--train.epochs=1"])
    script = run_path(str(Path(__file__).parents[2] / "examples" / "translators.py"))

    def compare(*runs):
        monkeypatch.setattr("sys.argv", ["translators.py", *map(str, runs), "-o", str(tmp_path / "page.html")])
        script["main"]()

    glocal.test(run)
    with pytest.raises(GlocalError, match="lstm was not tested; run: glocal test"):
        compare(run, tmp_path / "lstm")
    glocal.test(tmp_path / "lstm")
    compare(run, tmp_path / "lstm")
    page = (tmp_path / "page.html").read_text()
    assert f"{RunFolder(run).read_report()['test']['bleu']:.2f}" in page
    assert "distance n" in page
    with pytest.raises(GlocalError, match="one of each kind"):
        compare(run, run)


SMALL = ["--data=few.tsv", "--data.languages=[en, vi]", "--data.vocab_size=260"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["predict", "RUN", "one", "--decoding.beams=2", "--decoding.temperature=1"], "either, to search or to sample"),
        (["predict", "RUN", "one", "--decoding.beam=2"], "beam"),
        (["explain", "RUN", "one", "-o", "x.png", "--layer", "7"], "--layer 7; this model has layers 0 to 0"),
        (["train", "transformer-numbers-en-vi", "--data=no.tsv", "--data.languages=[en, vi]"], "no.tsv"),
        (["train", "transformer-numbers-en-vi", "--data=pairs.tsv"], "data.languages is not given"),
        (["train", "transformer-numbers-en-vi", "--train.tune=head", *SMALL], "has none"),
        (["search", "transformer-numbers-en-vi", *SMALL], "set local_norm 'layer'"),
    ],
)
def test_errors_are_one_line_and_exit_with_two(words, message, run, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "few.tsv").write_text("en\tvi\n" + "one\tmột\ntwo\thai\n" * 50)
    with pytest.raises(SystemExit) as stop:
        main([str(run) if word == "RUN" else word for word in words])
    assert stop.value.code == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("glocal: ")
    assert message in error
