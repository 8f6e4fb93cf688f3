"""A token through a stack of decoder blocks: by one call of the kernels as module by module."""

import pytest
import torch
from conftest import wake

from glocal.errors import GlocalError
from glocal.generation import DecodingConfig, generate
from glocal.models import create_model
from glocal.ops import pack
from glocal.ops.stack import BlockStack

pytestmark = pytest.mark.usefixtures("kernels")

DECODINGS = {
    "greedy": DecodingConfig(beams=1, extra_length=12),
    "beams": DecodingConfig(beams=3, nbest=2, extra_length=12),
    "sampled": DecodingConfig(temperature=1.0, extra_length=12),
}
MODELS = {
    "gpt": lambda: create_model("gpt-tiny", vocab_size=100, eos_id=2, bos_id=None, pad_id=0),
    "post-norm gpt": lambda: create_model(
        "gpt-tiny", vocab_size=100, eos_id=2, bos_id=None, pad_id=0, norm="post", activation="silu"
    ),
    "transformer": lambda: create_model("transformer-tiny", vocab_size=100),
    "pre-norm transformer": lambda: create_model("transformer-tiny", vocab_size=100, norm="pre", activation="gelu"),
    "gpt, half local": lambda: create_model("gpt-tiny-half", vocab_size=100, eos_id=2, bos_id=None, pad_id=0),
    "gpt, windows": lambda: create_model("gpt-tiny-windows", vocab_size=100, eos_id=2, bos_id=None, pad_id=0),
    "transformer, half local": lambda: create_model("transformer-tiny-half", vocab_size=100),
}


@pytest.fixture
def one_call(monkeypatch):
    """Have one call taken or not, whatever is faster, and return the list of the steps that it took."""
    taken = []
    step = BlockStack.step

    def counted(self, *args):
        taken.append(args)
        return step(self, *args)

    def switch(on):
        taken.clear()
        monkeypatch.setattr(BlockStack, "is_faster", lambda *_: on)
        return taken

    monkeypatch.setattr(BlockStack, "step", counted)
    return switch


def inputs(model, length):
    """Three texts, of which one is padded on the model's side."""
    ids = torch.randint(5, 100, (3, length))
    mask = torch.ones_like(ids, dtype=torch.bool)
    if model.is_decoder_only:
        mask[1, : length // 2] = False
    else:
        mask[1, -(length // 2) :] = False
    return ids, mask


def build(name):
    model = MODELS[name]().eval()
    for parameter in wake(model).parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    return model


@pytest.mark.parametrize("length", [9, 2])  # a prompt of 2 tokens: already the first one goes by one call
@pytest.mark.parametrize("decoding", DECODINGS)
@pytest.mark.parametrize("name", MODELS)
def test_one_call_writes_what_the_modules_write(name, decoding, length, one_call):
    model = pack(build(name))
    given = inputs(model, length), DECODINGS[decoding]
    expected = written(model, *given, one_call(False))
    steps = one_call(True)
    assert [ids for ids, _ in written(model, *given, steps)] == [ids for ids, _ in expected]
    assert len(steps) >= 5
    scores = [score for _, score in written(model, *given, steps) if score is not None]
    assert scores == pytest.approx([score for _, score in expected if score is not None], abs=1e-4)


@pytest.mark.parametrize("name", ["gpt, half local", "gpt, windows"])
def test_a_text_that_is_longer_than_the_buffers_of_local_heads(name, one_call):
    model = pack(build(name))
    given = inputs(model, 9), DecodingConfig(beams=1, extra_length=40)
    expected = written(model, *given, one_call(False))
    steps = one_call(True)
    assert written(model, *given, steps) == expected
    assert len(steps) >= 30


def test_trials_of_one_call_leave_the_caches_as_they_were(one_call, monkeypatch):
    """Both ways are timed on the state of a text that goes on."""

    def both_ways(self, rows, step, module_by_module):
        for run in (step, module_by_module, step, module_by_module):
            run()
        return rows % 2 == 0

    model = pack(build("gpt, half local"))
    given = inputs(model, 9), DecodingConfig(beams=1, extra_length=40)
    expected = written(model, *given, one_call(False))
    monkeypatch.setattr(BlockStack, "is_faster", both_ways)
    assert written(model, *given, None) == expected


def written(model, texts, config, _):
    found = generate(model, *texts, config)
    return [(hypothesis.ids, hypothesis.score) for hypotheses in found for hypothesis in hypotheses]


@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8"])
def test_one_call_has_the_precision_of_the_weights(precision, one_call):
    model = pack(build("gpt"), precision)
    if next(model.parameters()).dtype != torch.float32:
        pytest.skip("this processor computes a bf16 model in bf16, module by module")
    ids = torch.randint(5, 100, (2, 9))
    logits = {}
    for on in (False, True):
        steps = one_call(on)
        with torch.inference_mode():
            state = model.start(ids, torch.ones_like(ids, dtype=torch.bool), beams=1, max_new_tokens=3)
            logits[on] = torch.stack([model.step(ids[:, -1], state) for _ in range(3)])
        assert len(steps) == 3 * on
    torch.testing.assert_close(logits[True], logits[False], atol=5e-3, rtol=0)


def test_one_call_writes_into_no_full_cache(one_call):
    model = pack(build("gpt"))
    one_call(True)
    ids = torch.randint(5, 100, (2, 4))
    with torch.inference_mode():
        state = model.start(ids, torch.ones_like(ids, dtype=torch.bool), beams=1, max_new_tokens=1)
        model.step(ids[:, -1], state)
        with pytest.raises(GlocalError, match="token 5 of 2 rows"):
            model.step(ids[:, -1], state)


def test_what_one_call_cannot_compute_goes_module_by_module(one_call):
    ids = torch.randint(5, 100, (2, 9))
    mask = torch.ones_like(ids, dtype=torch.bool)
    steps = one_call(True)
    greedy = DECODINGS["greedy"]
    generate(build("gpt"), ids, mask, greedy)  # not packed
    generate(pack(build("gpt")).train(), ids, mask, greedy)  # dropout
    hooked = pack(build("gpt"))
    hooked.blocks[1].mlp.fc1.register_forward_hook(lambda *_: None)
    generate(hooked, ids, mask, greedy)
    hooked = pack(build("gpt"))
    hooked.blocks[1].register_forward_hook(lambda *_: None)
    generate(hooked, ids, mask, greedy)
    assert steps == []
    generate(pack(build("gpt")), ids, mask, greedy)
    assert steps
