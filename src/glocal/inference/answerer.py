"""From a trained model, questions and their contexts to the answers that stand there."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from glocal.data.text.config import QuestionsConfig
from glocal.data.text.encoding import Passage, encode_questions
from glocal.inference.answer import check_count
from glocal.inference.texts import TextPredictor, read_texts

RIVALS = 20
"""Spans of a question that share its probability (Devlin et al. 2018, `n_best_size` of their run_squad.py)."""


@dataclass(frozen=True)
class Span:
    """A part of a context that answers a question."""

    text: str
    """The part; empty where the answer is that there is none."""
    start: int
    """Its first character in the context."""
    end: int
    """The character after its last."""
    score: float
    """Its probability among the question's 20 best spans."""


class Answerer(TextPredictor):
    """A trained model that says where a span starts and ends, and its tokenizer."""

    head = "spans"
    may_have_none = False
    """Whether the model was trained on questions without an answer."""

    def predict(
        self,
        questions: Iterable[tuple[str, str]],
        top: int = 1,
        *,
        longest: int = 30,
        may_have_none: bool | None = None,
        max_length: int = QuestionsConfig.max_length,
        stride: int = QuestionsConfig.stride,
        batch_size: int = 32,
    ) -> list[list[Span]]:
        """Return the `top` answers to each question about its context, the best first, in the order given.

        A span's score is the sum of the logits of its start and its end (Devlin et al. 2018, section 4.2), the best
        that any window gives it. Spans count the characters of the context with composed accents (Unicode NFC). In a
        context of which the tokenizer leaves nothing, there is no answer.

        Args:
            questions: pairs of a question and its context.
            top: answers to a question.
            longest: tokens of the longest answer.
            may_have_none: "" is an answer too, by BERT's [CLS], in the window that likes it least (section 4.3); by
                default where the model was trained on questions without an answer.
            max_length: tokens of a window, where the model takes as many.
            stride: tokens of the context from one window to the next, as in QuestionsConfig.
            batch_size: windows at a time.
        """
        if may_have_none is None:
            may_have_none = self.may_have_none
        for name, value in {"top": top, "longest": longest, "stride": stride}.items():
            check_count(name, value)
        questions = read_texts(questions, parts=(2,))
        asked, contexts = [list(texts) for texts in zip(*questions, strict=True)] or [[], []]
        room = min(max_length, self.model.config.max_length)
        windows = encode_questions(self.tokenizer, asked, contexts, room, stride)
        rows = [window.row for of in windows for window in of]
        logits = iter(self._ask(rows, batch_size, lambda batch: self.model(**batch)))
        answers = []
        for context, of in zip(contexts, windows, strict=True):
            scores = best_spans([(window, next(logits)) for window in of], longest, may_have_none)
            best = sorted(scores, key=lambda span: -scores[span])[:RIVALS]
            probabilities = torch.tensor([scores[span] for span in best]).softmax(dim=0).tolist()
            spans = [Span(context[a:b], a, b, p) for (a, b), p in zip(best, probabilities, strict=True)]
            answers.append(spans[:top])
        return answers


def best_spans(
    windows: Sequence[tuple[Passage, Float[Tensor, "_tokens 2"]]], longest: int, may_have_none: bool
) -> dict[tuple[int, int], float]:
    """Return the score of each window's best spans, by the first character and the one after the last."""
    found: dict[tuple[int, int], float] = {}
    for window, logits in windows:
        offsets = torch.from_numpy(window.offsets)
        start, end = logits[: len(offsets)].masked_fill(offsets[:, :1] < 0, -math.inf).unbind(dim=1)
        place = torch.arange(len(offsets))
        length = place - place[:, None] + 1
        scores = (start[:, None] + end).masked_fill((length < 1) | (length > longest), -math.inf)
        for score, number in zip(
            *(t.tolist() for t in scores.flatten().topk(min(RIVALS, scores.numel()))), strict=True
        ):
            if score == -math.inf:
                break
            first, last = divmod(number, len(offsets))
            span = int(offsets[first, 0]), int(offsets[last, 1])
            if score > found.get(span, -math.inf):
                found[span] = score
    if may_have_none:
        found[0, 0] = min(logits[0].sum().item() for _, logits in windows)
    return found
