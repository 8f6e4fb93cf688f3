"""The settings that text tasks share: source, length, splits, vocabulary."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from glocal.data.config import check_fractions
from glocal.errors import GlocalError, check_range

SMALLEST_VOCABULARY = 259
"""The 256 bytes, of which every text can be written, and the three special tokens."""

Case = Literal["cased", "uncased", "lower"]


@dataclass(frozen=True)
class TokenizerConfig:
    """The tokenizer: a vocabulary that is learned from the training texts, or a published one."""

    kind: Literal["wordpiece", "byte-bpe", "characters"] = "wordpiece"
    """Parts of words that BERT reads, ##ing within one (Wu et al. 2016); GPT-2's merges of bytes, which write any text
    exactly (Radford et al. 2019, section 2.2); or every character by itself."""
    case: Case = "cased"
    """What `wordpiece` does to letters. `cased` keeps them. `uncased` lower-cases and strips accents, as BERT's uncased
    vocabularies do: it makes "má", "mà" and "mả" one word, so it suits English and ruins Vietnamese. `lower`
    lower-cases and keeps accents, which suits Vietnamese where capitals do not matter."""
    vocab_size: int = 30522
    """Tokens to learn; there may not be as many. `characters` takes those that there are."""
    files: str | None = None
    """A folder with a published tokenizer, or one that was saved, to load in place of learning; the fields above then
    say nothing."""

    def __post_init__(self) -> None:
        if self.case != "cased" and self.kind != "wordpiece":
            raise GlocalError(f"data.tokenizer.case {self.case}, but {self.kind} keeps all letters; expected cased")
        if self.vocab_size < SMALLEST_VOCABULARY:
            raise GlocalError(f"data.tokenizer.vocab_size {self.vocab_size}; expected {SMALLEST_VOCABULARY} or more")


@dataclass(frozen=True)
class TextDataConfig:
    """The source, the length and the splits of a text task."""

    SHORTEST: ClassVar[int] = 8
    """Least `max_length`: the three tokens that BERT adds, and something to read between them."""

    source: str = ""
    """A file, or a folder of files, each named after its split, plain or gzipped. It must be given."""
    max_length: int = 128
    """Tokens of the longest row of a batch, those that the tokenizer adds counted."""
    val_fraction: float = 0.1
    """Share of the training examples set aside for validation where the data names no such split."""
    test_fraction: float = 0.1
    """Share of the training examples set aside for testing where the data names no such split."""
    seed: int = 0
    """Fixes the splits and the order of every epoch."""

    def __post_init__(self) -> None:
        if self.max_length < self.SHORTEST:
            raise GlocalError(f"data.max_length {self.max_length}; expected {self.SHORTEST} tokens or more")
        check_fractions(self.val_fraction, self.test_fraction)
        check_range("data.seed", self.seed, least=0, below=2**63)


@dataclass(frozen=True)
class DocumentsConfig(TextDataConfig):
    """Documents to pre-train on, and their tokenizer."""

    source: str = "pydoc"
    """`pydoc`, Python's own documentation, a topic or a module each; a .txt file, which is one document; a TSV, CSV,
    JSONL or Parquet file, whose rows are documents; a folder of such files, or of files and folders named after their
    splits; or, where no such path exists, OWNER/NAME or OWNER/NAME/SUBSET of a data set of the hub. Text files may be
    gzipped. Splits are cut between documents, and their fractions count characters; a single document is cut by place:
    training first, then validation, then test."""
    column: str = "text"
    """Name of the column that holds the documents of a table."""
    tokenizer: TokenizerConfig = TokenizerConfig()
    """The vocabulary, learned from the training documents."""
