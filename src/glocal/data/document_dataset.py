"""What BERT's and GPT's pre-training share: documents that are encoded once and stored, and batches of their tokens.

A row is a pure function of (seed, epoch, its number), and so is a batch: there is no state to save.
"""

import hashlib
import json
import shutil
import tempfile
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from copy import copy
from functools import partial
from itertools import chain
from pathlib import Path
from typing import ClassVar, TypeVar

import numpy as np
from numpy.typing import DTypeLike
from tokenizers import Encoding

from glocal.data.documents import Document, Documents, cut_documents, open_documents, sample_pieces
from glocal.data.encoding import Batch, Batches
from glocal.data.memmap import Part, keep
from glocal.data.progress import progress
from glocal.data.splits import Splits, describe_splits, load_splits, no_examples
from glocal.data.text_config import DocumentsConfig
from glocal.data.tokenizer import Tokenizer, learn_tokenizer
from glocal.errors import GlocalError
from glocal.files import JSONObject

D = TypeVar("D", bound="DocumentDataset")
Columns = dict[str, np.ndarray]
"""What is kept of a split: its `tokens`, and what a subclass adds."""

TOGETHER = 2**20
"""Characters that are encoded together."""


class DocumentDataset(ABC):
    """Encoded documents: their splits, their tokens, and batches of rows."""

    kinds: ClassVar[dict[str, DTypeLike]] = {}
    """Columns that are stored for a split, in addition to its `tokens`, and their types."""

    def __init__(
        self, config: DocumentsConfig, documents: Documents, splits: Splits, tokenizer: Tokenizer, folder: Path | None
    ) -> None:
        self.config = config
        self.documents = documents
        self.splits = splits
        """Numbers of the documents."""
        self.tokenizer = tokenizer
        if folder is None:
            folder = Path(tempfile.mkdtemp(prefix="glocal-"))
            weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        self.columns = {split: self._keep(folder / "tokens" / split, numbers) for split, numbers in splits.items()}
        """The columns of each split, `tokens` among them, mapped into memory."""
        characters = {split: int(documents.sizes[numbers].sum()) for split, numbers in splits.items()}
        self.report: JSONObject = documents.counts | {"characters": characters, "tokens": self.tokens}
        """Numbers of documents, of those left out, by reason, and of each split's characters and tokens."""
        if splits["train"] and self.tokens["train"] <= config.max_length:
            raise GlocalError(
                f"{config.source} has {self.tokens['train']} tokens to train on; expected more than data.max_length, "
                f"{config.max_length}: lower it, or give more text"
            )

    @classmethod
    def open(
        cls: type[D],
        config: DocumentsConfig,
        folder: Path | None = None,
        tokenizer: Tokenizer | None = None,
        testing: bool = False,
    ) -> D:
        """Open the documents of `config`, with splits.json and the tokenizer of `folder`, written where missing.

        Without a `tokenizer`, one is learned from a sample of the training documents. With `testing`, a tokenizer must
        be given; only the test split is opened, or all of the source where it names none, and `folder` is not used.

        Raises GlocalError if the data or the config is unusable, or the data is not that of `folder`.
        """
        documents = open_documents(config, testing)
        folder = None if testing else folder
        splits = load_splits(
            None if folder is None else folder / "splits.json",
            documents,
            lambda: cut_documents(documents, config.val_fraction, config.test_fraction, config.seed),
        )
        if tokenizer is None:
            tokenizer = Tokenizer.keep(
                folder, lambda: learn_tokenizer(sample_pieces(documents, splits["train"]), config.tokenizer)
            )
        return cls(config, documents, splits, tokenizer, folder)

    @abstractmethod
    def encode(self, documents: Iterator[Document]) -> Iterator[Part]:
        """Yield the columns of documents, part by part."""

    @abstractmethod
    def count(self, split: str) -> int:
        """Return the number of rows of a split in an epoch."""

    @abstractmethod
    def batch(self, split: str, epoch: int, rows: np.ndarray) -> Batch:
        """Return some rows of an epoch, by their numbers, as a batch."""

    def hold_out(self: D, fraction: float) -> D:
        """Return the training tokens alone, the last share of them as `val`; no other tokens are there."""
        held = copy(self)
        first, last = self.cut(self.columns["train"], 1 - fraction)
        held.columns = {"train": first, "val": last}
        if min(held.tokens.values()) <= self.config.max_length:
            raise GlocalError(
                f"{self.config.source} has {self.tokens['train']} training tokens, of which a search holds out "
                f"{fraction:.0%}; expected more than data.max_length, {self.config.max_length}, on both sides: change "
                "search.val_fraction, or give more text"
            )
        return held

    def cut(self, columns: Columns, share: float) -> tuple[Columns, Columns]:
        """Cut what is kept of a split into a share of its tokens and the rest."""
        end = round(len(columns["tokens"]) * share)
        return {"tokens": columns["tokens"][:end]}, {"tokens": columns["tokens"][end:]}

    @property
    def tokens(self) -> dict[str, int]:
        """Number of tokens of each split."""
        return {split: len(columns["tokens"]) for split, columns in self.columns.items()}

    @property
    def labels(self) -> list[str]:
        """An empty list: documents have no classes."""
        return []

    def unigram_entropy(self, split: str) -> dict[str, float | int]:
        """Return the entropy of a split's tokens in nats, and their number.

        It is the loss of a model that knows the frequency of each token in this text, and no context.
        """
        counts = np.bincount(self.columns[split]["tokens"], minlength=self.tokenizer.vocab_size)
        shares = counts[counts > 0] / counts.sum()
        return {"unigram_loss": -float((shares * np.log(shares)).sum()), "tokens": self.tokens[split]}

    def describe(self) -> str:
        """Return a line with the number of tokens and the size of the vocabulary."""
        sizes = describe_splits(self.tokens, "tokens")
        return f"{self.config.source}: {sizes}, {self.tokenizer.vocab_size:,} different ones"

    def train_batches(self, batch_size: int, epoch: int, start: int = 0, rank: int = 0, world_size: int = 1) -> Batches:
        """Return the batches `start` and later of an epoch, `batch_size` rows a process, in random order.

        The processes together get each row once, except for a remainder of fewer rows than processes.
        """
        order = np.random.default_rng((self.config.seed, epoch)).permutation(self._count("train"))
        drawn = order[: len(order) // world_size * world_size]
        if not len(drawn):
            raise GlocalError(
                f"{self.config.source} has too few training rows for {world_size} processes; expected one or more each"
            )
        return self._batches("train", epoch, drawn[rank::world_size], batch_size, start)

    def eval_batches(self, split: str, batch_size: int, rank: int = 0, world_size: int = 1) -> Batches:
        """Return the batches of a split in fixed order; the processes together get every row exactly once."""
        return self._batches(split, 0, np.arange(self._count(split))[rank::world_size], batch_size)

    def _batches(self, split: str, epoch: int, rows: np.ndarray, batch_size: int, start: int = 0) -> Batches:
        chosen = [rows[first : first + batch_size] for first in range(start * batch_size, len(rows), batch_size)]
        return Batches(partial(self.batch, split, epoch), chosen)

    def _count(self, split: str) -> int:
        if not self.tokens.get(split) or not self.count(split):
            raise no_examples(self.config.source, "documents", split)
        return self.count(split)

    def _keep(self, folder: Path, numbers: list[int]) -> dict[str, np.ndarray]:
        """Return the stored columns; documents are encoded unless they were with this vocabulary."""
        size = self.tokenizer.vocab_size
        content = [self.documents.fingerprint(), numbers, self.tokenizer.tokens(range(size)), list(self.kinds)]
        key = hashlib.sha256(json.dumps(content).encode()).hexdigest()
        kinds = {"tokens": np.uint16 if size <= 2**16 else np.uint32} | self.kinds
        return keep(folder, key, kinds, self.encode(self.documents.read(numbers)))


def encode_documents(
    tokenizer: Tokenizer, documents: Iterator[Document], cut: Callable[[Document], Iterator[str]]
) -> Iterator[Encoding | None]:
    """Yield the encoded texts that `cut` makes of each document, without special tokens, and None after each
    document.
    """
    held: list[str | None] = []
    size = 0
    for document in progress(documents, "Encoding documents"):
        for text in chain(cut(document), [None]):
            held.append(text)
            size += len(text or "")
            if size >= TOGETHER:
                yield from _encode(tokenizer, held)
                held, size = [], 0
    yield from _encode(tokenizer, held)


def _encode(tokenizer: Tokenizer, held: list[str | None]) -> Iterator[Encoding | None]:
    encodings = iter(tokenizer.encodings([text for text in held if text is not None], special=False))
    return (None if text is None else next(encodings) for text in held)
