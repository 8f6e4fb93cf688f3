"""Prompts and completions: the loss is on the completion alone, and on the end of the text."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from glocal.data import TokenDataset
from glocal.errors import GlocalError
from glocal.models import Model
from glocal.ops import IGNORED
from glocal.tasks.completion import Completion, CompletionDataConfig, encode_completions, open_data

PAIRS = [("cat:", " mèo"), ("a dog:", " chó")]


def opened(path, tokenizer, testing=False, **fields) -> TokenDataset:
    fields = {"val_fraction": 0.0, "test_fraction": 0.0} | fields
    return open_data(CompletionDataConfig(str(path), **fields), None, tokenizer, Model(None) if testing else None)


def jsonl(path, pairs=PAIRS, names=("prompt", "completion")):
    path.write_text("".join(json.dumps(dict(zip(names, pair, strict=True))) + "\n" for pair in pairs))
    return path


def test_jsonl_and_tsv(tmp_path, byter):
    (tmp_path / "some.tsv").write_text("prompt\tcompletion\n" + "".join("\t".join(pair) + "\n" for pair in PAIRS))
    for path in (tmp_path / "some.tsv", jsonl(tmp_path / "some.jsonl")):
        assert opened(path, byter).examples("train") == PAIRS
    path = jsonl(tmp_path / "other.jsonl", names=("question", "answer"))
    assert opened(path, byter, columns=("question", "answer")).examples("train") == PAIRS


def test_a_batch(tmp_path, byter):
    batch = opened(jsonl(tmp_path / "some.jsonl"), byter).batch(np.array([0, 1]))
    first, second = (byter.encode([text])[0] for text in ("cat: mèo", "a dog: chó"))
    assert batch["input_ids"].tolist() == [[*first, *[byter.pad_id] * (len(second) - len(first))], second]
    assert batch["labels"][1].tolist() == [*[IGNORED] * 5, *second[6:], byter.eos_id]
    assert batch["labels"][0].tolist()[: len(first)] == [*[IGNORED] * 3, *first[4:], byter.eos_id]
    assert (batch["labels"][0, len(first) :] == IGNORED).all()
    assert batch["attention_mask"].sum(dim=1).tolist() == [len(first), len(second)]


@given(st.integers(1, 20), st.integers(1, 20), st.integers(8, 30))
def test_the_prompt_gives_way_at_its_beginning(byter, prompt, completion, max_length):
    texts = "pqrstuvwxyz0123456789"[:prompt], "abcdefghijklmnopqrst"[:completion]
    (((row,),), counts) = encode_completions(byter, [Completion(*texts)], max_length)
    ids, labels = row["input_ids"].tolist(), row["labels"].tolist()
    whole = [*byter.encode(["".join(texts)])[0], byter.eos_id]
    assert counts["truncated"] == (len(whole) > max_length + 1)
    assert len(ids) == len(labels) == min(len(whole) - 1, max_length)
    known = [label for label in labels if label != IGNORED]
    assert known == whole[prompt:][:max_length]
    assert ids[len(ids) - len(known) + 1 :] == known[:-1]
    assert labels[: len(labels) - len(known)] == [IGNORED] * (len(labels) - len(known))
    if completion < max_length:
        assert [*ids, known[-1]] == whole[-len(ids) - 1 :]


def test_what_is_left_out_is_counted(tmp_path, byter):
    pairs = [*PAIRS, ("", "a"), ("b", "  "), ("b", "\u200b"), ("c", 7), ("d" * 8, "e")]
    with pytest.warns(UserWarning, match=r"some.jsonl: 3 empty, 1 misaligned left out"):
        data = opened(jsonl(tmp_path / "some.jsonl", pairs), byter, max_length=8)
    assert data.report == {"prompts": 7, "misaligned": 1, "empty": 3, "truncated": 3}
    assert [item.prompt for item in data.examples("train")] == ["cat:", "a dog:", "dddddddd"]


def test_other_data_is_for_testing(tmp_path, byter):
    data = opened(jsonl(tmp_path / "some.jsonl"), byter, testing=True)
    assert (data.splits["train"], data.examples("test")) == ([], PAIRS)


def test_columns_that_are_not_there(tmp_path, byter):
    path = jsonl(tmp_path / "some.jsonl", names=("question", "answer"))
    with pytest.raises(
        GlocalError, match=r"no column 'prompt'; expected data.columns to name some of question, answer"
    ):
        opened(path, byter)
    with pytest.raises(GlocalError, match=r"holds no train prompts"):
        opened(jsonl(path, []), byter)
