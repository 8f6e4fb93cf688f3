"""Question answering: the span of a context that answers a question.

    Rajpurkar et al. 2016, *SQuAD: 100,000+ Questions for Machine Comprehension of Text*
    https://arxiv.org/abs/1606.05250
    Rajpurkar et al. 2018, *Know What You Don't Know* (version 2.0: some have no answer)
    https://arxiv.org/abs/1806.03822
    Devlin et al. 2018, *BERT*, sections 4.2 and 4.3

A token's two logits say how well an answer starts and ends there; an answer is scored by their sum. A window of the
context that does not hold the answer is trained towards its first token, [CLS].
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric, MetricCollection

from glocal.data.dataset import Encoded, TokenDataset, settle_splits
from glocal.data.encoding import Passage, Row, encode_questions
from glocal.data.files import TABLES
from glocal.data.squad import Question, read_asked, read_squad
from glocal.data.text_config import TextDataConfig
from glocal.data.text_sources import Kept, examples_of
from glocal.data.tokenizer import Tokenizer
from glocal.errors import GlocalError
from glocal.files import write_table
from glocal.models import Model
from glocal.ops import IGNORED, cross_entropy_at_once
from glocal.tasks.objective import MeanCrossEntropy, inputs
from glocal.tasks.predictor import TextReader, check_count, format_probabilities, read_texts
from glocal.tasks.spec import Metrics, TaskSpec, TestRun
from glocal.tasks.squad import BestSpan, choose_threshold, squad2_scores, squad_scores
from glocal.training.run import RunFolder

# ----------------------------------------------------------------------------------------------------------------- data


@dataclass(frozen=True)
class QuestionAnsweringData(TextDataConfig):
    """Questions whose answer is a span of their context.

    `source` is a JSON file in SQuAD's format, of version 1.1 or 2.0, or a folder of them. Where it is cut into splits,
    the questions about one context stay together.
    """

    max_length: int = 384
    """Tokens of a window: the question, a part of its context, and what the tokenizer adds."""
    stride: int = 128
    """Tokens of the context from the start of one window to the start of the next, which overlap where it is less than
    what a window holds (Devlin et al. 2018, `doc_stride` of their run_squad.py)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.stride < 1:
            raise GlocalError(f"data.stride {self.stride}; expected a token or more")


def open_data(
    config: QuestionAnsweringData,
    run: Path | None = None,
    tokenizer: Tokenizer | None = None,
    model: Model | None = None,
) -> TokenDataset[tuple[Question, ...]]:
    """Open questions (see `TaskSpec.open_data`); an example is all questions about one context, a row is a window.

    Batches hold `input_ids`, `attention_mask`, `token_type_ids` (B, N), `start_positions` and `end_positions` (B,), and
    `labels` (B, 2), both of them: the first and the last token of the answer. In a window that does not hold the whole
    answer both are 0, the first token of the row. `batch_size` counts windows.
    """
    assert tokenizer is not None
    reasons = ("mismatched", "empty")
    kept = Kept.of(run, config.source, config)
    examples = examples_of(config.source, ["json"], read_squad, "contexts", None, model is not None, reasons, kept=kept)

    def encode(items: Sequence[tuple[Question, ...]]) -> Encoded:
        asked = usable_questions(items)
        texts, contexts = [each.question for each in asked], [each.context for each in asked]
        encoded = iter(encode_questions(tokenizer, texts, contexts, config.max_length, config.stride))
        rows: list[list[Row]] = []
        unreachable = 0
        for about in items:
            rows.append([])
            for question in usable_questions([about]):
                windows = next(encoded)
                spans = [locate(window.offsets, question.span) for window in windows]
                unreachable += question.span is not None and not any(span is not None for span in spans)
                for window, span in zip(windows, spans, strict=True):
                    labels = np.array(span or (0, 0))
                    positions = {"start_positions": labels[0], "end_positions": labels[1], "labels": labels}
                    rows[-1].append(window.row | positions)
        counts = {
            "questions": sum(map(len, items)),
            "mismatched_questions": sum(map(len, items)) - len(asked),
            "impossible": sum(not question.answers for question in asked),
            "unreachable": unreachable,
            "windows": sum(len(windows) for windows in rows),
        }
        return Encoded(rows, counts)

    return TokenDataset(config, examples, settle_splits(examples, config, run), tokenizer, encode, run, unit="contexts")


def usable_questions(examples: Iterable[tuple[Question, ...]]) -> list[Question]:
    """Return all questions but those whose answers stand nowhere in the context."""
    return [question for about in examples for question in about if not question.mismatched]


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


# ------------------------------------------------------------------------------------------------------------ objective


@dataclass(frozen=True)
class QuestionAnsweringConfig:
    """The task of finding an answer in a context."""

    name: Literal["question-answering"] = "question-answering"
    """The task, by which a recipe knows its sections."""


class QuestionAnswering:
    """Cross entropy of the answer's first and last token; `labels` (B, 2) of -100 are ignored."""

    def predictions_and_targets(
        self, model: nn.Module, batch: dict[str, Tensor]
    ) -> tuple[Float[Tensor, "batch 2 tokens"], Int[Tensor, "batch 2"]]:
        """Return the logits of each token to be the start and the end, -inf at padding, and the labels."""
        logits = model(**inputs(batch)).mT
        if "attention_mask" in batch:
            logits = logits.masked_fill(~batch["attention_mask"][:, None], float("-inf"))
        return logits, batch["labels"]

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Float[Tensor, ""]:
        """Return the mean cross entropy of both ends over the row's tokens, in nats, computed in float32."""
        logits, labels = self.predictions_and_targets(model, batch)
        return cross_entropy_at_once(logits.flatten(0, 1), labels.flatten())

    def size(self, batch: dict[str, Tensor]) -> int:
        """Return how many ends have a label."""
        return int((batch["labels"] != IGNORED).sum())

    def metrics(self) -> MetricCollection:
        """Return fresh metrics over windows: `loss` in nats, and `accuracy`, the share with both ends right."""
        options: dict[str, Any] = {"nan_strategy": "disable"}
        metrics: dict[str, Metric | MetricCollection] = {
            "loss": MeanCrossEntropy(**options),
            "accuracy": BothEnds(**options),
        }
        return MetricCollection(metrics, compute_groups=[["loss"], ["accuracy"]])

    def score(self, metrics: dict[str, Any]) -> float:
        """Return the accuracy."""
        return metrics["accuracy"]

    def to(self, device: torch.device) -> "QuestionAnswering":
        """Return the objective, which has no tensors to move."""
        return self


class BothEnds(MeanMetric):
    """Share of windows whose start and end both have the highest logit."""

    def update(self, logits: Float[Tensor, "batch 2 tokens"], labels: Int[Tensor, "batch 2"]) -> None:  # type: ignore[override]
        """Add a batch."""
        real = (labels != IGNORED).all(dim=-1)
        super().update((logits.argmax(dim=-1) == labels).all(dim=-1)[real].float())


# ------------------------------------------------------------------------------------------------------------ predictor

NBEST = 20
"""Spans of a question that share its probability (Devlin et al. 2018, `n_best_size` of their run_squad.py)."""
NONE = 0, 0
"""The characters of "no answer"."""


@dataclass(frozen=True)
class Span:
    """A part of a context that answers a question."""

    text: str
    """The part; empty where the question has no answer."""
    start: int
    """Its first character in the context."""
    end: int
    """The character after its last."""
    score: float
    """Its probability among the question's 20 best spans."""


class QuestionAnswerer(TextReader):
    """A model with start and end logits, and its tokenizer."""

    head = "spans"
    json_key = "answers"
    json_input = '{"question": a text, "context": the text that answers it}'
    options = ("top", "longest", "may_have_none", "threshold")
    tables = (*TABLES, "json")
    read_table = staticmethod(read_asked)
    may_have_none = False
    """Whether the model was trained on questions without an answer."""
    threshold = 0.0
    """How far the score of "no answer" must be above the best span's, chosen on the validation split."""

    def configure(self, report: dict[str, Any]) -> None:
        """Read from a run's report whether some of its questions had no answer, and the threshold."""
        self.may_have_none = bool(report["data"]["impossible"])
        self.threshold = float(report.get("no_answer", {}).get("threshold", self.threshold))

    @staticmethod
    def read_line(line: str) -> tuple[str, str]:
        """Return the question and the context of a line with a tab between them. Raises GlocalError without a tab."""
        first, tab, second = line.partition("\t")
        if not tab:
            raise GlocalError(f"{line[:40]!r} has no context; give a question, a tab and the text that answers it")
        return first, second

    @classmethod
    def read_json(cls, value: object) -> tuple[str, str]:
        """Return the question and the context of an object, or of a list of both."""
        match value:
            case {"question": str(question), "context": str(context), **others} if not others:
                return question, context
            case [str(question), str(context)]:
                return question, context
        raise cls.no_input(value)

    def predict(
        self,
        questions: Iterable[tuple[str, str]],
        top: int = 1,
        *,
        longest: int = 30,
        may_have_none: bool | None = None,
        threshold: int | float | None = None,
        max_length: int = QuestionAnsweringData.max_length,
        stride: int = QuestionAnsweringData.stride,
        batch_size: int = 32,
    ) -> list[list[Span]]:
        """Return the `top` answers to each question about its context, the best first, in the order given.

        A span's score is the sum of the logits of its start and its end (Devlin et al. 2018, section 4.2), the highest
        over all windows. Spans count the characters of the context with composed accents (Unicode NFC). A context
        without tokens has no answer.

        Args:
            questions: pairs of a question and its context.
            top: answers to a question.
            longest: tokens of the longest answer.
            may_have_none: "" is an answer too, scored by [CLS] in the window where it scores least (section 4.3); by
                default where the model was trained on questions without an answer.
            threshold: subtracted from the score of "", which is the best answer where its score is above that of the
                best span by more than this; by default the one that was chosen on the validation split, or 0.
            max_length: tokens of a window, at most the model's maximum.
            stride: tokens of the context from one window to the next.
            batch_size: windows at a time.
        """
        check_count("top", top)
        if may_have_none is None:
            may_have_none = self.may_have_none
        if threshold is None:
            threshold = self.threshold
        elif not isinstance(threshold, int | float) or not math.isfinite(threshold):
            raise GlocalError(f"threshold {threshold!r:.40}; expected a number, a difference of two scores")
        results = []
        for context, spans, null in self._scores(questions, longest, max_length, stride, batch_size):
            scores = spans | ({NONE: null - threshold} if may_have_none else {})
            best = sorted(scores, key=lambda span: -scores[span])[:NBEST]
            probabilities = torch.tensor([scores[span] for span in best]).softmax(dim=0).tolist()
            found = [Span(context[a:b], a, b, p) for (a, b), p in zip(best, probabilities, strict=True)]
            results.append(found[:top])
        return results

    def best_spans(
        self,
        questions: Iterable[tuple[str, str]],
        *,
        longest: int = 30,
        max_length: int = QuestionAnsweringData.max_length,
        stride: int = QuestionAnsweringData.stride,
        batch_size: int = 32,
    ) -> list[BestSpan]:
        """Return the best span of each question, and how far the score of "no answer" is above its score."""
        results = []
        for context, spans, null in self._scores(questions, longest, max_length, stride, batch_size):
            start, end = max(spans, key=spans.__getitem__, default=NONE)
            results.append(BestSpan(context[start:end], null - spans.get((start, end), -math.inf)))
        return results

    def _scores(
        self, questions: Iterable[tuple[str, str]], longest: int, max_length: int, stride: int, batch_size: int
    ) -> Iterator[tuple[str, dict[tuple[int, int], float], float]]:
        """Yield the context of each question, the scores of its spans and that of "no answer"."""
        for name, value in {"longest": longest, "stride": stride}.items():
            check_count(name, value)
        questions = read_texts(questions, parts=(2,))
        asked, contexts = [list(texts) for texts in zip(*questions, strict=True)] or [[], []]
        length = min(max_length, self.model.config.max_length)
        windows = encode_questions(self.tokenizer, asked, contexts, length, stride)
        rows = [window.row for of in windows for window in of]
        logits = iter(self.run_batches(rows, batch_size, lambda batch: self.model(**batch)))
        for context, of in zip(contexts, windows, strict=True):
            scored = [(window, next(logits)) for window in of]
            yield context, score_spans(scored, longest), min(ends[0].sum().item() for _, ends in scored)

    @staticmethod
    def format(given: str, result: Sequence[Span]) -> str:
        """Return the answers with their probabilities, on one line."""
        return format_probabilities([(span.text or "no answer", span.score) for span in result]) or "no answer"

    @staticmethod
    def to_json(result: Sequence[Span]) -> list[dict[str, Any]]:
        """Return the fields of each answer."""
        return list(map(asdict, result))


def score_spans(
    windows: Sequence[tuple[Passage, Float[Tensor, "_tokens 2"]]], longest: int
) -> dict[tuple[int, int], float]:
    """Return the scores of each window's best spans, by the first character and the one after the last."""
    found: dict[tuple[int, int], float] = {}
    for window, logits in windows:
        offsets = torch.from_numpy(window.offsets)
        start, end = logits[: len(offsets)].masked_fill(offsets[:, :1] < 0, -math.inf).unbind(dim=1)
        place = torch.arange(len(offsets))
        length = place - place[:, None] + 1
        scores = (start[:, None] + end).masked_fill((length < 1) | (length > longest), -math.inf)
        best = scores.flatten().topk(min(NBEST, scores.numel()))
        for score, number in zip(best.values.tolist(), best.indices.tolist(), strict=True):
            if score == -math.inf:
                break
            first, last = divmod(number, len(offsets))
            span = int(offsets[first, 0]), int(offsets[last, 1])
            found[span] = max(score, found.get(span, -math.inf))
    return found


# ----------------------------------------------------------------------------------------------------------------- test


def calibrate(predictor: QuestionAnswerer, data: TokenDataset[tuple[Question, ...]]) -> dict[str, Any]:
    """Choose the threshold for "no answer" on the validation split (Devlin et al. 2018, section 4.3).

    Returns it, and the scores there, for the run's report; nothing where the split lacks one kind of question.
    """
    asked = usable_questions(data.examples("val"))
    if len({bool(each.answers) for each in asked}) < 2:
        return {}
    spans, references = find_best_spans(predictor, data, asked), [each.answers for each in asked]
    threshold = choose_threshold(spans, references)
    scores = squad2_scores(spans, references, threshold)
    return {"no_answer": {"threshold": threshold, **{name: scores[name] for name in ("exact", "f1", "total")}}}


def find_best_spans(
    predictor: QuestionAnswerer, data: TokenDataset[tuple[Question, ...]], asked: Sequence[Question]
) -> list[BestSpan]:
    """Return the best span of each question, in windows as in training."""
    config = data.config
    assert isinstance(config, QuestionAnsweringData)
    pairs = [(each.question, each.context) for each in asked]
    return predictor.best_spans(pairs, max_length=config.max_length, stride=config.stride)


def evaluate_answers(test: TestRun) -> Metrics:
    """Answer every test question, score the answers as SQuAD does, and write answers.tsv.

    Where some have no answer, the scores are those of version 2.0, at the model's own threshold.
    """
    asked = usable_questions(test.data.examples("test"))
    references = [each.answers for each in asked]
    spans = find_best_spans(test.predictor, test.data, asked)
    if all(references):
        answers = [span.text for span in spans]
        scores: Metrics = squad_scores(answers, references)
    else:
        threshold = test.predictor.threshold
        answers = ["" if span.no_answer_score > threshold else span.text for span in spans]
        scores = {**squad2_scores(spans, references, threshold), "no_answer_threshold": threshold}
    rows = ([each.question, " | ".join(each.answers), answer] for each, answer in zip(asked, answers, strict=True))
    write_table(test.run.path / "answers.tsv", ["question", "answers", "answer"], rows)
    return scores | {"questions": len(asked)}


def format_test(test: Metrics, run: RunFolder) -> Iterator[str]:
    """Yield SQuAD's scores, and where the answers are."""
    exact = test.get("exact", test.get("exact_match"))
    yield f"{test['questions']} test questions: exact match {exact:.2f}, F1 {test['f1']:.2f}"
    if "best_f1" in test:
        kinds = {"HasAns": "with an answer", "NoAns": "without an answer"}
        for kind, meaning in kinds.items():
            if total := test.get(f"{kind}_total"):
                yield f"{total} {meaning}: exact match {test[f'{kind}_exact']:.2f}, F1 {test[f'{kind}_f1']:.2f}"
        yield (
            f"no answer where its score exceeds the best span's by {test['no_answer_threshold']:.4g}; on these "
            f"questions {test['best_f1_thresh']:.4g} is best: F1 {test['best_f1']:.2f}"
        )
    yield f"answers: {run.path / 'answers.tsv'}"


QUESTION_ANSWERING = TaskSpec(
    name="question-answering",
    description="questions and contexts → the spans that answer them",
    data=QuestionAnsweringData,
    config=QuestionAnsweringConfig,
    open_data=open_data,
    objective=lambda config, data, teacher: QuestionAnswering(),
    predictor=QuestionAnswerer,
    head="spans",
    pretrained=True,
    evaluate_answers=evaluate_answers,
    format_test=format_test,
    calibrate=calibrate,
)
