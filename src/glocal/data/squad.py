"""Files in SQuAD's format, of version 1.1 or 2.0: contexts, questions about them, and the places of the answers.

Rajpurkar et al. 2016, https://arxiv.org/abs/1606.05250, and 2018, https://arxiv.org/abs/1806.03822
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from glocal.data.files import compose, kind_of, listed, read_json, read_records
from glocal.data.labels import is_visible
from glocal.data.text_sources import LeftOut
from glocal.errors import GlocalError
from glocal.files import JSONObject


class Question(NamedTuple):
    """A question about a context."""

    id: str
    question: str
    context: str
    answers: tuple[str, ...]
    """Any of them is correct; none where the context does not answer the question."""
    span: tuple[int, int] | None
    """The first character of an answer in the context, and the one after its last."""

    @property
    def mismatched(self) -> bool:
        """Whether none of the answers is where the file says."""
        return bool(self.answers) and self.span is None


def read_squad(path: Path) -> Iterator[tuple[Question, ...] | LeftOut]:
    """Yield the questions about each context; a context without a usable question is left out."""
    for about in _paragraphs(path):
        visible = any(is_visible(question.context) for question in about)
        usable = visible and any(not question.mismatched for question in about)
        yield about if usable else LeftOut("mismatched" if visible else "empty")


def read_questions(path: Path) -> Iterator[tuple[str, str] | str]:
    """Yield questions and contexts to predict answers for: of a file in SQuAD's format, or of a table.

    A row that lacks one of the two is "". Raises GlocalError if it is no such file.
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


def _question(context: str, fields: JSONObject) -> Question:
    """Return a question, with the place of an answer that is in the context where the file says.

    A question that `is_impossible` marks, or without answers, has none.
    """
    name = str(fields["id"])
    impossible = fields.get("is_impossible")
    if impossible not in (None, False, True):
        raise ValueError(f"is_impossible of question {name[:40]!r} is neither true nor false")
    answers = [] if impossible else fields["answers"]
    starts, texts = [answer["answer_start"] for answer in answers], [answer["text"] for answer in answers]
    if not all(isinstance(text, str) for text in (context, fields["question"], *texts)):
        raise TypeError(f"question {name[:40]!r} or its context or answers are not texts")
    if not all(type(start) is int for start in starts):
        raise TypeError(f"an answer_start of question {name[:40]!r} is not a whole number")
    spans = (_span(context, start, text) for start, text in zip(starts, texts, strict=True))
    span = next(filter(None, spans), None)
    return Question(name, compose(fields["question"]), compose(context), tuple(map(compose, texts)), span)


def _span(context: str, start: int, text: str) -> tuple[int, int] | None:
    """Return the place of an answer in the composed context, without spaces around it; None if it is not there.

    `start` counts characters of the context as it is written in the file.
    """
    if not 0 <= start < len(context) or not is_visible(text):
        return None
    composed, place = compose(context), len(compose(context[:start]))
    text = compose(text)
    if composed[place : place + len(text)] != text:
        return None
    place += len(text) - len(text.lstrip())
    return place, place + len(text.strip())
