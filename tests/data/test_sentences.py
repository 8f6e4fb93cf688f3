"""Sentences and their classes: every kind of source, batches, and one clear line for each way to be wrong."""

import gzip
import json
import os
from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from glocal.data import TokenDataset
from glocal.data.columns import Encoded
from glocal.data.encoding import encode_sentences
from glocal.data.tables import read_text_inputs
from glocal.data.text_sources import survey
from glocal.errors import GlocalError
from glocal.models import Model
from glocal.tasks.text_classification import TextClassificationDataConfig, open_data
from glocal.training.interfaces import Batches, Data

ROWS = [("good fun", "1"), ("bad", "0"), ('a "fine" film', "1"), ("dull\tstory".replace("\t", " "), "0")]


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def lines(rows, header: str = "") -> str:
    return header + "".join("\t".join(row) + "\n" for row in rows)


def model_of(classes: list[str] | None) -> Model | None:
    """A model that was trained on these classes; None without any."""
    if classes is None:
        return None
    model = Model(None)
    model.labels = classes
    return model


def opened(source: object, tokenizer, folder=None, classes=None, **fields) -> TokenDataset:
    fields = {"val_fraction": 0.0, "test_fraction": 0.0} | fields
    return open_data(TextClassificationDataConfig(str(source), **fields), folder, tokenizer, model_of(classes))


def read(source: object, tokenizer, split: str = "train", **fields) -> list[tuple[str, str | None, str]]:
    return [tuple(item) for item in opened(source, tokenizer, **fields).examples(split)]


EXPECTED = [(text, None, label) for text, label in ROWS]

# -------------------------------------------------------------------------------------------------------------- sources


@pytest.mark.parametrize("header", ["", "text\tlabel\n"])
@pytest.mark.parametrize("name", ["some.tsv", "some.tsv.gz"])
def test_tsv(tmp_path, speller, name, header):
    assert read(write(tmp_path / name, lines(ROWS, header) + "\n"), speller) == EXPECTED


def test_csv_and_columns_by_name(tmp_path, speller):
    rows = '7,"a ""fine"" film, mostly",good\r\n8,bad,poor\r\n'
    path = write(tmp_path / "some.csv", "id,review body,stars\r\n" + rows)
    found = read(path, speller, texts=("review body",), label="stars")
    assert found == [('a "fine" film, mostly', None, "good"), ("bad", None, "poor")]


def test_jsonl_takes_names_and_numbers(tmp_path, speller):
    for labels in ([1, 0, 1.0, 0], ["1", "0", "1", "0"]):
        records = [{"sentence": text, "label": label} for (text, _), label in zip(ROWS, labels, strict=True)]
        path = write(tmp_path / "some.jsonl", "".join(json.dumps(record) + "\n" for record in records))
        assert read(path, speller) == EXPECTED


def test_pairs_by_their_usual_names_and_without_a_header(tmp_path, speller):
    rows = [("he sleeps", "he is awake", "contradiction"), ("it rains", "it is wet", "entailment")] * 2
    for header in ("premise\thypothesis\tlabel\n", ""):
        data = opened(write(tmp_path / "some.tsv", lines(rows, header)), speller)
        assert [tuple(item) for item in data.examples("train")] == rows
        assert data.labels == ["contradiction", "entailment"]


def test_a_folder_names_the_splits(tmp_path, speller):
    for split, count in (("train", 4), ("dev", 2), ("test", 3)):
        write(tmp_path / f"{split}.tsv", lines(ROWS[:count]))
    write(tmp_path / "README.txt", "read me")
    data = opened(tmp_path, speller)
    assert {name: len(part) for name, part in data.splits.items()} == {"train": 4, "val": 2, "test": 3}
    assert [item.label for item in data.examples("val")] == ["1", "0"]


def test_a_set_that_is_empty_or_not_read_is_named(tmp_path, speller):
    write(tmp_path / "train.tsv", lines(ROWS))
    write(tmp_path / "val.tsv", "text\tlabel\n")
    write(tmp_path / "test.xlsx", "")
    (tmp_path / "eval.tsv").mkdir()
    with (
        pytest.warns(UserWarning, match="the val set of .* holds no sentences, and counts as absent"),
        pytest.warns(UserWarning, match="eval.tsv, test.xlsx named after a split, but not read, and left out"),
    ):
        assert opened(tmp_path, speller).splits["train"] == [0, 1, 2, 3]


def test_examples_that_are_training_examples_too_are_counted(tmp_path, speller):
    write(tmp_path / "train.tsv", lines(ROWS))
    write(tmp_path / "val.tsv", lines([("new", "1"), ROWS[0], ROWS[0]]))
    write(tmp_path / "test.tsv", lines([("new", "1"), (ROWS[0][0], "0")]))
    data = opened(tmp_path, speller)
    assert "4 sentences to train on, 3 to validate (2 of them in training, too), 2 to test, in" in data.describe()
    assert data.report == {"sentences": 9, "empty": 0, "unlabelled": 0, "truncated": 0, "val_in_training": 2}
    assert "in_training" not in str(data.hold_out(0.25).report)


@pytest.mark.parametrize("other", ["Good", "go od", '"good"', "go\u200bod", "ｇｏｏｄ", "go\u00a0od"])
def test_classes_that_are_written_alike_are_named(tmp_path, speller, other):
    path = write(tmp_path / "some.tsv", lines([("a", "good"), ("b", other), ("c", "bad"), ("d", "A"), ("e", "a")]))
    with pytest.warns(UserWarning, match="has the classes '.*' and '.*', which are written alike"):
        assert len(opened(path, speller).labels) == 5


def test_a_header_within_a_table_is_no_example(tmp_path, speller):
    path = write(tmp_path / "some.tsv", lines(ROWS, "text\tlabel\n") * 2)
    for read_it in (lambda: read(path, speller), lambda: list(read_text_inputs(path))):
        with pytest.raises(GlocalError, match=r"some.tsv line 6 repeats the header, the names of the columns"):
            read_it()


def test_a_pipe_is_no_source(tmp_path, speller):
    os.mkfifo(tmp_path / "some.tsv")
    with pytest.raises(GlocalError, match=r"some.tsv' is not a folder or file; expected a file of .tsv"):
        opened(tmp_path / "some.tsv", speller, tmp_path / "run")


def test_the_hub_gives_classes_their_names_and_keeps_those_of_tests_to_itself(monkeypatch, speller):
    features = datasets.Features(
        {"premise": datasets.Value("string"), "hypothesis": datasets.Value("string"),
         "label": datasets.ClassLabel(names=["yes", "no"])}
    )  # fmt: skip
    columns = {"premise": ["a", "b", "c"], "hypothesis": ["d", "e", "f"]}
    table = datasets.Dataset.from_dict(columns | {"label": [1, 0, 1]}, features=features)
    hidden = datasets.Dataset.from_dict(columns | {"label": [-1, -1, -1]}, features=features)
    monkeypatch.setattr(datasets, "load_dataset", lambda *names: {"train": table, "test": hidden})
    with (
        pytest.warns(UserWarning, match="the test set of someone/some/rte holds no sentences, and counts as absent"),
        pytest.warns(UserWarning, match="someone/some/rte: 3 unlabelled left out"),
    ):
        data = opened("someone/some/rte", speller)
    assert [tuple(item) for item in data.examples("train")] == [("a", "d", "no"), ("b", "e", "yes"), ("c", "f", "no")]
    assert (data.labels, data.splits["test"]) == (["no", "yes"], [])
    assert data.report == {"sentences": 6, "empty": 0, "unlabelled": 3, "truncated": 0}


def test_a_parquet_file_of_the_hub_gives_the_same_classes(tmp_path, speller):
    features = datasets.Features(text=datasets.Value("string"), label=datasets.ClassLabel(names=["yes", "no"]))
    rows = {"text": ["a", "b", "c", "d"], "label": [1, 0, 1, -1]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "some.parquet")
    with pytest.warns(UserWarning, match=r"some.parquet: 1 unlabelled left out"):
        assert read(tmp_path / "some.parquet", speller) == [("a", None, "no"), ("b", None, "yes"), ("c", None, "no")]


def test_a_class_beyond_the_named_ones_is_refused(tmp_path, speller, monkeypatch):
    features = datasets.Features(text=datasets.Value("string"), label=datasets.ClassLabel(names=["yes", "no"]))
    metadata = {"huggingface": json.dumps({"info": {"features": features.to_dict()}})}
    table = pa.table({"text": ["a", "b", "c"], "label": [0, 1, 7]})
    parquet.write_table(table.replace_schema_metadata(metadata), tmp_path / "some.parquet")
    with pytest.raises(GlocalError, match=r"some.parquet: a row has the class 7; expected 0 to 1"):
        opened(tmp_path / "some.parquet", speller)
    hub = datasets.Dataset(table)
    hub.info.features["label"] = features["label"]
    monkeypatch.setattr(datasets, "load_dataset", lambda *_: {"train": hub})
    with pytest.raises(GlocalError, match=r"a row has the class 7; expected 0 to 1"):
        opened("someone/some", speller)


def test_numbers_stand_in_their_order(tmp_path, speller):
    rows = [(f"text {number}", str(number)) for number in (10, 9, -1, 2)]
    assert opened(write(tmp_path / "some.tsv", lines(rows)), speller).labels == ["-1", "2", "9", "10"]


# ----------------------------------------------------------------------------------------------------------------- rows


def test_a_batch_of_bert(tmp_path, speller):
    data = opened(write(tmp_path / "some.tsv", lines([("ab", "c", "x"), ("d", "e", "y")])), speller)
    batch = data.batch(np.array([0, 1]))
    tokens = [data.tokenizer.tokens(row) for row in batch["input_ids"].tolist()]
    assert tokens == [["[CLS]", "a", "##b", "[SEP]", "c", "[SEP]"], ["[CLS]", "d", "[SEP]", "e", "[SEP]", "[PAD]"]]
    assert batch["token_type_ids"].tolist() == [[0, 0, 0, 0, 1, 1], [0, 0, 0, 1, 1, 0]]
    assert batch["attention_mask"].tolist() == [[True] * 6, [True] * 5 + [False]]
    assert batch["labels"].tolist() == [0, 1]
    assert {name: tensor.dtype for name, tensor in batch.items()} == {
        "input_ids": torch.int64, "token_type_ids": torch.int64, "attention_mask": torch.bool, "labels": torch.int64,
    }  # fmt: skip


def test_a_batch_of_gpt_has_no_segments(tmp_path, byter):
    batch = opened(write(tmp_path / "some.tsv", lines([("abc", "x"), ("d", "y")])), byter).batch(np.array([0, 1]))
    assert sorted(batch) == ["attention_mask", "input_ids", "labels"]
    assert batch["attention_mask"].sum(dim=1).tolist() == [3, 1]


def test_gpt_tells_two_texts_apart(byter):
    ((row, overlong),) = encode_sentences(byter, ["ab"], ["c"], 8)
    assert (row["input_ids"].tolist(), overlong) == (
        [*byter.encode(["ab"])[0], byter.eos_id, *byter.encode(["c"])[0]],
        False,
    )
    ((row, overlong),) = encode_sentences(byter, ["abcdef"], ["ghijk"], 8)
    assert byter.decode([row["input_ids"].tolist()]) == ["abcdghi"]
    assert overlong


@given(st.integers(0, 30), st.integers(0, 30), st.integers(8, 40))
def test_the_longer_of_a_pair_gives_way(speller, first, second, room):
    ((row, overlong),) = encode_sentences(speller, ["a" * first], ["b" * second], room)
    first_left, second_left = first, second
    while first_left + second_left > room - 3:  # as Devlin's _truncate_seq_pair, a token at a time
        if first_left > second_left:
            first_left -= 1
        else:
            second_left -= 1
    text = "".join(speller.tokens(row["input_ids"].tolist())).replace("##", "")
    assert text == f"[CLS]{'a' * first_left}[SEP]{'b' * second_left}[SEP]"
    assert overlong == (first + second + 3 > room)


def test_what_is_cut_short_is_counted(tmp_path, speller):
    data = opened(write(tmp_path / "some.tsv", lines([("a" * 7, "0"), ("b" * 6, "1")])), speller, max_length=8)
    assert data.report["truncated"] == 1
    assert data.tokenizer.decode(data.batch(np.array([0, 1]))["input_ids"].tolist()) == ["aaaaaa", "bbbbbb"]


# -------------------------------------------------------------------------------------------------------------- batches


def texts_of(tokenizer, lengths, seed=0) -> TokenDataset:
    """Rows of given lengths, each labelled with its number."""
    examples = survey("some", lambda: {"train": list(enumerate(lengths))}, "examples", "some")

    def encode(items) -> Encoded:
        return Encoded([[{"input_ids": np.full(size, 7), "labels": np.array(number)}] for number, size in items], {})

    everything = list(range(len(lengths)))
    splits = {"train": everything, "val": everything, "test": []}
    return TokenDataset(TextClassificationDataConfig(seed=seed), examples, splits, tokenizer, encode)


def numbers(batches) -> list[list[int]]:
    return [batch["labels"].tolist() for batch in batches]


sizes = st.lists(st.integers(1, 24), min_size=4, max_size=80)


@settings(deadline=None)
@given(sizes, st.integers(1, 7), st.integers(1, 3), st.integers(0, 3))
def test_an_epoch_shows_every_row_once(speller, lengths, batch_size, world_size, epoch):
    data = texts_of(speller, lengths)
    ranks = [
        numbers(data.train_batches(batch_size, epoch, rank=rank, world_size=world_size)) for rank in range(world_size)
    ]
    seen = Counter(number for batches in ranks for batch in batches for number in batch)
    assert set(seen.values()) == {1}
    assert len(lengths) - len(seen) == len(lengths) % world_size
    for batches in zip(*ranks, strict=True):  # as many on every rank
        assert len({len(batch) for batch in batches}) == 1
        assert len(batches[0]) <= batch_size
    start = epoch % len(ranks[0])
    assert numbers(data.train_batches(batch_size, epoch, start, world_size - 1, world_size)) == ranks[-1][start:]


@settings(deadline=None)
@given(sizes, st.integers(1, 7), st.integers(1, 3))
def test_evaluation_shows_every_row_once_longest_first(speller, lengths, batch_size, world_size):
    data = texts_of(speller, lengths)
    ranks = [list(data.eval_batches("val", batch_size, rank, world_size)) for rank in range(world_size)]
    shown = [number for batches in ranks for batch in numbers(batches) for number in batch]
    assert sorted(shown) == list(range(len(lengths)))
    for batches in ranks:
        widths = [batch["input_ids"].shape[1] for batch in batches]
        assert widths == sorted(widths, reverse=True)


def test_batches_are_nearly_full_and_drawn_anew(speller):
    lengths = np.random.default_rng(0).integers(3, 60, 4000).tolist()
    data = texts_of(speller, lengths)
    masks = [batch["attention_mask"] for batch in data.train_batches(16, 0)]
    assert sum(mask.sum().item() for mask in masks) / sum(mask.numel() for mask in masks) > 0.95
    passes = [
        {frozenset(batch) for batch in numbers(each.train_batches(16, epoch))}
        for each, epoch in ((data, 0), (data, 1), (texts_of(speller, lengths, seed=1), 0))
    ]
    assert not passes[0] & passes[1]
    assert not passes[0] & passes[2]
    widths = [mask.shape[1] for mask in masks]
    assert widths not in (sorted(widths), sorted(widths, reverse=True))


def test_what_the_loop_asks_for(tmp_path, speller):
    rows = [(f"text {number}", str(number % 3)) for number in range(30)]
    data = opened(write(tmp_path / "some.tsv", lines(rows)), speller, val_fraction=0.2, test_fraction=0.1)
    assert isinstance(data, Data)
    assert isinstance(data.train_batches(4, 0), Batches)
    assert {name: len(part) for name, part in data.splits.items()} == {"train": 21, "val": 6, "test": 3}
    assert Counter(item.label for item in data.examples("val")) == {"0": 2, "1": 2, "2": 2}
    with pytest.raises(GlocalError, match=r"too few training sentences for 22 processes"):
        data.train_batches(4, 0, world_size=22)


def test_a_folder_keeps_the_splits(tmp_path, speller):
    rows = [(f"text {number}", str(number % 2)) for number in range(20)]
    path = write(tmp_path / "some.tsv", lines(rows))
    first = opened(path, speller, tmp_path / "run", val_fraction=0.2)
    assert opened(path, speller, tmp_path / "run", val_fraction=0.4, seed=3).splits == first.splits
    write(path, lines([*rows[:-1], ("text 19", "0")]))
    with pytest.raises(GlocalError, match=r"some.tsv is not the data that .*splits.json was cut from"):
        opened(path, speller, tmp_path / "run")


def test_other_data_under_the_classes_of_a_model(tmp_path, speller):
    data = opened(write(tmp_path / "some.tsv", lines(ROWS)), speller, classes=["2", "1", "0"])
    assert (data.splits["train"], len(data.splits["test"]), data.labels) == ([], 4, ["2", "1", "0"])
    assert data.batch(np.arange(4))["labels"].tolist() == [1, 2, 1, 2]
    for split in ("train", "test"):
        write(tmp_path / "folder" / f"{split}.tsv", lines(ROWS[:3] if split == "test" else ROWS))
    assert len(opened(tmp_path / "folder", speller, classes=["0", "1"]).examples("test")) == 3
    with pytest.raises(GlocalError, match=r"class '0' of 'bad' in .*some.tsv is not one of the model's: 1, 2$"):
        opened(tmp_path / "some.tsv", speller, classes=["1", "2"])


# --------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("a\t0\nb\t1\tc\n", r"some.tsv line 2 has 3 columns; expected 2, as in the first"),
        ("text\tlabel\na\t0\nb\n", r"some.tsv line 3 has 1 columns; expected 2"),
        (
            "a\tb\tc\td\n1\t2\t3\t4\n",
            r"some.tsv has the columns a, b, c, d; expected text, or sentence1 and sentence2, and label",
        ),
        ("review\tstars\na\t0\nb\t1\nc\t0\nd\t1\n", r"the class 'stars' of .*some.tsv line 1 occurs in no other line"),
        ("review\tstars\na\t0\nb\t1\n", r"the class 'stars' of .*some.tsv line 1 occurs in no other line"),
        ("text\tlabel\na\t0\n\nb\n", r"some.tsv line 4 has 1 columns; expected 2"),
        ("text\tlabel\na\t0.5\n", r"some.tsv example 1 has label 0.5; expected a name or a whole number"),
        ("a\t0\nb\t0\n", r"some.tsv holds one class only \('0'\); expected two or more"),
        ("", r"some.tsv holds no train sentences"),
        ("\t0\na\t\n", r"some.tsv holds no train sentences, of 2 sentences, 1 empty, 1 unlabelled; expected"),
    ],
)
def test_tables_that_are_none(tmp_path, speller, content, line):
    with pytest.raises(GlocalError, match=line):
        opened(write(tmp_path / "some.tsv", content), speller)


def test_what_has_no_text_or_no_class_is_counted(tmp_path, speller):
    rows = [*ROWS, ("", "1"), ("\u200b", "0"), ("fine", ""), ("what", "nan")]
    with pytest.warns(UserWarning, match=r"some.tsv: 2 empty, 2 unlabelled left out"):
        data = opened(write(tmp_path / "some.tsv", lines(rows)), speller)
    assert data.report == {"sentences": 8, "empty": 2, "unlabelled": 2, "truncated": 0}


def test_texts_and_classes_are_composed(tmp_path, speller):
    rows = [("cafe\u0301", "the\u0301"), ("cafe", "th\u00e9"), ("bar", "no")]
    data = opened(write(tmp_path / "some.tsv", lines(rows)), speller, classes=["no", "the\u0301"])
    assert [tuple(item) for item in data.examples("test")][:2] == [
        ("caf\u00e9", None, "th\u00e9"), ("cafe", None, "th\u00e9")
    ]  # fmt: skip
    assert [int(data.row(number)["labels"]) for number in range(len(data))] == [1, 1, 0]


@pytest.mark.parametrize(
    ("name", "content", "texts"),
    [
        ("some.csv", "id,text\n1,good film\n2, \n", ["good film", ""]),
        ("some.tsv", "premise\thypothesis\na\tb\n", [("a", "b")]),
        ("some.tsv", "a\tb\t0\nc\td\t1\n", [("a", "b"), ("c", "d")]),
        ("some.jsonl", '{"text": "cafe\\u0301", "label": 0.5}\n\n{"text": 3}\n', ["caf\u00e9", ""]),
    ],
)
def test_texts_to_be_classified(tmp_path, name, content, texts):
    assert list(read_text_inputs(write(tmp_path / name, content))) == texts


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("a\tb\nc\td\n", r"some.tsv has two columns and no header; name them in a first line"),
        ("opinion\nfine\n", r"some.tsv has the columns opinion; expected text, or sentence1"),
        ("text\nfine\n\ngood\tbad\n", r"some.tsv line 4 has 2 columns; expected 1"),
    ],
)
def test_tables_without_texts_to_be_classified(tmp_path, content, line):
    with pytest.raises(GlocalError, match=line):
        list(read_text_inputs(write(tmp_path / "some.tsv", content)))


def test_sources_that_are_none(tmp_path, speller):
    with pytest.raises(
        GlocalError, match=r"data.source '' is not a folder or file; expected a file of .tsv, .csv, .jsonl"
    ):
        opened("", speller)
    with pytest.raises(GlocalError, match=r"'~no-such-user/some.tsv' names no home folder"):
        opened("~no-such-user/some.tsv", speller)
    with pytest.raises(GlocalError, match=r"nowhere.tsv' is not a folder or file"):
        opened(tmp_path / "nowhere.tsv", speller)
    (tmp_path / "some.tsv").write_bytes("good\t1\nthis caf\xe9\t0\n".encode("latin-1"))
    with pytest.raises(GlocalError, match=r"line 2 is not UTF-8; convert it"):
        opened(tmp_path / "some.tsv", speller)
    with pytest.raises(GlocalError, match=r"some.jsonl example 1 has label 3.8; expected a name or a whole number"):
        opened(write(tmp_path / "some.jsonl", '{"text": "a", "label": 3.8}\n'), speller)
    write(tmp_path / "some" / "folder" / "train.tsv", "a\t0\nb\t1\n")
    write(tmp_path / "some" / "folder" / "dev.tsv", "a\tb\t0\n")
    with pytest.raises(GlocalError, match=r"folder holds single sentences and pairs; expected all of one kind"):
        opened(tmp_path / "some" / "folder", speller)
    for split, label in (("train", "0"), ("train", "1"), ("dev", "2")):
        (tmp_path / "other").mkdir(exist_ok=True)
        with (tmp_path / "other" / f"{split}.tsv").open("a") as file:
            file.write(f"a\t{label}\n")
    with pytest.raises(GlocalError, match=r"class '2' of 'a' in .* is not one of the training split's: 0, 1"):
        opened(tmp_path / "other", speller)


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"max_length": 7}, "data.max_length 7; expected 8 tokens or more"),
        ({"val_fraction": 0.6, "test_fraction": 0.4}, "leave nothing to train on"),
        ({"texts": ("a", "b", "c")}, "expected the names of one column, or of two"),
        ({"texts": ()}, "expected the names of one column, or of two"),
    ],
)
def test_configs_that_mean_nothing(fields, line):
    with pytest.raises(GlocalError, match=line):
        TextClassificationDataConfig("some.tsv", **fields)
