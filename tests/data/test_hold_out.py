"""What a search may see: training examples alone, a share of them held back, and nothing of validation and test."""

import string
from itertools import chain

import numpy as np
import pytest

from glocal.data import DocumentsConfig, Tokenizer, TokenizerConfig, learn_tokenizer
from glocal.data.masked import MaskedDocuments, MaskedLMData
from glocal.data.packed import PackedDocuments
from glocal.errors import GlocalError
from glocal.tasks.translation import TranslationDataConfig, open_data

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def test_the_last_tokens_of_the_training_documents_are_held_back(tmp_path):
    file = tmp_path / "text.txt"
    file.write_text("".join(string.ascii_letters[i * i % 52] for i in range(2000)))
    characters = learn_tokenizer([string.printable], TokenizerConfig("characters"))
    data = PackedDocuments.open(DocumentsConfig(str(file), max_length=8), tokenizer=characters)
    held = data.hold_out(0.25)
    train, val = held.columns["train"]["tokens"], held.columns["val"]["tokens"]
    assert np.concatenate([train, val]).tolist() == data.columns["train"]["tokens"].tolist()
    assert len(val) == round(0.25 * len(data.columns["train"]["tokens"]))
    assert set(held.columns) == {"train", "val"}
    assert set(data.columns) == {"train", "val", "test"}  # whose own splits stay as they are
    shown = [batch["input_ids"].flatten().tolist() for batch in held.eval_batches("val", 4)]
    assert list(chain.from_iterable(shown))[: len(val)] == val.tolist()
    with pytest.raises(GlocalError, match=r"search\.val_fraction"):
        data.hold_out(0.001)


def test_masked_documents_are_cut_between_sentences(tmp_path):
    words = [f"w{number}" for number in range(900)]
    (tmp_path / "vocab.txt").write_text("\n".join(SPECIAL + words) + "\n")
    tokenizer = Tokenizer.load(tmp_path)
    (tmp_path / "texts").mkdir()
    for document in range(10):
        lines = [" ".join(words[90 * document + 9 * line :][:9]) for line in range(10)]
        (tmp_path / "texts" / f"{document}.txt").write_text("\n".join(lines))
    config = MaskedLMData(str(tmp_path / "texts"), max_length=16, val_fraction=0.0, test_fraction=0.0)
    data = MaskedDocuments.open(config, tokenizer=tokenizer)
    held = data.hold_out(0.33)
    for split, columns in held.columns.items():
        assert columns["sentences"][0] == columns["documents"][0] == 0
        assert columns["sentences"][-1] == columns["documents"][-1] == len(columns["tokens"]) == len(columns["begins"])
        assert np.isin(columns["documents"], columns["sentences"]).all()
        assert len(list(held.eval_batches(split, 4)))
    train, val = (held.columns[split] for split in ("train", "val"))
    assert np.concatenate([train["tokens"], val["tokens"]]).tolist() == data.columns["train"]["tokens"].tolist()
    assert len(train["sentences"]) + len(val["sentences"]) - 1 == len(data.columns["train"]["sentences"])
    assert len(val["tokens"]) == pytest.approx(0.33 * 900, abs=9)


def test_sentence_pairs_are_held_back_at_random(tmp_path):
    rows = "".join(f"word {number}\ttừ {number}\n" for number in range(200))
    (tmp_path / "pairs.tsv").write_text("en\tvi\n" + rows)
    config = TranslationDataConfig(str(tmp_path / "pairs.tsv"), languages=("en", "vi"), vocab_size=300)
    data = open_data(config)
    held = data.hold_out(0.25)
    assert sorted(held.splits["train"] + held.splits["val"]) == sorted(data.splits["train"])
    assert len(held.splits["val"]) == round(0.25 * len(data.splits["train"]))
    assert held.splits == data.hold_out(0.25).splits
    assert set(held.splits) == {"train", "val"}
    rows_of = [len(batch["labels"]) for batch in held.eval_batches("val", 64)]
    assert sum(rows_of) == len(held.splits["val"])
    with pytest.raises(GlocalError, match="no test"):
        held.eval_batches("test", 64)
