"""What can be said about sentence pairs, and nothing that needs them to say it."""

from dataclasses import dataclass
from typing import Literal

from glocal.errors import GlocalError

SMALLEST_VOCABULARY = 259
"""The 256 bytes, of which every text can be written, and the three special tokens."""


@dataclass(frozen=True)
class PairsConfig:
    """Which sentence pairs, in what tokens, and who gets which."""

    source: str = "numbers-en-vi"
    """`numbers-XX-YY`: numbers below a million, written out in any two languages of num2words; a TSV, CSV, JSONL or
    Parquet file; a folder of such files, or of aligned files SPLIT.LANGUAGE, each named after its split; `FILE,FILE`,
    two aligned files; or, where no such path exists, OWNER/NAME or OWNER/NAME/SUBSET of a data set of the hub. Text
    files may be gzipped."""
    languages: tuple[str, str] | None = None
    """Names of the two columns, or suffixes of the aligned files, what is translated first. Numbers name their own."""
    tokenizer: Literal["bpe", "unigram"] = "bpe"
    """How the vocabulary that both languages share is learned: byte pairs merged from the bottom up (Sennrich et al.
    2015), or a unigram language model pruned from the top down (Kudo 2018)."""
    vocab_size: int = 8000
    """Tokens to learn; there may not be as many."""
    max_length: int = 128
    """Tokens of the longest sentence, its end counted. A pair with a longer one is in no batch, and is counted."""
    val_fraction: float = 0.1
    """Share of the training pairs set aside for validation where the data names no such split."""
    test_fraction: float = 0.1
    """Share of the training pairs set aside for testing where the data names no such split."""
    seed: int = 0
    """Fixes the numbers that are written, the splits and the order of every epoch."""

    def __post_init__(self) -> None:
        if self.languages and self.languages[0] == self.languages[1]:
            raise GlocalError(f"data.languages {list(self.languages)}; expected two, such as [en, vi]")
        if self.vocab_size < SMALLEST_VOCABULARY or self.max_length < 2:
            raise GlocalError(
                f"data.vocab_size {self.vocab_size}, max_length {self.max_length}; expected {SMALLEST_VOCABULARY} or "
                "more, of which every text can be written, and two tokens or more, an end among them"
            )
        if min(self.val_fraction, self.test_fraction) < 0 or self.val_fraction + self.test_fraction >= 1:
            raise GlocalError(
                f"data.val_fraction {self.val_fraction} and test_fraction {self.test_fraction} leave nothing to train "
                "on; expected 0 or more, and less than 1 together"
            )
