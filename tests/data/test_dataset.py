"""Rows of examples: encoded once, kept on disk, and made anew where anything that they come from changes."""

import gc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from glocal.data import TokenDataset, Tokenizer, TokenizerConfig, columns, learn_tokenizer, text_sources
from glocal.data.text_sources import LeftOut, survey
from glocal.errors import GlocalError
from glocal.tasks.text_classification import TextClassificationDataConfig, open_data


@pytest.fixture
def encoded(monkeypatch, speller) -> list[int]:
    """How many texts the tokenizer was given, call by call."""
    sizes: list[int] = []
    encodings = type(speller).encodings

    def counted(tokenizer, texts, *rest, **options):
        sizes.append(len(texts))
        return encodings(tokenizer, texts, *rest, **options)

    monkeypatch.setattr(type(speller), "encodings", counted)
    return sizes


@pytest.fixture
def config(tmp_path) -> TextClassificationDataConfig:
    """Twelve texts of two classes, the last ones longer than a row."""
    path = tmp_path / "some.tsv"
    path.write_text("".join(f"{'a' * (number + 1)}\t{number % 2}\n" for number in range(12)))
    return TextClassificationDataConfig(str(path), max_length=12, val_fraction=0.0, test_fraction=0.0)


def rows(data: TokenDataset) -> list[dict[str, list[int]]]:
    return [{name: value.tolist() for name, value in data.row(number).items()} for number in range(len(data))]


# --------------------------------------------------------------------------------------------------------- kept on disk


def test_rows_are_encoded_once(config, tmp_path, speller, monkeypatch, encoded):
    monkeypatch.setattr(columns, "TOGETHER", 5)
    first = open_data(config, tmp_path / "run", speller)
    assert encoded == [5, 5, 2]
    encoded.clear()
    again = open_data(config, tmp_path / "run", speller)
    assert encoded == [5]  # of which it learns what columns there are
    assert rows(again) == rows(first)
    assert again.report == first.report == {"sentences": 12, "empty": 0, "unlabelled": 0, "truncated": 2}
    assert again.owners.tolist() == list(range(12))


def test_a_source_that_has_not_changed_is_surveyed_once(config, tmp_path, speller, monkeypatch):
    read: list[object] = []
    through = text_sources.read_through
    monkeypatch.setattr(text_sources, "read_through", lambda *given: read.append(given) or through(*given))
    first = open_data(config, tmp_path / "run", speller)
    again = open_data(config, tmp_path / "run", speller)
    assert len(read) == 1
    assert again.source.fingerprint() == first.source.fingerprint()
    assert (again.source.counts, again.labels, again.splits) == (first.source.counts, first.labels, first.splits)
    assert list(again.source.read([3, 5])) == list(first.source.read([3, 5]))
    open_data(config, tmp_path / "other", speller)
    assert len(read) == 2
    path = Path(config.source)
    path.write_text(path.read_text().replace("aaa\t", "aab\t"))
    with pytest.raises(GlocalError, match="is not the data that"):
        open_data(config, tmp_path / "run", speller)
    assert len(read) == 3


@pytest.mark.parametrize("changed", ["vocabulary", "max_length", "source", "label"])
def test_rows_are_encoded_anew_where_something_changed(config, tmp_path, speller, monkeypatch, encoded, changed):
    monkeypatch.setattr(columns, "TOGETHER", 5)
    open_data(config, tmp_path / "run", speller)
    encoded.clear()
    tokenizer: Tokenizer = speller
    if changed == "vocabulary":
        tokenizer = learn_tokenizer(["ab"], TokenizerConfig("characters"))
    elif changed == "max_length":
        config = replace(config, max_length=9)
    else:
        (tmp_path / "run" / "splits.json").unlink()
        path = Path(config.source)
        lines = path.read_text().splitlines()
        lines[0] = "b\t0" if changed == "source" else "a\t1"
        path.write_text("".join(f"{line}\n" for line in lines))
    again = open_data(config, tmp_path / "run", tokenizer)
    assert encoded == [5, 5, 2]
    assert rows(again) == rows(open_data(config, None, tokenizer))


@pytest.mark.parametrize("damage", ["cut", "changed", "missing", "index"])
def test_damaged_columns_are_made_anew(config, tmp_path, speller, damage):
    first = rows(open_data(config, tmp_path / "run", speller))
    tokens = tmp_path / "run" / "tokens" / "rows"
    path = tokens / ("columns.json" if damage == "index" else "input_ids.bin")
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(content[:-1])
    else:
        path.write_bytes(b"\x00" + content[1:] if damage == "index" else bytes([content[0] ^ 1]) + content[1:])
    assert rows(open_data(config, tmp_path / "run", speller)) == first
    assert (tokens / path.name).read_bytes() == content


def test_a_kill_leaves_nothing_half_written(config, tmp_path, speller, monkeypatch, encoded):
    monkeypatch.setattr(columns, "TOGETHER", 5)

    def die(folder, kinds, content):
        folder.mkdir()
        next(iter(content))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("glocal.data.memmap.write_columns", die)
        with pytest.raises(KeyboardInterrupt):
            open_data(config, tmp_path / "run", speller)
    encoded.clear()
    assert len(open_data(config, tmp_path / "run", speller)) == 12
    assert encoded == [5, 5, 2]
    assert not list((tmp_path / "run").rglob("*.tmp"))


def test_without_a_folder_nothing_stays(config, speller):
    data = open_data(config, None, speller)
    place = Path(data.owners.base.filename)
    assert place.exists()
    del data
    gc.collect()
    assert not place.parents[1].exists()


def test_a_row_may_be_written_to(config, tmp_path, speller):
    data = open_data(config, tmp_path / "run", speller)
    data.row(3)["input_ids"][:] = 0
    assert torch.from_numpy(data.row(3)["input_ids"]).float().mean() > 0


def test_a_vocabulary_of_more_than_two_bytes(tmp_path):
    words = [f"w{number}" for number in range(70_000)]
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]) + "\n")
    (tmp_path / "some.tsv").write_text("w0\t0\nw69999\t1\n")
    config = TextClassificationDataConfig(str(tmp_path / "some.tsv"), val_fraction=0.0, test_fraction=0.0)
    data = open_data(config, None, Tokenizer.load(tmp_path))
    assert [row["input_ids"] for row in rows(data)] == [[2, 5, 3], [2, 70_004, 3]]


# ----------------------------------------------------------------------------------------------------------- the source


def source_of(sizes: list[int]) -> text_sources.Examples[str]:
    return survey("some", lambda: {"train": ["a" * size for size in sizes]}, "texts", "one or more")


def test_reading_twice_gives_the_same():
    parts = {"test": ["d", LeftOut("empty"), "a"], "train": ["a", "b", LeftOut("empty"), "b", "c"]}
    found = survey("some", lambda: parts, "texts", "one or more", reasons=["empty"], unique=True)
    assert list(found.read()) == list(found.read()) == ["d", "a", "b", "c"]
    assert {split: list(found.read(numbers)) for split, numbers in found.splits.items()} == {
        "test": ["d", "a"], "train": ["b", "c"]
    }  # fmt: skip
    assert list(found.read([3, 0])) == ["d", "c"]
    assert found.counts == {"texts": 8, "empty": 2, "duplicate": 2}


@given(st.lists(st.integers(0, 50), min_size=1, max_size=40), st.integers(60, 500))
def test_a_sample_is_bounded_and_spread(sizes, limit):
    found = source_of(sizes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_sources, "VOCABULARY", limit)
        sample = list(found.sample(range(len(sizes))))
    assert sample
    assert sum(map(len, sample)) <= limit
    if found.sizes.sum() <= limit:
        assert sample == list(found.read())


def test_a_sample_is_of_the_examples_asked_for(monkeypatch):
    monkeypatch.setattr(text_sources, "VOCABULARY", 100)
    found = source_of([8] * 40)  # ten characters each, as Python writes them
    assert list(found.sample(range(40))) == ["a" * 8] * 10
    assert len(list(found.sample([3]))) == 1
    monkeypatch.setattr(text_sources, "VOCABULARY", 5)
    assert len(list(found.sample([3, 4]))) == 1  # one at least


def test_a_source_without_examples():
    with pytest.raises(GlocalError, match=r"some holds no train texts, of 1 texts, 1 empty; expected one or more"):
        survey("some", lambda: {"train": [LeftOut("empty")]}, "texts", "one or more", reasons=["empty"])


def test_rows_that_are_all_too_long(config, tmp_path, speller):
    found = source_of([3, 4])
    everything = {"train": [0, 1], "val": [], "test": []}
    nothing = TokenDataset(config, found, everything, speller, lambda items: columns.Encoded([[] for _ in items], {}))
    assert len(nothing) == 0
    with pytest.raises(GlocalError, match=r"all 2 train examples of some have more than 12 tokens; raise data.max_len"):
        nothing.train_batches(4, 0)
    with pytest.raises(GlocalError, match=r"some has no val examples; name a val set in it"):
        nothing.eval_batches("val", 4)


def test_lengths_are_those_of_the_longer_side(config, speller):
    found = source_of([1, 2])

    def encode(items) -> columns.Encoded:
        return columns.Encoded([[{"input_ids": np.arange(len(item)), "labels": np.arange(3)}] for item in items], {})

    everything = {"train": [0, 1], "val": [], "test": []}
    for batch_of_tokens, lengths in ((False, [1, 2]), (True, [3, 3])):
        data = TokenDataset(config, found, everything, speller, encode, batch_of_tokens=batch_of_tokens)
        assert data.lengths.tolist() == lengths
