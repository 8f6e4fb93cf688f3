"""From a trained model and texts to their translations."""

import re
import warnings
from collections.abc import Iterable, Iterator
from itertools import islice

from glocal.errors import GlocalError
from glocal.inference.decoding import DecodingConfig, Hypothesis, longest
from glocal.inference.texts import read_texts
from glocal.inference.writer import DEFAULT, Writer, Written, before

SENTENCE_END = re.compile(r"(?<=[.!?…])\s+(?=\S)|(?<=[。！？])(?=\S)")
WORD_END = re.compile(r"\s+(?=\S)")


class Translator(Writer):
    """A trained encoder-decoder and its tokenizer."""

    head = "translation"

    def predict(
        self, texts: str | Iterable[str], decoding: DecodingConfig = DEFAULT, batch_size: int = 32
    ) -> list[Written]:
        """Translate texts, in the order given; inside, those of like length go together.

        A text longer than the model takes is cut where its sentences end, or else between words, and a warning says
        so. Raises GlocalError where even a word is too long.
        """
        texts = read_texts(texts)
        parts = [self._fit(text, ids) for text, ids in zip(texts, self.tokenizer.encode(texts), strict=True)]
        if cut := sum(len(of) > 1 for of in parts):
            warnings.warn(
                f"{cut} of {len(texts)} texts have more than the {longest(self.model)} tokens that the model takes, "
                "and were translated in parts",
                stacklevel=2,
            )
        found = iter(self._generate([ids for of in parts for ids in of], decoding, batch_size))
        return [self._join(list(islice(found, len(of))), decoding) for of in parts]

    def stream(
        self,
        lines: Iterable[str],
        decoding: DecodingConfig = DEFAULT,
        batch_size: int = 32,
        chunk: int = 1024,
    ) -> Iterator[Written]:
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

    def _join(self, parts: list[list[Hypothesis]], decoding: DecodingConfig) -> Written:
        """Put the parts of a text together again: the best of each, the next best of each, ...; their scores add up."""
        decoded = [self.tokenizer.decode([hypothesis.ids for hypothesis in part]) for part in parts]
        texts = [[before(text, decoding.stop) for text in part] for part in decoded]
        scores = [[hypothesis.score for hypothesis in part] for part in parts]
        nbest = [
            (" ".join(together), None if None in score else sum(score))
            for together, score in zip(zip(*texts, strict=False), zip(*scores, strict=False), strict=True)
        ]
        text, score = nbest[0] if nbest else ("", 0.0)
        return Written(text, score, nbest)
