"""How text is generated."""

from dataclasses import dataclass

from torch import Tensor

from glocal.errors import GlocalError, check_range


@dataclass(frozen=True)
class DecodingConfig:
    """How a text is looked for, a translation or what goes on from a prompt. Contradictions raise GlocalError."""

    beams: int | None = None
    """Hypotheses of a text that are followed side by side; 1 is greedy. By default 4 in translation (Vaswani et al.
    2017, section 6.1) and 1 from a prompt, or `nbest` where that is more; none where a token is drawn."""
    length_penalty: float = 0.6
    """α of ((5 + length)/6)^α, by which log P is divided to give a score (Wu et al. 2016, equation 14). The length is
    that of what is written: a prompt does not count."""
    extra_length: int = 50
    """Tokens that the output may have more than its input; there it is cut off. What goes on from a prompt begins with
    it, so these are the new ones."""
    nbest: int = 1
    """Texts for an input: the best of the beams, or as many draws."""
    temperature: float | None = None
    """Draw instead, from the model's distribution at 1; below, what is likely becomes likelier."""
    top_k: int | None = None
    """Draw among so many of the likeliest tokens (Fan et al. 2018)."""
    top_p: float | None = None
    """Draw among the fewest tokens that together have this probability (Holtzman et al. 2020)."""
    seed: int = 0
    """Draws are a function of it and of the input."""
    repetition_penalty: float = 1.0
    """θ, by which tokens are made less likely that stand in the prompt or in the text so far; 1 is none, and 1.2 what
    its authors use (Keskar et al. 2019, CTRL, section 4.1). A translation's source does not count."""
    stop: tuple[str, ...] = ()
    """A text ends where one of these appears in it, and is given without it and what follows it."""

    def __post_init__(self) -> None:
        def expect(right: bool, given: str, expected: str) -> None:
            if not right:
                raise GlocalError(f"decoding was given {given}; expected {expected}")

        expect(self.beams is None or self.beams >= 1, f"beams {self.beams}", "1, which is greedy, or more")
        expect(self.length_penalty >= 0, f"length_penalty {self.length_penalty}", "0, which is none, or more")
        expect(self.extra_length >= 0, f"extra_length {self.extra_length}", "0 or more")
        expect(
            self.repetition_penalty >= 1, f"repetition_penalty {self.repetition_penalty}", "1, which is none, or more"
        )
        for name in ("length_penalty", "repetition_penalty", "temperature"):
            check_range(f"decoding.{name}", getattr(self, name))
        check_range("decoding.seed", self.seed, least=0, below=2**63)
        expect(all(self.stop), f"stop {list(self.stop)}", "strings of a character or more, which every text has not")
        expect(self.nbest >= 1, f"nbest {self.nbest}", "1 or more")
        if self.temperature is None:
            expect(self.top_k is None, f"top_k {self.top_k}, but no temperature to draw at", "both or neither")
            expect(self.top_p is None, f"top_p {self.top_p}, but no temperature to draw at", "both or neither")
            few = self.beams is not None and self.nbest > self.beams
            expect(not few, f"nbest {self.nbest} of {self.beams} beams", "1 to as many as beams")
        else:
            expect(self.beams is None, f"beams {self.beams} and a temperature", "either, to search or to draw")
            expect(self.temperature > 0, f"temperature {self.temperature}", "more than 0; beams 1 is greedy")
            expect(self.top_k is None or self.top_k >= 1, f"top_k {self.top_k}", "1 or more")
            expect(self.top_p is None or 0 < self.top_p <= 1, f"top_p {self.top_p}", "more than 0, at most 1")

    def width(self, is_decoder_only: bool) -> int:
        """Hypotheses of a text at a time, of a model that goes on from a prompt or of one that translates."""
        if self.temperature is not None:
            return self.nbest
        return self.beams or max(self.nbest, 1 if is_decoder_only else 4)

    def penalty(self, length: int | Tensor) -> float | Tensor:
        """((5 + length)/6)^α: log P falls with each token, and without it short texts would win."""
        return ((5 + length) / 6) ** self.length_penalty
