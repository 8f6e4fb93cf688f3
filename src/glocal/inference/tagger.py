"""From a trained model and sentences to the entities that they name."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from glocal.data.text.encoding import encode_words
from glocal.inference.answer import label_names
from glocal.inference.texts import TextPredictor, strings


@dataclass(frozen=True)
class Entity:
    """Words of a sentence that name something."""

    text: str
    """The words."""
    type: str
    """What is named, as the model's tags call it: PER, LOC, ..."""
    start: int
    """The first word's number in the sentence, from 0."""
    end: int
    """The number of the word after the last."""
    score: float
    """Mean probability of the words' tags."""


class Tagger(TextPredictor):
    """A trained model that gives every word a tag, its tokenizer, and the tags."""

    head = "tagging"

    def predict(self, sentences: str | Iterable[str | Sequence[str]], batch_size: int = 32) -> list[list[Entity]]:
        """Return the entities of each sentence, in the order given. One in words keeps them; another is cut into some.

        Tags are read as CoNLL-2000's script does, in any of the schemes IOB1, IOB2 and BIOES; where a model's tags are
        of another kind, such as parts of speech, every word is an entity. A sentence longer than the model takes is
        tagged in parts.
        """
        several = isinstance(sentences, Iterable) and not isinstance(sentences, str)
        asked: list[Any] = list(sentences) if several else [sentences]
        given = [self.words(each) if isinstance(each, str) else strings(each) for each in asked]
        limit = self.model.config.max_length
        windows = [encode_words(self.tokenizer, [words], limit)[0] if words else [] for words in given]
        rows = [window.row for of in windows for window in of]
        logits = iter(self._ask(rows, batch_size, lambda batch: self.model(**batch)))
        return [
            self._entities(words, [next(logits)[window.starts] for window in of])
            for words, of in zip(given, windows, strict=True)
        ]

    @staticmethod
    def words(sentence: str) -> list[str]:
        """Cut a sentence as corpora are: punctuation stands by itself, but inside of U.S, 3,000 and Jean-Luc."""
        return re.findall(r"\w(?:[\w.,'’/-]*\w)?|[^\w\s]", sentence)

    def _entities(self, words: Sequence[str], logits: Sequence[Float[Tensor, "_words tags"]]) -> list[Entity]:
        """Read the tags of a sentence, which may have been asked for in parts."""
        from seqeval.metrics.sequence_labeling import get_entities  # it brings scikit-learn: a second and a half

        if not words:
            return []
        best, numbers = torch.cat(list(logits)).softmax(dim=-1).max(dim=-1)
        labels = label_names(self.model)
        tags = [labels[number] for number in numbers.tolist()]
        spell_entities = all(re.fullmatch("O|[BIES]-.+", label) for label in labels)
        found = get_entities(tags) if spell_entities else [(tag, word, word) for word, tag in enumerate(tags)]
        return [
            Entity(" ".join(words[first : last + 1]), kind, first, last + 1, best[first : last + 1].mean().item())
            for kind, first, last in found
        ]
