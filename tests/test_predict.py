"""`glocal predict`, for every kind of model of texts."""

import io
import json

import pytest
import torch

from glocal.cli import main
from glocal.data.text import TokenizerConfig, learn_tokenizer
from glocal.models import create_model

SAID = "Once upon a time John lived in New York , far from Hà Nội ."
WORDPIECE = learn_tokenizer([SAID] * 3, TokenizerConfig(kind="wordpiece", vocab_size=300))
BYTES = learn_tokenizer([SAID] * 3, TokenizerConfig(kind="byte-bpe", vocab_size=300))
TINY = {"embed_dim": 16, "depth": 1, "num_heads": 2, "max_length": 64}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder for each head, of a tiny model whose answers vary."""
    folders = {}
    for head in ("language", "pretraining", "classification", "tagging", "spans"):
        torch.manual_seed(0)
        tokenizer, name, special = WORDPIECE, "bert-tiny", {}
        if head == "language":
            tokenizer, name, special = BYTES, "gpt-tiny", {"pad_id": 0, "bos_id": 0, "eos_id": 0}
        model = create_model(name, head=head, vocab_size=tokenizer.vocab_size, **TINY, **special)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.5)
        if head in ("classification", "tagging"):
            model.labels = ["bad", "good"] if head == "classification" else ["B-LOC", "B-PER"]
        folders[head] = tmp_path_factory.mktemp(head)
        model.save_pretrained(folders[head])
        tokenizer.save(folders[head])
    return folders


def ask(capsys, folder, *words):
    main(["predict", str(folder), *words])
    return capsys.readouterr().out.splitlines()


def records(capsys, folder, *words):
    return [json.loads(line) for line in ask(capsys, folder, *words, "--json")]


def test_labels_of_texts_files_and_pairs(saved, capsys, tmp_path):
    (tmp_path / "texts.txt").write_text("New York\nHà Nội\n", encoding="utf-8")
    lines = ask(capsys, saved["classification"], "New York", str(tmp_path / "texts.txt"), "--top", "1")
    assert lines[0] == lines[1]
    assert lines[2].startswith("Hà Nội  ")
    (answer,) = records(capsys, saved["classification"], "New York\tHà Nội")
    assert answer["input"] == "New York\tHà Nội"
    assert sum(label["probability"] for label in answer["labels"]) == pytest.approx(1, abs=1e-5)
    assert {label["label"] for label in answer["labels"]} == {"bad", "good"}


def test_masked_words(saved, capsys):
    (line,) = ask(capsys, saved["pretraining"], "John lived in [MASK] [MASK]", "--top", "2")
    assert len(line.split("\t")) == 2
    (answer,) = records(capsys, saved["pretraining"], "John lived in [MASK]", "--top", "2")
    assert [len(mask) for mask in answer["masks"]] == [2]
    assert answer["masks"][0][0].keys() == {"word", "probability"}


def test_entities(saved, capsys):
    text = "John lived in New York"
    (answer,) = records(capsys, saved["tagging"], text)
    assert all(text.split()[one["start"] : one["end"]] == one["text"].split() for one in answer["entities"])
    (line,) = ask(capsys, saved["tagging"], text)
    assert line.count("PER") + line.count("LOC") == len(answer["entities"]) > 0


def test_answers_to_questions(saved, capsys):
    (answer,) = records(capsys, saved["spans"], f"Where did he live?\t{SAID}", "--top", "3")
    assert len(answer["answers"]) == 3
    assert all(SAID[one["start"] : one["end"]] == one["text"] for one in answer["answers"])
    (line,) = ask(
        capsys, saved["spans"], f"Where did he live?\t{SAID}" + " " * 4000, "--top", "1"
    )  # longer than a name
    assert line.startswith(answer["answers"][0]["text"])


def test_texts_that_go_on(saved, capsys, monkeypatch):
    long = ["--decoding.extra_length=9"]
    monkeypatch.setattr("sys.stdin", io.StringIO("Once upon\nJohn\n"))
    answers = records(capsys, saved["language"], "-", *long, "--decoding.beams=3", "--decoding.nbest=2")
    assert [answer["input"] for answer in answers] == ["Once upon", "John"]
    assert [len(answer["texts"]) for answer in answers] == [2, 2]
    assert all(answer["texts"][0]["score"] > answer["texts"][1]["score"] for answer in answers)
    (alone,) = records(capsys, saved["language"], "Once upon", *long)
    text = "Once upon" + alone["texts"][0]["text"]
    main(["predict", str(saved["language"]), "Once upon", *long])
    assert capsys.readouterr().out == text + "\n"


def test_a_terminal_sees_a_text_grow(saved, capsys, monkeypatch):
    folder, words = saved["language"], ["Once upon", "--decoding.temperature=1.0", "--decoding.extra_length=12"]
    main(["predict", str(folder), *words])
    expected = capsys.readouterr().out
    pieces = []
    with monkeypatch.context() as patch:
        patch.setattr("sys.stdout.isatty", lambda: True)
        patch.setattr("builtins.print", lambda *words, end="\n", **_: pieces.append("".join(words) + end))
        main(["predict", str(folder), *words])
    assert "".join(pieces) == expected
    assert pieces[0] == "Once upon"
    assert len(pieces) > 5


@pytest.mark.parametrize(
    ("head", "words", "message"),
    [
        ("classification", ["a", "--decoding.beams=2"], "only what writes texts is asked so"),
        ("spans", ["Where?"], "'Where?' asks about no text; give a question, a tab and the text that answers it"),
        ("pretraining", ["New York"], "no word of 'New York' is masked"),
        ("language", ["a", "--decoding.repetition_penalty=0.5"], "repetition_penalty 0.5; expected 1, which is none"),
        ("language", ["a", '--decoding.stop=[""]'], "stop ['']; expected strings of a character or more"),
        ("language", ["Once " * 40], "the model takes 64 tokens, prompt and text together"),
    ],
)
def test_errors_are_one_line(saved, head, words, message, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["predict", str(saved[head]), *words])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err.strip().splitlines()[-1]
