"""Pairs of segments for BERT: made of consecutive sentences, half of them random, a seventh of their tokens masked."""

from itertools import accumulate, chain

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from glocal.data import Tokenizer, TokenizerConfig
from glocal.data.masked import MaskedDocuments, MaskedLMData
from glocal.errors import GlocalError
from glocal.ops import IGNORED
from glocal.training.interfaces import Batches, Data

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
PAD, CLS, SEP, MASK = 0, 2, 3, 4
FIRST, WORDS, PARTS = len(SPECIAL), 6000, 3


@pytest.fixture(scope="module")
def counter(tmp_path_factory) -> Tokenizer:
    """Words w0, w1, ... are a token each, by which they are known; each x0, x1 or x2 that is put behind is another."""
    folder = tmp_path_factory.mktemp("counter")
    words = [f"w{number}" for number in range(WORDS)] + [f"##x{number}" for number in range(PARTS)]
    (folder / "vocab.txt").write_text("\n".join(SPECIAL + words) + "\n")
    return Tokenizer.load(folder)


@pytest.fixture(scope="module")
def make(tmp_path_factory, counter):
    """Write documents of sentences of so many words, no word twice, and mask them."""

    def masked(
        documents: list[list[int]], max_length: int = 32, parts: int = 0, val: int = 0, **fields
    ) -> MaskedDocuments:
        folder, number = tmp_path_factory.mktemp("texts"), 0
        for place, sentences in enumerate(documents):
            lines = []
            for words in sentences:
                lines.append(
                    " ".join(
                        f"w{k}" + "".join(f"x{part}" for part in range(k % (parts + 1)))
                        for k in range(number, number + words)
                    )
                )
                number += words
            path = folder / ("val" if place < val else "train") / f"{place:04}.txt"
            path.parent.mkdir(exist_ok=True)
            path.write_text("\n".join(lines))
        config = MaskedLMData(str(folder), max_length=max_length, val_fraction=0.0, test_fraction=0.0, **fields)
        return MaskedDocuments.open(config, tokenizer=counter)

    return masked


def restored(batch) -> torch.Tensor:
    return torch.where(batch["labels"] == IGNORED, batch["input_ids"], batch["labels"])


def segments(batch) -> list[tuple[list[int], list[int]]]:
    """The words' numbers in A and in B of every row, the tokens that were masked restored."""
    found = []
    for row, mask in zip(restored(batch).tolist(), batch["attention_mask"], strict=True):
        row = row[: int(mask.sum())]
        middle = row.index(SEP)
        assert (row[0], row[-1], row.count(SEP), row.count(CLS)) == (CLS, SEP, 2, 1)
        found.append(([each - FIRST for each in row[1:middle]], [each - FIRST for each in row[middle + 1 : -1]]))
    return found


def equal(one, other) -> bool:
    one, other = list(one), list(other)
    return len(one) == len(other) and all(
        a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a) for a, b in zip(one, other, strict=True)
    )


def joined(batches) -> dict[str, torch.Tensor]:
    batches = list(batches)
    return {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}


LONG = [[9, 4, 13, 7, 11, 6] * 12] * 8
"""Eight documents of 600 words each."""
documents = st.lists(st.lists(st.integers(1, 12), min_size=1, max_size=20), min_size=2, max_size=8)
lengths = st.integers(8, 40)


# ------------------------------------------------------------------------------------------------------------- segments


@settings(deadline=None, max_examples=15)
@given(documents, lengths, st.integers(0, 3))
def test_rows_are_two_segments_of_the_text(make, documents, length, epoch):
    masked = make([[40], *documents], length)
    ends = [0, *accumulate(sum(sentences) for sentences in [[40], *documents])]
    starts = {0, *accumulate(chain([40], *documents))}
    batch = joined(masked.train_batches(4, epoch))
    assert {name: tensor.dtype for name, tensor in batch.items()} == {
        "input_ids": torch.int64,
        "attention_mask": torch.bool,
        "token_type_ids": torch.int64,
        "labels": torch.int64,
        "next_sentence_label": torch.int64,
    }
    assert batch["input_ids"].shape[1] == length
    document = np.searchsorted(ends, np.arange(ends[-1]), side="right")
    for number, (a, b) in enumerate(segments(batch)):
        assert a
        assert b
        for segment in (a, b):
            assert segment == list(range(segment[0], segment[0] + len(segment)))
            assert len(set(document[segment])) == 1
        if batch["next_sentence_label"][number] == 0:
            assert (b[0], document[b[0]]) == (a[-1] + 1, document[a[0]])
        else:
            assert document[a[0]] != document[b[0]]
            assert b[0] in starts
        types = batch["token_type_ids"][number].tolist()
        assert types == [0] * (len(a) + 2) + [1] * (len(b) + 1) + [0] * (length - len(a) - len(b) - 3)
        assert (batch["input_ids"][number][~batch["attention_mask"][number]] == PAD).all()


def test_rows_are_full_but_for_a_tenth(make):
    batch = joined(chain.from_iterable(make(LONG).train_batches(32, epoch) for epoch in range(6)))
    sizes = batch["attention_mask"].sum(dim=1)
    assert 0.03 < (sizes < 32).float().mean() < 0.1
    assert sizes.min() < 16


def test_half_of_the_segments_follow(make):
    masked = make(LONG)
    labels = torch.cat(
        [batch["next_sentence_label"] for epoch in range(12) for batch in masked.train_batches(32, epoch)]
    )
    assert len(labels) == 12 * masked.count("train") == 12 * -(-4800 // 29)
    assert abs(labels.float().mean() - 0.5) < 5 * 0.5 / len(labels) ** 0.5


def test_lengths_do_not_tell_whether_a_segment_follows(make):
    masked = make(LONG)
    batch = joined(chain.from_iterable(masked.train_batches(32, epoch) for epoch in range(12)))
    follows = batch["next_sentence_label"] == 0
    for sizes in (batch["token_type_ids"].sum(dim=1), batch["attention_mask"].sum(dim=1)):
        one, other = sizes[follows].float(), sizes[~follows].float()
        assert abs(one.mean() - other.mean()) < 5 * (one.var() / len(one) + other.var() / len(other)) ** 0.5


def test_an_epoch_shows_all_of_the_text(make):
    masked = make(LONG)
    seen = np.zeros(4800)
    for epoch in range(20):
        for a, b in segments(joined(masked.train_batches(32, epoch))):
            np.add.at(seen, a + b, 1)
    assert 0.9 < seen.mean() / 20 < 1
    assert seen.min() > 2
    assert seen.max() < 50


def test_a_single_document_is_its_own_other_one(make):
    batch = joined(make([[7] * 60]).train_batches(64, 0))
    assert batch["next_sentence_label"].float().mean() > 0.2
    for number, (a, b) in enumerate(segments(batch)):
        if batch["next_sentence_label"][number] == 0:
            assert b[0] == a[-1] + 1


def test_random_segments_come_from_the_same_split(make):
    masked = make(LONG, val=2)
    for split, numbers in (("val", range(1200)), ("train", range(1200, 4800))):
        words = chain.from_iterable(a + b for a, b in segments(joined(masked.eval_batches(split, 8))))
        assert set(words) <= set(numbers)


# -------------------------------------------------------------------------------------------------------------- masking


@pytest.mark.parametrize("whole_word", [False, True])
def test_what_is_masked(make, whole_word):
    masked = make(LONG, parts=2, whole_word=whole_word)
    batch = joined(chain.from_iterable(masked.train_batches(32, epoch) for epoch in range(15)))
    chosen, words = batch["labels"] != IGNORED, restored(batch) >= FIRST
    assert not (chosen & ~words).any()
    assert chosen.any(dim=1).all()
    count = int(chosen.sum())
    assert abs(count / words.sum() - 0.15) < 0.01
    shown, true = batch["input_ids"][chosen], batch["labels"][chosen]
    for share, kind in ((0.8, shown == MASK), (0.1, shown == true), (0.1, (shown != MASK) & (shown != true))):
        assert abs(kind.float().mean() - share) < 5 * (share * (1 - share) / count) ** 0.5
    wrong = shown[(shown != MASK) & (shown != true)]
    assert wrong.min() >= FIRST
    assert len(wrong.unique()) > 0.8 * len(wrong)
    assert torch.equal(batch["input_ids"][~chosen], restored(batch)[~chosen])


def test_a_word_is_masked_whole_or_not_at_all(make):
    batch = joined(make(LONG, parts=2, whole_word=True).train_batches(32, 0))
    tokens, chosen = restored(batch), batch["labels"] != IGNORED
    within = tokens[:, 1:] >= FIRST + WORDS  # continues the word of the token before it
    within &= tokens[:, :-1] >= FIRST  # not where a segment lost the word's beginning
    assert within.sum() > 1000
    assert torch.equal(chosen[:, 1:][within], chosen[:, :-1][within])
    batch = joined(make(LONG, parts=2).train_batches(32, 0))
    chosen = batch["labels"] != IGNORED
    assert (chosen[:, 1:] != chosen[:, :-1]).any()


# -------------------------------------------------------------------------------------------------------------- batches


@settings(deadline=None, max_examples=15)
@given(documents, lengths, st.integers(1, 5), st.integers(1, 3), st.data())
def test_any_start_gives_the_rest_of_the_epoch(make, documents, length, batch_size, world_size, data):
    masked = make([[70] * 3, *documents], length)
    share = {"rank": world_size - 1, "world_size": world_size}
    whole = masked.train_batches(batch_size, 3, **share)
    start = data.draw(st.integers(0, len(whole)))
    assert equal(masked.train_batches(batch_size, 3, start=start, **share), list(whole)[start:])


@settings(deadline=None, max_examples=15)
@given(documents, lengths, st.integers(1, 5), st.integers(1, 4), st.integers(0, 3))
def test_ranks_share_an_epoch_and_a_row_does_not_hang_on_its_batch(
    make, documents, length, batch_size, world_size, epoch
):
    masked = make([[70] * 3, *documents], length)
    whole = joined(masked.train_batches(7, epoch))["input_ids"].tolist()
    ranks = [
        list(masked.train_batches(batch_size, epoch, rank=rank, world_size=world_size)) for rank in range(world_size)
    ]
    assert len({tuple(len(batch["labels"]) for batch in batches) for batches in ranks}) == 1
    rows = [row for batches in ranks for row in joined(batches)["input_ids"].tolist()]
    assert len(rows) == len(whole) // world_size * world_size
    assert all(row in whole for row in rows)
    assert len(masked.train_batches(7, epoch + 1)) == len(masked.train_batches(7, epoch))


def test_evaluation_is_the_same_each_time_and_whole_over_the_ranks(make):
    masked = make(LONG, val=3)
    whole = joined(masked.eval_batches("val", 8))
    assert len(whole["labels"]) == -(-1800 // 29)
    assert equal([whole], [joined(masked.eval_batches("val", 3))])
    ranks = [joined(masked.eval_batches("val", 4, rank, 3))["input_ids"].tolist() for rank in range(3)]
    assert sorted(chain.from_iterable(ranks)) == sorted(whole["input_ids"].tolist())


def test_epochs_and_seeds_draw_anew(make):
    masked = make(LONG)
    passes = [
        joined(batches)
        for batches in (masked.train_batches(8, 0), masked.train_batches(8, 1), make(LONG, seed=1).train_batches(8, 0))
    ]
    rows = [set(map(tuple, restored(each).tolist())) for each in passes]
    assert len(rows[0] & rows[1]) < 5
    assert len(rows[0] & rows[2]) < 5


# ------------------------------------------------------------------------------------------------------- what is opened


def test_the_built_in_corpus(tmp_path):
    config = MaskedLMData(tokenizer=TokenizerConfig(vocab_size=2000), max_length=64, whole_word=True)
    masked = MaskedDocuments.open(config, tmp_path)
    assert isinstance(masked, Data)
    assert isinstance(masked.train_batches(8, 0), Batches)
    assert masked.report["documents"] > 40
    assert masked.report["characters"]["val"] / masked.report["characters"]["train"] == pytest.approx(1 / 8, rel=0.1)
    assert equal(masked.eval_batches("val", 8), MaskedDocuments.open(config, tmp_path).eval_batches("val", 8))
    (text,) = masked.tokenizer.decode(restored(next(iter(masked.eval_batches("val", 1)))).tolist())
    assert len(text.split()) > 10


def test_short_documents(make):
    batch = joined(make([[1]] * 60 + [[2, 1]] * 20).train_batches(64, 0))
    assert (batch["attention_mask"].sum(dim=1) >= 4).all()
    assert batch["labels"].max() > 0


def test_a_tokenizer_without_a_mask(tmp_path):
    (tmp_path / "some.txt").write_text("one two three " * 20)
    config = MaskedLMData(str(tmp_path / "some.txt"), tokenizer=TokenizerConfig("characters"))
    with pytest.raises(GlocalError, match=r"the tokenizer has no \[MASK\], which BERT's objective needs"):
        MaskedDocuments.open(config)
