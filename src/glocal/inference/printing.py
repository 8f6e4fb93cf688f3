"""What each predictor is asked on a line of text, and how its answers are printed: for the eye, and for JSON."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, NamedTuple

from glocal.data.files import TABLES
from glocal.data.text.labelled.completions import read_prompts
from glocal.data.text.labelled.questions import read_asked
from glocal.data.text.labelled.sentences import read_texts
from glocal.data.text.labelled.tagged import COLUMNS, read_words
from glocal.errors import GlocalError, printable
from glocal.inference.answer import Answer
from glocal.inference.answerer import Answerer
from glocal.inference.fill_mask import FillMask
from glocal.inference.predictor import Predictor
from glocal.inference.tagger import Entity, Tagger
from glocal.inference.text_classifier import TextClassifier
from glocal.inference.text_generator import TextGenerator
from glocal.inference.translator import Translator
from glocal.inference.writer import Written


class Form(NamedTuple):
    """How one kind of predictor is asked and answers."""

    line: Callable[[str, Any], str]
    """What is printed of an input and its answer."""
    key: str
    """What the answer is called in JSON."""
    record: Callable[[Any], list[Any]]
    """The answer in JSON."""
    option: Literal["top", "decoding"] | None = "top"
    """What else `predict` is told."""
    read: Callable[[str], Any] = str
    """What an input's line stands for."""
    rows: Callable[[Path], Iterator[Any]] = read_prompts
    """What a table holds, an input a row, as training reads it; a blank row is an empty one."""
    tables: Sequence[str] = TABLES
    """What the files are named that are read so; any other has an input a line."""


def shares(answer: Answer) -> str:
    """Labels or words and their probabilities, for the eye."""
    return "  ".join(f"{printable(name)} {probability:.1%}" for name, probability in answer)


def entities(answer: Sequence[Entity]) -> str:
    """Entities, their types and their probabilities, for the eye."""
    return "  ".join(f"{printable(each.text)} {printable(each.type)} {each.score:.1%}" for each in answer)


def records(answer: Answer, what: str) -> list[dict[str, Any]]:
    """The same for JSON; `what` says what they are."""
    return [{what: name, "probability": round(probability, 6)} for name, probability in answer]


def texts(answer: Written) -> list[dict[str, Any]]:
    """All that were asked for."""
    return [{"text": text, "score": score} for text, score in answer.nbest]


def pair(line: str) -> tuple[str, str]:
    """Two texts with a tab between them. Raises GlocalError where there is none."""
    first, tab, second = line.partition("\t")
    if not tab:
        raise GlocalError(f"{line[:40]!r} asks about no text; give a question, a tab and the text that answers it")
    return first, second


LABELS = Form(
    lambda given, answer: f"{printable(given)}  {shares(answer)}", "labels", lambda answer: records(answer, "label")
)

FORMS: dict[type, Form] = {
    Predictor: LABELS,
    TextClassifier: LABELS._replace(read=lambda line: pair(line) if "\t" in line else line, rows=read_texts),
    FillMask: Form(
        lambda _, answers: "\t".join(map(shares, answers)),
        "masks",
        lambda answers: [records(answer, "word") for answer in answers],
    ),
    Tagger: Form(
        lambda given, answer: entities(answer) or f"{printable(given)}  no entity",
        "entities",
        lambda answer: list(map(asdict, answer)),
        option=None,
        rows=read_words,
        tables=(*COLUMNS, *TABLES),
    ),
    Answerer: Form(
        lambda _, answer: shares([(span.text or "no answer", span.score) for span in answer]) or "no answer",
        "answers",
        lambda answer: list(map(asdict, answer)),
        read=pair,
        rows=read_asked,
        tables=(*TABLES, "json"),
    ),
    Translator: Form(
        lambda _, answer: "\t".join(printable(text) for text, _ in answer.nbest),
        "translations",
        texts,
        option="decoding",
    ),
    TextGenerator: Form(
        lambda given, answer: "\n".join(given + text for text, _ in answer.nbest), "texts", texts, option="decoding"
    ),
}
"""By the predictor's class."""
