"""Multi-label text classification: any number of classes for each sentence, or pair of sentences.

The data is read as in text classification, with several labels per row; the objective is in `glocal.tasks.multi_label`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from glocal.data.columns import Encoded
from glocal.data.dataset import TokenDataset, open_splits
from glocal.data.labels import SEPARATOR, class_names, in_order, multi_hot
from glocal.data.tokenizer import Tokenizer
from glocal.errors import GlocalError
from glocal.models import Model
from glocal.tasks.multi_label import THRESHOLD, MultiLabelConfig, MultiLabelObjective, format_test
from glocal.tasks.predictor import Probabilities, independent_probabilities, label_names, trained_labels
from glocal.tasks.spec import TaskSpec
from glocal.tasks.text_classification import (
    LabelledText,
    TextClassificationDataConfig,
    TextClassifier,
    encode_examples,
    open_examples,
)
from glocal.tasks.text_predictor import Text


@dataclass(frozen=True)
class MultiLabelTextDataConfig(TextClassificationDataConfig):
    """Sentences, or pairs of them, and the classes of each; see text classification for the sources."""

    separator: str = ","
    """What separates the classes of a row in a text file. JSONL and Parquet may hold lists. An empty text or list is an
    example of no class."""


def open_data(
    config: MultiLabelTextDataConfig,
    run: Path | None = None,
    tokenizer: Tokenizer | None = None,
    model: Model | None = None,
) -> TokenDataset[LabelledText]:
    """Open texts with their classes (see `TaskSpec.open_data`).

    Batches are as in text classification, but `labels` (B, K) are 1 at the classes of a text, else 0.
    """
    assert tokenizer is not None
    parse = partial(class_names, separator=config.separator)
    examples = open_examples(config, testing=model is not None, parse=parse, are_classes=False, run=run)
    if model is not None:
        labels = trained_labels(model, least=1)
    else:
        found: set[str] = set()
        for item in examples.read(examples.splits["train"]):
            found.update(name for name in item.label.split(SEPARATOR) if name)
        labels = in_order(found)
        if not labels:
            raise GlocalError(f"{config.source} holds no classes; expected one or more in some rows of data.label")
    class_ids = {name: index for index, name in enumerate(labels)}

    def classes_of(item: LabelledText) -> np.ndarray:
        return multi_hot(item.label, class_ids, repr(item.text[:40])).astype(np.float32)

    def encode(items: Sequence[LabelledText]) -> Encoded:
        return encode_examples(tokenizer, items, config.max_length, classes_of)

    splits = open_splits(examples, config, run)
    return TokenDataset(config, examples, splits, tokenizer, encode, run, unit="sentences", labels=labels)


class MultiLabelTextClassifier(TextClassifier):
    """A model that scores each class by itself, its tokenizer and the names of its classes."""

    options = ("top", "threshold")

    def predict(
        self,
        texts: Text | Iterable[Text],
        top: int | None = None,
        batch_size: int = 32,
        threshold: float = THRESHOLD,
    ) -> list[Probabilities]:
        """Return the classes of each text with their probabilities, the most probable first.

        These are the classes from `threshold` on, or the `top` ones where a number is given.
        """
        return independent_probabilities(self.logits(texts, batch_size), label_names(self.model), threshold, top)


MULTI_LABEL_TEXT_CLASSIFICATION = TaskSpec(
    name="multi-label-text-classification",
    description="texts, or pairs of texts → any number of classes",
    pipeline_tag="text-classification",
    data=MultiLabelTextDataConfig,
    config=MultiLabelConfig,
    open_data=open_data,
    objective=lambda config, data, teacher: MultiLabelObjective(len(data.labels)),
    predictor=MultiLabelTextClassifier,
    problem_type="multi_label_classification",
    needs_pretrained=True,
    format_test=format_test,
)
