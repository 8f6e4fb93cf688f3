"""Questions whose answer is a span of their context.

Rajpurkar et al. 2016, *SQuAD: 100,000+ Questions for Machine Comprehension of Text*
https://arxiv.org/abs/1606.05250
Rajpurkar et al. 2018, *Know What You Don't Know* (version 2.0: some have no answer)
https://arxiv.org/abs/1806.03822
"""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from glocal.data.files import compose, kind_of, listed, read_json, read_records
from glocal.data.labels import is_visible
from glocal.data.splits import Splits
from glocal.data.text.config import QuestionsConfig
from glocal.data.text.encoding import Passage, Row, encode_questions
from glocal.data.text.labelled.texts import Examples, Texts, encode_all, read_source, settle_splits
from glocal.data.text.tokenizer import Tokenizer
from glocal.errors import GlocalError


class Question(NamedTuple):
    """A question about a context."""

    id: str
    question: str
    context: str
    answers: tuple[str, ...]
    """Each is right; none where the context does not answer it."""
    span: tuple[int, int] | None
    """The first character of an answer in the context, and the one after its last."""


def open_questions(
    config: QuestionsConfig, folder: Path | None, tokenizer: Tokenizer, testing: bool = False
) -> "Questions":
    """Open the questions that `config` names, with the splits.json of `folder`, written where missing.

    `testing` opens data to test a trained model on: its test split, or all where it names none.

    Raises GlocalError where the data or the config is unusable, or the data is not that of `folder`.
    """
    mismatched: list[str] = []
    examples = read_source(config.source, ["json"], partial(_read, mismatched), testing=testing)
    return Questions(config, examples, settle_splits(examples, config, folder), tokenizer, mismatched)


class Questions(Texts[tuple[Question, ...]]):
    """Questions that are ready to learn from; an example is all of those about one context, which stay together.

    Batches hold `input_ids`, `attention_mask`, `token_type_ids` (B, N), and where the answer begins and ends:
    `start_positions` and `end_positions` (B,), and `labels` (B, 2), both of them. They are the first and the last token
    of the answer; in a window that does not hold all of it, the first token of the row, BERT's [CLS] (Devlin et al.
    2018, section 4.3). `batch_size` counts windows.
    """

    def __init__(
        self,
        config: QuestionsConfig,
        examples: Examples[tuple[Question, ...]],
        splits: Splits,
        tokenizer: Tokenizer,
        mismatched: list[str],
    ) -> None:
        self.mismatched = mismatched
        """Ids of the questions that are left out, because none of their answers stands where it is said to."""
        self.windows: list[Passage] = []
        """What each row covers of its context."""
        self.asking: list[Question] = []
        """The question that each row is of."""

        def encode(asked: Sequence[Question]) -> list[list[Passage]]:
            questions, contexts = [each.question for each in asked], [each.context for each in asked]
            return encode_questions(tokenizer, questions, contexts, config.max_length, config.stride)

        asked = [question for about in examples.items for question in about]
        owner_of = [owner for owner, about in enumerate(examples.items) for _ in about]
        rows: list[Row] = []
        owners: list[int] = []
        unreachable = 0
        for question, owner, windows in zip(asked, owner_of, encode_all(asked, encode), strict=True):
            spans = [locate(window.offsets, question.span) for window in windows]
            unreachable += question.span is not None and not any(spans)
            for window, span in zip(windows, spans, strict=True):
                labels = np.array(span or (0, 0))
                positions = {"start_positions": labels[0], "end_positions": labels[1], "labels": labels}
                rows.append(window.row | positions)
            self.windows += windows
            self.asking += [question] * len(windows)
            owners += [owner] * len(windows)
        report = {
            "questions": len(asked) + len(mismatched),
            "impossible": sum(not question.answers for question in asked),
            "mismatched": len(mismatched),
            "unreachable": unreachable,
            "windows": len(rows),
        }
        super().__init__(config, examples, splits, tokenizer, rows, owners, report)

    def questions(self, split: str) -> list[Question]:
        """Every question of a split, in the order of the data."""
        return [question for about in self.examples(split) for question in about]


def locate(offsets: np.ndarray, span: tuple[int, int] | None) -> tuple[int, int] | None:
    """Return the first and the last token of the characters `span`; None unless a window's `offsets` hold all of it."""
    if span is None:
        return None
    start, end = span
    shown = offsets[offsets[:, 1] > 0]
    inside = np.flatnonzero((offsets[:, 0] < end) & (offsets[:, 1] > start))
    if not len(inside) or shown[0, 0] > start or shown[-1, 1] < end:
        return None
    return int(inside[0]), int(inside[-1])


def read_asked(path: Path) -> Iterator[tuple[str, str] | str]:
    """Read questions and their contexts to be answered: a file in SQuAD's format, or a table of such columns.

    A row that lacks one of the two is "". Raises GlocalError where it is no such file.
    """
    if kind_of(path) == "json":
        yield from ((each.question, each.context) for about in _paragraphs(path) for each in about)
        return
    for record in read_records(path):
        if not {"question", "context"} <= record.keys():
            raise GlocalError(f"{path} has the columns {listed(record)}; expected question and context")
        asked, context = record["question"], record["context"]
        both = isinstance(asked, str) and isinstance(context, str) and is_visible(asked) and is_visible(context)
        yield (compose(asked), compose(context)) if both else ""


def _read(mismatched: list[str], path: Path) -> Iterator[tuple[Question, ...]]:
    """Read the questions about one context after the other, those left out whose answers stand nowhere."""
    for about in _paragraphs(path):
        mismatched += [question.id for question in about if question.answers and not question.span]
        kept = tuple(question for question in about if question.span or not question.answers)
        if kept:
            yield kept


def _paragraphs(path: Path) -> Iterator[tuple[Question, ...]]:
    content = read_json(path)
    try:
        for article in content["data"]:
            for paragraph in article["paragraphs"]:
                yield tuple(_question(paragraph["context"], fields) for fields in paragraph["qas"])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise GlocalError(
            f"{path} is not in SQuAD's format ({str(error)[:80]}); expected data, in it paragraphs, in each a context "
            "and qas, in each an id, a question and answers, in each a text and answer_start"
        ) from None


def _question(context: str, fields: dict[str, Any]) -> Question:
    """Read a question, and find an answer that stands in the context where it is said to.

    One that `is_impossible` marks, or of which no answers are given, has none.
    """
    name = str(fields["id"])
    impossible = fields.get("is_impossible")
    if impossible not in (None, False, True):
        raise ValueError(f"is_impossible of question {name[:40]!r} is neither true nor false")
    answers = [] if impossible else fields["answers"]
    starts, texts = [answer["answer_start"] for answer in answers], [answer["text"] for answer in answers]
    if not all(isinstance(text, str) for text in (context, fields["question"], *texts)):
        raise TypeError(f"question {name[:40]!r} or its context or answers are no texts")
    if not all(type(start) is int for start in starts):
        raise TypeError(f"an answer_start of question {name[:40]!r} is no whole number")
    spans = (_span(context, start, text) for start, text in zip(starts, texts, strict=True))
    span = next(filter(None, spans), None)
    return Question(name, compose(fields["question"]), compose(context), tuple(map(compose, texts)), span)


def _span(context: str, start: int, text: str) -> tuple[int, int] | None:
    """Return where an answer stands in the composed context, without the spaces around it; None where others stand.

    Its place counts characters of the context as it was written.
    """
    if not 0 <= start < len(context) or not is_visible(text):
        return None
    composed, place = compose(context), len(compose(context[:start]))
    text = compose(text)
    if composed[place : place + len(text)] != text:
        return None
    place += len(text) - len(text.lstrip())
    return place, place + len(text.strip())
