"""From a trained model and texts to labels with probabilities."""

import warnings
from collections.abc import Iterable

import torch

from glocal.data.text.encoding import encode_sentences
from glocal.errors import GlocalError
from glocal.inference.answer import Answer, label_names, likeliest, require_classes
from glocal.inference.texts import TextPredictor, read_texts


class TextClassifier(TextPredictor):
    """A trained model with a classifier, its tokenizer, and what its answers are called."""

    head = "classification"

    def predict(self, texts: str | Iterable[str | tuple[str, str]], top: int = 5, batch_size: int = 32) -> list[Answer]:
        """Return the `top` labels of each text, or of each pair of texts, which is a tuple, in the order given.

        One longer than the model takes loses its end, of a pair the longer text, and a warning says so. Raises
        GlocalError where some are pairs and some are not.
        """
        require_classes(self.model)
        given = read_texts(texts, parts=(1, 2))
        first = [text if isinstance(text, str) else text[0] for text in given]
        second = [text[1] for text in given if not isinstance(text, str)]
        if second and len(second) < len(first):
            raise GlocalError(f"{len(second)} pairs among {len(first)} texts; ask for one kind or the other")
        encoded = encode_sentences(self.tokenizer, first, second or None, self.model.config.max_length)
        if cut := sum(overlong for _, overlong in encoded):
            warnings.warn(
                f"{cut} of {len(given)} texts have more than the {self.model.config.max_length} tokens that the model "
                "takes, and lost their end",
                stacklevel=2,
            )
        logits = self._ask([row for row, _ in encoded], batch_size, lambda batch: self.model(**batch))
        labels = label_names(self.model)
        return likeliest(torch.stack(logits), labels.__getitem__, top) if logits else []
