"""The whole way of BERT and of GPT, from plain text to a pre-trained model and on to each task, as a user goes it."""

import json

import pytest

import glocal
from glocal.cli import main
from glocal.data import Tokenizer
from glocal.errors import GlocalError
from glocal.tasks import FillMask, QuestionAnswerer, TextClassifier, TextGenerator, TokenClassifier
from glocal.training import RunFolder

TINY = [
    "--model.embed_dim=32",
    "--model.depth=1",
    "--model.num_heads=2",
    "--model.dropout=0.0",
    "--model.attn_drop=0.0",
]
SHORT = ["--train.steps=6", "--train.minutes=null", "--train.epochs=null", "--train.batch_size=8", "--train.lr=1e-3"]
NAMES = ["Lan", "Minh", "Huy", "Trang", "Nam", "Linh"]
TOWNS = ["Hue", "Vinh", "Hanoi", "Dalat"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Sixty documents of a few sentences each."""
    path = tmp_path_factory.mktemp("corpus") / "lives.jsonl"
    lives = (
        f"{name} was born in {town}. Every year {name} goes back to {town}. The market of {town} is {size}. "
        f"{name} likes it there, and stays for {days} days."
        for name in NAMES
        for town in TOWNS
        for size, days in (("small", 2), ("large", 5), ("loud", 9))
    )
    path.write_text("".join(json.dumps({"text": life}) + "\n" for life in lives))
    return path


@pytest.fixture(scope="module")
def bert(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "bert"
    data = [f"--data={corpus}", "--data.max_length=48", "--data.tokenizer.vocab_size=300", "--data.test_fraction=0.2"]
    main(["train", "bert-pydoc", *data, *TINY, *SHORT, f"--run.dir={folder}"])
    return folder


@pytest.fixture(scope="module")
def gpt(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "gpt"
    data = [f"--data={corpus}", "--data.max_length=48", "--data.tokenizer.vocab_size=300"]
    main(["train", "gpt-pydoc", *data, *TINY, *SHORT, f"--run.dir={folder}"])
    return folder


def test_bert_is_pretrained_and_fills_masks(bert, capsys):
    main(["test", str(bert)])
    measured = RunFolder(bert).read_report()["test"]
    printed = capsys.readouterr().out
    assert f"next sentence: {measured['next_accuracy']:.2%} right" in printed
    assert measured["loss"] == pytest.approx(measured["masked_loss"] + measured["next_loss"])
    assert 0 < measured["unigram_loss"] < measured["masked_loss"] * 3
    assert isinstance(glocal.load(bert), FillMask)
    main(["predict", str(bert), "Lan was born in [MASK].", "--top", "3", "--json"])
    (masks,) = json.loads(capsys.readouterr().out)["masks"]
    assert len(masks) == 3


def test_other_documents_are_tested_with_the_models_own_words(bert, tmp_path):
    other = tmp_path / "other.txt"
    other.write_text("Minh was born in Vinh. Minh likes it there. The market of Hue is small. Minh goes back.\n" * 9)
    measured = glocal.test(bert, str(other))
    assert measured["source"] == str(other)
    assert measured["tokens"] == 9 * 22


def test_gpt_is_pretrained_and_writes(gpt, capsys):
    main(["test", str(gpt)])
    printed = capsys.readouterr().out
    assert f"perplexity {RunFolder(gpt).read_report()['test']['perplexity']:.3f}" in printed
    assert isinstance(glocal.load(gpt), TextGenerator)
    main(["predict", str(gpt), "Lan was", "--decoding.extra_length=5"])
    assert capsys.readouterr().out.startswith("Lan was")


@pytest.mark.parametrize("recipe", ["bert-pydoc", "gpt-pydoc"])
def test_half_of_the_heads_may_be_local(recipe, corpus, tmp_path, capsys):
    data = [f"--data={corpus}", "--data.max_length=48", "--data.tokenizer.vocab_size=300"]
    local = ["--model.local_heads=1", "--model.local_norm=layer", "--model.kernel_size=3"]
    run = tmp_path / "run"
    main(["train", recipe, *data, *TINY, *local, *SHORT, f"--run.dir={run}"])
    main(["predict", str(run), "Lan was [MASK]" if recipe == "bert-pydoc" else "Lan was"])
    main(["explain", str(run), "Lan was born", "--heads", "-o", str(tmp_path / "heads.svg")])
    assert "head 1, local" in (tmp_path / "heads.svg").read_text()
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["export", str(run), "--to", "transformers", "-o", str(tmp_path / "theirs")])
    assert "no local_heads 1" in capsys.readouterr().err


def test_local_heads_with_the_norm_of_images_are_refused(corpus, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(
            ["train", "gpt-pydoc", f"--data={corpus}", *TINY, "--model.local_heads=1", f"--run.dir={tmp_path / 'run'}"]
        )
    assert "set local_norm 'layer'" in capsys.readouterr().err


@pytest.mark.parametrize("base", ["bert", "gpt"])
@pytest.mark.parametrize("tune", ["all", "lora"])
def test_sentences_are_classified(base, tune, request, tmp_path, capsys):
    start = request.getfixturevalue(base)
    folder, data = tmp_path / "run", tmp_path / "praise.tsv"
    rows = [f"{name} likes {town}\tgood\n{name} hates {town}\tbad\n" for name in NAMES for town in TOWNS]
    data.write_text("".join(rows))
    fields = [f"--from={start}", f"--data={data}", f"--train.tune={tune}", "--data.test_fraction=0.2"]
    main(["train", "bert-sst2", *fields, *SHORT, f"--run.dir={folder}"])
    main(["test", str(folder)])
    report = RunFolder(folder).read_report()
    assert report["test"]["labels"] == ["bad", "good"]
    assert (report["trained_share"] < 0.5) == (tune == "lora")
    assert (folder / "adapter").is_dir() == (tune == "lora")
    assert "Matthews" in capsys.readouterr().out
    model = glocal.load(folder)
    assert isinstance(model, TextClassifier)
    assert {label for label, _ in model.predict("Lan likes Hue")[0]} == {"bad", "good"}


def test_words_are_tagged(bert, tmp_path, capsys):
    folder, data = tmp_path / "run", tmp_path / "names.conll"
    rows = (f"{name} I-PER\nlikes O\n{town} I-LOC\n. O\n\n" for name in NAMES for town in TOWNS)
    data.write_text("".join(rows))
    main(["train", "bert-conll2003", f"--from={bert}", f"--data={data}", *SHORT, f"--run.dir={folder}"])
    main(["test", str(folder)])
    assert RunFolder(folder).read_report()["test"]["types"] == ["LOC", "PER"]
    assert "PER" in capsys.readouterr().out
    assert isinstance(glocal.load(folder), TokenClassifier)


def test_questions_are_answered(bert, tmp_path, capsys):
    folder, data = tmp_path / "run", tmp_path / "born.json"
    paragraphs = []
    for number, name in enumerate(NAMES * 2):
        context = f"{name} was born in {TOWNS[number % 4]}."
        answer = {"text": TOWNS[number % 4], "answer_start": context.index(TOWNS[number % 4])}
        asked = {"id": str(number), "question": f"Where was {name} born?", "answers": [answer]}
        paragraphs.append({"context": context, "qas": [asked]})
    data.write_text(json.dumps({"data": [{"paragraphs": paragraphs}]}))
    fields = [f"--from={bert}", f"--data={data}", "--data.max_length=48", "--data.stride=8", "--data.test_fraction=0.3"]
    main(["train", "bert-squad", *fields, *SHORT, f"--run.dir={folder}"])
    main(["test", str(folder)])
    measured = RunFolder(folder).read_report()["test"]
    assert 0 <= measured["exact_match"] <= measured["f1"] <= 100
    rows = (folder / "answers.tsv").read_text().splitlines()
    assert len(rows) == 1 + measured["questions"] == 5
    assert "exact match" in capsys.readouterr().out
    assert isinstance(glocal.load(folder), QuestionAnswerer)


def test_prompts_are_completed(gpt, tmp_path, capsys):
    folder, data = tmp_path / "run", tmp_path / "towns.jsonl"
    rows = [{"prompt": f"{name} was born in", "completion": f" {TOWNS[len(name) % 4]}."} for name in NAMES * 3]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    fields = [f"--from={gpt}", f"--data={data}", "--data.max_length=40", "--data.test_fraction=0.3"]
    main(["train", "gpt2-completions", *fields, *SHORT, f"--run.dir={folder}"])
    main(["test", str(folder)])
    assert 0 <= RunFolder(folder).read_report()["test"]["exact"] <= 1
    assert "of the completions exactly right" in capsys.readouterr().out


def test_a_head_stays_where_the_classes_are_the_same_and_starts_anew_where_not(bert, tmp_path):
    files = {}
    for labels in (("good", "bad"), ("yes", "no")):
        files[labels] = tmp_path / f"{labels[0]}.tsv"
        files[labels].write_text(
            "".join(f"{name} likes {town}\t{labels[i % 2]}\n" for i, name in enumerate(NAMES) for town in TOWNS)
        )

    def train(start, labels, name):
        still = {"train.steps": 1, "train.epochs": None, "train.lr": 1e-12, "train.optimizer.weight_decay": 0}
        fields = {"model.from": str(start), "data.source": str(files[labels]), "run.dir": str(tmp_path / name)}
        return glocal.load(glocal.train("bert-sst2", still | fields)).model

    first = train(bert, ("good", "bad"), "first")
    again, other = (
        train(tmp_path / "first", ("good", "bad"), "again"),
        train(tmp_path / "first", ("yes", "no"), "other"),
    )
    assert again.head.classifier.weight.allclose(first.head.classifier.weight, atol=1e-6)
    assert not other.head.classifier.weight.allclose(first.head.classifier.weight, atol=1e-3)
    assert other.labels == ["no", "yes"]
    assert other.head.pooler.weight.allclose(first.head.pooler.weight, atol=1e-6)


def test_a_model_of_many_classes_goes_on_to_a_head_that_has_none(bert, gpt, corpus, tmp_path):
    rows = "".join(f"{name} likes it\t{label}\n" for name in NAMES for label in ("good", "fair", "bad"))
    (tmp_path / "three.tsv").write_text(rows)
    once = {"train.steps": 1, "train.epochs": None, "train.minutes": None}
    for start, recipe, kind in ((bert, "bert-pydoc", FillMask), (gpt, "gpt-pydoc", TextGenerator)):
        three = {"model.from": str(start), "data.source": str(tmp_path / "three.tsv")}
        run = glocal.train("bert-sst2", once | three | {"run.dir": str(tmp_path / f"{recipe}-three")})
        fields = {"model.from": str(run), "data.source": str(corpus), "data.max_length": 48}
        assert isinstance(glocal.load(glocal.train(recipe, once | fields | {"run.dir": str(tmp_path / recipe)})), kind)


def test_fine_tuning_needs_something_pre_trained(tmp_path):
    with pytest.raises(GlocalError, match="fine-tunes a pre-trained model with its tokenizer"):
        glocal.train("bert-sst2", {"model.name": "bert-tiny", "run.dir": str(tmp_path / "run")})


def test_the_recipes_own_length_gives_way_to_a_models_positions_and_the_users_is_refused(bert, tmp_path, capsys):
    reviews = tmp_path / "reviews.tsv"
    reviews.write_text("".join(f"good {i}\tyes\nbad {i}\tno\n" for i in range(12)))
    short = tmp_path / "short"
    glocal.load_model(bert, max_length=24, ignore_keys="pos_embed").save_pretrained(short)
    Tokenizer.load(bert / "model").save(short)
    words = ["train", "bert-sst2", f"--from={short}", f"--data={reviews}", "--train.steps=1"]
    main([*words, f"--run.dir={tmp_path / 'run'}"])
    printed = capsys.readouterr().out
    assert f"data: rows of 24 tokens, the positions of {short}, instead of the recipe's 128" in printed
    assert RunFolder(tmp_path / "run").settings()["data.max_length"] == 24
    mine = tmp_path / "mine.yaml"
    mine.write_text("model: {name: bert-tiny}\ndata: {max_length: 128}\ntask: {name: text-classification}\n")
    for given in ([*words, "--data.max_length", "128"], ["train", str(mine), *words[2:]]):
        with pytest.raises(SystemExit):
            main([*given, f"--run.dir={tmp_path / 'other'}"])
        assert "data.max_length is 128, and the model has 24 positions" in capsys.readouterr().err
