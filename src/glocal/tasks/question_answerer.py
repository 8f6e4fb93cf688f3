"""The predictor of question answering: the spans of a context that answer a question.

    Devlin et al. 2018, *BERT*, sections 4.2 and 4.3, https://arxiv.org/abs/1810.04805

A span is scored by the logit of its first token as a start plus that of its last token as an end; "no answer" by the
two logits of [CLS].
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from glocal.data.encoding import Passage, encode_questions
from glocal.data.files import TABLES
from glocal.data.squad import read_questions
from glocal.errors import GlocalError
from glocal.files import JSONObject
from glocal.tasks.predictor import check_count, format_probabilities, split_list
from glocal.tasks.squad import BestSpan
from glocal.tasks.text_predictor import SingleStackTextPredictor, read_inputs

MAX_LENGTH = 384
"""Tokens of a window (`max_seq_length` of run_squad.py, the code of Devlin et al. 2018)."""
STRIDE = 128
"""Tokens of the context from the start of one window to the next (`doc_stride` of run_squad.py)."""
MAX_ANSWER_LENGTH = 30
"""Tokens of the longest answer (`max_answer_length` of run_squad.py)."""
NBEST = 20
"""Spans of a question whose probabilities add up to 1 (`n_best_size` of run_squad.py)."""
NO_ANSWER = 0, 0
"""Start and end of the span that stands for "no answer"."""


@dataclass(frozen=True)
class Span:
    """A part of a context that answers a question."""

    text: str
    """The part; empty where the question has no answer."""
    start: int
    """Index of its first character in the context."""
    end: int
    """Index of the character after its last."""
    score: float
    """Its probability among the question's 20 best spans."""


class QuestionAnswerer(SingleStackTextPredictor[tuple[str, str], list[Span]]):
    """A model with start and end logits, and its tokenizer."""

    head = "spans"
    json_key = "answers"
    json_input = '{"question": a text, "context": the text that answers it}'
    options = ("top", "longest", "may_have_none", "threshold")
    table_extensions = (*TABLES, "json")
    read_table = staticmethod(read_questions)
    may_have_none = False
    """Whether the model was trained on questions without an answer."""
    threshold = 0.0
    """How far the score of "no answer" must be above the best span's, chosen on the validation split."""

    def configure(self, report: JSONObject) -> None:
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
        raise cls.invalid_input(value)

    def predict(
        self,
        questions: Iterable[tuple[str, str]],
        top: int = 1,
        *,
        longest: int = MAX_ANSWER_LENGTH,
        may_have_none: bool | None = None,
        threshold: int | float | None = None,
        max_length: int = MAX_LENGTH,
        stride: int = STRIDE,
        batch_size: int = 32,
    ) -> list[list[Span]]:
        """Return the `top` answers to each question about its context, the best first, in the order given.

        A span's score is the highest over all windows. Its characters are counted in the context with composed accents
        (Unicode NFC). A context without tokens has no answer.

        Args:
            questions: pairs of a question and its context.
            top: answers to a question.
            longest: tokens of the longest answer.
            may_have_none: whether "" is an answer too, scored by [CLS] in the window where its score is lowest (section
                4.3); by default, if the model was trained on questions without an answer.
            threshold: subtracted from the score of ""; by default the one chosen on the validation split, or 0.
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
            scores = spans | ({NO_ANSWER: null - threshold} if may_have_none else {})
            best = sorted(scores, key=lambda span: -scores[span])[:NBEST]
            probabilities = torch.tensor([scores[span] for span in best]).softmax(dim=0).tolist()
            found = [Span(context[a:b], a, b, p) for (a, b), p in zip(best, probabilities, strict=True)]
            results.append(found[:top])
        return results

    def best_spans(
        self,
        questions: Iterable[tuple[str, str]],
        *,
        longest: int = MAX_ANSWER_LENGTH,
        max_length: int = MAX_LENGTH,
        stride: int = STRIDE,
        batch_size: int = 32,
    ) -> list[BestSpan]:
        """Return the best span of each question, and by how much the score of "no answer" exceeds the span's."""
        results = []
        for context, spans, null in self._scores(questions, longest, max_length, stride, batch_size):
            start, end = max(spans, key=spans.__getitem__, default=NO_ANSWER)
            results.append(BestSpan(context[start:end], null - spans.get((start, end), -math.inf)))
        return results

    def _scores(
        self, questions: Iterable[tuple[str, str]], longest: int, max_length: int, stride: int, batch_size: int
    ) -> Iterator[tuple[str, dict[tuple[int, int], float], float]]:
        """Yield the context of each question, the scores of its spans, and the score of "no answer"."""
        for name, value in {"longest": longest, "stride": stride}.items():
            check_count(name, value)
        pairs = [tuple(texts) for texts in read_inputs(questions, 2)]
        contexts = [context for _, context in pairs]
        length = min(max_length, self.model.config.max_length)
        windows = encode_questions(self.tokenizer, [question for question, _ in pairs], contexts, length, stride)
        rows = [window.row for of_question in windows for window in of_question]
        outputs = self.run_batches(rows, batch_size, lambda batch: self.model(**batch))
        logits = split_list(outputs, map(len, windows))
        for context, windows_of_question, logits_of_question in zip(contexts, windows, logits, strict=True):
            null = min(ends[0].sum().item() for ends in logits_of_question)  # [CLS] is the first token
            yield context, score_spans(windows_of_question, logits_of_question, longest), null

    @staticmethod
    def format(given: str, result: Sequence[Span]) -> str:
        """Return the answers with their probabilities, on one line."""
        return format_probabilities([(span.text or "no answer", span.score) for span in result]) or "no answer"

    @staticmethod
    def to_json(result: Sequence[Span]) -> list[dict[str, object]]:
        """Return the fields of each answer."""
        return list(map(asdict, result))


def score_spans(
    windows: Sequence[Passage], logits: Sequence[Float[Tensor, "_tokens 2"]], longest: int
) -> dict[tuple[int, int], float]:
    """Return the scores of each window's best spans, by their first character and the character after their last."""
    found: dict[tuple[int, int], float] = {}
    for window, start_and_end in zip(windows, logits, strict=True):
        offsets = torch.from_numpy(window.offsets)
        start, end = start_and_end[: len(offsets)].masked_fill(offsets[:, :1] < 0, -math.inf).unbind(dim=1)
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
