"""Questions in SQuAD's format: where their answers stand in tokens, windows over long contexts, what does not match."""

import json

import numpy as np
import pytest
from glocal.data.text import Questions, open_questions
from hypothesis import given, settings
from hypothesis import strategies as st

from glocal.data.encoding import encode_questions
from glocal.data.squad import read_asked
from glocal.errors import GlocalError
from glocal.tasks.question_answering import QuestionAnsweringData, locate

CONTEXT = "Ada Lovelace (1815) wrote\nthe first program, 42 lines."


def asked(number: int, *answers: tuple[int, str], question: str = "who") -> dict:
    texts = [{"answer_start": start, "text": text} for start, text in answers]
    return {"id": f"q{number}", "question": question, "answers": texts}


def squad(*paragraphs: tuple[str, list[dict]]) -> dict:
    about = [{"context": context, "qas": qas} for context, qas in paragraphs]
    return {"version": "1.1", "data": [{"title": "some", "paragraphs": about}]}


def opened(tmp_path, tokenizer, content: dict, testing=False, **fields) -> Questions:
    path = tmp_path / "some.json"
    path.write_text(json.dumps(content))
    config = QuestionAnsweringData(str(path), **({"val_fraction": 0.0, "test_fraction": 0.0} | fields))
    return open_questions(config, None, tokenizer, testing)


def answers_of(data: Questions) -> list[str]:
    """What the labels of each row point at."""
    found = []
    for row, window, question in zip(data.rows, data.windows, data.asking, strict=True):
        start, end = row["start_positions"], row["end_positions"]
        assert row["labels"].tolist() == [start, end]
        found.append(question.context[window.offsets[start][0] : window.offsets[end][1]] if start else "")
    return found


def test_answers_are_found_by_their_characters(tmp_path, speller):
    qas = [asked(0, (0, "Ada Lovelace")), asked(1, (14, "1815"), (13, "(1815)")), asked(2, (44, " 42 lines"))]
    data = opened(tmp_path, speller, squad((CONTEXT, qas)))
    assert answers_of(data) == ["Ada Lovelace", "1815", "42 lines"]
    assert [question.answers for question in data.questions("train")][1] == ("1815", "(1815)")
    batch = data.batch(np.array([0, 1]))
    assert batch["labels"].tolist() == [
        list(pair) for pair in zip(batch["start_positions"], batch["end_positions"], strict=True)
    ]
    tokens = speller.tokens(batch["input_ids"][0].tolist())
    assert tokens[:6] == ["[CLS]", "w", "##h", "##o", "[SEP]", "a"]
    assert batch["token_type_ids"][0, :6].tolist() == [0, 0, 0, 0, 0, 1]
    assert data.report == {"questions": 3, "impossible": 0, "mismatched": 0, "unreachable": 0, "windows": 3}


def test_impossible_questions_point_at_the_first_token(tmp_path, speller):
    marked = [asked(2, (0, "Ada")) | {"is_impossible": True}, asked(3, (0, "")) | {"is_impossible": True}]
    data = opened(tmp_path, speller, squad((CONTEXT, [asked(0), asked(1, (0, "Ada")), *marked])))
    assert [row["labels"].tolist() == [0, 0] for row in data.rows] == [True, False, True, True]
    assert [question.answers for question in data.asking] == [(), ("Ada",), (), ()]
    assert (data.report["impossible"], data.report["mismatched"]) == (3, 0)


def test_answers_and_contexts_are_composed(tmp_path, speller):
    context = "e\u0301 e\u0301 is a letter"
    qas = [asked(0, (3, "e\u0301")), asked(1, (3, "\u00e9")), asked(2, (6, "is"))]
    data = opened(tmp_path, speller, squad((context, qas)))
    assert [question.span for question in data.asking] == [(2, 3), (2, 3), (4, 6)]
    assert answers_of(data) == ["\u00e9", "\u00e9", "is"]


def test_questions_to_be_answered(tmp_path):
    (tmp_path / "some.json").write_text(json.dumps(squad((CONTEXT, [asked(0), asked(1, (9, "no"))]))))
    assert list(read_asked(tmp_path / "some.json")) == [("who", CONTEXT)] * 2
    (tmp_path / "some.tsv").write_text("context\tquestion\na b\twho?\n\nc\t \n")
    assert list(read_asked(tmp_path / "some.tsv")) == [("who?", "a b"), ""]


def test_answers_that_stand_elsewhere_are_counted_and_named(tmp_path, speller):
    wrong = [(1, "Ada"), (-3, "Ada"), (999, "Ada"), (0, " "), (0, "")]
    qas = [asked(number, answer) for number, answer in enumerate(wrong)]
    with pytest.warns(UserWarning, match=r"some.json: 5 mismatched left out"):
        data = opened(tmp_path, speller, squad((CONTEXT, [*qas, asked(9, (1, "Ada"), (4, "Lovelace"))])))
    assert data.mismatched == ["q0", "q1", "q2", "q3", "q4"]
    assert data.report["mismatched"] == 5
    assert answers_of(data) == ["Lovelace"]  # of several answers, the first that matches


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
    assert [window.offsets[5][0] // 2 for window in data.windows[:3]] == [0, 4, 8]
    assert all((window.offsets >= 0).all(axis=1).sum() <= room for window in data.windows)
    assert data.report == {"questions": 2, "impossible": 0, "mismatched": 0, "unreachable": 1, "windows": 6}


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
    contexts = {split: {question.context for question in data.questions(split)} for split in ("train", "val", "test")}
    assert {split: len(each) for split, each in contexts.items()} == {"train": 5, "val": 3, "test": 2}
    assert len(set().union(*contexts.values())) == 10
    rows = [row for batches in [data.eval_batches("val", 4)] for chosen in batches.chosen for row in chosen]
    assert {data.asking[row].id for row in rows} == {question.id for question in data.questions("val")}
    assert len(opened(tmp_path, speller, content, testing=True).questions("test")) == 30


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("{", r"some.json is no JSON: "),
        ("[" * 100_000, r"some.json is no JSON that can be read: it is nested too deeply"),
        (json.dumps(squad((CONTEXT, [asked(0, (0, 5))]))), r"question 'q0' or its context or answers are no texts"),
        (json.dumps(squad((CONTEXT, [asked(0, ("0", "Ada"))]))), r"an answer_start of question 'q0' is no whole"),
        (
            json.dumps(squad((CONTEXT, [asked(0) | {"is_impossible": "no"}]))),
            r"is_impossible of question 'q0' is neither",
        ),
        ("[]", r"some.json is not in SQuAD's format"),
        ('{"data": [{"paragraphs": [{"context": "a"}]}]}', r"not in SQuAD's format \('qas'\); expected data, in it"),
        ('{"data": []}', r"some.json holds no train examples; expected a file of .json"),
    ],
)
def test_files_that_are_none(tmp_path, speller, text, line):
    path = tmp_path / "some.json"
    path.write_text(text)
    with pytest.raises(GlocalError, match=line):
        open_questions(QuestionAnsweringData(str(path)), None, speller)


def test_a_stride_that_means_nothing():
    with pytest.raises(GlocalError, match=r"data.stride 0; expected a token or more"):
        QuestionAnsweringData("some.json", stride=0)
