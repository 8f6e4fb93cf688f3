"""What BERT's and GPT's heads answer, by tiny models of random weights, or by stand-ins whose answers are known."""

import unicodedata
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import packed_precisions
from hypothesis import given, settings
from hypothesis import strategies as st

from glocal.data import TokenizerConfig, learn_tokenizer
from glocal.data.conll import split_words
from glocal.data.encoding import Passage, encode_sentences
from glocal.errors import GlocalError
from glocal.models import Model, create_model
from glocal.ops import PRECISIONS
from glocal.tasks import FillMask, QuestionAnswerer, TextClassifier, TokenClassifier, load
from glocal.tasks.predictor import split_list, trained_labels
from glocal.tasks.question_answerer import score_spans

SAID = "John Smith lives in New York , far from Hà Nội . Where who does live ? He likes it there"
WORDS = SAID.split()
TOKENIZER = learn_tokenizer([SAID] * 3, TokenizerConfig(kind="wordpiece", vocab_size=300))
BYTES = learn_tokenizer([SAID] * 3, TokenizerConfig(kind="byte-bpe", vocab_size=300))
TAGS = ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]
some = settings(max_examples=10, deadline=None)
sentences = st.lists(st.lists(st.sampled_from(WORDS), min_size=1, max_size=12).map(" ".join), min_size=1, max_size=6)


def bert(head, **fields):
    """Two tiny blocks of random weights, whose answers vary."""
    torch.manual_seed(0)
    shape = {"vocab_size": TOKENIZER.vocab_size, "embed_dim": 16, "depth": 2, "num_heads": 2, "max_length": 24}
    model = create_model("bert-tiny", head=head, **shape | fields).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return model


def close(answer):
    """What equals the answer's names and probabilities, but for the rounding of sums."""
    return [(name, pytest.approx(p, abs=1e-5)) for name, p in answer]


def test_masked_words_are_the_models_own_best_first():
    model = bert("pretraining")
    text = "John [MASK] in New [MASK] ."
    ((first, second),) = FillMask(model, TOKENIZER, "cpu").predict(text, top=3)
    ids = TOKENIZER.encodings([text], parse_special=True)[0].ids
    with torch.no_grad():
        probabilities = model(torch.tensor([ids]))[0].softmax(-1)
    for answer, place in zip(
        (first, second), [i for i, token in enumerate(ids) if token == TOKENIZER.mask_id], strict=True
    ):
        p, best = probabilities[place].topk(3)
        assert answer == close(zip(TOKENIZER.tokens(best.tolist()), p.tolist(), strict=True))


@some
@given(sentences, st.integers(1, 4))
def test_texts_with_gaps_answer_in_order_whatever_stands_beside_them(texts, batch_size):
    predictor = FillMask(bert("pretraining"), TOKENIZER, "cpu")
    texts = [f"{text} [MASK]" for text in texts]
    for text, answers in zip(texts, predictor.predict(texts, batch_size=batch_size), strict=True):
        ((alone,),) = predictor.predict(text)
        assert answers[0] == close(alone)


def test_a_text_without_a_gap_or_too_long_is_named():
    predictor = FillMask(bert("pretraining"), TOKENIZER, "cpu")
    with pytest.raises(GlocalError, match=r"no word of 'New York' is masked; write \[MASK\]"):
        predictor.predict(["a [MASK]", "New York"])
    with pytest.raises(GlocalError, match="has 33 tokens, and the model takes 24"):
        predictor.predict("[MASK]" + " York" * 30)
    characters = learn_tokenizer(["abc"], TokenizerConfig(kind="characters"))
    few = pytest.warns(UserWarning, match="a tokenizer of 5 tokens for a model of 86")
    with few, pytest.raises(GlocalError, match="no token for a masked word"):
        FillMask(bert("pretraining"), characters)


def gpt():
    torch.manual_seed(0)
    shape = {"vocab_size": BYTES.vocab_size, "embed_dim": 16, "depth": 1, "num_heads": 2, "max_length": 99}
    special = {"pad_id": None, "bos_id": None, "eos_id": None}
    return create_model("gpt-tiny", head="classification", num_classes=3, **shape, **special).eval()


@some
@given(sentences, st.integers(1, 4), st.booleans())
@pytest.mark.parametrize("family", ["bert", "gpt"])
def test_classes_of_texts_and_pairs_are_the_models_own(family, texts, batch_size, paired):
    tokenizer = TOKENIZER if family == "bert" else BYTES
    model = bert("classification", num_classes=3, max_length=99) if family == "bert" else gpt()
    model.labels = ["bad", "fair", "good"]
    asked = [(text, "Where does he live ?") for text in texts] if paired else texts
    answers = TextClassifier(model, tokenizer, "cpu").predict(asked, batch_size=batch_size)
    for text, answer in zip(asked, answers, strict=True):
        sides = ([text[0]], [text[1]]) if paired else ([text], None)
        ((row, _),) = encode_sentences(tokenizer, *sides, 99)
        with torch.no_grad():
            logits = model(**{name: torch.from_numpy(column)[None].long() for name, column in row.items()})
        p, best = logits[0].softmax(-1).topk(3)
        assert answer == close((model.labels[i], each) for i, each in zip(best.tolist(), p.tolist(), strict=True))


def test_a_long_text_loses_its_end_and_that_is_said():
    classifier = TextClassifier(bert("classification"), TOKENIZER, "cpu")
    with pytest.warns(UserWarning, match="1 of 2 texts have more than the 24 tokens that the model takes"):
        long, _ = classifier.predict(["York " * 30, "York"])
    assert long == close(classifier.predict("York " * 22)[0])
    assert classifier.predict([]) == []
    with pytest.raises(GlocalError, match="1 pairs among 2 texts"):
        classifier.predict(["a", ("b", "c")])


class Marked(Model):
    """A stand-in for a BERT that knows each token's logits by heart."""

    family, Config, forward_features = "marked", SimpleNamespace, None

    def __init__(self, head, labels, logits, max_length=24):
        shape = {"vocab_size": TOKENIZER.vocab_size, "max_length": max_length, "pad_id": TOKENIZER.pad_id}
        super().__init__(SimpleNamespace(head=head, **shape))
        self.labels = labels
        self.table = torch.nn.Parameter(torch.zeros(TOKENIZER.vocab_size, len(logits["Where"])), False)
        for word, row in logits.items():
            self.table[TOKENIZER.encodings([word], special=False)[0].ids[0]] = torch.tensor(row)

    def forward(self, input_ids, attention_mask, token_type_ids):
        assert input_ids.shape[1] <= self.config.max_length
        return self.table[input_ids]


def tagger(scheme, labels=TAGS, **fields):
    tags = dict.fromkeys(WORDS, "O") | dict(zip(["John", "Smith", "New", "York", "Hà", "Nội"], scheme, strict=True))
    return TokenClassifier(
        Marked(
            "tagging", labels, {word: [9.0 * (tag == each) for each in labels] for word, tag in tags.items()}, **fields
        ),
        TOKENIZER,
        "cpu",
    )


@pytest.mark.parametrize(
    "scheme",
    [["B-PER", "I-PER", "B-LOC", "I-LOC", "B-LOC", "I-LOC"], ["I-PER", "I-PER", "I-LOC", "I-LOC", "I-LOC", "I-LOC"]],
)
def test_entities_are_found_where_they_stand(scheme):
    found, words, nothing = tagger(scheme).predict(
        ["John Smith lives in New York, far from Hà Nội.", ["He", "likes", "John", "Smith", "New", "York"], ""]
    )
    assert [(one.text, one.type, one.start, one.end) for one in found] == [
        ("John Smith", "PER", 0, 2),
        ("New York", "LOC", 4, 6),
        ("Hà Nội", "LOC", 9, 11),
    ]
    assert all(one.score == pytest.approx(0.9995, abs=1e-3) for one in found)
    assert [(one.type, one.start, one.end) for one in words] == [("PER", 2, 4), ("LOC", 4, 6)]
    assert nothing == []


def test_other_tags_than_those_of_entities_are_told_word_by_word():
    tags = ["NN", "VB"]
    logits = {word: [0.0, 9.0] if word in ("lives", "likes") else [9.0, 0.0] for word in WORDS}
    (found,) = TokenClassifier(Marked("tagging", tags, logits), TOKENIZER, "cpu").predict(["John likes York"])
    assert [(one.text, one.type, one.start, one.end) for one in found] == [
        ("John", "NN", 0, 1),
        ("likes", "VB", 1, 2),
        ("York", "NN", 2, 3),
    ]


@some
@given(st.lists(st.sampled_from(WORDS), min_size=1, max_size=60), st.integers(1, 3))
def test_a_long_sentence_is_tagged_in_parts(words, batch_size):
    scheme = ["B-PER", "I-PER", "B-LOC", "I-LOC", "B-LOC", "I-LOC"]
    (whole,) = tagger(scheme, max_length=512).predict([words])
    (parts,) = tagger(scheme, max_length=12).predict([words], batch_size=batch_size)
    assert parts == whole


def test_punctuation_stands_by_itself_but_not_inside_of_words():
    found = split_words("Mr. O'Neil's U.S. price: 3,000.50 (1996-08-22), it's Jean-Luc!")
    assert " ".join(found) == "Mr . O'Neil's U.S . price : 3,000.50 ( 1996-08-22 ) , it's Jean-Luc !"


def test_marks_that_combine_and_joiners_belong_to_their_word():
    words = ["Nguy\u1ec5n", "\u0939\u093f\u0928\u094d\u0926\u0940", "\u05e9\u05b8\u05c1\u05dc\u05d5\u05b9\u05dd",
             "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645", "\u0e20\u0e32\u0e29\u0e32\u0e44\u0e17\u0e22",
             "\U0001f469\U0001f3fd\u200d\U0001f4bb", "!"]  # fmt: skip
    for form in ("NFC", "NFD"):
        assert split_words(unicodedata.normalize(form, " ".join(words) + "\u200b")) == [
            unicodedata.normalize("NFC", word) for word in words
        ]
    (nfc, nfd) = tagger(["B-PER", "I-PER", "B-LOC", "I-LOC", "B-LOC", "I-LOC"]).predict(
        [unicodedata.normalize(form, "H\u00e0 N\u1ed9i") for form in ("NFC", "NFD")]
    )
    assert nfc == nfd


def test_entities_of_no_kind():
    (found,) = tagger(["B", "I", "B", "I", "B", "I"], labels=["O", "B", "I"]).predict(["John Smith lives in New York"])
    assert [(one.text, one.type) for one in found] == [("John Smith", "_"), ("New York", "_")]


CONTEXT = "John lives in New York , far from Hà Nội . He likes it there . " * 3


def answerer(**words):
    logits = {word: [0.0, 0.0] for word in WORDS} | words
    return QuestionAnswerer(Marked("spans", None, logits), TOKENIZER, "cpu")


def test_the_best_span_of_any_window_answers():
    predictor = answerer(New=[5.0, 0.0], York=[0.0, 5.0])
    (answers,) = predictor.predict([("Where does he live ?", CONTEXT)], top=3, stride=4)
    assert [answer.text for answer in answers] == ["New York"] * 3
    assert [CONTEXT[answer.start : answer.end] for answer in answers] == ["New York"] * 3
    assert len({answer.start for answer in answers}) == 3  # once each, though overlapping windows found them again
    assert answers[0].score == pytest.approx(answers[2].score)


def test_an_answer_is_no_longer_than_was_allowed_and_no_question():
    predictor = answerer(John=[5.0, 0.0], live=[9.0, 9.0], Nội=[0.0, 5.0])
    question = ("Where does he live ?", "John lives in New York , far from Hà Nội")
    ((best,),) = predictor.predict([question])
    assert best.text == question[1]
    ((short,),) = predictor.predict([question], longest=3)
    assert short.text in ("John", "John lives", "John lives in", "far from Hà Nội", "from Hà Nội", "Hà Nội", "Nội")


def test_there_may_be_no_answer():
    questions = [("Where ?", "New York"), ("who ?", "in there")]
    predictor = answerer(New=[5.0, 0.0], York=[0.0, 5.0])
    with torch.no_grad():
        predictor.model.table[TOKENIZER.bos_id] = 2.0
    first, second = predictor.predict(questions, top=2, may_have_none=True)
    assert first[0].text == "New York"
    assert (second[0].text, second[0].start, second[0].end) == ("", 0, 0)
    assert all(answer.text for (answer,) in predictor.predict(questions))
    assert predictor.predict([]) == []


@some
@given(st.integers(0, 1000), st.integers(1, 6))
def test_scores_of_spans_are_those_written_down(seed, longest):
    random = np.random.default_rng(seed)
    windows, logits_of_windows = [], []
    for start in (0, 4):
        offsets = np.full((9, 2), -1, dtype=np.int32)
        offsets[2:8] = [(i, i + 1) for i in range(start, start + 6)]
        windows.append(Passage({}, offsets))
        logits_of_windows.append(torch.tensor(random.normal(size=(12, 2))))
    expected = {}
    for passage, logits in zip(windows, logits_of_windows, strict=True):
        for i in range(2, 8):
            for j in range(i, min(i + longest, 8)):
                span = int(passage.offsets[i, 0]), int(passage.offsets[j, 1])
                expected[span] = max(expected.get(span, -np.inf), (logits[i, 0] + logits[j, 1]).item())
    found = score_spans(windows, logits_of_windows, longest)
    best = sorted(expected, key=lambda span: -expected[span])[:10]
    assert {span: found[span] for span in best} == {span: expected[span] for span in best}
    assert all(score <= expected[span] for span, score in found.items())  # less, where only one window ranks it high


@pytest.mark.parametrize(
    ("head", "kind", "asked"),
    [
        ("pretraining", FillMask, "New [MASK]"),
        ("classification", TextClassifier, "New York"),
        ("tagging", TokenClassifier, "New York"),
        ("spans", QuestionAnswerer, [("Where ?", "New York")]),
    ],
)
def test_a_saved_model_is_opened_as_what_it_is(head, kind, asked, tmp_path):
    model = bert(head)
    model.save_pretrained(tmp_path)
    TOKENIZER.save(tmp_path)
    predictor = load(tmp_path, "cpu")
    assert type(predictor) is kind
    (answer,), (expected,) = predictor.predict(asked), kind(model, TOKENIZER, "cpu").predict(asked)
    assert len(answer) == len(expected) > 0
    for precision in PRECISIONS:
        predictor = load(tmp_path, "cpu", precision)
        assert packed_precisions(predictor.model) == {predictor.precision} == {precision}
        (answer,) = predictor.predict(asked)
        assert len(answer) == len(expected)
    other = TokenClassifier if kind is FillMask else FillMask
    with pytest.raises(GlocalError, match=f"a BERT, whose head is for {head}, was given to a {other.__name__}"):
        other(model, TOKENIZER)


@pytest.mark.parametrize("labels", [None, [], ["O"]])
def test_a_model_that_names_too_few_classes_is_refused_by_itself(labels):
    model = bert("tagging")
    model.labels = labels
    with pytest.raises(GlocalError, match=f"the model names {len(labels or [])} classes .* expected 2 or more"):
        trained_labels(model, least=2)


@given(st.lists(st.integers(0, 3)))
def test_a_list_is_cut_as_tensors_are(sizes):
    items = list(range(sum(sizes)))
    assert split_list(items, sizes) == [part.tolist() for part in torch.tensor(items, dtype=torch.long).split(sizes)]
