"""GPT's pre-training data: documents one behind the other, cut into windows without a gap.

Radford et al. 2019, *Language Models are Unsupervised Multitask Learners*, section 2
"""

from collections.abc import Iterator

import numpy as np
import torch

from glocal.data.document_dataset import DocumentDataset, encode_documents
from glocal.data.documents import Document, pieces
from glocal.data.encoding import Batch
from glocal.data.memmap import Part
from glocal.ops import IGNORED


class PackedDocuments(DocumentDataset):
    """Windows of `max_length` tokens over the documents, each of which ends with the tokenizer's `eos_id`.

    A batch holds `input_ids` and `labels`, int64 (B, L): a label is the token that follows, -100 where there is none to
    learn. In an epoch every training token is a label once: the windows lie around a ring, on which the first document
    follows the last, and which the epoch turns. Of val and test, whose windows stay where they are, the very first
    token is no label.
    """

    def encode(self, documents: Iterator[Document]) -> Iterator[Part]:
        """Give the tokens of each document, and its end."""
        for encoding in encode_documents(self.tokenizer, documents, pieces):
            yield "tokens", [self.tokenizer.eos_id] if encoding is None else encoding.ids

    def count(self, split: str) -> int:
        """How many windows hold all labels; of the last, some may go without."""
        return -(-self._labels(split) // self.config.max_length)

    def batch(self, split: str, epoch: int, rows: np.ndarray) -> Batch:
        """Make some windows of an epoch, by their numbers."""
        tokens, length = self.columns[split]["tokens"], self.config.max_length
        turn = np.random.default_rng((self.config.seed, epoch)).integers(len(tokens)) if split == "train" else 0
        places = rows[:, None] * length + np.arange(length + 1)
        ids = torch.from_numpy(tokens[(places + turn) % len(tokens)].astype(np.int64))
        learned = torch.from_numpy(places[:, :-1] < self._labels(split))
        return {"input_ids": ids[:, :-1], "labels": ids[:, 1:].where(learned, IGNORED)}

    def _labels(self, split: str) -> int:
        return self.tokens[split] - (split != "train")
