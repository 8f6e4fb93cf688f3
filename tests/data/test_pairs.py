"""Batches of pairs: within their budget, whole over the processes, drawn anew each epoch, functions of their number."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from glocal.data import TokenDataset, Tokenizer, numbers
from glocal.data.pairs import languages_of
from glocal.errors import GlocalError
from glocal.models import Model
from glocal.tasks.translation import TranslationDataConfig, open_data
from glocal.training.interfaces import Batches, Data

FIRST = ord("一")


class Letters(Tokenizer):
    """Every letter is a token, so that a test decides how long a sentence is."""

    pad_id, bos_id, eos_id, vocab_size = 0, 1, 2, 2**16

    def encode(self, texts, target=False):
        return [[*map(ord, text), self.eos_id] for text in texts]

    def decode(self, ids):
        return ["".join(map(chr, each)) for each in ids]

    def tokens(self, ids):
        return [chr(each) for each in ids]

    save = decode


@pytest.fixture(scope="module")
def pairs_of(tmp_path_factory):
    """Make pairs, the same for training and validation. A pair's first letter tells its number, and it has as many
    tokens as asked for, its ends counted."""

    def make(lengths: list[tuple[int, int]], max_length: int = 128, seed: int = 0) -> TokenDataset:
        rows = [[chr(FIRST + k) + "a" * (length - 2) for length in pair] for k, pair in enumerate(lengths)]
        path = tmp_path_factory.mktemp("pairs") / "some.tsv"
        path.write_text("en\tvi\n" + "".join("\t".join(row) + "\n" for row in rows))
        config = TranslationDataConfig(
            str(path), languages=("en", "vi"), max_length=max_length, val_fraction=0.0, test_fraction=0.0, seed=seed
        )
        pairs = open_data(config, tokenizer=Letters())
        pairs.splits["val"] = pairs.splits["train"]
        return pairs

    return make


def members(batch: dict[str, torch.Tensor]) -> list[int]:
    assert torch.equal(batch["input_ids"][:, 0], batch["labels"][:, 0])
    return (batch["labels"][:, 0] - FIRST).tolist()


def equal(one, other) -> bool:
    one, other = list(one), list(other)
    return len(one) == len(other) and all(
        a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a) for a, b in zip(one, other, strict=True)
    )


lengths = st.lists(st.tuples(st.integers(2, 24), st.integers(2, 24)), min_size=4, max_size=60)
budgets = st.integers(24, 200)
worlds = st.integers(1, 4)


# -------------------------------------------------------------------------------------------------------------- batches


def test_a_batch(pairs_of):
    batch = pairs_of([(3, 5), (4, 2)]).batch(np.array([0, 1]))
    a, first, second = ord("a"), FIRST, FIRST + 1
    assert batch["input_ids"].tolist() == [[first, a, 2, 0], [second, a, a, 2]]
    assert batch["attention_mask"].tolist() == [[True, True, True, False], [True] * 4]
    assert batch["labels"].tolist() == [[first, a, a, a, 2], [second, 2, -100, -100, -100]]
    assert batch["decoder_input_ids"].tolist() == [[1, first, a, a, a], [1, second, 0, 0, 0]]
    types = {name: tensor.dtype for name, tensor in batch.items()}
    assert types.pop("attention_mask") == torch.bool
    assert set(types.values()) == {torch.int64}


@settings(deadline=None)
@given(lengths, budgets, worlds, st.integers(0, 3))
def test_an_epoch_shows_every_pair_once_in_batches_within_the_budget(pairs_of, lengths, budget, world_size, epoch):
    pairs = pairs_of(lengths)
    ranks = [list(pairs.train_batches(budget, epoch, rank=rank, world_size=world_size)) for rank in range(world_size)]
    seen = Counter(member for batches in ranks for batch in batches for member in members(batch))
    assert set(seen.values()) == {1}
    missed = [max(lengths[member]) for member in set(range(len(lengths))) - set(seen)]
    assert len(missed) == len(lengths) % world_size
    assert sorted(missed) == sorted(map(max, lengths))[: len(missed)]
    for batches in zip(*ranks, strict=True):  # as many on every rank
        assert len({len(batch["labels"]) for batch in batches}) == 1
        assert all(max(batch["input_ids"].numel(), batch["labels"].numel()) <= budget for batch in batches)


@settings(deadline=None)
@given(lengths, budgets, worlds, st.data())
def test_any_start_gives_the_rest_of_the_epoch(pairs_of, lengths, budget, world_size, data):
    pairs = pairs_of(lengths)
    share = {"rank": world_size - 1, "world_size": world_size}
    whole = pairs.train_batches(budget, 3, **share)
    start = data.draw(st.integers(0, len(whole)))
    assert equal(pairs_of(lengths).train_batches(budget, 3, start=start, **share), list(whole)[start:])


@settings(deadline=None)
@given(lengths, budgets, worlds)
def test_every_epoch_has_as_many_batches(pairs_of, lengths, budget, world_size):
    pairs = pairs_of(lengths)
    counts = {
        len(pairs.train_batches(budget, epoch, rank=epoch % world_size, world_size=world_size)) for epoch in range(5)
    }
    assert len(counts) == 1


@settings(deadline=None)
@given(lengths, budgets, worlds)
def test_evaluation_shows_every_pair_once_and_the_same_each_time(pairs_of, lengths, budget, world_size):
    pairs = pairs_of(lengths)
    ranks = [list(pairs.eval_batches("val", budget, rank=rank, world_size=world_size)) for rank in range(world_size)]
    assert sorted(k for batches in ranks for batch in batches for k in members(batch)) == list(range(len(lengths)))
    assert all(batch["labels"].numel() <= budget for batches in ranks for batch in batches)
    assert equal(pairs.eval_batches("val", budget), pairs.eval_batches("val", budget))


def test_epochs_and_seeds_draw_other_batches_in_another_order(pairs_of):
    sizes = [(length, length) for length in (5, 9, 14) for _ in range(90)]
    passes = [
        [frozenset(members(batch)) for batch in pairs_of(sizes, seed=seed).train_batches(150, epoch)]
        for seed, epoch in ((0, 0), (0, 1), (1, 0))
    ]
    for one, other in ((0, 1), (0, 2)):
        assert len(set(passes[one]) & set(passes[other])) == 0
    widths = [[batch["labels"].shape[1] for batch in pairs_of(sizes).train_batches(150, e)] for e in (0, 1)]
    assert sorted(widths[0]) == sorted(widths[1])
    assert widths[0] not in (widths[1], sorted(widths[0]), sorted(widths[0], reverse=True))


def test_pairs_of_like_length_stand_together(pairs_of):
    rng = np.random.default_rng(0)
    sizes = [(length, length) for length in rng.integers(2, 60, 2000).tolist()]
    labels = [batch["labels"] for batch in pairs_of(sizes).train_batches(1000, 0)]
    assert sum((each != -100).sum().item() for each in labels) / sum(each.numel() for each in labels) > 0.97
    assert len(labels) <= 1.05 * sum(length for length, _ in sizes) / 1000 + 1


def test_overlong_pairs_are_in_no_batch_and_counted(pairs_of):
    pairs = pairs_of([(3, 3), (9, 3), (3, 9), (8, 8)], max_length=8)
    assert pairs.report["overlong"] == 2
    for batches in (pairs.train_batches(100, 0), pairs.eval_batches("val", 100)):
        assert sorted(k for batch in batches for k in members(batch)) == [0, 3]
    assert len(pairs.examples("val")) == 4


def test_a_pair_that_no_batch_can_hold_is_an_error(pairs_of):
    with pytest.raises(
        GlocalError, match=r"^batch_size 20 counts tokens, and one of the train sentence pairs has 21; raise"
    ):
        pairs_of([(3, 3), (3, 21)]).train_batches(20, 0)
    with pytest.raises(GlocalError, match=r"and one of the val sentence pairs has 21"):
        pairs_of([(21, 3)]).eval_batches("val", 20)


def test_what_is_not_there_is_an_error(pairs_of):
    with pytest.raises(GlocalError, match=r"some.tsv has no test sentence pairs; name a test set in it"):
        pairs_of([(3, 3)]).eval_batches("test", 20)
    with pytest.raises(GlocalError, match=r"no test sentence pairs"):
        pairs_of([(3, 3)]).examples("test")
    with pytest.raises(GlocalError, match=r"too few training sentence pairs for 2 processes"):
        pairs_of([(3, 3)]).train_batches(20, 0, world_size=2)


# ---------------------------------------------------------------------------------------------------------- from a file


@pytest.fixture
def config(monkeypatch) -> TranslationDataConfig:
    monkeypatch.setattr(numbers, "COUNT", 1200)
    return TranslationDataConfig(vocab_size=320)


def test_what_the_loop_asks_for(config):
    pairs = open_data(config)
    assert isinstance(pairs, Data)
    assert isinstance(pairs.train_batches(500, 0), Batches)
    assert {name: len(indices) for name, indices in pairs.splits.items()} == {"train": 960, "val": 120, "test": 120}
    assert len(set(pairs.examples("train") + pairs.examples("val") + pairs.examples("test"))) == 1200
    assert (languages_of(config.source, None), pairs.report["pairs"], pairs.report["overlong"]) == (
        ("en", "vi"),
        1200,
        0,
    )
    batch = next(iter(pairs.eval_batches("test", 500)))
    translated = pairs.tokenizer.decode(batch["labels"].clamp(min=0).tolist())
    said = pairs.tokenizer.decode(batch["input_ids"].tolist())
    assert set(zip(said, translated, strict=True)) <= set(pairs.examples("test"))


def test_a_folder_keeps_splits_and_tokens(config, tmp_path):
    first = open_data(config, tmp_path / "run")
    written = ["splits.json", "tokenizer.json", "tokenizer_config.json", "tokens"]
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == written
    again = open_data(replace(config, vocab_size=260, val_fraction=0.3), tmp_path / "run")
    assert again.splits == first.splits
    assert again.tokenizer.encode(["một nghìn"]) == first.tokenizer.encode(["một nghìn"])
    assert equal(again.train_batches(500, 2), first.train_batches(500, 2))
    with pytest.raises(GlocalError, match=r"numbers-en-vi is not the data that .*splits.json was cut from"):
        open_data(replace(config, seed=1), tmp_path / "run")


def test_a_tokenizer_that_lies_in_the_folder_is_kept(config, tmp_path):
    tokenizer = open_data(config).tokenizer
    tokenizer.save(tmp_path)
    fine_tuned = open_data(replace(config, source="numbers-vi-de", vocab_size=400), tmp_path)
    assert fine_tuned.tokenizer.vocab_size == tokenizer.vocab_size


def test_the_vocabulary_is_learned_from_the_training_pairs_alone(config, tmp_path):
    for split, word in (("train", "seen"), ("test", "unseen")):
        (tmp_path / f"{split}.tsv").write_text("en\tvi\n" + f"{word} {word} {word}\tmột {word}\n" * 2)
    pairs = open_data(TranslationDataConfig(str(tmp_path), languages=("en", "vi"), vocab_size=300, val_fraction=0.0))
    tokens = pairs.tokenizer.tokens(range(pairs.tokenizer.vocab_size))
    assert "▁seen" in tokens
    assert "▁unseen" not in tokens


def test_other_data_under_a_trained_tokenizer(config):
    tokenizer = open_data(config).tokenizer
    other = open_data(replace(config, source="numbers-vi-en"), None, tokenizer, Model(None))
    assert other.tokenizer is tokenizer
    assert (other.splits["train"], len(other.splits["test"])) == ([], 1200)
    assert sum(len(batch["labels"]) for batch in other.eval_batches("test", 1000)) == 1200


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"languages": ("en", "en")}, "expected two, such as"),
        ({"vocab_size": 100}, "data.vocab_size 100; expected 259 or more"),
        ({"max_length": 1}, "data.max_length 1; expected 2 tokens or more"),
        ({"val_fraction": 0.6, "test_fraction": 0.4}, "leave nothing to train on"),
        ({"test_fraction": -0.1}, "leave nothing to train on"),
    ],
)
def test_configs_that_mean_nothing(fields, line):
    with pytest.raises(GlocalError, match=line):
        TranslationDataConfig(**fields)


# ------------------------------------------------------------------------------------------------------------ real data

MULTI30K = Path(__file__).parents[3] / "shared" / "data" / "multi30k"


@pytest.mark.slow
@pytest.mark.skipif(not MULTI30K.exists(), reason="the real data is not here")
def test_real_sentences_come_back():
    pairs = open_data(TranslationDataConfig(str(MULTI30K), languages=("en", "de")))
    assert pairs.tokenizer.vocab_size == 8000
    assert pairs.report == {"pairs": 31014, "misaligned": 0, "empty": 0, "duplicate": 3, "overlong": 0}
    for side in (0, 1):
        texts = [pair[side] for pair in pairs.examples("test")]
        assert pairs.tokenizer.decode(pairs.tokenizer.encode(texts)) == texts
    labels = [batch["labels"] for batch in pairs.train_batches(4096, 0)]
    assert sum((each != -100).sum().item() for each in labels) / sum(each.numel() for each in labels) > 0.9
