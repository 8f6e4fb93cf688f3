"""Texts that join and leave one cache against a cache for each text."""

import pytest
import torch
from conftest import wake
from hypothesis import given, settings
from hypothesis import strategies as st

from glocal.errors import GlocalError
from glocal.layers.attention import Cache
from glocal.layers.cache import LastTokens, WindowCache
from glocal.layers.decoder import DecoderState
from glocal.layers.mixer import MixerCache
from glocal.layers.slots import SlotState
from glocal.models import create_model
from glocal.ops import pack
from glocal.ops.stack import BlockStack

SLOTS, HEADS, MAX_LENGTH, DIM = 4, 2, 12, 3


def caches(rows, max_length=MAX_LENGTH):
    """Empty caches of two blocks: one of global heads and a convolution, one of a window alone."""
    both = [torch.full((rows, HEADS, max_length, DIM), torch.nan) for _ in range(2)]
    like = torch.empty(0)
    window = [LastTokens.zeros(like, rows, 4, HEADS, DIM) for _ in range(2)]
    own = LastTokens.zeros(like, rows, 4, dtype=torch.bool)
    return [
        MixerCache(Cache(*both), LastTokens.zeros(like, rows, 2, 5)),
        MixerCache(None, WindowCache(*window, own)),
    ]


def slots():
    return SlotState(caches(SLOTS), SLOTS)


def append(blocks, keys, values, hidden):
    """Add tokens to all caches, and return what each holds then."""
    near, far = blocks
    return near.attention.append(keys, values), near.local.append(hidden), far.local.append(keys, values)


def drawn(rows, new):
    return *torch.randn(2, rows, HEADS, new, DIM), torch.randn(rows, new, 5)


@settings(deadline=None)
@given(data=st.data())
def test_slots_hold_what_a_cache_for_each_text_holds(data):
    together, alone = slots(), []
    for _ in range(data.draw(st.integers(1, 8))):
        if len(alone) < SLOTS and data.draw(st.booleans()):
            text, new = DecoderState(caches(1)), data.draw(st.integers(0, 3))
            if new:
                append(text.caches, *drawn(1, new))
            text.length = new
            together.add(text)
            alone.append(text)
        if alone and data.draw(st.booleans()):
            rows = data.draw(st.permutations(range(len(alone))))[: data.draw(st.integers(0, len(alone)))]
            together.select(torch.tensor(rows, dtype=torch.long))
            alone = [alone[row] for row in rows]
        if alone and together.length < MAX_LENGTH:
            tokens = drawn(len(alone), 1)
            held = append(together.caches, *tokens)
            together.length += 1
            for row, text in enumerate(alone):
                own = append(text.caches, *(each[row, None] for each in tokens))
                text.length += 1
                for many, one in zip(held[0], own[0], strict=True):
                    assert torch.equal(many[row, :, : text.length], one[0])
                assert torch.equal(held[1][row], own[1][0])
                assert all(torch.equal(many[row], one[0]) for many, one in zip(held[2], own[2], strict=True))
        assert together.lengths.tolist() == [text.length for text in alone]


def test_what_does_not_fit_is_refused():
    together, text = slots(), DecoderState(caches(1))
    append(text.caches, *drawn(1, MAX_LENGTH))
    text.length = MAX_LENGTH
    for _ in range(SLOTS):
        together.add(text)
    with pytest.raises(GlocalError, match="text 5 in 4 slots"):
        together.add(text)
    with pytest.raises(GlocalError, match="token 13 in a cache of 12 tokens"):
        append(together.caches, *drawn(SLOTS, 1))


@pytest.mark.parametrize("one_call", [False, True])
@pytest.mark.parametrize("name", ["gpt-tiny", "gpt-tiny-half", "gpt-tiny-windows", "post-norm"])
@torch.inference_mode()
def test_a_step_of_texts_of_different_lengths_is_that_of_each_alone(name, one_call, monkeypatch, request):
    if one_call:
        request.getfixturevalue("kernels")
    monkeypatch.setattr(BlockStack, "is_faster", lambda *_: one_call)
    special = dict.fromkeys(["pad_id", "bos_id", "eos_id"])
    fields = {"norm": "post"} if name == "post-norm" else {}
    model = create_model("gpt-tiny" if fields else name, vocab_size=50, **special, **fields)
    model = pack(wake(model).eval())
    texts = [torch.randint(50, (1, length)) for length in (5, 1, 20)]
    together = model.new_slots(4, 64)
    alone = []
    for ids in texts:
        for states in (alone.append, together.add):
            states(model.start(ids, torch.ones_like(ids, dtype=torch.bool), 1, 42))
    token = torch.cat([ids[:, -1] for ids in texts])
    for step in range(40 if one_call else 8):
        logits = model.step(token, together)
        expected = torch.cat([model.step(own[None], state) for own, state in zip(token, alone, strict=True)])
        torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-5)
        token = logits.argmax(1)
        if step == 2:  # the second text leaves, and the third takes its row
            together.select(torch.tensor([0, 2]))
            alone, token = [alone[0], alone[2]], token[[0, 2]]
    assert together.one_call == {3: one_call, 2: one_call}
