"""Splits: stratified, fixed by the seed, kept in a file, and never of other data than it was cut from."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from glocal.data.sources import Source
from glocal.data.splits import by_split, cut_splits, read_splits, split_of, write_splits
from glocal.errors import GlocalError


def source(counts: list[int], **splits: np.ndarray) -> Source:
    labels = np.repeat(np.arange(len(counts)), counts)
    pixels = np.zeros((len(labels), 2, 2), dtype=np.uint8)
    return Source("some", pixels, labels, [str(k) for k in range(len(counts))],
                  splits or {"train": np.arange(len(labels))})  # fmt: skip


def cut(data: Source, val: float = 0.1, test: float = 0.2, seed: int = 0) -> dict[str, list[int]]:
    return cut_splits(data, np.ones(len(data.labels), dtype=bool), val, test, seed)


def joined(splits: dict[str, list[int]]) -> list[int]:
    return [index for indices in splits.values() for index in indices]


@given(st.lists(st.integers(1, 60), min_size=2, max_size=8), st.floats(0, 0.45), st.floats(0, 0.45), st.integers(0, 99))
def test_every_image_once_and_every_class_in_train(counts, val, test, seed):
    data = source(counts)
    splits = cut(data, val, test, seed)
    assert sorted(joined(splits)) == list(range(sum(counts)))
    assert set(data.labels[splits["train"]]) == set(range(len(counts)))


def test_every_class_gives_its_share():
    data = source([100, 300, 50, 550])
    splits = cut(data)
    for name, share in {"train": 0.7, "val": 0.1, "test": 0.2}.items():
        counts = np.bincount(data.labels[splits[name]])
        assert np.abs(counts - share * np.array([100, 300, 50, 550])).max() <= 2
        assert len(splits[name]) == round(share * 1000)


@pytest.mark.parametrize(("counts", "sizes"), [([2, 2], (2, 1, 1)), ([2, 1], (2, 1, 0)), ([1, 1], (2, 0, 0))])
def test_few_examples_are_split_too(counts, sizes):
    splits = cut(source(counts), val=0.05, test=0.05)
    assert tuple(len(splits[name]) for name in ("train", "val", "test")) == sizes
    assert cut(source(counts), val=0.0, test=0.0)["val"] == []


def test_the_names_of_splits():
    assert [split_of(name) for name in ("dev.tsv", "Evaluation", "tst2012", "test_2016", "trainer")] == [
        "val", "val", "test", "test", None
    ]  # fmt: skip
    with pytest.warns(UserWarning, match="some: unsupervised named after no split, and left out"):
        assert by_split("some", ["train", "unsupervised"], "train") == {"train": ["train"]}
    with pytest.raises(GlocalError, match=r"several val sets: dev, eval"):
        by_split("some", ["train", "dev", "eval"], "train")


def test_the_seed_decides():
    data = source([40, 40])
    assert cut(data, seed=3) == cut(data, seed=3)
    assert cut(data, seed=3)["test"] != cut(data, seed=4)["test"]


def test_named_splits_are_kept_and_the_missing_one_is_cut():
    data = source([50, 50], train=np.arange(0, 80), test=np.arange(80, 100))
    splits = cut(data)
    assert splits["test"] == list(range(80, 100))
    assert len(splits["val"]) == 8
    assert sorted(splits["train"] + splits["val"]) == list(range(80))


def test_what_is_unusable_is_in_no_split():
    data = source([50, 50], train=np.arange(0, 80), test=np.arange(80, 100))
    usable = np.ones(100, dtype=bool)
    usable[[0, 90]] = False
    splits = cut_splits(data, usable, 0.1, 0.1, 0)
    assert {0, 90}.isdisjoint(joined(splits))
    assert len(joined(splits)) == 98


def test_written_and_read_back(tmp_path):
    data, path = source([40, 40]), tmp_path / "splits.json"
    splits = cut(data)
    write_splits(path, data, splits, ["broken.png"])
    assert read_splits(path, data) == (splits, ["broken.png"])
    assert list(tmp_path.iterdir()) == [path]


def test_other_data_is_refused(tmp_path):
    data, path = source([40, 40]), tmp_path / "splits.json"
    write_splits(path, data, cut(data), [])
    for other in (source([41, 40]), source([39, 41]), replace(data, classes=["a", "b"])):
        with pytest.raises(GlocalError, match=r"is not the data that .*splits.json was cut from"):
            read_splits(path, other)


@pytest.mark.parametrize("content", ["{", "[]", json.dumps({"splits": {}})])
def test_a_damaged_file_is_named(tmp_path, content):
    path = tmp_path / "splits.json"
    path.write_text(content)
    with pytest.raises(GlocalError, match=r"splits.json is not a split file"):
        read_splits(path, source([2, 2]))
