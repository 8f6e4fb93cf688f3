"""From a trained model and texts to their translations."""

import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal

import torch
from torch.nn.utils.rnn import pad_sequence

from glocal.data.progress import progress
from glocal.data.text import Tokenizer
from glocal.errors import GlocalError
from glocal.inference.decoding import DecodingConfig, Hypothesis, generate, longest
from glocal.inference.device import choose_device
from glocal.models import Model
from glocal.models.generative import EncoderDecoder

Precision = Literal["float32", "bf16"]

SENTENCE_END = re.compile(r"(?<=[.!?…])\s+(?=\S)|(?<=[。！？])(?=\S)")
WORD_END = re.compile(r"\s+(?=\S)")

DEFAULT = DecodingConfig()


@dataclass(frozen=True)
class Translation:
    """A text in the other language."""

    text: str
    """The best translation found."""
    score: float | None
    """Its log probability over the length penalty (see DecodingConfig); None after a greedy search."""
    nbest: list[tuple[str, float | None]]
    """As many translations as were asked for, the best first, and their scores."""


class Translator:
    """A trained encoder-decoder and its tokenizer; with bf16, the model's own weights are rounded to it."""

    def __init__(
        self, model: Model, tokenizer: Tokenizer, device: str | None = None, precision: Precision = "float32"
    ) -> None:
        if not isinstance(model, EncoderDecoder):
            raise GlocalError(f"a {type(model).__name__} does not translate; expected a model that has start and step")
        if tokenizer.vocab_size > model.config.vocab_size:
            raise GlocalError(
                f"a tokenizer of {tokenizer.vocab_size} tokens for a model of {model.config.vocab_size}; "
                "take the one that the model was trained with"
            )
        self.device = choose_device(device)
        self.model = model.eval().to(self.device, torch.bfloat16 if precision == "bf16" else torch.float32)
        self.tokenizer = tokenizer

    def predict(
        self, texts: str | Iterable[str], decoding: DecodingConfig = DEFAULT, batch_size: int = 32
    ) -> list[Translation]:
        """Translate texts, in the order given; inside, those of like length go together.

        A text longer than the model takes is cut where its sentences end, or else between words, and a warning says
        so. Raises GlocalError where even a word is too long.
        """
        texts = [texts] if isinstance(texts, str) else list(texts)
        parts = [self._fit(text, ids) for text, ids in zip(texts, self.tokenizer.encode(texts), strict=True)]
        if cut := sum(len(of) > 1 for of in parts):
            warnings.warn(
                f"{cut} of {len(texts)} texts have more than the {longest(self.model)} tokens that the model takes, "
                "and were translated in parts",
                stacklevel=2,
            )
        found = iter(self._generate([ids for of in parts for ids in of], decoding, batch_size))
        return [self._join(list(islice(found, len(of)))) for of in parts]

    def stream(
        self,
        lines: Iterable[str],
        decoding: DecodingConfig = DEFAULT,
        batch_size: int = 32,
        chunk: int = 1024,
    ) -> Iterator[Translation]:
        """Translate lines as they come, `chunk` at a time, however many there are."""
        lines = iter(lines)
        while texts := list(islice(lines, chunk)):
            yield from self.predict(texts, decoding, batch_size)

    def _fit(self, text: str, ids: list[int]) -> list[list[int]]:
        """Ids of a text, halved until each part fits the model; a blank text has none."""
        text = text.strip()
        if not text:
            return []
        if len(ids) <= longest(self.model):
            return [ids]
        ends = [*SENTENCE_END.finditer(text)] or [*WORD_END.finditer(text)]
        if not ends:
            raise GlocalError(
                f"the word {text[:20]}... has {len(ids)} tokens, and the model takes {longest(self.model)}; shorten it"
            )
        middle = min((end.end() for end in ends), key=lambda place: abs(place - len(text) / 2))
        halves = text[:middle], text[middle:]
        return [part for each in zip(halves, self.tokenizer.encode(halves), strict=True) for part in self._fit(*each)]

    def _generate(
        self, sources: Sequence[list[int]], decoding: DecodingConfig, batch_size: int
    ) -> list[list[Hypothesis]]:
        """Hypotheses of each source, by batches of like length, the longest first."""
        order = sorted(range(len(sources)), key=lambda i: len(sources[i]), reverse=True)
        pad_id = self.model.config.pad_id
        found: dict[int, list[Hypothesis]] = {}
        for batch in progress([order[i : i + batch_size] for i in range(0, len(order), batch_size)]):
            rows = [torch.tensor(sources[i]) for i in batch]
            input_ids = pad_sequence(rows, batch_first=True, padding_value=pad_id).to(self.device)
            found |= zip(batch, generate(self.model, input_ids, input_ids != pad_id, decoding), strict=True)
        return [found[i] for i in range(len(sources))]

    def _join(self, parts: list[list[Hypothesis]]) -> Translation:
        """Put the parts of a text together again: the best of each, the next best of each, ...; their scores add up."""
        texts = [self.tokenizer.decode([hypothesis.ids for hypothesis in part]) for part in parts]
        scores = [[hypothesis.score for hypothesis in part] for part in parts]
        nbest = [
            (" ".join(together), None if None in score else sum(score))
            for together, score in zip(zip(*texts, strict=False), zip(*scores, strict=False), strict=True)
        ]
        text, score = nbest[0] if nbest else ("", 0.0)
        return Translation(text, score, nbest)
