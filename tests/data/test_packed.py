"""Packed documents: every token is learned from once an epoch, and no window is padded."""

import gc
import json
import string
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from glocal.data import DocumentsConfig, Subwords, Tokenizer, TokenizerConfig, learn_tokenizer
from glocal.data.packed import PackedDocuments
from glocal.errors import GlocalError
from glocal.ops import IGNORED
from glocal.training.interfaces import Batches, Data


@pytest.fixture(scope="module")
def printable() -> Tokenizer:
    """Every character is a token."""
    return learn_tokenizer([string.printable], TokenizerConfig("characters"))


@pytest.fixture(scope="module")
def make(tmp_path_factory, printable):
    """Pack texts, the first ones for validation."""

    def packed(texts: list[str], max_length: int = 8, val: int = 0, seed: int = 0) -> PackedDocuments:
        folder = tmp_path_factory.mktemp("texts")
        for name, part in (("val", texts[:val]), ("train", texts[val:])):
            if part:
                (folder / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in part))
        config = DocumentsConfig(str(folder), max_length=max_length, seed=seed, val_fraction=0.0, test_fraction=0.0)
        return PackedDocuments.open(config, tokenizer=printable)

    return packed


def letters(sizes: list[int]) -> list[str]:
    """Texts of which no two are the same, and hardly two pairs of neighbours."""
    rng = np.random.default_rng(0)
    return ["".join(chr(33 + each) for each in rng.integers(90, size=size)) + str(k) for k, size in enumerate(sizes)]


def stream(packed: PackedDocuments, split: str = "train") -> list[int]:
    return packed.columns[split]["tokens"].tolist()


def steps(batches) -> Counter:
    """What is learned: the token after which, and which."""
    batches = list(batches)
    ids = np.concatenate([batch["input_ids"].numpy().ravel() for batch in batches])
    labels = np.concatenate([batch["labels"].numpy().ravel() for batch in batches])
    return Counter(zip(ids[labels != IGNORED].tolist(), labels[labels != IGNORED].tolist(), strict=True))


def equal(one, other) -> bool:
    one, other = list(one), list(other)
    return len(one) == len(other) and all(
        a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a) for a, b in zip(one, other, strict=True)
    )


END = "<|endoftext|>"
sizes = st.lists(st.integers(1, 60), min_size=2, max_size=12)
lengths = st.integers(8, 16)


# -------------------------------------------------------------------------------------------------------------- batches


def test_a_batch(make, printable):
    packed = make(["abc", "de", "fgh"], max_length=8)
    assert printable.tokens(stream(packed)) == [*"abc", END, *"de", END, *"fgh", END]
    (batch,) = packed.train_batches(3, 0)
    assert {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in batch.items()} == {
        "input_ids": (torch.int64, (2, 8)),
        "labels": (torch.int64, (2, 8)),
    }
    inside = batch["labels"][:, :-1]
    assert torch.equal(inside[inside != IGNORED], batch["input_ids"][:, 1:][inside != IGNORED])


@settings(deadline=None, max_examples=25)
@given(sizes, lengths, st.integers(1, 5), st.integers(0, 3))
def test_every_token_is_learned_from_once_an_epoch(make, sizes, length, batch_size, epoch):
    packed = make(letters([60, *sizes]), length)
    ring = stream(packed)
    batches = packed.train_batches(batch_size, epoch)
    assert steps(batches) == Counter(zip(ring, ring[1:] + ring[:1], strict=True))
    assert sum(len(batch["labels"]) for batch in batches) == -(-len(ring) // length)
    assert len(batches) == len(packed.train_batches(batch_size, epoch + 1)) == len(list(batches))


@settings(deadline=None, max_examples=25)
@given(sizes, lengths, st.integers(1, 5), st.integers(1, 4))
def test_ranks_share_an_epoch(make, sizes, length, batch_size, world_size):
    packed = make(letters([60, *sizes]), length)
    ranks = [list(packed.train_batches(batch_size, 1, rank=rank, world_size=world_size)) for rank in range(world_size)]
    assert len({tuple(len(batch["labels"]) for batch in batches) for batches in ranks}) == 1
    missed = steps(packed.train_batches(batch_size, 1))
    missed.subtract(steps(batch for batches in ranks for batch in batches))
    assert min(missed.values()) == 0
    assert missed.total() <= (world_size - 1) * length


@settings(deadline=None, max_examples=25)
@given(sizes, lengths, st.integers(1, 5), st.integers(1, 3), st.data())
def test_any_start_gives_the_rest_of_the_epoch(make, sizes, length, batch_size, world_size, data):
    packed, share = make(letters([60, *sizes]), length), {"rank": world_size - 1, "world_size": world_size}
    whole = packed.train_batches(batch_size, 3, **share)
    start = data.draw(st.integers(0, len(whole)))
    assert equal(packed.train_batches(batch_size, 3, start=start, **share), list(whole)[start:])


@settings(deadline=None, max_examples=25)
@given(sizes, lengths, st.integers(1, 5), st.integers(1, 4))
def test_evaluation_reads_a_split_from_end_to_end(make, sizes, length, batch_size, world_size):
    packed = make(letters([*sizes, 60]), length, val=len(sizes))
    tokens = stream(packed, "val")
    whole = list(packed.eval_batches("val", batch_size))
    assert equal(whole, packed.eval_batches("val", batch_size))
    labels = torch.cat([batch["labels"].flatten() for batch in whole])
    ids = torch.cat([batch["input_ids"].flatten() for batch in whole])
    assert labels[labels != IGNORED].tolist() == tokens[1:]
    assert ids[labels != IGNORED].tolist() == tokens[:-1]
    ranks = [packed.eval_batches("val", batch_size, rank, world_size) for rank in range(world_size)]
    assert steps(batch for batches in ranks for batch in batches) == steps(whole)


def test_epochs_and_seeds_cut_elsewhere(make):
    one, other = (make(letters([5000]), 64, seed=seed) for seed in (0, 1))
    text = one.tokenizer.decode([stream(one)])[0]
    starts = [
        [text.find(row) for batch in batches for row in one.tokenizer.decode(batch["input_ids"].tolist())]
        for batches in (one.train_batches(4, 0), one.train_batches(4, 1), other.train_batches(4, 0))
    ]
    assert len(set(starts[0]) & set(starts[1])) <= 1  # -1, where a window lies over the end
    assert len(set(starts[0]) & set(starts[2])) <= 1
    assert all(each != sorted(each) for each in starts)


# ------------------------------------------------------------------------------------------------------- what is opened


@pytest.fixture
def config(tmp_path) -> DocumentsConfig:
    path = tmp_path / "some.txt"
    path.write_text("".join(f"{number} is followed by {number + 1}.\n" for number in range(300)))
    return DocumentsConfig(str(path), tokenizer=TokenizerConfig("characters"), max_length=16, test_fraction=0.0)


def test_what_the_loop_asks_for(config):
    packed = PackedDocuments.open(config)
    assert isinstance(packed, Data)
    assert isinstance(packed.train_batches(5, 0), Batches)
    text = Path(config.source).read_text()
    size = int(0.9 * len(text))
    assert packed.report["characters"] == {"train": size, "val": len(text) - size, "test": 0}
    assert packed.report["tokens"] == {"train": size + 1, "val": len(text) - size + 1, "test": 0}
    assert packed.tokenizer.decode([stream(packed), stream(packed, "val")]) == [text[:size], text[size:]]


def test_a_folder_keeps_everything(config, tmp_path, monkeypatch):
    first = PackedDocuments.open(config, tmp_path / "run")
    assert {path.name for path in (tmp_path / "run").iterdir()} >= {"splits.json", "tokenizer.json", "tokens"}
    batches = list(first.train_batches(4, 2))
    with monkeypatch.context() as patch:
        patch.setattr(Subwords, "encodings", None)  # what is kept is not encoded again
        again = PackedDocuments.open(config, tmp_path / "run")
        assert equal(again.train_batches(4, 2), batches)
        longer = PackedDocuments.open(replace(config, max_length=32), tmp_path / "run")
        assert len(longer.train_batches(4, 2)) < len(batches)
    Path(config.source).write_text("other " * 200)
    with pytest.raises(GlocalError, match=r"some.txt is not the data that .*splits.json was cut from"):
        PackedDocuments.open(config, tmp_path / "run")


def test_another_vocabulary_is_encoded_anew(config, tmp_path, printable):
    PackedDocuments.open(config, tmp_path / "run")
    printable.save(tmp_path / "run")
    again = PackedDocuments.open(config, tmp_path / "run")
    assert again.tokenizer.vocab_size == printable.vocab_size
    assert (
        printable.decode([stream(again, "val")])[0]
        == Path(config.source).read_text()[-again.report["characters"]["val"] :]
    )


def test_a_kill_leaves_nothing_half_written(config, tmp_path, monkeypatch):
    def die(self, documents):
        yield "tokens", [1, 2]
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(PackedDocuments, "encode", die)
        with pytest.raises(KeyboardInterrupt):
            PackedDocuments.open(config, tmp_path / "run")
    assert list((tmp_path / "run" / "tokens").iterdir()) == []
    assert len(stream(PackedDocuments.open(config, tmp_path / "run"))) > 1000


@pytest.mark.parametrize("damage", ["halved", "odd", "zeroed", "lost", "empty label", "foreign label"])
def test_tokens_that_are_not_as_they_were_written_are_made_again(config, tmp_path, damage):
    """A file system may bring files back short or zeroed after a loss of power."""
    whole = stream(PackedDocuments.open(config, tmp_path / "run"))
    folder = tmp_path / "run" / "tokens" / "train"
    tokens, label = folder / "tokens.bin", folder / "columns.json"
    content = tokens.read_bytes()
    if damage == "lost":
        tokens.unlink()
    elif "label" in damage:
        label.write_text("" if "empty" in damage else "[5]")
    else:
        made = {"halved": content[: len(content) // 4 * 2], "odd": content[:-1], "zeroed": bytes(len(content))}
        tokens.write_bytes(made[damage])
    assert stream(PackedDocuments.open(config, tmp_path / "run")) == whole


def test_drafts_of_a_killed_process_go(config, tmp_path):
    """Also where it had this one's number, as it has in containers."""
    draft = tmp_path / "run" / "tokens" / "train.tmp"
    draft.mkdir(parents=True)
    (draft / "tokens.bin").write_bytes(b"half")
    PackedDocuments.open(config, tmp_path / "run")
    assert not list((tmp_path / "run").rglob("*.tmp"))


def test_without_a_folder_nothing_stays(config):
    packed = PackedDocuments.open(config)
    place = Path(packed.columns["val"]["tokens"].base.filename)
    assert place.exists()
    del packed
    gc.collect()
    assert not place.parents[2].exists()


def test_the_vocabulary_is_learned_from_the_training_documents_alone(tmp_path):
    (tmp_path / "train.txt").write_text("abc " * 20)
    (tmp_path / "test.txt").write_text("xyz " * 20)
    config = DocumentsConfig(str(tmp_path), tokenizer=TokenizerConfig("characters"), max_length=8, val_fraction=0.0)
    tokens = PackedDocuments.open(config).tokenizer.tokens(range(6))
    assert {"a", "b", "c"} < set(tokens)
    assert not {"x", "y", "z"} & set(tokens)


def test_other_data_under_a_trained_tokenizer(config, tmp_path, printable):
    other = PackedDocuments.open(config, tmp_path / "run", printable, testing=True)
    assert other.tokenizer is printable
    assert (other.tokens["train"], other.tokens["test"]) == (0, Path(config.source).stat().st_size + 1)
    assert not (tmp_path / "run").exists()


def test_large_vocabularies_need_wider_numbers(make, tmp_path):
    words = " ".join(f"w{number}" for number in range(70_000))
    (tmp_path / "vocab.txt").write_text(
        "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words.split()]) + "\n"
    )
    (tmp_path / "some.txt").write_text(words)
    config = DocumentsConfig(str(tmp_path / "some.txt"), val_fraction=0.0, test_fraction=0.0)
    packed = PackedDocuments.open(config, tokenizer=Tokenizer.load(tmp_path))
    assert stream(packed) == [*range(5, 70_005), packed.tokenizer.eos_id]


def test_too_little(make, config):
    with pytest.raises(GlocalError, match=r"has 4 tokens to train on; expected more than data.max_length, 8: lower it"):
        make(["abc"])
    with pytest.raises(GlocalError, match="has no test documents; name a test set in it"):
        PackedDocuments.open(config).eval_batches("test", 4)
    with pytest.raises(GlocalError, match=r"has no val documents"):
        make(["abcdefghijk"]).eval_batches("val", 4)
    with pytest.raises(GlocalError, match=r"too few training rows for 3 processes"):
        make(["abcdefghijk"]).train_batches(1, 0, world_size=3)
