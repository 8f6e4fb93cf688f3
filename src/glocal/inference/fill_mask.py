"""From a pre-trained BERT and texts with gaps to the words that may stand there."""

from collections.abc import Iterable, Sequence

import numpy as np
from torch import Tensor

from glocal.data.text import Tokenizer
from glocal.data.text.encoding import Batch
from glocal.errors import GlocalError
from glocal.inference.answer import Answer, likeliest
from glocal.inference.texts import Precision, TextPredictor, read_texts
from glocal.models import BERT, Model


class FillMask(TextPredictor):
    """A pre-trained BERT and its tokenizer."""

    head = "pretraining"
    model: BERT

    def __init__(
        self, model: Model, tokenizer: Tokenizer, device: str | None = None, precision: Precision = "float32"
    ) -> None:
        super().__init__(model, tokenizer, device, precision)
        if tokenizer.mask_id is None:
            raise GlocalError(
                "the tokenizer has no token for a masked word; take the one that the model was trained with"
            )
        self.mask_id = tokenizer.mask_id

    def predict(self, texts: str | Iterable[str], top: int = 5, batch_size: int = 32) -> list[list[Answer]]:
        """Return, of each text, an answer for each [MASK] in it: the `top` words and their probabilities.

        A word that begins with ## goes on from the one before it. Raises GlocalError where a text has no mask, or is
        longer than the model takes.
        """
        texts = read_texts(texts)
        rows = [np.array(encoding.ids) for encoding in self.tokenizer.encodings(texts, parse_special=True)]
        (mask,) = self.tokenizer.tokens([self.mask_id])
        longest = self.model.config.max_length
        for text, row in zip(texts, rows, strict=True):
            if self.mask_id not in row:
                raise GlocalError(f"no word of {text[:40]!r} is masked; write {mask} where one is to be guessed")
            if len(row) > longest:
                raise GlocalError(f"{text[:40]!r} has {len(row)} tokens, and the model takes {longest}; shorten it")
        logits = self._ask([{"input_ids": row} for row in rows], batch_size, self._read)
        return [likeliest(words, lambda word: self.tokenizer.tokens([word])[0], top) for words in logits]

    def _read(self, batch: Batch) -> Sequence[Tensor]:
        """Logits of words where one is masked, each (masks, V)."""
        masked = batch["input_ids"] == self.mask_id
        words = self.model.mlm_logits(self.model.forward_features(**batch, num_queries=None)[masked])
        return words.split(masked.sum(dim=1).tolist())
