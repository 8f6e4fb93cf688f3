"""What can be said about texts, their tokens and sentence pairs, and nothing that needs them to say it."""

from dataclasses import dataclass
from typing import Literal

from glocal.data.config import check_fractions
from glocal.errors import GlocalError, check_range

SMALLEST_VOCABULARY = 259
"""The 256 bytes, of which every text can be written, and the three special tokens."""
SHORTEST_ROW = 8
"""Room for the three tokens that BERT adds, and for something to read between them."""


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
        check_fractions(self.val_fraction, self.test_fraction)
        check_range("data.seed", self.seed, least=0, below=2**63)


Case = Literal["cased", "uncased", "lower"]


@dataclass(frozen=True)
class TokenizerConfig:
    """In what tokens a text is read: a vocabulary learned from the training texts, or a published one."""

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
class TextsConfig:
    """What is common to all labelled texts: which, how long, and who gets which."""

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
        if self.max_length < SHORTEST_ROW:
            raise GlocalError(f"data.max_length {self.max_length}; expected {SHORTEST_ROW} tokens or more")
        check_fractions(self.val_fraction, self.test_fraction)
        check_range("data.seed", self.seed, least=0, below=2**63)


@dataclass(frozen=True)
class SentencesConfig(TextsConfig):
    """Sentences, or pairs of them, and the class of each.

    `source` is a TSV, CSV, JSONL or Parquet file, a folder of them, or, where no such path exists, OWNER/NAME or
    OWNER/NAME/SUBSET of a data set of the hub. Of a longer pair the longer side loses its end; they are counted.
    """

    texts: tuple[str, ...] | None = None
    """Names of the one or two columns that hold the text; by default the usual ones, such as text, or sentence1 and
    sentence2. A TSV whose first line names no such columns has no header: a text or two, then the label."""
    label: str | None = None
    """Name of the column of the classes, which are names or whole numbers; by default label, or what else is usual."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.texts is not None and len(set(self.texts)) not in (1, 2):
            raise GlocalError(f"data.texts {list(self.texts)}; expected the names of one column, or of two")


@dataclass(frozen=True)
class TaggedConfig(TextsConfig):
    """Sentences of words, and the tag of each.

    `source` is a file of columns as CoNLL's, or a folder of them: a word a line, which begins with the word and ends
    with its tag, in the scheme IOB1, IOB2 or BIOES, and a blank line between sentences. A longer sentence is cut into
    several rows.
    """


@dataclass(frozen=True)
class QuestionsConfig(TextsConfig):
    """Questions whose answer is a span of their context.

    `source` is a JSON file in SQuAD's format, of version 1.1 or 2.0, or a folder of them. Where it is cut into splits,
    the questions about one context stay together.
    """

    max_length: int = 384
    """Tokens of a window: the question, a part of its context, and what the tokenizer adds."""
    stride: int = 128
    """Tokens of the context from the start of one window to the start of the next, which overlap where it is less than
    what a window holds (Devlin et al. 2018, `doc_stride` of their run_squad.py)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.stride < 1:
            raise GlocalError(f"data.stride {self.stride}; expected a token or more")


@dataclass(frozen=True)
class CompletionsConfig(TextsConfig):
    """Prompts, and what a model is to write after each.

    `source` is a TSV or CSV with a header, a JSONL or Parquet file, a folder of them, or, where no such path exists,
    OWNER/NAME or OWNER/NAME/SUBSET of a data set of the hub. A longer prompt loses its beginning; they are counted.
    """

    max_length: int = 512
    """Tokens of the longest prompt and completion together, the end of the text counted."""
    columns: tuple[str, str] = ("prompt", "completion")
    """Names of the two columns. A completion follows its prompt as it is written: begin it with a space where the
    prompt ends without one."""


@dataclass(frozen=True)
class CorpusConfig(TextsConfig):
    """Documents to pre-train on, in what tokens."""

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


@dataclass(frozen=True)
class MaskedCorpusConfig(CorpusConfig):
    """Documents for BERT's objectives."""

    whole_word: bool = False
    """Whether a word is masked with all of its tokens, as the authors did later, or each token by itself."""
