"""Question answering: the span of a context that answers a question.

    Rajpurkar et al. 2016, *SQuAD: 100,000+ Questions for Machine Comprehension of Text*
    https://arxiv.org/abs/1606.05250
    Rajpurkar et al. 2018, *Know What You Don't Know* (version 2.0: some have no answer)
    https://arxiv.org/abs/1806.03822
    Devlin et al. 2018, *BERT*, sections 4.2 and 4.3

Every token has two logits: for being the first and for being the last token of the answer. In a window of the context
that does not hold the answer, the target of both is [CLS], the window's first token. The predictor is in
`glocal.tasks.question_answerer`.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection

from glocal.data.columns import Encoded
from glocal.data.dataset import TokenDataset, open_splits
from glocal.data.encoding import Row, encode_questions
from glocal.data.squad import Question, read_squad
from glocal.data.text_config import TextDataConfig
from glocal.data.text_sources import ReadingCache, examples_of
from glocal.data.tokenizer import Tokenizer
from glocal.errors import GlocalError
from glocal.files import write_table
from glocal.models import Model
from glocal.ops import IGNORED, cross_entropy_at_once
from glocal.tasks.objective import Mean, MeanCrossEntropy, model_inputs
from glocal.tasks.predictor import split_list
from glocal.tasks.question_answerer import MAX_LENGTH, STRIDE, QuestionAnswerer
from glocal.tasks.spec import TaskSpec, TestRun
from glocal.tasks.squad import BestSpan, choose_threshold, squad2_scores, squad_scores
from glocal.training.interfaces import Batch, Metrics
from glocal.training.run import RunFolder

# ----------------------------------------------------------------------------------------------------------------- data


@dataclass(frozen=True)
class QuestionAnsweringDataConfig(TextDataConfig):
    """Questions whose answer is a span of their context.

    `source` is a JSON file in SQuAD's format, of version 1.1 or 2.0, or a folder of them. Where it is cut into splits,
    the questions about one context stay together.
    """

    max_length: int = MAX_LENGTH
    """Tokens of a window: the question, a part of its context, and what the tokenizer adds."""
    stride: int = STRIDE
    """Tokens of the context from the start of one window to the start of the next; longer windows overlap (Devlin et
    al. 2018, `doc_stride` of their run_squad.py)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.stride < 1:
            raise GlocalError(f"data.stride {self.stride}; expected a token or more")


QuestionData = TokenDataset[tuple[Question, ...]]
"""Examples are all questions about one context."""


def open_data(
    config: QuestionAnsweringDataConfig,
    run: Path | None = None,
    tokenizer: Tokenizer | None = None,
    model: Model | None = None,
) -> QuestionData:
    """Open questions (see `TaskSpec.open_data`); an example is all questions about one context, a row is a window.

    Batches hold `input_ids`, `attention_mask`, `token_type_ids` (B, N), `start_positions` and `end_positions` (B,), the
    first and the last token of the answer, and `labels` (B, 2), both of these. In a window that does not hold the whole
    answer, both are 0, the first token of the row. `batch_size` counts windows.
    """
    assert tokenizer is not None
    examples = examples_of(
        config.source,
        ["json"],
        read_squad,
        "contexts",
        testing=model is not None,
        reasons=("mismatched", "empty"),
        reading_cache=ReadingCache.of(run, config.source, config),
    )

    def encode(items: Sequence[tuple[Question, ...]]) -> Encoded:
        return encode_windows(tokenizer, items, config)

    splits = open_splits(examples, config, run)
    return TokenDataset(config, examples, splits, tokenizer, encode, run, unit="contexts")


def encode_windows(
    tokenizer: Tokenizer, items: Sequence[tuple[Question, ...]], config: QuestionAnsweringDataConfig
) -> Encoded:
    """Encode the windows of all questions about some contexts."""
    usable = [usable_questions([about]) for about in items]
    questions = [question for about in usable for question in about]
    texts, contexts = [one.question for one in questions], [one.context for one in questions]
    windows_of_questions = encode_questions(tokenizer, texts, contexts, config.max_length, config.stride)
    rows_of_contexts: list[list[Row]] = []
    unreachable = 0
    for about, windows_about in zip(usable, split_list(windows_of_questions, map(len, usable)), strict=True):
        rows = []
        for question, windows in zip(about, windows_about, strict=True):
            spans = [locate(window.offsets, question.span) for window in windows]
            unreachable += question.span is not None and not any(span is not None for span in spans)
            for window, span in zip(windows, spans, strict=True):
                labels = np.array(span or (0, 0))
                positions = {"start_positions": labels[0], "end_positions": labels[1], "labels": labels}
                rows.append(window.row | positions)
        rows_of_contexts.append(rows)
    counts = {
        "questions": sum(map(len, items)),
        "mismatched_questions": sum(map(len, items)) - len(questions),
        "impossible": sum(not question.answers for question in questions),
        "unreachable": unreachable,
        "windows": sum(map(len, rows_of_contexts)),
    }
    return Encoded(rows_of_contexts, counts)


def usable_questions(examples: Iterable[tuple[Question, ...]]) -> list[Question]:
    """Return the questions whose answers are in the context where the file says."""
    return [question for about in examples for question in about if not question.mismatched]


def locate(offsets: np.ndarray, span: tuple[int, int] | None) -> tuple[int, int] | None:
    """Return the first and the last token of the characters `span`; None where a window does not hold all of them."""
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
    """The task, which decides the fields of the sections `data` and `task`."""


class QuestionAnsweringObjective:
    """Cross entropy of the answer's first and last token; `labels` (B, 2) of -100 are ignored."""

    def predictions_and_targets(
        self, model: nn.Module, batch: Batch
    ) -> tuple[Float[Tensor, "batch 2 tokens"], Int[Tensor, "batch 2"]]:
        """Return the logits of each token to be the start and the end, -inf at padding, and the labels."""
        logits = model(**model_inputs(batch)).mT
        if "attention_mask" in batch:
            logits = logits.masked_fill(~batch["attention_mask"][:, None], float("-inf"))
        return logits, batch["labels"]

    def loss(self, model: nn.Module, batch: Batch) -> Float[Tensor, ""]:
        """Return the mean cross entropy of both ends over the row's tokens, in nats, computed in float32."""
        logits, labels = self.predictions_and_targets(model, batch)
        return cross_entropy_at_once(logits.flatten(0, 1), labels.flatten())

    def size(self, batch: Batch) -> int:
        """Return how many ends have a label."""
        return int((batch["labels"] != IGNORED).sum())

    def metrics(self) -> MetricCollection:
        """Return fresh metrics over windows: `loss` in nats, and `accuracy`, the share with both ends right."""
        metrics: dict[str, Metric | MetricCollection] = {"loss": MeanCrossEntropy(), "accuracy": BothEnds()}
        return MetricCollection(metrics, compute_groups=False)  # torchmetrics merges metrics equal on the first batch

    def score(self, metrics: Metrics) -> float:
        """Return the accuracy."""
        return metrics["accuracy"]

    def to(self, device: torch.device) -> "QuestionAnsweringObjective":
        """Return the objective, which has no tensors to move."""
        return self


class BothEnds(Mean):
    """Share of windows whose start and end both have the highest logit."""

    def update(self, logits: Float[Tensor, "batch 2 tokens"], labels: Int[Tensor, "batch 2"]) -> None:
        """Add a batch."""
        real = (labels != IGNORED).all(dim=-1)
        self.add((logits.argmax(dim=-1) == labels).all(dim=-1)[real].float())


# ----------------------------------------------------------------------------------------------------------------- test


def calibrate(predictor: QuestionAnswerer, data: QuestionData) -> Mapping[str, object]:
    """Choose the threshold for "no answer" on the validation split (Devlin et al. 2018, section 4.3).

    Returns it with its scores, for the run's report; nothing unless the split has questions with and without an answer.
    """
    asked = usable_questions(data.examples("val"))
    if len({bool(each.answers) for each in asked}) < 2:
        return {}
    spans, references = find_best_spans(predictor, data, asked), [each.answers for each in asked]
    threshold = choose_threshold(spans, references)
    scores = squad2_scores(spans, references, threshold)
    return {"no_answer": {"threshold": threshold, **{name: scores[name] for name in ("exact", "f1", "total")}}}


def find_best_spans(predictor: QuestionAnswerer, data: QuestionData, questions: Sequence[Question]) -> list[BestSpan]:
    """Return the best span of each question, in windows as in training."""
    config = data.config
    assert isinstance(config, QuestionAnsweringDataConfig)
    pairs = [(each.question, each.context) for each in questions]
    return predictor.best_spans(pairs, max_length=config.max_length, stride=config.stride)


def further_metrics(test: TestRun[QuestionData, QuestionAnswerer]) -> Metrics:
    """Answer every test question, score the answers as SQuAD does, and write answers.tsv.

    Where some questions have no answer, the scores are those of SQuAD 2.0, at the threshold of the trained model.
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


def format_test(metrics: Metrics, run: RunFolder) -> Iterator[str]:
    """Yield SQuAD's scores, and the file of the answers."""
    exact = metrics.get("exact", metrics.get("exact_match"))
    yield f"{metrics['questions']} test questions: exact match {exact:.2f}, F1 {metrics['f1']:.2f}"
    if "best_f1" in metrics:
        kinds = {"HasAns": "with an answer", "NoAns": "without an answer"}
        for kind, meaning in kinds.items():
            if total := metrics.get(f"{kind}_total"):
                yield f"{total} {meaning}: exact match {metrics[f'{kind}_exact']:.2f}, F1 {metrics[f'{kind}_f1']:.2f}"
        yield (
            f"no answer where its score exceeds the best span's by {metrics['no_answer_threshold']:.4g}; on these "
            f"questions {metrics['best_f1_thresh']:.4g} is best: F1 {metrics['best_f1']:.2f}"
        )
    yield f"answers: {run.path / 'answers.tsv'}"


QUESTION_ANSWERING = TaskSpec(
    name="question-answering",
    description="questions and contexts → the spans that answer them",
    data=QuestionAnsweringDataConfig,
    config=QuestionAnsweringConfig,
    open_data=open_data,
    objective=lambda config, data, teacher: QuestionAnsweringObjective(),
    predictor=QuestionAnswerer,
    needs_pretrained=True,
    further_metrics=further_metrics,
    format_test=format_test,
    calibrate=calibrate,
)
