"""Text classification: one class for each sentence, or pair of sentences: reviews, questions, entailment.

    Devlin et al. 2018, *BERT*, section 4.1, https://arxiv.org/abs/1810.04805

The objective is in `glocal.tasks.classification`.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from glocal.data.columns import Encoded
from glocal.data.dataset import TokenDataset, open_splits
from glocal.data.encoding import encode_sentences
from glocal.data.files import TABLES, Record, compose, listed
from glocal.data.labels import class_name, in_order, is_visible, names_of_classes, with_class_names
from glocal.data.tables import labelled_columns, read_labelled, read_text_inputs
from glocal.data.text_config import TextDataConfig
from glocal.data.text_sources import Examples, LeftOut, ReadingCache, examples_of
from glocal.data.tokenizer import Tokenizer
from glocal.errors import GlocalError
from glocal.models import Model
from glocal.tasks.classification import ClassificationConfig, ClassificationObjective, draw_confusion, format_classes
from glocal.tasks.predictor import (
    Classifier,
    Probabilities,
    Result,
    label_names,
    most_probable,
    require_classes,
    trained_labels,
)
from glocal.tasks.spec import TaskSpec
from glocal.tasks.text_predictor import SingleStackTextPredictor, Text
from glocal.training.interfaces import Metrics
from glocal.training.run import RunFolder

# ----------------------------------------------------------------------------------------------------------------- data


@dataclass(frozen=True)
class TextClassificationDataConfig(TextDataConfig):
    """Sentences, or pairs of them, and the class of each.

    `source` is a TSV, CSV, JSONL or Parquet file, a folder of them, or, where no such path exists, OWNER/NAME or
    OWNER/NAME/SUBSET of a data set of the hub. A text longer than `max_length` loses its end; of a pair, the longer
    text does. Shortened texts are counted.
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


ParseLabel = Callable[[object, str], str | None]
"""Returns a label as a text, or None where it is missing; the second argument names its place, for error messages."""


class LabelledText(NamedTuple):
    """A sentence, or a pair of them, and the name of its class."""

    text: str
    pair: str | None
    label: str


def open_data(
    config: TextClassificationDataConfig,
    run: Path | None = None,
    tokenizer: Tokenizer | None = None,
    model: Model | None = None,
) -> TokenDataset[LabelledText]:
    """Open labelled texts (see `TaskSpec.open_data`); the classes are taken from the training split, or the model.

    Batches hold `input_ids`, `attention_mask` and, where the tokenizer marks segments, `token_type_ids`, each (B, N),
    and `labels` (B,).
    """
    assert tokenizer is not None
    examples = open_examples(config, testing=model is not None, run=run)
    labels = class_order(examples, model)
    class_ids = {class_name(label, "the model") or label: index for index, label in enumerate(labels)}
    examples = replace(examples, labels=np.array([class_ids[name] for name in examples.classes])[examples.labels])

    def encode(items: Sequence[LabelledText]) -> Encoded:
        return encode_examples(tokenizer, items, config.max_length, lambda item: np.array(class_ids[item.label]))

    splits = open_splits(examples, config, run)
    return TokenDataset(config, examples, splits, tokenizer, encode, run, unit="sentences", labels=labels)


def open_examples(
    config: TextClassificationDataConfig,
    testing: bool,
    parse: ParseLabel = class_name,
    are_classes: bool = True,
    run: Path | None = None,
) -> Examples[LabelledText]:
    """Survey the source; `parse` reads a label, which is the class of an example unless `are_classes` is False."""
    lengths: set[int] = set()
    return examples_of(
        config.source,
        TABLES,
        lambda path: read_examples(config, parse, lengths, str(path), read_labelled(path, config.texts, config.label)),
        "sentences",
        partial(read_hub, config, parse, lengths),
        testing,
        ("empty", "unlabelled"),
        (lambda item: item.label) if are_classes else None,
        ReadingCache.of(run, config.source, config),
    )


def encode_examples(
    tokenizer: Tokenizer,
    items: Sequence[LabelledText],
    max_length: int,
    label: Callable[[LabelledText], np.ndarray],
) -> Encoded:
    """Encode texts or pairs, each with its label."""
    pairs = [item.pair for item in items if item.pair is not None]
    encoded = encode_sentences(tokenizer, [item.text for item in items], pairs or None, max_length)
    rows = [[row | {"labels": label(item)}] for (row, _), item in zip(encoded, items, strict=True)]
    return Encoded(rows, {"truncated": sum(overlong for _, overlong in encoded)})


def class_order(examples: Examples[LabelledText], model: Model | None) -> list[str]:
    """Return the classes of the training split in their order, or the classes of a trained model.

    Raises GlocalError if there is one class only, or an example has another.
    """
    if model is None:
        labels = in_order(examples.classes[index] for index in np.unique(examples.labels[examples.splits["train"]]))
        if len(labels) < 2:
            raise GlocalError(f"{examples.name} holds one class only ({labels[0]!r}); expected two or more")
    else:
        labels = trained_labels(model, least=2)
    known = {class_name(label, "the model") or label for label in labels}
    if unknown := set(examples.classes) - known:
        item = next(item for item in examples.read() if item.label in unknown)
        whose = "the training split's" if model is None else "the model's"
        raise GlocalError(
            f"class {item.label!r} of {item.text[:40]!r} in {examples.name} is not one of {whose}: {', '.join(labels)}"
        )
    return labels


def read_hub(
    config: TextClassificationDataConfig,
    parse: ParseLabel,
    lengths: set[int],
    name: str,
    table: Iterable[Record],
) -> Iterator[LabelledText | LeftOut]:
    """Read a table of the hub, which stores the names of classes separately; -1 is no class."""
    features = getattr(table, "features", {})
    names = {column: found for column, feature in features.items() if (found := names_of_classes(feature))}

    def named(record: Record) -> Record:
        return record | {column: with_class_names(record[column], names[column]) for column in names}

    return read_examples(config, parse, lengths, name, map(named, table))


def read_examples(
    config: TextClassificationDataConfig,
    parse: ParseLabel,
    lengths: set[int],
    name: str,
    records: Iterable[Record],
) -> Iterator[LabelledText | LeftOut]:
    """Turn the records of a table into examples; `lengths` collects how many texts each has, over all tables."""
    columns: tuple[str, ...] | None = None
    for number, record in enumerate(records, start=1):
        columns = columns or labelled_columns(record, config.texts, config.label)
        if columns is None:
            raise GlocalError(
                f"{name} has the columns {listed(record)}; expected text, or sentence1 and sentence2, and label, or "
                "others that data.texts and data.label name"
            )
        *values, label_value = [record.get(column) for column in columns]
        texts = [compose(value) for value in values if isinstance(value, str) and is_visible(value)]
        label = parse(label_value, f"{name} example {number}")
        if len(texts) < len(values):
            yield LeftOut("empty")
        elif label is None:
            yield LeftOut("unlabelled")
        else:
            lengths.add(len(texts))
            if len(lengths) > 1:
                raise GlocalError(f"{config.source} holds single sentences and pairs; expected all of one kind")
            yield LabelledText(texts[0], texts[1] if len(texts) > 1 else None, label)


# ------------------------------------------------------------------------------------------------------------ predictor


class TextLogits(SingleStackTextPredictor[Text, Result]):
    """A model with a classification head, which maps a text, or a pair of texts, to logits, and its tokenizer."""

    head = "classification"
    json_input = "a text, or a list of two texts"
    read_table = staticmethod(read_text_inputs)

    @staticmethod
    def read_line(line: str) -> Text:
        """Return a text, or the two texts of a line with a tab between them."""
        first, tab, second = line.partition("\t")
        return (first, second) if tab else line

    @classmethod
    def read_json(cls, value: object) -> Text:
        """Return a text, or a pair of texts."""
        match value:
            case [str(first), str(second)]:
                return first, second
        return super().read_json(value)

    def logits(self, texts: Text | Iterable[Text], batch_size: int) -> Float[Tensor, "texts classes"]:
        """Return the logits of each text, or of each pair of texts, in float32.

        A text longer than the model's maximum loses its end, with a warning; of a pair, the longer text does. Raises
        GlocalError where some inputs are pairs and some are not, and where the model has no classifier.
        """
        require_classes(self.model)
        logits = self.map_batches(texts, lambda batch: self.model(**batch), batch_size)
        return torch.stack(logits) if logits else torch.zeros(0, self.model.config.num_classes)


class TextClassifier(Classifier, TextLogits[Probabilities]):
    """A model with a classifier, its tokenizer and the names of its classes."""

    def predict(self, texts: Text | Iterable[Text], top: int = 5, batch_size: int = 32) -> list[Probabilities]:
        """Return the `top` labels of each text, or of each pair of texts, which is a tuple, in the order given."""
        return most_probable(self.logits(texts, batch_size), label_names(self.model).__getitem__, top)


# ----------------------------------------------------------------------------------------------------------------- test


def format_test(metrics: Metrics, run: RunFolder) -> Iterator[str]:
    """Yield the scores of each class and of all together."""
    yield f"{metrics['examples']} test texts"
    yield from format_classes(metrics, run)


TEXT_CLASSIFICATION = TaskSpec(
    name="text-classification",
    description="texts, or pairs of texts → a class",
    data=TextClassificationDataConfig,
    config=ClassificationConfig,
    open_data=open_data,
    objective=lambda config, data, teacher: ClassificationObjective(config, len(data.labels), teacher),
    predictor=TextClassifier,
    needs_pretrained=True,
    further_metrics=draw_confusion,
    format_test=format_test,
)
