"""Decoding against plain Python that follows one sentence after another and never stops early."""

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from glocal.errors import GlocalError
from glocal.generation import DecodingConfig, generate
from glocal.generation.sampling import sort_top_p
from glocal.models import create_model

PAD, BOS, EOS = 0, 1, 2
GREEDY = DecodingConfig(beams=1)

sentences = st.lists(st.lists(st.integers(3, 11), max_size=4), min_size=1, max_size=4)
seeds = st.integers(0, 1000)
some = settings(max_examples=8, deadline=None)


def translator(seed=0, kind="transformer", vocab_size=12):
    """A tiny model of random weights, whose answers vary."""
    torch.manual_seed(seed)
    shape = {"vocab_size": vocab_size, "embed_dim": 16, "dropout": 0.0}
    shape |= {"depth": 2, "num_heads": 2} if kind == "transformer" else {"depth": 1, "hidden_dim": 16}
    model = create_model(f"{kind}-tiny", **shape).eval()
    with torch.no_grad():
        model.embedding.weight.mul_(1.5)
    return model


def padded(sources):
    """Ids and mask of sentences without their last token."""
    rows = [torch.tensor([*source, EOS]) for source in sources]
    input_ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=PAD)
    return input_ids, input_ids != PAD


@torch.no_grad()
def next_log_p(model, source, beginnings):
    """log P of the tokens after each of some beginnings of one length, by the model's forward alone."""
    input_ids, mask = padded([source] * len(beginnings))
    decoder_input_ids = torch.tensor([[BOS, *beginning] for beginning in beginnings])
    return model(input_ids, decoder_input_ids, mask).log_softmax(-1)[:, -1].tolist()


@torch.no_grad()
def scores(model, source, translations, alpha=0.6):
    """log P(ids | source) over the penalty, by the model's forward alone."""
    input_ids, mask = padded([source] * len(translations))
    targets = torch.nn.utils.rnn.pad_sequence([torch.tensor(ids) for ids in translations], batch_first=True)
    decoder_input_ids = torch.cat([torch.full_like(targets[:, :1], BOS), targets[:, :-1]], dim=1)
    log_p = model(input_ids, decoder_input_ids, mask).log_softmax(-1).gather(2, targets[..., None])[..., 0]
    lengths = torch.tensor([len(ids) for ids in translations])
    log_p = log_p.masked_fill(torch.arange(targets.shape[1]) >= lengths[:, None], 0.0).sum(1)
    return (log_p / ((5 + lengths) / 6) ** alpha).tolist()


def search(model, source, config):
    """Beam search as one writes it down, to the longest translation."""
    going, ended, limit = [([], 0.0)], [], len(source) + 1 + config.extra_length
    for length in range(1, limit + 1):
        if not going:
            break
        children = [
            ([*ids, token], total + log_p)
            for (ids, total), row in zip(going, next_log_p(model, source, [ids for ids, _ in going]), strict=True)
            for token, log_p in enumerate(row)
            if token not in (PAD, BOS)
        ]
        best = sorted(children, key=lambda child: -child[1])[: config.beams - len(ended)]
        ended += [child for child in best if child[0][-1] == EOS or length == limit]
        going = [child for child in best if child not in ended]
    scored = [(ids, total / ((5 + len(ids)) / 6) ** config.length_penalty) for ids, total in ended]
    return sorted(scored, key=lambda one: -one[1])[: config.nbest]


def check(found, expected):
    assert [ids for ids, _ in found] == [ids for ids, _ in expected]
    assert [score for _, score in found] == pytest.approx([score for _, score in expected], abs=1e-4)


@some
@given(seeds, sentences, st.integers(1, 5), st.sampled_from([0.0, 0.6, 2.0]), st.integers(0, 4), st.data())
def test_beam_search_is_the_one_written_down(seed, sources, beams, alpha, extra, data):
    nbest = data.draw(st.integers(1, beams))
    config = DecodingConfig(beams=beams, length_penalty=alpha, extra_length=extra, nbest=nbest)
    model = translator(seed)
    for source, found in zip(sources, generate(model, *padded(sources), config), strict=True):
        expected = search(model, source, config)
        if beams == 1:
            assert found == [(expected[0][0], None)]
        else:
            check(found, expected)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("alpha", [0.0, 0.6, 3.0])
def test_enough_beams_find_the_best_of_all_translations(seed, alpha):
    model, source, limit = translator(seed, vocab_size=6), [3, 4], 5
    ended = [[*ids, EOS] for length in range(limit) for ids in product((3, 4, 5), repeat=length)]
    cut = [list(ids) for ids in product((3, 4, 5), repeat=limit)]
    scored = zip(ended + cut, scores(model, source, ended + cut, alpha), strict=True)
    ranked = sorted(scored, key=lambda one: -one[1])
    for nbest in (1, 10):
        config = DecodingConfig(beams=400, length_penalty=alpha, extra_length=2, nbest=nbest)
        check(generate(model, *padded([source]), config)[0], ranked[:nbest])


def test_a_tiny_vocabulary_has_no_more_hypotheses_than_it_has():
    (found,) = generate(translator(vocab_size=6), *padded([[]]), DecodingConfig(beams=9, extra_length=0, nbest=9))
    assert sorted(ids for ids, _ in found) == [[EOS], [3], [4], [5]]


@some
@given(seeds, sentences, st.sampled_from(["transformer", "lstm"]))
@pytest.mark.parametrize(
    "config",
    [
        DecodingConfig(beams=1, extra_length=3),
        DecodingConfig(beams=3, extra_length=3, nbest=2),
        DecodingConfig(temperature=1.0, extra_length=3, nbest=2),
        DecodingConfig(temperature=0.7, top_k=5, top_p=0.8, extra_length=3),
    ],
    ids=["greedy", "beams", "draws", "filtered"],
)
def test_a_sentence_alone_is_what_it_is_in_any_batch(config, seed, sources, kind):
    model = translator(seed, kind)
    together = generate(model, *padded(sources), config)
    for source, found in zip(sources, together, strict=True):
        (alone,) = generate(model, *padded([source]), config)
        assert [ids for ids, _ in alone] == [ids for ids, _ in found]
        assert len(found) == config.nbest
        assert all(EOS not in ids[:-1] and not {PAD, BOS} & set(ids) for ids, _ in found)
        assert all(ids[-1] == EOS or len(ids) == len(source) + 1 + 3 for ids, _ in found)
        if config.width(False) > 1 or config.temperature:
            assert [s for _, s in found] == sorted((s for _, s in found), reverse=True)
            assert [s for _, s in found] == pytest.approx(scores(model, source, [ids for ids, _ in found]), abs=1e-4)
        if config.temperature is None:
            assert len({tuple(ids) for ids, _ in found}) == len(found)


@some
@given(seeds, sentences)
def test_the_likeliest_draw_is_greedy(seed, sources):
    model, batch = translator(seed), padded(sources)
    greedy = [[ids for ids, _ in found] for found in generate(model, *batch, DecodingConfig(beams=1, extra_length=2))]
    for fields in ({"top_k": 1}, {"top_p": 1e-6}, {"temperature": 1e-7}):  # warmer, near equals are drawn both
        drawn = generate(model, *batch, DecodingConfig(**{"temperature": 1.0, "extra_length": 2} | fields))
        assert [[ids for ids, _ in found] for found in drawn] == greedy


@pytest.mark.parametrize("fields", [{}, {"temperature": 0.5}, {"top_k": 3}, {"top_p": 0.6}])
def test_draws_follow_the_model(fields):
    model, many = translator(3), 5000
    p = torch.tensor(next_log_p(model, [], [[]])[0]) / fields.get("temperature", 1.0)
    p[[PAD, BOS]] = -torch.inf
    p, order = p.softmax(-1).sort(descending=True)
    if fields.get("top_k"):
        p[3:] = 0
    if fields.get("top_p"):
        p[1:][p.cumsum(0)[:-1] >= 0.6] = 0
    config = DecodingConfig(**{"temperature": 1.0} | fields, nbest=many, extra_length=0)
    (found,) = generate(model, *padded([[]]), config)
    counts = torch.bincount(torch.tensor([ids[0] for ids, _ in found]), minlength=12)[order]
    assert not counts[p == 0].any()
    torch.testing.assert_close(counts / many, p / p.sum(), atol=0.02, rtol=0)


def test_another_seed_draws_anew():
    model, batch = translator(), padded([[3, 4, 5, 6], [3, 4, 5, 7]])
    first, second, again = (generate(model, *batch, DecodingConfig(temperature=1.0, seed=s)) for s in (0, 1, 0))
    assert first == again
    assert first != second
    assert first[0][0].ids != first[1][0].ids


def test_done_sentences_leave_and_beams_share_their_source(monkeypatch):
    model, rows, read = translator(), [], []
    encode, step = model.encode, model.step
    monkeypatch.setattr(model, "encode", lambda ids, mask: read.append(len(ids)) or encode(ids, mask))
    monkeypatch.setattr(model, "step", lambda ids, state: rows.append(len(ids)) or step(ids, state))
    found = generate(model, *padded([[3] * n for n in range(8)]), DecodingConfig(beams=3, extra_length=0, nbest=3))
    assert read == [8]
    assert rows[0] == 24
    assert rows == sorted(rows, reverse=True)
    lengths = [max(len(ids) for ids, _ in hypotheses) for hypotheses in found]
    assert len(rows) <= 8
    assert all(count >= 3 * sum(n > i for n in lengths) for i, count in enumerate(rows))
    assert rows[-1] < 24


def test_a_settled_sentence_stops(monkeypatch):
    """A model that is sure ends at once, though 60 tokens more were allowed; one beam goes on elsewhere."""
    model = translator()
    steps = []

    def step(ids, state):
        steps.append(len(ids))
        logits = torch.zeros(len(ids), 12)
        logits[:, EOS] = 20.0
        return logits

    monkeypatch.setattr(model, "step", step)
    (found,) = generate(model, *padded([[3, 4]]), DecodingConfig(beams=4, extra_length=60))
    assert found[0].ids == [EOS]
    assert steps == [4]


@pytest.mark.parametrize("sharpness", [0.01, 5.0])
def test_top_p_of_a_large_vocabulary(sharpness):
    """Flat, it is most of the vocabulary; sharp, a few tokens, and nobody sorts the others."""
    p = (torch.randn(3, 5000) * sharpness).softmax(-1)
    ordered, order = p.sort(descending=True)
    wide, tokens = sort_top_p(p, 0.9)
    assert torch.equal(wide, ordered[:, : wide.shape[1]])
    assert torch.equal(tokens, order[:, : wide.shape[1]])
    assert (wide.sum(-1) >= 0.9).all()
    assert wide.shape[1] == (5000 if sharpness < 1 else 1000)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"beams": 0}, "beams 0; expected 1"),
        ({"beams": 2, "nbest": 3}, "nbest 3 of 2 beams; expected 1 to as many"),
        ({"nbest": 0}, "nbest 0"),
        ({"length_penalty": -1.0}, "length_penalty -1.0; expected 0"),
        ({"extra_length": -1}, "extra_length -1; expected 0"),
        ({"temperature": 1.0, "beams": 4}, "beams 4 and a temperature; expected either"),
        ({"temperature": 0.0}, "temperature 0.0; expected more than 0; beams 1 is greedy"),
        ({"top_k": 3}, "top_k 3, but no temperature"),
        ({"top_p": 0.5}, "top_p 0.5, but no temperature"),
        ({"repetition_penalty": 0.9}, "repetition_penalty 0.9; expected 1, which is none, or more"),
        ({"stop": ("a", "")}, r"stop \['a', ''\]; expected strings of a character or more"),
        ({"temperature": 1.0, "top_k": 0}, "top_k 0; expected 1"),
        ({"temperature": 1.0, "top_p": 1.5}, "top_p 1.5; expected more than 0, at most 1"),
    ],
)
def test_contradictions_are_refused(fields, message):
    with pytest.raises(GlocalError, match=message) as error:
        DecodingConfig(**fields)
    assert "\n" not in str(error.value)


def test_no_translation_is_longer_than_the_model_takes():
    model = create_model("transformer-tiny", vocab_size=12, embed_dim=16, depth=1, num_heads=2, max_length=6).eval()
    for config in (GREEDY, DecodingConfig(), DecodingConfig(temperature=1.0)):
        found = generate(model, *padded([[3] * 5, [4, 5]]), config)
        assert max(len(hypothesis.ids) for one in found for hypothesis in one) <= 6


def test_bf16_scores_are_summed_in_float32():
    model, batch = translator().bfloat16(), padded([[3, 4], [5]])
    for found in generate(model, *batch, DecodingConfig(extra_length=5, nbest=4)):
        assert len(found) == 4
        rounded = [torch.tensor(score).bfloat16().item() for _, score in found]
        assert rounded != [score for _, score in found]
