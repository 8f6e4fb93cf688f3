"""The config that text tasks share: source, length, splits, vocabulary."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from glocal.data.config import check_fractions
from glocal.errors import GlocalError, check_range

SMALLEST_VOCABULARY = 259
"""The 256 bytes, which can write every text, and three special tokens."""

Case = Literal["cased", "uncased", "lower"]


@dataclass(frozen=True)
class TokenizerConfig:
    """The tokenizer: a vocabulary that is learned from the training texts, or a published one."""

    kind: Literal["wordpiece", "byte-bpe", "characters"] = "wordpiece"
    """BERT's parts of words, such as ##ing (Wu et al. 2016); GPT-2's merges of bytes, which write any text exactly
    (Radford et al. 2019, section 2.2); or single characters."""
    case: Case = "cased"
    """How `wordpiece` changes letters. `cased` keeps them. `uncased` lower-cases and strips accents, as BERT's uncased
    vocabularies do: "má", "mà" and "mả" become one word, so it suits English and not Vietnamese. `lower` lower-cases
    and keeps accents, for Vietnamese in which capitals do not matter."""
    vocab_size: int = 30522
    """Tokens to learn; small texts have fewer. `characters` has as many as the texts have characters."""
    files: str | None = None
    """A folder with a published or saved tokenizer, which is loaded instead of learned; the fields above then have no
    effect."""

    def __post_init__(self) -> None:
        if self.case != "cased" and self.kind != "wordpiece":
            raise GlocalError(f"data.tokenizer.case {self.case}, but {self.kind} keeps all letters; expected cased")
        if self.vocab_size < SMALLEST_VOCABULARY:
            raise GlocalError(f"data.tokenizer.vocab_size {self.vocab_size}; expected {SMALLEST_VOCABULARY} or more")


@dataclass(frozen=True)
class TextDataConfig:
    """The source, the length and the splits of a text task."""

    SHORTEST: ClassVar[int] = 8
    """Least `max_length`: the three tokens that BERT adds, and some between them."""

    source: str = ""
    """A file, or a folder of files, each named after its split, plain or gzipped; required."""
    max_length: int = 128
    """Tokens of the longest row of a batch, with those that the tokenizer adds."""
    val_fraction: float = 0.1
    """Share of the training examples set aside for validation where the data names no such split."""
    test_fraction: float = 0.1
    """Share of the training examples set aside for testing where the data names no such split."""
    seed: int = 0
    """Seed of the splits and of the order of every epoch."""

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
