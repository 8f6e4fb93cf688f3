"""Requests that join and leave a running batch, against `generate` for each alone."""

import random

import pytest
import torch

from glocal.data import TokenizerConfig, learn_tokenizer
from glocal.errors import GlocalError
from glocal.generation import ContinuousBatch, DecodingConfig, continuous, generate
from glocal.models import create_model
from glocal.ops import pack
from glocal.ops.stack import BlockStack

TOKENIZER = learn_tokenizer(["so, some seas shine as far as the eye sees"] * 3, TokenizerConfig(kind="byte-bpe"))
END = TOKENIZER.eos_id
LONGEST = 64


def gpt(seed=0, **fields):
    """A small GPT of random weights, whose texts vary."""
    torch.manual_seed(seed)
    special = {"pad_id": END, "bos_id": END, "eos_id": END, "max_length": LONGEST}
    shape = {"embed_dim": 32, "depth": 2, "num_heads": 4, "vocab_size": TOKENIZER.vocab_size}
    model = create_model("gpt-tiny", **special | shape | fields).eval()
    with torch.no_grad():
        model.embedding.weight.mul_(25)
        model.pos_embed.mul_(25)
    return model


def alone(model, prompt, config):
    ids = torch.tensor([prompt])
    return generate(model, ids, torch.ones_like(ids, dtype=torch.bool), config, TOKENIZER)[0]


def random_request(rng):
    """A prompt and its options; of the stop strings, short ones do occur."""
    prompt = rng.choices(range(TOKENIZER.vocab_size), k=rng.choice([1, 2, 7, 20, 40]))
    fields = {"extra_length": rng.choice([1, 5, 15, 40]), "repetition_penalty": rng.choice([1.0, 1.0, 1.3])}
    if rng.random() < 0.3:
        fields["stop"] = rng.choice([("a",), ("s", "th"), ("never said",)])
    if rng.random() < 0.6:
        fields |= {"temperature": rng.choice([0.7, 1.0]), "seed": rng.randrange(3)}
        fields["top_k"] = rng.choice([None, 3, 20])
        fields["top_p"] = rng.choice([None, 0.5, 0.9])
    return prompt, DecodingConfig(**fields)


def run(batch, arrivals):
    """Submit each request at its step, run to the end, and return the texts by number, and the steps' reports."""
    texts, reports = {}, []
    while batch.busy or arrivals:
        for given in arrivals.pop(len(reports), []):
            batch.submit(*given)
        reports.append(batch.step())
        for progress in reports[-1]:
            if progress.finished:
                texts[progress.number] = progress.ids
    return texts, reports


def check_texts(model, number, slots=4):
    rng = random.Random(0)
    requests = [random_request(rng) for _ in range(number)]
    arrivals, step = {}, 0
    for given in requests:
        step += rng.choice([0, 0, 0, 1, 2, 6])
        arrivals.setdefault(step, []).append(given)
    texts, reports = run(ContinuousBatch(model, TOKENIZER, slots), arrivals)
    assert sorted(texts) == list(range(1, number + 1))
    assert max(map(len, reports)) == slots
    wrong = [n for n, given in enumerate(requests, start=1) if texts[n] != alone(model, *given)[0].ids]
    assert wrong == []


LOCAL = {"local_heads": 2, "local_norm": "layer", "kernel_size": 5}


@pytest.mark.parametrize(
    ("one_call", "fields"), [(False, {}), (True, {}), (True, LOCAL), (False, LOCAL | {"local": "window"})]
)
def test_texts_are_those_asked_alone(one_call, fields, monkeypatch, request):
    if one_call:
        request.getfixturevalue("kernels")
    monkeypatch.setattr(BlockStack, "is_faster", lambda *_: one_call)
    monkeypatch.setattr(continuous, "PROMPT_TOKENS", 16)
    check_texts(pack(gpt(**fields)), 20 if one_call else 10)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("precision", [None, "float32", "fp16"])
def test_five_hundred_texts_are_those_asked_alone(precision):
    model = gpt(1)
    check_texts(model if precision is None else pack(model, precision), 500, slots=8)


def test_every_step_adds_a_token_to_every_running_text():
    model = gpt(eos_id=None)
    _, reports = run(
        ContinuousBatch(model, TOKENIZER, slots=2),
        {
            0: [([5], DecodingConfig(extra_length=6)), ([6, 7], DecodingConfig(extra_length=2))],
            1: [([8], DecodingConfig(extra_length=3))],
        },
    )
    lengths = [{each.number: len(each.ids) for each in report} for report in reports]
    assert lengths == [{1: 1, 2: 1}, {1: 2, 2: 2}, {1: 3, 3: 1}, {1: 4, 3: 2}, {1: 5, 3: 3}, {1: 6}]


def test_a_batch_that_never_empties_goes_on_for_ever():
    model = gpt(eos_id=None)
    batch = ContinuousBatch(model, TOKENIZER, slots=2, max_length=16)
    arrivals = {step: [([3, step], DecodingConfig(extra_length=14))] for step in range(0, 140, 7)}
    texts, reports = run(batch, arrivals)
    assert len(texts) == 20
    assert len(reports) > 8 * 16
    assert batch.state.caches[0].attention.keys.shape[2] == 16


def test_a_long_prompt_does_not_hold_up_the_others(monkeypatch):
    monkeypatch.setattr(continuous, "PROMPT_TOKENS", 10)
    model = gpt(eos_id=None)
    read = []
    forward = model.forward_cached
    monkeypatch.setattr(model, "forward_cached", lambda ids, state: read.append(ids.shape[1]) or forward(ids, state))
    prompt = list(range(32))
    requests = [([1], DecodingConfig(extra_length=9)), (prompt, DecodingConfig(extra_length=4))]
    texts, reports = run(ContinuousBatch(model, TOKENIZER), {0: requests})
    assert [[each.number for each in report] for report in reports] == [[1]] * 3 + [[1, 2]] * 4 + [[1]] * 2
    assert max(read) == 10
    assert [texts[1], texts[2]] == [alone(model, *given)[0].ids for given in requests]


def test_a_cancelled_request_leaves_the_others_as_they_are():
    model = gpt(eos_id=None)
    batch = ContinuousBatch(model, TOKENIZER, slots=2)
    config = DecodingConfig(extra_length=8)
    numbers = [batch.submit([token], config) for token in range(4)]
    batch.step()
    batch.cancel(numbers[0])  # running
    batch.cancel(numbers[2])  # waiting
    batch.cancel(numbers[0])
    batch.cancel(99)
    texts, _ = run(batch, {})
    assert texts == {numbers[i]: alone(model, [i], config)[0].ids for i in (1, 3)}


def test_samples_of_one_input_are_those_of_generate():
    model = gpt()
    config = DecodingConfig(temperature=1.0, extra_length=10)
    batch = ContinuousBatch(model, TOKENIZER)
    for sample in range(3):
        batch.submit([4, 5], config, sample=sample)
    texts, _ = run(batch, {})
    several = alone(model, [4, 5], DecodingConfig(temperature=1.0, extra_length=10, nbest=3))
    assert sorted(texts.values()) == sorted(one.ids for one in several)
    assert texts[1] == alone(model, [4, 5], config)[0].ids


@torch.no_grad()
def test_probabilities_are_the_models():
    model = gpt(eos_id=None)
    batch = ContinuousBatch(model, TOKENIZER)
    batch.submit([4, 5], DecodingConfig(extra_length=5, repetition_penalty=2.0), logprobs=3)
    batch.submit([4, 5], DecodingConfig(extra_length=5), logprobs=0)
    batch.submit([6], DecodingConfig(extra_length=5))
    while batch.busy:
        first, second, third = batch.step()
        assert len(first.logprobs) == len(first.ids)
    assert third.logprobs is None
    assert [each.top for each in second.logprobs] == [[]] * 5
    for progress, top in ((first, 3), (second, 0)):
        ids = torch.tensor([[4, 5, *progress.ids]])
        expected = model(ids)[0, 1:-1].log_softmax(-1)
        for token, own, row in zip(progress.ids, progress.logprobs, expected, strict=True):
            assert own.id == token
            assert own.logprob == pytest.approx(row[token].item(), abs=1e-4)
            best = row.topk(top)
            assert [id for id, _ in own.top] == best.indices.tolist()
            assert [logprob for _, logprob in own.top] == pytest.approx(best.values.tolist(), abs=1e-4)


def test_what_cannot_be_generated_is_refused():
    batch = ContinuousBatch(gpt(), TOKENIZER, max_length=8)
    greedy = DecodingConfig()
    for prompt, config, options, message in [
        ([], greedy, {}, "a prompt of 0 tokens; expected 1 or more"),
        ([1, 10_000], greedy, {}, "each an id of 0 to"),
        ([-1], greedy, {}, "each an id of 0 to"),
        ([1] * 8, greedy, {}, "a prompt of 8 tokens and extra_length 50; the model takes 8 tokens"),
        ([1], DecodingConfig(beams=3), {}, "3 hypotheses in a continuous batch"),
        ([1], DecodingConfig(temperature=1.0, nbest=2), {}, "2 hypotheses in a continuous batch"),
        ([1], greedy, {"logprobs": -1}, "logprobs is -1"),
        ([1], greedy, {"sample": -1}, "sample is -1"),
    ]:
        with pytest.raises(GlocalError, match=message) as error:
            batch.submit(prompt, config, **options)
        assert "\n" not in str(error.value)
    assert not batch.busy
    with pytest.raises(GlocalError, match="a Transformer in a continuous batch"):
        ContinuousBatch(create_model("transformer-tiny", vocab_size=300), TOKENIZER)
    for options in ({"slots": 0}, {"max_length": 1}, {"max_length": LONGEST + 1}):
        with pytest.raises(GlocalError, match="expected 1 slot or more, and 2 to the model's 64 tokens"):
            ContinuousBatch(gpt(), TOKENIZER, **options)
