"""GPT's pre-training data: documents that are concatenated and cut into adjacent windows.

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

    A batch holds `input_ids` and `labels`, int64 (B, L): a label is the next token, or -100. In training, the first
    document follows the last, the first window begins at a random place in each epoch, and every token is a label once.
    In val and test, the windows do not move, and the very first token is no label.
    """

    def encode(self, documents: Iterator[Document]) -> Iterator[Part]:
        """Yield the tokens of each document, and the end token."""
        for encoding in encode_documents(self.tokenizer, documents, pieces):
            yield "tokens", [self.tokenizer.eos_id] if encoding is None else encoding.ids

    def count(self, split: str) -> int:
        """Return the number of windows; some tokens of the last may have no label."""
        return -(-self._labels(split) // self.config.max_length)

    def batch(self, split: str, epoch: int, rows: np.ndarray) -> Batch:
        """Return some windows of an epoch, by their numbers, as a batch."""
        tokens, length = self.columns[split]["tokens"], self.config.max_length
        turn = np.random.default_rng((self.config.seed, epoch)).integers(len(tokens)) if split == "train" else 0
        places = rows[:, None] * length + np.arange(length + 1)
        ids = torch.from_numpy(tokens[(places + turn) % len(tokens)].astype(np.int64))
        learned = torch.from_numpy(places[:, :-1] < self._labels(split))
        return {"input_ids": ids[:, :-1], "labels": ids[:, 1:].where(learned, IGNORED)}

    def _labels(self, split: str) -> int:
        return self.tokens[split] - (split != "train")
