"""How text is generated."""

from dataclasses import dataclass

from torch import Tensor

from glocal.errors import GlocalError, check_range


@dataclass(frozen=True)
class DecodingConfig:
    """How text is generated: translations, and continuations of prompts. Contradictions raise GlocalError."""

    beams: int | None = None
    """Hypotheses that beam search follows side by side; 1 is greedy search. By default 4 in translation (Vaswani et al.
    2017, section 6.1) and 1 from a prompt, or `nbest` where that is more; none with a temperature."""
    length_penalty: float = 0.6
    """α of ((5 + length)/6)^α, by which log P is divided to give a score (Wu et al. 2016, equation 14). The length is
    that of the generated text, without a prompt."""
    extra_length: int = 50
    """Tokens that the output may have more than its input, where it is cut off. From a prompt, these are the new
    tokens."""
    nbest: int = 1
    """Texts for an input: the best hypotheses of beam search, or as many samples."""
    temperature: float | None = None
    """Sample: at 1 from the model's distribution; below 1, probable tokens become more probable."""
    top_k: int | None = None
    """Sample from this many most probable tokens (Fan et al. 2018)."""
    top_p: float | None = None
    """Sample from the fewest tokens that together have this probability (Holtzman et al. 2020)."""
    seed: int = 0
    """A sample is a function of the seed and the input."""
    repetition_penalty: float = 1.0
    """θ, by which tokens of the prompt and of the text so far are made less likely; 1 is none, and 1.2 is what its
    authors use (Keskar et al. 2019, CTRL, section 4.1). The source of a translation is not penalised."""
    stop: tuple[str, ...] = ()
    """A text ends where one of these strings appears in it; the string and what follows it are removed."""

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
        expect(all(self.stop), f"stop {list(self.stop)}", "strings of a character or more")
        expect(self.nbest >= 1, f"nbest {self.nbest}", "1 or more")
        if self.temperature is None:
            expect(self.top_k is None, f"top_k {self.top_k}, but no temperature", "both or neither")
            expect(self.top_p is None, f"top_p {self.top_p}, but no temperature", "both or neither")
            few = self.beams is not None and self.nbest > self.beams
            expect(not few, f"nbest {self.nbest} of {self.beams} beams", "1 to as many as beams")
        else:
            expect(self.beams is None, f"beams {self.beams} and a temperature", "either, to search or to sample")
            expect(self.temperature > 0, f"temperature {self.temperature}", "more than 0; beams 1 is greedy")
            expect(self.top_k is None or self.top_k >= 1, f"top_k {self.top_k}", "1 or more")
            expect(self.top_p is None or 0 < self.top_p <= 1, f"top_p {self.top_p}", "more than 0, at most 1")

    def width(self, is_decoder_only: bool) -> int:
        """Return the hypotheses of an input, for a model that continues prompts or for one that translates."""
        if self.temperature is not None:
            return self.nbest
        return self.beams or max(self.nbest, 1 if is_decoder_only else 4)

    def penalty(self, length: int | Tensor) -> float | Tensor:
        """Return ((5 + length)/6)^α. log P falls with each token, so that without it short texts would win."""
        return ((5 + length) / 6) ** self.length_penalty
