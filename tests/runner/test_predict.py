"""`glocal predict`, for every kind of model of texts."""

import gzip
import io
import json
import shutil
import warnings

import pytest
import torch
from PIL import Image

from glocal.cli import main
from glocal.data import TokenizerConfig, learn_tokenizer
from glocal.errors import showable
from glocal.generation import GenerationOutput
from glocal.models import create_model
from glocal.tasks import TextGenerator, Translator

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
    return capsys.readouterr().out.removesuffix("\n").split("\n")


def records(capsys, folder, *words):
    return [json.loads(line) for line in ask(capsys, folder, *words, "--json")]


def typed(monkeypatch, content: bytes) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))


def test_a_line_in_is_a_line_out(saved, capsys, tmp_path, monkeypatch):
    content = "\ufeffone\u2028still\ntwo\x85\x0cstill\r\n\nfour\rstill\ncafe\u0301".encode()
    expected = ["one\u2028still", "two\x85\x0cstill", "", "four\rstill", "caf\u00e9"]
    (tmp_path / "odd.txt").write_bytes(content)
    (tmp_path / "odd.txt.gz").write_bytes(gzip.compress(content))
    for name in ("odd.txt", "odd.txt.gz", "-"):
        typed(monkeypatch, content)
        given = name if name == "-" else str(tmp_path / name)
        answers = records(capsys, saved["classification"], given)
        assert [answer["input"] for answer in answers] == expected
        assert [len(answer["labels"]) for answer in answers] == [2, 2, 0, 2, 2]
    assert [len(answer["texts"]) for answer in records(
        capsys, saved["language"], str(tmp_path / "odd.txt"), "--decoding.extra_length=2"
    )] == [1, 1, 0, 1, 1]  # fmt: skip


@pytest.mark.parametrize(
    ("head", "name", "content", "expected"),
    [
        ("classification", "some.csv", 'id,text,label\n1,New York,0\n\n2,"John,\nHà",1\n', ["New York", "John,\nHà"]),
        ("classification", "SOME.CSV", "text,label\nNew York,0\n", ["New York"]),
        ("classification", "some.tsv", "sentence1\tsentence2\nNew\tYork\n", ["New\tYork"]),
        ("classification", "some.jsonl", '{"text": "New"}\n\n{"text": ""}\n', ["New", ""]),
        ("spans", "some.tsv", "question\tcontext\nWho?\tJohn\n", ["Who?\tJohn"]),
        ("tagging", "some.conll", "# id = 1\nJohn B-PER\nlived O\n\nNew B-LOC\n", ["John lived", "New"]),
        ("language", "some.jsonl", '{"prompt": "Once"}\n', ["Once"]),
    ],
)
def test_a_table_is_read_as_in_training(saved, capsys, tmp_path, head, name, content, expected):
    (tmp_path / name).write_text(content)
    words = ["--decoding.extra_length=2"] if head == "language" else []
    assert [answer["input"] for answer in records(capsys, saved[head], str(tmp_path / name), *words)] == expected


def test_labels_of_texts_files_and_pairs(saved, capsys, tmp_path):
    (tmp_path / "texts.txt").write_text("New York\nHà Nội\n", encoding="utf-8")
    lines = ask(capsys, saved["classification"], "New York", str(tmp_path / "texts.txt"), "--top", "1")
    assert lines[0] == lines[1]
    assert lines[2].startswith("Hà Nội  ")
    (answer,) = records(capsys, saved["classification"], "New York\tHà Nội")
    assert answer["input"] == "New York\tHà Nội"
    assert sum(label["probability"] for label in answer["labels"]) == pytest.approx(1, abs=1e-5)
    assert {label["label"] for label in answer["labels"]} == {"bad", "good"}


def test_odd_metadata_of_an_image_brings_no_warning(capsys, tmp_path):
    model = create_model("vit-tiny", image_size=8, patch_size=4, num_classes=2, embed_dim=16, depth=1, num_heads=2)
    model.save_pretrained(tmp_path / "model")
    exif = b"Exif\0\0II*\0\x08\0\0\0\xff\xff"
    Image.new("RGB", (9, 9)).save(tmp_path / "photo.jpg", exif=exif)
    with pytest.warns(UserWarning, match="Corrupt EXIF data"), Image.open(tmp_path / "photo.jpg") as photo:
        photo.getexif()
    warnings.simplefilter("default")
    main(["predict", str(tmp_path / "model"), str(tmp_path / "photo.jpg")])
    assert capsys.readouterr().err == ""
    (tmp_path / "other.heic").write_bytes(b"")
    main(["predict", str(tmp_path / "model"), str(tmp_path)])
    assert capsys.readouterr().err.startswith(f"glocal: {tmp_path}: 1 .heic left out")


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


def test_that_there_is_no_answer_is_one(saved, capsys, tmp_path):
    asked = ["Where?\tNew York", "--top", "20"]
    assert "" not in [one["text"] for one in records(capsys, saved["spans"], *asked)[0]["answers"]]
    assert "" in [one["text"] for one in records(capsys, saved["spans"], *asked, "--no-answer")[0]["answers"]]
    shutil.copytree(saved["spans"], tmp_path / "run" / "model")
    (tmp_path / "run" / "report.json").write_text('{"data": {"impossible": 3}}')
    assert "" in [one["text"] for one in records(capsys, tmp_path / "run" / "model", *asked)[0]["answers"]]
    assert ask(capsys, saved["spans"], "Where?\t\u200b") == ["no answer"]


def test_a_sentence_without_entities(saved, capsys):
    assert ask(capsys, saved["tagging"], " \u200b")[0].endswith("no entity")


def test_texts_that_go_on(saved, capsys, monkeypatch):
    long = ["--decoding.extra_length=9"]
    typed(monkeypatch, b"Once upon\r\nJohn\n")
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
        patch.setattr("sys.stderr.isatty", lambda: True)
        patch.setattr("builtins.print", lambda *words, end="\n", **_: pieces.append("".join(words) + end))
        main(["predict", str(folder), *words])
    assert pieces.pop(0) == f"glocal predict {folder} ...\n"  # before torch is imported
    assert pieces.pop(0) in ("weights in float32\n", "weights in fp16\n")  # the faster one here
    assert "".join(pieces) == showable(expected)
    assert pieces[0] == "Once upon"
    assert len(pieces) > 5


@pytest.mark.parametrize(
    ("head", "words", "message"),
    [
        ("classification", ["a", "--decoding.beams=2"], "--decoding.* needs a model that generates text"),
        ("spans", ["Where?"], "'Where?' has no context; give a question, a tab and the text that answers it"),
        ("spans", ["a\tb", "--top", "-1"], "argument --top: -1 was given; expected a whole number of 1 or more"),
        ("tagging", ["a", "--no-answer"], "--no-answer needs a model that answers questions"),
        ("tagging", ["nowhere/new.txt"], "no file 'nowhere/new.txt'; give a text, a file of texts, or -"),
        ("tagging", ["/"], "/ is a folder; give the files in it"),
        ("tagging", ["a\udce9"], "the argument a\\udce9 is not UTF-8"),
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


def test_a_translation_is_one_line_and_a_terminal_is_not_controlled(saved, capsys, monkeypatch):
    line = Translator.format("hello", GenerationOutput("a\nb", 0.0, [("a\nb", 0.0), ("c\td", -1.0)]))
    assert line == "a\\nb\tc\\td"
    monkeypatch.setattr(TextGenerator, "stream", lambda *_: iter([" a\n\x1b", "[2J"]))
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    main(["predict", str(saved["language"]), "Once\x1b"])
    assert capsys.readouterr().out.endswith("Once\\x1b a\n\\x1b[2J\n")
