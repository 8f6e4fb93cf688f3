"""The translator around a model that says what it hears, so that every answer is known."""

from types import SimpleNamespace

import pytest
import torch
from conftest import packed_precisions
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from glocal.data import Subwords
from glocal.errors import GlocalError
from glocal.generation import DecodingConfig
from glocal.models import create_model
from glocal.models.generative import EncoderDecoder
from glocal.ops import PRECISIONS
from glocal.tasks import ImageClassifier, Translator, load

WORDS = ["một", "hai", "ba", "bốn", "năm", "sáu", "bảy", "tám", "chín", "mười", "."]
TOKENIZER = Subwords.train([" ".join(WORDS)] * 3, "bpe", 400)

texts = st.lists(st.lists(st.sampled_from(WORDS), max_size=7).map(" ".join), max_size=9)


class Echo(EncoderDecoder):
    """Repeats its source; its second best is the source without the last word."""

    family, Config = "echo", SimpleNamespace
    forward_features = None

    def __init__(self, max_length=100):
        special = {name: getattr(TOKENIZER, name) for name in ("vocab_size", "pad_id", "bos_id", "eos_id")}
        super().__init__(SimpleNamespace(**special, max_length=max_length))
        self.sure = torch.nn.Parameter(torch.tensor(8.0))
        self.batches = []

    def start(self, input_ids, attention_mask, beams, room):
        self.batches.append(attention_mask.sum(1).tolist())
        assert max(self.batches[-1]) <= self.config.max_length
        then = torch.nn.functional.pad(input_ids, (0, room), value=self.config.pad_id)
        return Heard(then.repeat_interleave(beams, 0))

    def step(self, ids, state):
        said, then = (state.ids[:, state.length + i, None] for i in (0, 1))
        state.length += 1
        token = torch.arange(self.config.vocab_size)
        ends = torch.where(then == self.config.eos_id, 3, -1)
        return self.sure * (token == said) + ends * (token == self.config.eos_id)


class Heard:
    def __init__(self, ids):
        self.ids, self.length = ids, 0

    def select(self, rows, sentences=None):
        self.ids = self.ids[rows]


def echo(**fields):
    return Translator(Echo(**fields), TOKENIZER, "cpu")


@settings(deadline=None, max_examples=20)
@given(texts, st.integers(1, 5), st.sampled_from([1, 3]))
def test_translations_stand_in_the_order_of_the_texts(texts, batch_size, beams):
    translator, decoding = echo(), DecodingConfig(beams=beams)
    answers = translator.predict(texts, decoding, batch_size)
    assert [answer.text for answer in answers] == texts
    assert list(translator.stream(iter(texts), decoding, batch_size, chunk=4)) == answers
    assert all((answer.score is None) == (beams == 1 and bool(answer.text)) for answer in answers)


def test_sentences_of_like_length_go_together():
    translator = echo()
    translator.predict(["một", "hai ba bốn năm", "sáu", "bảy tám chín mười"], batch_size=2)
    assert translator.model.batches == [[5, 5], [2, 2]]


def test_one_text_is_a_list_of_one():
    (answer,) = echo().predict("một hai", DecodingConfig(nbest=2))
    assert [text for text, _ in answer.nbest] == ["một hai", "một"]
    assert (answer.text, answer.score) == answer.nbest[0]
    assert answer.nbest[0][1] > answer.nbest[1][1]


def test_a_stream_reads_no_further_than_it_must():
    read = []
    lines = (read.append(word) or f"{word}\n" for word in WORDS)
    stream = echo().stream(lines, chunk=2)
    assert [next(stream).text for _ in range(2)] == WORDS[:2]
    assert read == WORDS[:2]
    assert [answer.text for answer in stream] == WORDS[2:]


def test_blank_lines_stay_blank_and_empty_input_is_none():
    translator = echo()
    assert [answer.text for answer in translator.predict(["", "một", " \t"])] == ["", "một", ""]
    assert translator.predict(["", " "])[0].nbest == []
    assert translator.predict([]) == list(translator.stream([])) == []


def test_a_long_text_is_cut_where_its_sentences_end_and_that_is_said():
    translator = echo(max_length=8)
    long = "một hai ba . bốn năm . sáu bảy tám chín ."
    with pytest.warns(UserWarning, match="1 of 2 texts have more than the 8 tokens"):
        answers = translator.predict([long, "mười"], DecodingConfig(nbest=2))
    assert [answer.text for answer in answers] == [long, "mười"]
    assert sorted(length for batch in translator.model.batches for length in batch) == [2, 6, 8]
    assert answers[0].nbest[1][0] == "một hai ba . bốn năm sáu bảy tám chín"
    alone = translator.predict(["một hai ba . bốn năm .", "sáu bảy tám chín ."])
    assert answers[0].score == pytest.approx(sum(answer.score for answer in alone), abs=1e-6)


def test_without_a_sentence_end_it_is_cut_between_words():
    with pytest.warns(UserWarning, match="in parts"):
        (answer,) = echo(max_length=4).predict("một hai ba bốn năm sáu", DecodingConfig(beams=1))
    assert (answer.text, answer.score) == ("một hai ba bốn năm sáu", None)


def test_a_word_too_long_is_named():
    with pytest.raises(GlocalError, match=r"the word aaaaaaaaaaaaaaaaaaaa\.\.\. has 62 tokens, and the model takes 8"):
        echo(max_length=8).predict("a" * 60)


@pytest.mark.parametrize("kind", ["transformer", "lstm"])
def test_a_saved_model_and_its_tokenizer_translate_as_before(kind, tmp_path):
    model = create_model(f"{kind}-tiny", vocab_size=TOKENIZER.vocab_size, embed_dim=16, depth=1)
    model.save_pretrained(tmp_path / "run" / "model")
    TOKENIZER.save(tmp_path / "run" / "model")
    decoding = DecodingConfig(extra_length=2)
    expected = Translator(model, TOKENIZER, "cpu").predict(["một hai", "ba"], decoding)
    for folder in (tmp_path / "run", str(tmp_path / "run" / "model")):
        translator = load(folder, "cpu")
        assert translator.predict(["một hai", "ba"], decoding) == expected
        assert not translator.model.training
    for precision in PRECISIONS:
        translator = load(folder, "cpu", precision)
        assert packed_precisions(translator.model) == {translator.precision} == {precision}
        assert len(translator.predict(["một hai", "ba"], decoding)) == 2
    assert load(folder, "cpu", "auto").precision in ("float32", "fp16")


def test_images_are_answered_by_a_predictor_at_its_precision(tiny_vit, tmp_path):
    tiny_vit.preprocessing = {"image_size": (32, 32), "channels": 3, "mean": (0.5,) * 3, "std": (0.2,) * 3}
    tiny_vit.save_pretrained(tmp_path)
    assert isinstance(load(tmp_path, "cpu"), ImageClassifier)
    image = Image.new("RGB", (40, 40), (200, 30, 60))
    (expected,) = load(tmp_path, "cpu").predict(image)
    for precision in PRECISIONS:
        predictor = load(tmp_path, "cpu", precision)
        assert packed_precisions(predictor.model) == {predictor.precision} == {precision}
        (answer,) = predictor.predict(image)
        assert [p for _, p in answer] == pytest.approx([p for _, p in expected], abs=0.02)


def test_what_does_not_fit_is_refused(tiny_vit):
    with pytest.raises(
        GlocalError, match="a ViT, which reads no texts, was given to a Translator; expected one for translation"
    ):
        Translator(tiny_vit, TOKENIZER)
    small = create_model("lstm-tiny", vocab_size=20, embed_dim=16)
    with pytest.raises(GlocalError, match=f"a tokenizer of {TOKENIZER.vocab_size} tokens for a model of 20"):
        Translator(small, TOKENIZER)
