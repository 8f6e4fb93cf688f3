"""Texts that join and leave one cache against a cache for each text."""

import pytest
import torch
from conftest import wake
from hypothesis import given, settings
from hypothesis import strategies as st

from glocal.errors import GlocalError
from glocal.layers.attention import Cache
from glocal.layers.slots import SlotCache
from glocal.models import create_model
from glocal.ops import pack
from glocal.ops.decoding import DecoderStack

SLOTS, HEADS, MAX_LENGTH, DIM = 4, 2, 12, 3


def cache(rows, max_length=MAX_LENGTH):
    return Cache(*(torch.full((rows, HEADS, max_length, DIM), torch.nan) for _ in range(2)))


def slots():
    empty = cache(SLOTS)
    return SlotCache(empty.keys, empty.values, pads=torch.empty(0, dtype=torch.long))


@settings(deadline=None)
@given(data=st.data())
def test_slots_hold_what_a_cache_for_each_text_holds(data):
    together, alone = slots(), []
    for _ in range(data.draw(st.integers(1, 8))):
        if len(alone) < SLOTS and data.draw(st.booleans()):
            text, new = cache(1), data.draw(st.integers(0, 3))
            text.append(*torch.randn(2, 1, HEADS, new, DIM))
            together.add(text)
            alone.append(text)
        if alone and data.draw(st.booleans()):
            rows = data.draw(st.permutations(range(len(alone))))[: data.draw(st.integers(0, len(alone)))]
            together.select(torch.tensor(rows, dtype=torch.long))
            alone = [alone[row] for row in rows]
        if alone and together.length < MAX_LENGTH:
            keys, values = torch.randn(2, len(alone), HEADS, 1, DIM)
            held = together.append(keys, values)
            for row, text in enumerate(alone):
                own = text.append(keys[row, None], values[row, None])
                assert torch.equal(held.keys[row, :, : text.length], own.keys[0])
                assert torch.equal(held.values[row, :, : text.length], own.values[0])
        assert together.lengths.tolist() == [text.length for text in alone]


def test_a_text_that_keeps_its_row_is_not_copied():
    together = slots()
    for _ in range(3):
        together.add(cache(1))
    together.append(*torch.randn(2, 3, HEADS, 1, DIM))
    before = together.keys.clone()
    together.select(torch.tensor([0, 2]))
    assert torch.equal(together.keys[1, :, 0], before[2, :, 0])
    assert torch.equal(together.keys[0, :, 0], before[0, :, 0])
    assert len(together.keys) == SLOTS


def test_what_does_not_fit_is_refused():
    together, text = slots(), cache(1)
    text.append(*torch.randn(2, 1, HEADS, MAX_LENGTH, DIM))
    for _ in range(SLOTS):
        together.add(text)
    with pytest.raises(GlocalError, match="text 5 in a cache of 4 rows"):
        together.add(text)
    with pytest.raises(GlocalError, match="token 13 in a cache of 12 tokens"):
        together.append(*torch.randn(2, SLOTS, HEADS, 1, DIM))


@pytest.mark.parametrize("one_call", [False, True])
@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize("name", ["gpt-tiny", "gpt-tiny-half", "gpt-tiny-windows"])
@torch.inference_mode()
def test_a_step_of_texts_of_different_lengths_is_that_of_each_alone(name, norm, one_call, monkeypatch, request):
    if one_call:
        request.getfixturevalue("kernels")
    monkeypatch.setattr(DecoderStack, "is_faster", lambda *_: one_call)
    special = dict.fromkeys(["pad_id", "bos_id", "eos_id"])
    model = pack(wake(create_model(name, vocab_size=50, norm=norm, **special)).eval())
    texts = [torch.randint(50, (1, length)) for length in (5, 1, 9)]
    together = model.new_slots(4, 32)
    alone = []
    for ids in texts:
        for states in (alone.append, together.add):
            states(model.start(ids, torch.ones_like(ids, dtype=torch.bool), 1, 8))
    token = torch.cat([ids[:, -1] for ids in texts])
    for step in range(6):
        logits = model.step(token, together)
        expected = torch.cat([model.step(own[None], state) for own, state in zip(token, alone, strict=True)])
        torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-5)
        token = logits.argmax(1)
        if step == 2:  # the second text leaves, and the third takes its row
            together.select(torch.tensor([0, 2]))
            alone, token = [alone[0], alone[2]], token[[0, 2]]
    assert together.one_call == {3: one_call, 2: one_call}
