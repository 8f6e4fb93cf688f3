"""What translating and going on from a prompt have in common: texts written by decoding."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch.nn.utils.rnn import pad_sequence

from glocal.inference.decoding import DecodingConfig, Hypothesis, generate
from glocal.inference.texts import TextPredictor, by_length
from glocal.models.generative import Generative

DEFAULT = DecodingConfig()


@dataclass(frozen=True)
class Written:
    """A text that a model has written: a translation, or what goes on from a prompt, without the prompt."""

    text: str
    """The best that was found."""
    score: float | None
    """Its log probability over the length penalty (see DecodingConfig); None after a greedy search."""
    nbest: list[tuple[str, float | None]]
    """As many texts as were asked for, the best first, and their scores."""


class Writer(TextPredictor):
    """A model that writes token by token."""

    model: Generative

    def _generate(
        self, inputs: Sequence[list[int]], decoding: DecodingConfig, batch_size: int
    ) -> list[list[Hypothesis]]:
        """Hypotheses for each input, by batches of like length."""

        def answer(inputs: list[list[int]]) -> list[list[Hypothesis]]:
            side = "left" if self.model.is_decoder_only else "right"
            pad = partial(pad_sequence, batch_first=True, padding_side=side)
            rows = [torch.tensor(ids) for ids in inputs]
            input_ids = pad(rows, padding_value=self.model.config.pad_id or 0)
            mask = pad([torch.ones_like(row, dtype=torch.bool) for row in rows])
            return generate(self.model, input_ids.to(self.device), mask.to(self.device), decoding, self.tokenizer)

        return by_length(inputs, len, answer, batch_size)


def before(text: str, stop: Sequence[str]) -> str:
    """Cut a text where the first of the strings to stop at begins."""
    return text[: min((text.index(each) for each in stop if each in text), default=None)]
