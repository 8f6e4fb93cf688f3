"""Scores of answers, as the two scripts of SQuAD compute them, and the threshold from which a question has no answer.

    Rajpurkar et al. 2016, https://arxiv.org/abs/1606.05250 (version 1.1, evaluate-v1.1.py)
    Rajpurkar et al. 2018, https://arxiv.org/abs/1806.03822 (version 2.0, evaluate-v2.0.py)
    Devlin et al. 2018, *BERT*, section 4.3 (the threshold)

A question's no-answer score is the score of "no answer" minus that of its best span. The question has no answer where
the no-answer score is above a threshold; in BERT's section 4.3 it is above -τ.
"""

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from torchmetrics.functional.text import squad

from glocal.errors import GlocalError

ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)

# ---------------------------------------------------------------------------------------------------------- version 1.1


def squad_scores(answers: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Score answers as SQuAD's script does: `exact_match` and `f1` of words, from 0 to 100.

    Case, punctuation, English articles and spaces are ignored; of a question's references the nearest counts. Without
    references, the empty answer is right (Rajpurkar et al. 2018). Raises GlocalError if the two do not pair up.
    """
    check_pairs(answers, references)
    predicted = [{"id": str(number), "prediction_text": answer} for number, answer in enumerate(answers)]
    gold: Any = [{"id": str(number), "answers": {"text": texts or [""]}} for number, texts in enumerate(references)]
    return {name: score.item() for name, score in squad(predicted, gold).items()}


def check_pairs(answers: Sequence[object], references: Sequence[object]) -> None:
    """Raise GlocalError unless there is one answer per question, and at least one."""
    if len(answers) != len(references) or not references:
        raise GlocalError(
            f"{len(answers)} answers against {len(references)} questions; give one answer per question, and at least "
            "one"
        )


# ---------------------------------------------------------------------------------------------------------- version 2.0


class BestSpan(NamedTuple):
    """The best span of a question, whether or not it is its answer."""

    text: str
    """The span; "" where the context has no tokens."""
    no_answer_score: float
    """The score of "no answer" minus the span's."""


def squad2_scores(
    spans: Sequence[BestSpan], references: Sequence[Sequence[str]], threshold: float
) -> dict[str, int | float]:
    """Score answers as evaluate-v2.0.py does: percentages under its names, and `total`, `HasAns_total`, `NoAns_total`.

    It is given the best spans as predictions, the no-answer scores (`--na-prob-file`) and the threshold
    (`--na-prob-thresh`). `exact` and `f1` are the scores at that threshold; with `HasAns_` or `NoAns_` before the name,
    the scores of the questions with or without references, where there are some. `best_exact` and `best_f1` are the
    highest scores at any threshold; `best_exact_thresh` and `best_f1_thresh` are these thresholds, or 0 where no answer
    at all is best. Raises GlocalError if spans and references do not pair up.
    """
    check_pairs(spans, references)
    answerable = np.array([bool(texts) for texts in references])
    no_answer = np.array([span.no_answer_score for span in spans]) > threshold
    measured: dict[str, int | float] = {}
    best: dict[str, int | float] = {}
    raw = {"exact": best_of(exact, spans, references), "f1": best_of(f1, spans, references)}
    for prefix, chosen in {"": np.ones_like(answerable), "HasAns_": answerable, "NoAns_": ~answerable}.items():
        if chosen.any():
            for name, scores in raw.items():
                measured[prefix + name] = 100 * float(np.where(no_answer, ~answerable, scores)[chosen].mean())
            measured[f"{prefix}total"] = int(chosen.sum())
    for name, scores in raw.items():
        best[f"best_{name}"], best[f"best_{name}_thresh"] = best_threshold(spans, scores, answerable)
    return measured | best


def choose_threshold(spans: Sequence[BestSpan], references: Sequence[Sequence[str]]) -> float:
    """Return the lowest threshold whose answers have the highest F1: a question's no-answer score.

    Where no answer at all is best, it is just below the lowest no-answer score. Unlike `best_f1_thresh`, the threshold
    treats questions of equal no-answer scores alike, and a span of articles alone as no answer. Raises GlocalError
    where spans and references do not pair up.
    """
    check_pairs(spans, references)
    answerable = np.array([bool(texts) for texts in references])
    order, totals = totals_by_threshold(spans, best_of(f1, spans, references) - (~answerable).astype(float), answerable)
    scores = np.array([span.no_answer_score for span in spans])[order]
    thresholds = np.array([np.nextafter(scores[0], -np.inf), *scores])
    totals[:-1][thresholds[:-1] == thresholds[1:]] = -np.inf  # of equal ones the last answers them all
    totals[np.isinf(thresholds)] = -np.inf  # a context without tokens has no answer in any case
    return float(thresholds[np.flatnonzero(totals > totals.max() - 1e-9)[0]])  # sums of fractions are rounded


def best_threshold(spans: Sequence[BestSpan], scores: np.ndarray, answerable: np.ndarray) -> tuple[float, float]:
    """Return the highest mean score, in percent, and its threshold, as `find_best_thresh` of evaluate-v2.0.py."""
    answers = np.array([bool(span.text) for span in spans])
    order, totals = totals_by_threshold(spans, np.where(answerable, scores, -answers.astype(float)), answerable)
    best = int(totals.argmax())
    return 100 * float(totals[best]) / len(spans), spans[order[best - 1]].no_answer_score if best else 0.0


def totals_by_threshold(
    spans: Sequence[BestSpan], gains: np.ndarray, answerable: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the questions by their no-answer scores, and the sum of scores where none, one, two, ... are answered.

    `gains` are what each adds to the sum once it is answered.
    """
    order = np.argsort([span.no_answer_score for span in spans], kind="stable")
    return order, np.cumsum([float((~answerable).sum()), *gains[order]])


def best_of(
    score: Callable[[str, str], float], spans: Sequence[BestSpan], references: Sequence[Sequence[str]]
) -> np.ndarray:
    """Return the score of each span against the nearest reference that is not blank, or against "" without one."""
    found = [
        max(score(text, span.text) for text in [*filter(normalised, texts)] or [""])
        for span, texts in zip(spans, references, strict=True)
    ]
    return np.array(found)


def exact(reference: str, answer: str) -> float:
    """Return 1 where both are the same apart from case, punctuation, articles and spaces, else 0."""
    return float(normalised(reference) == normalised(answer))


def f1(reference: str, answer: str) -> float:
    """Return the F1 of the words of both; where one has no words, whether both have none."""
    expected, given = normalised(reference).split(), normalised(answer).split()
    if not expected or not given:
        return float(expected == given)
    common = (Counter(expected) & Counter(given)).total()
    if not common:
        return 0.0
    precision, recall = common / len(given), common / len(expected)
    return 2 * precision * recall / (precision + recall)


def normalised(text: str) -> str:
    """Return a text in lower case, without punctuation and English articles, its words with single spaces between."""
    return " ".join(ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split())
