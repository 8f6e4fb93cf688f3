"""From a trained model and prompts to texts that go on from them."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import torch

from glocal.errors import GlocalError
from glocal.inference.decoding import DecodingConfig, Hypothesis, longest, stream
from glocal.inference.texts import read_texts
from glocal.inference.writer import DEFAULT, Writer, Written, before


class TextGenerator(Writer):
    """A trained language model and its tokenizer."""

    head = "language"

    def predict(
        self, prompts: str | Iterable[str], decoding: DecodingConfig = DEFAULT, batch_size: int = 32
    ) -> list[Written]:
        """Go on from prompts, in the order given; inside, those of like length go together.

        Without beams and temperature this is greedy. An empty prompt is a text's beginning. A text that comes to be
        longer than the model takes goes on from the latter half of what it then sees, where one is asked for and not
        several; several end there. Raises GlocalError where a prompt leaves the model no room for a token.
        """
        given = self._read(read_texts(prompts))
        found = self._go_on(given, self._generate(given, decoding, batch_size), decoding, batch_size)
        answers = []
        for ids, hypotheses in zip(given, found, strict=True):
            nbest = [(self._text(ids, one.ids, decoding.stop), one.score) for one in hypotheses]
            answers.append(Written(*nbest[0], nbest))
        return answers

    def stream(self, prompt: str, decoding: DecodingConfig = DEFAULT) -> Iterator[str]:
        """Go on from one prompt, and give each piece of text as it is written: together, what `predict` answers.

        Pieces are of whole characters, and what may be the beginning of a string to stop at waits until it is none.
        Raises GlocalError where the decoding follows several hypotheses.
        """
        (ids,) = self._read(read_texts(prompt))
        text, shown = "", 0
        done: list[int] = []
        while not done or self._cut_off(ids, done, decoding):
            seen, rest = self._view(ids, done), replace(decoding, extra_length=decoding.extra_length - len(done))
            written: list[int] = []
            for written in stream(self.model, torch.tensor([seen], device=self.device), rest, self.tokenizer):
                text = self._text(ids, done + written, decoding.stop)
                end = certain(text, decoding.stop)
                if end > shown:
                    yield text[shown:end]
                    shown = end
            done += written
        if text[shown:]:
            yield text[shown:]

    def _go_on(
        self,
        given: Sequence[list[int]],
        found: list[list[Hypothesis]],
        decoding: DecodingConfig,
        batch_size: int,
    ) -> list[list[Hypothesis]]:
        """Write further what only the model's length has ended."""
        if decoding.width(continues=True) > 1:
            return found
        texts = [one for (one,) in found]
        while open_ := [i for i, ids in enumerate(given) if self._cut_off(ids, texts[i].ids, decoding)]:
            left = max(decoding.extra_length - len(texts[i].ids) for i in open_)
            seen = [self._view(given[i], texts[i].ids) for i in open_]
            more = self._generate(seen, replace(decoding, extra_length=left), batch_size)
            for i, (one,) in zip(open_, more, strict=True):
                ids = (texts[i].ids + one.ids)[: decoding.extra_length]
                texts[i] = Hypothesis(ids, None)  # its parts were scored with other beginnings
        return [[one] for one in texts]

    def _cut_off(self, prompt: Sequence[int], written: Sequence[int], decoding: DecodingConfig) -> bool:
        """Whether a text has not come to its end."""
        if len(written) >= decoding.extra_length or written[-1] == self.model.config.eos_id:
            return False
        (text,) = self.tokenizer.decode([[*prompt, *written]])
        return not any(stop in text[len(self.tokenizer.decode([prompt])[0]) :] for stop in decoding.stop)

    def _view(self, prompt: list[int], written: list[int]) -> list[int]:
        """What the model goes on from: the prompt, or, where it had no room for more, half of what it can see."""
        return (prompt + written)[-(int(longest(self.model)) // 2) :] if written else prompt

    def _read(self, prompts: Sequence[str]) -> list[list[int]]:
        """Ids of prompts, without the token that ends a text."""
        begin = self.model.config.bos_id
        rows = [encoding.ids for encoding in self.tokenizer.encodings(prompts, special=False)]
        if begin is None and not all(rows):
            raise GlocalError("an empty prompt for a model that knows no token which begins a text; give it a word")
        return [row or [begin] for row in rows]

    def _text(self, prompt: Sequence[int], written: Sequence[int], stop: Sequence[str]) -> str:
        """Read what is written where it stands, since a first token may be half a word; cut it where it was to stop."""
        begun, whole = self.tokenizer.decode([prompt, [*prompt, *written]])
        return before(whole[len(begun) :], stop)


def certain(text: str, stop: Sequence[str]) -> int:
    """How many characters of a text that is still written will stay, whatever follows.

    At its end may stand a character of which bytes are missing, which reads as �, and the beginning of what is to stop
    it.
    """
    whole = text.rstrip("\N{REPLACEMENT CHARACTER}")
    begun = [length for each in stop for length in range(1, len(each)) if whole.endswith(each[:length])]
    return len(whole) - max(begun, default=0)
