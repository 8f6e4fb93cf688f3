"""What goes on from a prompt, against plain Python that follows one prompt after another, and against transformers."""

from types import SimpleNamespace

import pytest
import torch
from conftest import packed_precisions
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.utils.rnn import pad_sequence
from transformers import GPT2Config, GPT2LMHeadModel

from glocal.data import TokenizerConfig, learn_tokenizer
from glocal.errors import GlocalError
from glocal.generation import DecodingConfig, generate, stream
from glocal.models import create_model, load_model
from glocal.models.generative import Generative
from glocal.ops import PRECISIONS
from glocal.tasks import TextGenerator, Translator, load

END = 11
GREEDY = DecodingConfig(beams=1)
WAYS = {
    "greedy": {"beams": 1},
    "beams": {"beams": 3, "nbest": 2},
    "draws": {"temperature": 1.0, "nbest": 2},
    "filtered": {"temperature": 0.7, "top_k": 5, "top_p": 0.8},
    "penalised": {"beams": 1, "repetition_penalty": 1.5},
    "penalised beams": {"beams": 3, "repetition_penalty": 1.5},
}
prompts = st.lists(st.lists(st.integers(0, 10), min_size=1, max_size=6), min_size=1, max_size=4)
seeds = st.integers(0, 1000)
some = settings(max_examples=8, deadline=None)


def gpt(seed=0, **fields):
    """A tiny GPT of random weights, whose answers vary; one token is all three special ones, as in GPT-2."""
    torch.manual_seed(seed)
    special = {"vocab_size": 12, "pad_id": END, "bos_id": END, "eos_id": END}
    model = create_model("gpt-tiny", embed_dim=16, depth=2, num_heads=2, **special | {"max_length": 32} | fields).eval()
    with torch.no_grad():
        model.embedding.weight.mul_(40)
        model.pos_embed.mul_(40)
    return model


def padded(prompts, pad=END):
    """Ids and mask, padded in front."""
    rows = [torch.tensor(prompt) for prompt in prompts]
    options = {"batch_first": True, "padding_side": "left"}
    mask = pad_sequence([torch.ones_like(row, dtype=torch.bool) for row in rows], **options)
    return pad_sequence(rows, padding_value=pad, **options), mask


@torch.no_grad()
def next_log_p(model, ids, penalty=1.0):
    """log P of the tokens after a beginning, by the model's forward alone."""
    logits = model(torch.tensor([ids]))[0, -1].tolist()
    for token in set(ids):
        logits[token] = logits[token] / penalty if logits[token] > 0 else logits[token] * penalty
    return torch.tensor(logits).log_softmax(-1).tolist()


def search(model, prompt, config):
    """Beam search as one writes it down, to the longest text."""
    going, ended, limit = [([], 0.0)], [], min(config.extra_length, model.config.max_length - len(prompt))
    for length in range(1, limit + 1):
        children = [
            ([*ids, token], total + log_p)
            for ids, total in going
            for token, log_p in enumerate(next_log_p(model, prompt + ids, config.repetition_penalty))
        ]
        best = sorted(children, key=lambda child: -child[1])[: config.beams - len(ended)]
        ended += [child for child in best if child[0][-1] == END or length == limit]
        going = [child for child in best if child not in ended]
    scored = [(ids, total / ((5 + len(ids)) / 6) ** config.length_penalty) for ids, total in ended]
    return sorted(scored, key=lambda one: -one[1])[: config.nbest]


@some
@given(seeds, prompts, st.integers(1, 4), st.sampled_from([0.0, 0.6, 2.0]), st.sampled_from([1.0, 1.3]))
def test_beam_search_is_the_one_written_down(seed, prompts, beams, alpha, penalty):
    config = DecodingConfig(beams=beams, nbest=beams, length_penalty=alpha, extra_length=4, repetition_penalty=penalty)
    model = gpt(seed)
    for prompt, found in zip(prompts, generate(model, *padded(prompts), config), strict=True):
        expected = search(model, prompt, config)
        assert [ids for ids, _ in found] == [ids for ids, _ in expected]
        if beams > 1:
            assert [score for _, score in found] == pytest.approx([score for _, score in expected], abs=1e-4)


@some
@given(seeds, prompts)
@pytest.mark.parametrize("way", WAYS)
def test_a_prompt_alone_is_what_it_is_in_any_batch(way, seed, prompts):
    model, config = gpt(seed), DecodingConfig(**WAYS[way], extra_length=6)
    together = generate(model, *padded(prompts), config)
    for prompt, found in zip(prompts, together, strict=True):
        (alone,) = generate(model, *padded([prompt]), config)
        assert [ids for ids, _ in alone] == [ids for ids, _ in found]
        assert len(found) == config.nbest
        assert all(END not in ids[:-1] and (ids[-1] == END or len(ids) == 6) for ids, _ in found)


@pytest.mark.parametrize("way", ["greedy", "draws", "penalised"])
def test_what_streams_is_what_is_generated(way):
    for seed in range(4):
        model, prompt = gpt(seed), torch.tensor([[1, 2, 3]])
        config = DecodingConfig(**WAYS[way] | {"nbest": 1})
        ((expected,),) = generate(model, prompt, torch.ones_like(prompt, dtype=torch.bool), config)
        written = list(stream(model, prompt, config))
        assert written[-1] == expected.ids
        assert written == [expected.ids[:length] for length in range(1, len(expected.ids) + 1)]


@pytest.fixture(scope="module")
def theirs():
    torch.manual_seed(0)
    shape = {"vocab_size": 40, "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4}
    special = {"bos_token_id": 39, "eos_token_id": 39, "pad_token_id": 39}
    return GPT2LMHeadModel(GPT2Config(**shape, **special, initializer_range=0.4)).eval()


@pytest.mark.parametrize(
    ("ours", "options"),
    [
        ({"beams": 1}, {}),
        ({"beams": 1, "repetition_penalty": 1.3}, {"repetition_penalty": 1.3}),
        ({"beams": 4, "length_penalty": 0.0}, {"num_beams": 4, "length_penalty": 0.0, "early_stopping": "never"}),
    ],
    ids=["greedy", "penalised", "beams"],
)
def test_transformers_generates_the_same(theirs, tmp_path, ours, options):
    theirs.save_pretrained(tmp_path)
    given = padded([[1, 2, 3], [4, 5, 6, 7, 8], [9]], pad=38)  # their penalty would count padding as a token seen
    found = generate(load_model(tmp_path).eval(), *given, DecodingConfig(**ours, extra_length=12))
    options = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 39} | options
    for (best, *_), prompt in zip(found, [[1, 2, 3], [4, 5, 6, 7, 8], [9]], strict=True):
        ids = torch.tensor([prompt])
        written = theirs.generate(ids, attention_mask=torch.ones_like(ids), **options)
        assert best.ids == written[0, len(prompt) :].tolist()


def test_the_one_special_token_ends_a_text_and_is_its_last():
    model = gpt()
    with torch.no_grad():
        model.embedding.weight[END] += 5 * model.norm.weight  # which it mostly is
        model.norm.bias.fill_(1.0)
    for config in (GREEDY, DecodingConfig(beams=3, nbest=3), DecodingConfig(temperature=1.0, nbest=3)):
        (found,) = generate(model, *padded([[1, 2]]), config)
        assert found[0].ids == [END]
        assert all(END not in ids[:-1] for ids, _ in found)


def test_other_special_tokens_are_never_written_and_none_may_be_missing():
    for seed in range(5):
        config = DecodingConfig(temperature=2.0, nbest=20, extra_length=10)
        model = gpt(seed, pad_id=3, bos_id=4, eos_id=5)
        (found,) = generate(model, *padded([[1, 2]]), config)
        assert not {3, 4} & {token for ids, _ in found for token in ids}
        (found,) = generate(gpt(seed, pad_id=None, bos_id=None, eos_id=5), *padded([[1, 2]]), config)
        assert any(ids[-1] == 5 for ids, _ in found)
        (found,) = generate(gpt(seed, pad_id=None, bos_id=None, eos_id=None), *padded([[1, 2]]), config)
        assert all(len(ids) == 10 for ids, _ in found)


def test_a_text_is_no_longer_than_the_model_takes():
    model = gpt(max_length=8, eos_id=None)
    found = generate(model, *padded([[1], [1, 2, 3, 4, 5]]), GREEDY)
    assert [len(best.ids) for (best,) in found] == [7, 3]
    with pytest.raises(GlocalError, match="a prompt of 8 tokens and extra_length 50; the model takes 8 tokens"):
        generate(model, *padded([[1], [1] * 8]), GREEDY)
    with pytest.raises(GlocalError, match="extra_length 0"):
        generate(model, *padded([[1]]), DecodingConfig(extra_length=0))


def test_repetition_is_rarer_for_a_penalty():
    model = gpt(4, eos_id=None)
    (plain,), (penalised,) = (
        generate(model, *padded([[1, 2]]), DecodingConfig(beams=1, extra_length=20, repetition_penalty=penalty))[0]
        for penalty in (1.0, 100.0)
    )
    assert len(set(plain.ids)) < 6
    assert len(set(penalised.ids[:10])) == 10  # of 12 tokens, two of which stood in the prompt


def test_a_translation_may_repeat_its_source():
    model = create_model("transformer-tiny", vocab_size=12, embed_dim=16, depth=1, num_heads=2).eval()
    ids = torch.tensor([[3, 4, 5, 6, 7, 8, 9, 10, 11, 2]])
    logits = []
    step = model.step
    model.step = lambda ids, state: logits.append(step(ids, state)) or logits[-1].clone()
    for penalty in (1.0, 1e6):
        (found,) = generate(model, ids, ids > 0, DecodingConfig(beams=1, extra_length=0, repetition_penalty=penalty))
        assert found[0].ids[0] == logits[0][0, 2:].argmax() + 2
        logits.clear()


# ---------------------------------------------------------------------------------------- text, by a model that recites

SAID = "Đường đi khó, không khó vì ngăn sông 🌊 cách núi."
TOKENIZER = learn_tokenizer([SAID] * 3, TokenizerConfig(kind="byte-bpe", vocab_size=290))


class Reciter(Generative):
    """Goes on from whatever part of `SAID` it is given, to the end; else it ends at once."""

    family, Config, is_decoder_only = "reciter", SimpleNamespace, True
    forward_features = None

    def __init__(self):
        special = {name: getattr(TOKENIZER, name) for name in ("vocab_size", "pad_id", "bos_id", "eos_id")}
        super().__init__(SimpleNamespace(**special, max_length=100, head="language"))
        self.said = torch.nn.Parameter(torch.tensor([e.ids for e in TOKENIZER.encodings([SAID])])[0], False)
        self.batches = []

    def start(self, input_ids, attention_mask, beams, room):
        self.batches.append(attention_mask.sum(1).tolist())
        texts = [row[own].tolist() for row, own in zip(input_ids, attention_mask, strict=True)]
        return Recited([text[:-1] for text in texts for _ in range(beams)])

    def step(self, ids, state):
        logits = torch.zeros(len(ids), self.config.vocab_size)
        said = self.said.tolist()
        for row, token in enumerate(ids.tolist()):
            state.texts[row] = text = [*state.texts[row], token]
            text = text[1:] if text[0] == self.config.bos_id else text
            place = next((i + len(text) for i in range(len(said)) if said[i : i + len(text)] == text), len(said))
            logits[row, said[place] if place < len(said) else self.config.eos_id] = 9.0
        return logits


class Recited:
    def __init__(self, texts):
        self.texts = texts

    def select(self, rows, inputs=None):
        self.texts = [self.texts[row] for row in rows.tolist()]


LONG = {"extra_length": 90}
GIVEN = ["Đường", "Đường đi khó", "Đường đi khó, không khó vì ngăn sông"]


def reciter():
    return TextGenerator(Reciter(), TOKENIZER, "cpu")


@pytest.mark.parametrize("way", [{}, {"beams": 2}, {"temperature": 0.1}])
def test_texts_go_on_from_their_prompts_in_order(way):
    generator = reciter()
    answers = generator.predict(GIVEN, DecodingConfig(**way, **LONG), batch_size=2)
    assert [prompt + answer.text for prompt, answer in zip(GIVEN, answers, strict=True)] == [SAID] * 3
    assert all((answer.score is None) == (not way) for answer in answers)
    assert [len(lengths) for lengths in generator.model.batches] == [2, 1]
    assert generator.model.batches == [sorted(lengths, reverse=True) for lengths in generator.model.batches]


def test_an_empty_prompt_is_a_beginning():
    (answer,) = reciter().predict("", DecodingConfig(**LONG))
    assert answer.text == SAID
    generator = reciter()
    generator.model.config.bos_id = None
    with pytest.raises(GlocalError, match="an empty prompt"):
        generator.predict(["", "Đường"])


def test_pieces_are_whole_characters():
    pieces = list(reciter().stream("Đường", DecodingConfig(**LONG)))
    assert "".join(pieces) == SAID.removeprefix("Đường")
    assert len(pieces) > 15
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)
    assert "🌊" in [piece.strip() for piece in pieces]


@pytest.mark.parametrize("stop", ["ó", "khó", "sông 🌊 c", "không khó vì", "never said"])
def test_a_text_ends_before_a_string_to_stop_at(stop):
    """Each text by itself, and wherever tokens begin and end."""
    generator, decoding = reciter(), DecodingConfig(stop=(stop, "núi"), **LONG)
    answers = generator.predict(GIVEN, decoding)
    for prompt, answer in zip(GIVEN, answers, strict=True):
        rest = SAID.removeprefix(prompt)
        expected = rest[: min(rest.index(each) for each in (stop, "núi") if each in rest)]
        assert answer.text == expected
        assert "".join(generator.stream(prompt, decoding)) == expected


def test_what_was_to_stop_writes_no_further():
    generator = reciter()
    steps = []
    step = generator.model.step
    generator.model.step = lambda ids, state: steps.append(ids) or step(ids, state)
    generator.predict("Đường", DecodingConfig(stop=("khó",)))
    assert len(steps) < 12


def test_beams_do_not_stream():
    for decoding in (DecodingConfig(beams=2), DecodingConfig(nbest=2), DecodingConfig(temperature=1.0, nbest=2)):
        with pytest.raises(GlocalError, match="2 hypotheses of a text that is streamed"):
            next(reciter().stream("Đường", decoding))


def test_a_stop_string_needs_a_reader():
    with pytest.raises(GlocalError, match="give a tokenizer"):
        generate(gpt(), *padded([[1]]), DecodingConfig(stop=("a",)))


def test_a_saved_model_goes_on_as_before(tmp_path):
    model = gpt(vocab_size=TOKENIZER.vocab_size, pad_id=0, bos_id=0, eos_id=0, max_length=64)
    model.save_pretrained(tmp_path)
    TOKENIZER.save(tmp_path)
    expected = TextGenerator(model, TOKENIZER, "cpu").predict(["Đường", "núi"])
    generator = load(tmp_path, "cpu")
    assert isinstance(generator, TextGenerator)
    assert generator.predict(["Đường", "núi"]) == expected
    for precision in PRECISIONS:
        generator = load(tmp_path, "cpu", precision)
        assert packed_precisions(generator.model) == {generator.precision} == {precision}
        assert "".join(generator.stream("Đường")) == generator.predict("Đường")[0].text


def test_what_does_not_fit_is_refused():
    with pytest.raises(GlocalError, match="a GPT, whose head is for language, was given to a Translator"):
        Translator(gpt(vocab_size=500), TOKENIZER)
    classifier = gpt(vocab_size=500, head="classification")
    with pytest.raises(GlocalError, match="a GPT, whose head is for classification, was given to a TextGenerator"):
        TextGenerator(classifier, TOKENIZER)


@pytest.mark.parametrize("way", [{}, {"temperature": 1.0, "top_k": 5}])
def test_a_text_goes_on_beyond_what_the_model_takes(way):
    model = gpt(vocab_size=TOKENIZER.vocab_size, pad_id=None, bos_id=None, eos_id=None, max_length=8)
    generator = TextGenerator(model, TOKENIZER, "cpu")
    prompts = ["ab", "abcde"]
    answers = generator.predict(prompts, DecodingConfig(**way, extra_length=30))
    short = generator.predict(prompts, DecodingConfig(**way, extra_length=3))
    for prompt, answer, beginning in zip(prompts, answers, short, strict=True):
        assert len(TOKENIZER.encodings([answer.text], special=False)[0].ids) >= 15
        assert answer.text.startswith(beginning.text.rstrip("\N{REPLACEMENT CHARACTER}"))
        assert "".join(generator.stream(prompt, DecodingConfig(**way, extra_length=30))) == answer.text
    alone = [generator.predict(prompt, DecodingConfig(**way, extra_length=30))[0].text for prompt in prompts]
    assert alone == [answer.text for answer in answers]


def test_probabilities_along_a_text():
    model = gpt(vocab_size=TOKENIZER.vocab_size, pad_id=None, bos_id=None, eos_id=None, max_length=64)
    first, *found = TextGenerator(model, TOKENIZER, "cpu").token_probabilities(SAID, top=3)
    ids = TOKENIZER.encodings([SAID])[0].ids
    assert [first.id, *(each.id for each in found)] == ids
    assert (first.probability, first.top) == (None, [])
    assert first.token == TOKENIZER.tokens(ids[:1])[0]
    with torch.no_grad():
        expected = model(torch.tensor([ids])).softmax(-1)[0, :-1]
    for each, row in zip(found, expected, strict=True):
        assert each.token == TOKENIZER.tokens([each.id])[0]
        assert each.probability == pytest.approx(row[each.id].item(), abs=1e-5)
        assert [other.id for other in each.top] == row.topk(3).indices.tolist()
        assert [other.probability for other in each.top] == pytest.approx(row.topk(3).values.tolist(), abs=1e-5)


def test_probabilities_beyond_what_the_model_takes_follow_half_of_it():
    model = gpt(vocab_size=TOKENIZER.vocab_size, pad_id=None, bos_id=None, eos_id=None, max_length=8)
    found = TextGenerator(model, TOKENIZER, "cpu").token_probabilities(SAID)
    ids = [each.id for each in found]
    assert len(ids) > 16
    for place in range(1, len(ids)):
        start = 0 if place < 8 else place // 4 * 4 - 4
        expected = next_log_p(model, ids[start:place])[ids[place]]
        assert found[place].probability == pytest.approx(torch.tensor(expected).exp().item(), abs=1e-5)


def test_probabilities_of_an_empty_text_and_of_no_tokens():
    generator = reciter()
    assert [each.id for each in generator.token_probabilities("")] == [TOKENIZER.bos_id]
    with pytest.raises(GlocalError, match="top 0 was given"):
        generator.token_probabilities("Đường", top=0)
