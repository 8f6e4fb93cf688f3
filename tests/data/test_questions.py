"""Questions in SQuAD's format: where their answers stand in tokens, windows over long contexts, what does not match."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glocal.data import TokenDataset
from glocal.data.encoding import Passage, encode_questions
from glocal.data.squad import Question, read_questions
from glocal.errors import GlocalError
from glocal.models import Model
from glocal.tasks.question_answering import QuestionAnsweringDataConfig, locate, open_data, usable_questions

CONTEXT = "Ada Lovelace (1815) wrote\nthe first program, 42 lines."


def asked(number: int, *answers: tuple[int, str], question: str = "who") -> dict:
    texts = [{"answer_start": start, "text": text} for start, text in answers]
    return {"id": f"q{number}", "question": question, "answers": texts}


def squad(*paragraphs: tuple[str, list[dict]]) -> dict:
    about = [{"context": context, "qas": qas} for context, qas in paragraphs]
    return {"version": "1.1", "data": [{"title": "some", "paragraphs": about}]}


def opened(tmp_path, tokenizer, content: dict, testing=False, **fields) -> TokenDataset:
    path = tmp_path / "some.json"
    path.write_text(json.dumps(content))
    config = QuestionAnsweringDataConfig(str(path), **({"val_fraction": 0.0, "test_fraction": 0.0} | fields))
    return open_data(config, None, tokenizer, Model(None) if testing else None)


def questions(data: TokenDataset, split: str) -> list[Question]:
    return usable_questions(data.examples(split))


def windows_of(data: TokenDataset) -> list[tuple[Question, Passage]]:
    """The question and the window of each row."""
    asked = usable_questions(data.source.read())
    texts, contexts = [each.question for each in asked], [each.context for each in asked]
    encoded = encode_questions(data.tokenizer, texts, contexts, data.config.max_length, data.config.stride)
    return [(each, window) for each, windows in zip(asked, encoded, strict=True) for window in windows]


def answers_of(data: TokenDataset) -> list[str]:
    """What the labels of each row point at."""
    found = []
    for number, (question, window) in enumerate(windows_of(data)):
        row = data.row(number)
        assert row["input_ids"].tolist() == window.row["input_ids"].tolist()
        start, end = row["start_positions"], row["end_positions"]
        assert row["labels"].tolist() == [start, end]
        found.append(question.context[window.offsets[start][0] : window.offsets[end][1]] if start else "")
    return found


def test_answers_are_found_by_their_characters(tmp_path, speller):
    qas = [asked(0, (0, "Ada Lovelace")), asked(1, (14, "1815"), (13, "(1815)")), asked(2, (44, " 42 lines"))]
    data = opened(tmp_path, speller, squad((CONTEXT, qas)))
    assert answers_of(data) == ["Ada Lovelace", "1815", "42 lines"]
    assert [question.answers for question in questions(data, "train")][1] == ("1815", "(1815)")
    batch = data.batch(np.array([0, 1]))
    assert batch["labels"].tolist() == [
        list(pair) for pair in zip(batch["start_positions"], batch["end_positions"], strict=True)
    ]
    tokens = speller.tokens(batch["input_ids"][0].tolist())
    assert tokens[:6] == ["[CLS]", "w", "##h", "##o", "[SEP]", "a"]
    assert batch["token_type_ids"][0, :6].tolist() == [0, 0, 0, 0, 0, 1]
    assert data.report == {
        "contexts": 1, "mismatched": 0, "empty": 0, "questions": 3, "mismatched_questions": 0, "impossible": 0,
        "unreachable": 0, "windows": 3,
    }  # fmt: skip


def test_impossible_questions_point_at_the_first_token(tmp_path, speller):
    marked = [asked(2, (0, "Ada")) | {"is_impossible": True}, asked(3, (0, "")) | {"is_impossible": True}]
    data = opened(tmp_path, speller, squad((CONTEXT, [asked(0), asked(1, (0, "Ada")), *marked])))
    assert [data.row(number)["labels"].tolist() == [0, 0] for number in range(len(data))] == [True, False, True, True]
    assert [question.answers for question in questions(data, "train")] == [(), ("Ada",), (), ()]
    assert (data.report["impossible"], data.report["mismatched_questions"]) == (3, 0)


def test_answers_and_contexts_are_composed(tmp_path, speller):
    context = "e\u0301 e\u0301 is a letter"
    qas = [asked(0, (3, "e\u0301")), asked(1, (3, "\u00e9")), asked(2, (6, "is"))]
    data = opened(tmp_path, speller, squad((context, qas)))
    assert [question.span for question in questions(data, "train")] == [(2, 3), (2, 3), (4, 6)]
    assert answers_of(data) == ["\u00e9", "\u00e9", "is"]


def test_questions_to_be_answered(tmp_path):
    (tmp_path / "some.json").write_text(json.dumps(squad((CONTEXT, [asked(0), asked(1, (9, "no"))]))))
    assert list(read_questions(tmp_path / "some.json")) == [("who", CONTEXT)] * 2
    (tmp_path / "some.tsv").write_text("context\tquestion\na b\twho?\n\nc\t \n")
    assert list(read_questions(tmp_path / "some.tsv")) == [("who?", "a b"), ""]


def test_answers_that_stand_elsewhere_are_counted_and_named(tmp_path, speller):
    wrong = [(1, "Ada"), (-3, "Ada"), (999, "Ada"), (0, " "), (0, "")]
    qas = [asked(number, answer) for number, answer in enumerate(wrong)]
    with pytest.warns(UserWarning, match=r"some.json: 5 mismatched questions left out"):
        data = opened(tmp_path, speller, squad((CONTEXT, [*qas, asked(9, (1, "Ada"), (4, "Lovelace"))])))
    (about,) = data.examples("train")
    assert [question.id for question in about if question.mismatched] == ["q0", "q1", "q2", "q3", "q4"]
    assert (data.report["questions"], data.report["mismatched_questions"]) == (6, 5)
    assert answers_of(data) == ["Lovelace"]  # of several answers, the first that matches


def test_a_context_without_a_usable_question_is_left_out(tmp_path, speller):
    content = squad((CONTEXT, [asked(0, (0, "Ada"))]), ("nothing", [asked(1, (0, "Ada"))]), ("unasked", []))
    content["data"] += squad((" \u200b\n", [asked(2)]))["data"]  # a context that nobody can see
    with pytest.warns(UserWarning, match=r"some.json: 2 empty, 1 mismatched left out"):
        data = opened(tmp_path, speller, content)
    assert [question.id for question in questions(data, "train")] == ["q0"]
    assert [data.report[name] for name in ("contexts", "mismatched", "empty", "questions")] == [4, 1, 2, 1]


@settings(deadline=None)
@given(st.integers(0, 60), st.integers(1, 30), st.integers(16, 64), st.integers(1, 80))
def test_windows_cover_every_token(speller, length, question, max_length, stride):
    context = " ".join("abcdefghijklmnopqrstuvwxyz0123456789"[number % 36] for number in range(length))
    ((*windows,),) = encode_questions(speller, ["q" * question], [context], max_length, stride)
    covered = [[start for start, _ in window.offsets.tolist() if start >= 0] for window in windows]
    assert sorted({start for each in covered for start in each}) == list(range(0, 2 * length, 2))
    for window, starts in zip(windows, covered, strict=True):
        tokens = speller.tokens(window.row["input_ids"].tolist())
        kept = min(question, max_length // 2)
        assert tokens[: kept + 2] == ["[CLS]", "q", *["##q"] * (kept - 1), "[SEP]"]
        assert tokens[kept + 2 :] == [*(context[start] for start in starts), "[SEP]"]
        assert len(tokens) <= max_length
    steps = np.diff([starts[0] // 2 for starts in covered]) if len(covered) > 1 else []
    assert all(step == min(stride, max_length - kept - 3) for step in steps)
    assert len(windows) == 1 or len(covered[0]) < length


def test_an_answer_counts_where_a_window_holds_it_whole(tmp_path, speller):
    context = " ".join("abcdefghijklmnop")
    qas = [asked(0, (14, "h i")), asked(1, (0, "a b c d e f g h i j k l"))]
    data = opened(tmp_path, speller, squad((context, qas)), max_length=16, stride=4)
    room = 16 - 6
    assert answers_of(data) == ["h i", "h i", "", "", "", ""]
    windows = [window for _, window in windows_of(data)]
    assert [window.offsets[5][0] // 2 for window in windows[:3]] == [0, 4, 8]
    assert all((window.offsets >= 0).all(axis=1).sum() <= room for window in windows)
    assert [data.report[name] for name in ("questions", "mismatched_questions", "unreachable", "windows")] == [
        2,
        0,
        1,
        6,
    ]


def test_locate_needs_both_ends():
    offsets = np.array([(-1, -1), (4, 6), (7, 9), (-1, -1)])
    assert locate(offsets, (4, 9)) == (1, 2)
    assert locate(offsets, (5, 6)) == (1, 1)
    assert locate(offsets, (2, 6)) is None
    assert locate(offsets, (7, 11)) is None
    assert locate(offsets, None) is None
    assert locate(offsets[:1], (0, 1)) is None


def test_gpt_reads_questions_too(tmp_path, byter):
    data = opened(tmp_path, byter, squad((CONTEXT, [asked(0, (4, "Lovelace"))])))
    assert [answer.strip() for answer in answers_of(data)] == ["Lovelace"]


def test_questions_about_one_context_stay_together(tmp_path, speller):
    content = squad(
        *((f"{number} apples", [asked(3 * number + k, (0, str(number))) for k in range(3)]) for number in range(10))
    )
    data = opened(tmp_path, speller, content, val_fraction=0.3, test_fraction=0.2)
    contexts = {split: {question.context for question in questions(data, split)} for split in ("train", "val", "test")}
    assert {split: len(each) for split, each in contexts.items()} == {"train": 5, "val": 3, "test": 2}
    assert len(set().union(*contexts.values())) == 10
    rows = [row for chosen in data.eval_batches("val", 4).chosen for row in chosen]
    asking = [question for question, _ in windows_of(data)]
    assert {asking[row].id for row in rows} == {question.id for question in questions(data, "val")}
    assert len(questions(opened(tmp_path, speller, content, testing=True), "test")) == 30


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("{", r"some.json is not JSON: "),
        ("[" * 100_000, r"some.json is not readable JSON: it is nested too deeply"),
        (json.dumps(squad((CONTEXT, [asked(0, (0, 5))]))), r"question 'q0' or its context or answers are not texts"),
        (json.dumps(squad((CONTEXT, [asked(0, ("0", "Ada"))]))), r"an answer_start of question 'q0' is not a whole"),
        (
            json.dumps(squad((CONTEXT, [asked(0) | {"is_impossible": "no"}]))),
            r"is_impossible of question 'q0' is neither",
        ),
        ("[]", r"some.json is not in SQuAD's format"),
        ('{"data": [{"paragraphs": [{"context": "a"}]}]}', r"not in SQuAD's format \('qas'\); expected data, in it"),
        ('{"data": []}', r"some.json holds no train contexts; expected a file of .json"),
    ],
)
def test_files_that_are_none(tmp_path, speller, text, line):
    path = tmp_path / "some.json"
    path.write_text(text)
    with pytest.raises(GlocalError, match=line):
        open_data(QuestionAnsweringDataConfig(str(path)), None, speller)


def test_a_stride_that_means_nothing():
    with pytest.raises(GlocalError, match=r"data.stride 0; expected a token or more"):
        QuestionAnsweringDataConfig("some.json", stride=0)
