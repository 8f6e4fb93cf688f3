"""BERT's pre-training data: pairs of text segments with masked words, of which half are consecutive.

Devlin et al. 2018, *BERT: Pre-training of Deep Bidirectional Transformers*, section 3.1 and appendix A.2
https://arxiv.org/abs/1810.04805
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import DTypeLike

from glocal.data.document_dataset import Columns, DocumentDataset, encode_documents
from glocal.data.documents import Document, Documents, sentences
from glocal.data.encoding import Batch
from glocal.data.memmap import Part
from glocal.data.splits import Splits
from glocal.data.text_config import DocumentsConfig
from glocal.data.tokenizer import Tokenizer
from glocal.errors import GlocalError
from glocal.ops import IGNORED

SHORT = 0.1
"""Share of the rows that are shorter than `max_length`, as rows in fine-tuning are."""
MASKED = 0.15
"""Share of the tokens that are predicted."""
HIDDEN, WRONG = 0.8, 0.1
"""Shares of these that are replaced by [MASK], and by a random token; the others are not replaced."""
SPECIAL = 3
"""[CLS], and [SEP] after each segment."""
CHOICES = 5
"""Random numbers of a row, in addition to three for each of its tokens."""


@dataclass(frozen=True)
class MaskedLMData(DocumentsConfig):
    """Documents for BERT's objectives."""

    whole_word: bool = False
    """Whether all tokens of a word are masked together, as in the authors' later models, or each by itself."""


class MaskedDocuments(DocumentDataset):
    """Pairs of segments, A and B: [CLS] A [SEP] B [SEP], `max_length` tokens together.

    A batch holds `input_ids` (B, N), masked; `attention_mask` bool (B, N), True at tokens; `token_type_ids` (B, N), 1
    at B and its [SEP]; `labels` (B, N), the tokens to predict, -100 elsewhere; and `next_sentence_label` (B,), 0
    where B follows A. All but the mask are int64.

    The rows of an epoch begin at equal distances in the text, from a random place on, so that together they have as
    many tokens as the text. A tenth of the rows, and those of short documents, are shorter.
    """

    kinds: ClassVar[dict[str, DTypeLike]] = {"begins": np.bool_, "sentences": np.int64, "documents": np.int64}
    """Whether a token begins a word; the first tokens of sentences and of documents, followed by the number of
    tokens."""

    def __init__(
        self,
        config: MaskedLMData,
        documents: Documents,
        splits: Splits,
        tokenizer: Tokenizer,
        folder: Path | None,
    ) -> None:
        if tokenizer.mask_id is None:
            raise GlocalError("the tokenizer has no [MASK], which BERT's objective needs; expected one of wordpiece")
        self.config: MaskedLMData = config
        super().__init__(config, documents, splits, tokenizer, folder)
        self._mask_id = tokenizer.mask_id
        special = (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id, tokenizer.unk_id, tokenizer.mask_id)
        self._ordinary = np.setdiff1d(np.arange(tokenizer.vocab_size), [each for each in special if each is not None])

    def encode(self, documents: Iterator[Document]) -> Iterator[Part]:
        """Yield the tokens of each sentence, and the ends of sentences and documents."""
        size = 0
        yield "sentences", [0]
        yield "documents", [0]
        for encoding in encode_documents(self.tokenizer, documents, sentences):
            if encoding is None:
                yield "documents", [size]
            elif encoding.ids:
                size += len(encoding.ids)
                words = np.array(encoding.word_ids)
                yield "tokens", encoding.ids
                yield "begins", np.diff(words, prepend=-1) != 0
                yield "sentences", [size]

    def cut(self, columns: Columns, share: float) -> tuple[Columns, Columns]:
        """Cut what is kept of a split between two sentences; a document may be cut."""
        sentences, documents = columns["sentences"], columns["documents"]
        end = sentences[np.searchsorted(sentences, round(len(columns["tokens"]) * share))]
        first = {
            "tokens": columns["tokens"][:end],
            "begins": columns["begins"][:end],
            "sentences": sentences[sentences <= end],
            "documents": np.append(documents[documents < end], end),
        }
        last = {
            "tokens": columns["tokens"][end:],
            "begins": columns["begins"][end:],
            "sentences": sentences[sentences >= end] - end,
            "documents": np.insert(documents[documents > end] - end, 0, 0),
        }
        return first, last

    def count(self, split: str) -> int:
        """Return the number of rows that have as many tokens as the split."""
        return -(-self.tokens[split] // self._capacity)

    def batch(self, split: str, epoch: int, rows: np.ndarray) -> Batch:
        """Return some rows of an epoch, by their numbers, as a batch."""
        kept, length = self.columns[split], self.config.max_length
        draws = [np.random.default_rng((self.config.seed, epoch, row)).random(CHOICES + 3 * length) for row in rows]
        choices, *noise = np.split(np.stack(draws), [CHOICES, CHOICES + length, CHOICES + 2 * length], axis=1)
        a_start, a_size, b_start, b_size, random = self._segments(split, epoch, rows, choices.T)
        place = np.arange(length)
        first, second = a_size[:, None] + 1, (a_size + b_size)[:, None] + 2  # the two [SEP]
        a, b = (place > 0) & (place < first), (place > first) & (place < second)
        source = np.where(a, a_start[:, None] + place - 1, np.where(b, b_start[:, None] + place - first - 1, 0))
        ids = np.where(a | b, kept["tokens"][source], self.tokenizer.pad_id).astype(np.int64)
        ids[:, 0] = self.tokenizer.bos_id
        ids[(place == first) | (place == second)] = self.tokenizer.eos_id
        input_ids, labels = self._mask(ids, a | b, kept["begins"][source], noise)
        batch = {
            "input_ids": input_ids,
            "attention_mask": place <= second,
            "token_type_ids": ((place > first) & (place <= second)).astype(np.int64),
            "labels": labels,
            "next_sentence_label": random.astype(np.int64),
        }
        return {name: torch.from_numpy(array) for name, array in batch.items()}

    @property
    def _capacity(self) -> int:
        """Tokens of a row without special ones."""
        return self.config.max_length - SPECIAL

    def _segments(self, split: str, epoch: int, rows: np.ndarray, choices: np.ndarray) -> tuple[np.ndarray, ...]:
        """Choose A and B: the first token and the number of tokens of each; and whether B is a random one.

        A and its continuation are a span of a document around the row's place, cut where a sentence begins. A random B
        has the length of the continuation and begins with a sentence of another document.
        """
        short, length, parted, coin, elsewhere = choices
        size, sentences = self.tokens[split], self.columns[split]["sentences"]
        wanted = np.where(short < SHORT, 2 + (length * (self._capacity - 1)).astype(int), self._capacity)
        turn = np.random.default_rng((self.config.seed, epoch)).integers(size)
        place = (turn + rows * self._capacity) % size
        low, high = self._document(split, place)
        start = np.maximum(low, np.minimum(place - wanted // 2, high - wanted))
        end = np.minimum(start + wanted, high)
        first, last = np.searchsorted(sentences, start, side="right"), np.searchsorted(sentences, end)
        between = sentences[first + (parted * (last - first)).astype(int)]
        middle = np.where(first < last, between, start + 1 + (parted * (end - start - 1)).astype(int))
        random = (coin < 0.5) | (middle == end)  # a single token has no continuation

        own = np.where(high - low < size, high - low, 0)  # of a single document, a random B is drawn from the same
        other = (elsewhere * (size - own)).astype(int)
        other += np.where(other < low, 0, own)
        b_size = np.maximum(1, end - middle)
        low, high = self._document(split, other)
        other = np.maximum(low, np.minimum(other, high - b_size))
        other = sentences[np.searchsorted(sentences, other, side="right") - 1]
        b_start = np.where(random, other, middle)
        return start, middle - start, b_start, np.where(random, np.minimum(b_size, high - other), b_size), random

    def _document(self, split: str, place: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the first token of a token's document, and the one after its last."""
        documents = self.columns[split]["documents"]
        number = np.searchsorted(documents, place, side="right")
        return documents[number - 1], documents[number]

    def _mask(
        self, ids: np.ndarray, words: np.ndarray, begins: np.ndarray, noise: list[np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the ids with masked tokens, and the labels; each row has at least one masked token or word."""
        scores, fates, others = noise
        if self.config.whole_word:  # one score a word
            scores = np.take_along_axis(scores, np.cumsum(begins | ~words, axis=1) - 1, axis=1)
        lowest = np.where(words, scores, 1.0).min(axis=1, keepdims=True)
        masked = words & (scores <= np.maximum(MASKED, lowest))
        wrong = np.where(fates < HIDDEN + WRONG, self._ordinary[(others * len(self._ordinary)).astype(int)], ids)
        shown = np.where(fates < HIDDEN, self._mask_id, wrong)
        return np.where(masked, shown, ids), np.where(masked, ids, IGNORED)
