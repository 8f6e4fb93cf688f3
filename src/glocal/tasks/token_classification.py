"""Token classification: a tag for each word of a sentence, and the entities that the tags mark.

    Tjong Kim Sang and De Meulder 2003, *Introduction to the CoNLL-2003 Shared Task*
    https://aclanthology.org/W03-0419

A predicted entity is correct if its type, its first word and its last word are correct (section 2.3). seqeval finds the
entities that tags of IOB1, IOB2 or BIOES mark, by the rules of the shared task's script conlleval.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection

from glocal.data import conll
from glocal.data.columns import Encoded
from glocal.data.conll import TaggedWords, entity_types
from glocal.data.dataset import TokenDataset, open_splits
from glocal.data.encoding import Row, encode_words
from glocal.data.files import TABLES
from glocal.data.text_config import TextDataConfig
from glocal.data.text_sources import ReadingCache, examples_of
from glocal.data.tokenizer import Tokenizer
from glocal.errors import GlocalError, printable, shortened
from glocal.models import Model
from glocal.ops import IGNORED
from glocal.tasks.objective import Accuracy, MeanCrossEntropy, TokenObjective, inputs
from glocal.tasks.predictor import label_names
from glocal.tasks.spec import TaskData, TaskSpec, TestRun
from glocal.tasks.text_predictor import TextReader, read_inputs
from glocal.training.interfaces import Batch, Metrics
from glocal.training.run import RunFolder

# ----------------------------------------------------------------------------------------------------------------- data


@dataclass(frozen=True)
class TokenClassificationData(TextDataConfig):
    """Sentences of words, and the tag of each word.

    `source` is a file of columns as CoNLL's, or a folder of them. Each line begins with a word and ends with its tag,
    in the scheme IOB1, IOB2 or BIOES; a blank line separates sentences. A sentence longer than `max_length` becomes
    several rows.
    """


def open_data(
    config: TokenClassificationData,
    run: Path | None = None,
    tokenizer: Tokenizer | None = None,
    model: Model | None = None,
) -> TokenDataset[TaggedWords]:
    """Open tagged sentences (see `TaskSpec.open_data`); the tags are O, and B- and I- of each type of entity.

    Batches hold `input_ids`, `attention_mask`, `token_type_ids` and `labels`, each (B, N): the first token of a word
    has the word's tag, every other token -100.
    """
    assert tokenizer is not None
    reading_cache = ReadingCache.of(run, config.source, config)
    testing = model is not None
    examples = examples_of(
        config.source, conll.KINDS, conll.read_tagged, "sentences", testing=testing, reading_cache=reading_cache
    )
    tags = list(model.labels or []) if model else conll.all_tags(examples.read(examples.splits["train"]))
    if len(tags) < 2:
        raise GlocalError(f"{config.source} holds one tag only ({tags[0]}); expected two or more")
    tag_ids = {tag: number for number, tag in enumerate(tags)}
    for word, tag in (pair for item in examples.read() for pair in zip(item.words, item.tags, strict=True)):
        if tag not in tag_ids:
            raise GlocalError(
                f"tag {tag[:40]!r} of {word[:40]!r} in {config.source} is not one of the training tags: "
                f"{', '.join(tags)}"
            )

    def encode(items: Sequence[TaggedWords]) -> Encoded:
        windows = encode_words(tokenizer, [item.words for item in items], config.max_length)
        rows: list[list[Row]] = []
        for item, parts in zip(items, windows, strict=True):
            rows.append([])
            for window in parts:
                labels = np.full(len(window.row["input_ids"]), IGNORED, dtype=np.int32)
                labels[window.starts] = [tag_ids[item.tags[word]] for word in window.words]
                rows[-1].append(window.row | {"labels": labels})
        return Encoded(rows, {"cut": sum(len(parts) > 1 for parts in windows)})

    splits = open_splits(examples, config, run)
    return TokenDataset(config, examples, splits, tokenizer, encode, run, unit="sentences", labels=tags)


# ------------------------------------------------------------------------------------------------------------ objective


@dataclass(frozen=True)
class TokenClassificationConfig:
    """The task of tagging words."""

    name: Literal["token-classification"] = "token-classification"
    """The task, which decides the fields of the sections `data` and `task`."""


class TokenClassification(TokenObjective):
    """Cross entropy of each word's tag; precision, recall and F1 of the entities.

    Tags other than O, B-..., I-..., E-... and S-..., such as parts of speech, mark no entities; then only words are
    scored. B, I, E and S without a type mark entities of the type `_`.
    """

    def __init__(self, tags: Sequence[str]) -> None:
        self.tags = list(tags)
        self.types = entity_types(self.tags)
        """Types of entities, in the order of the metric `by_type`."""

    def predictions_and_targets(
        self, model: nn.Module, batch: Batch
    ) -> tuple[Float[Tensor, "batch tokens tags"], Int[Tensor, "batch tokens"]]:
        """Return the logits and labels of all tokens."""
        return model(**inputs(batch)), batch["labels"]

    def metrics(self) -> MetricCollection:
        """Return fresh metrics.

        Of words: `loss` in nats, and `accuracy`. Of entities: `precision`, `recall` and `f1` over all types together,
        and `by_type`, a row of the three for each type.
        """
        metrics: dict[str, Metric | MetricCollection] = {"loss": MeanCrossEntropy(), "accuracy": Accuracy()}
        if self.types:
            metrics["entities"] = EntityScores(self.tags)
        return MetricCollection(metrics, compute_groups=[[name] for name in metrics])

    def score(self, metrics: Metrics) -> float:
        """Return the entities' F1; where there are no entities, the words' accuracy."""
        return metrics["f1"] if self.types else metrics["accuracy"]


class EntityScores(Metric):
    """Precision, recall and F1 of entities, from counts that add up over batches and processes."""

    full_state_update = False
    correct: Tensor
    predicted: Tensor
    gold: Tensor
    """Correct predictions, all predictions, and labelled entities: the number of each type."""

    def __init__(self, tags: Sequence[str]) -> None:
        super().__init__()
        self.tags, self.types = list(tags), entity_types(tags)
        for name in ("correct", "predicted", "gold"):
            self.add_state(name, torch.zeros(len(self.types), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, logits: Float[Tensor, "batch tokens tags"], labels: Int[Tensor, "batch tokens"]) -> None:
        """Add a batch of sentences."""
        labelled = (labels != IGNORED).cpu()
        predicted = self.entities(logits.argmax(dim=-1).cpu(), labelled)
        gold = self.entities(labels.cpu(), labelled)
        self.correct += self.count(predicted & gold)
        self.predicted += self.count(predicted)
        self.gold += self.count(gold)

    def entities(
        self, tags: Int[Tensor, "batch tokens"], labelled: Bool[Tensor, "batch tokens"]
    ) -> set[tuple[str, int, int]]:
        """Return the type, the first and the last word of each entity; words are numbered over all sentences."""
        rows = zip(tags, labelled, strict=True)
        return set(conll.find_entities([[self.tags[tag] for tag in row[words].tolist()] for row, words in rows]))

    def count(self, entities: set[tuple[str, int, int]]) -> Int[Tensor, " types"]:
        """Count entities by type."""
        counts = Counter(kind for kind, _, _ in entities)
        return torch.tensor([counts[kind] for kind in self.types], device=self.correct.device)

    def compute(self) -> dict[str, Float[Tensor, "..."]]:
        """Return the scores over all sentences; 0 where undefined."""
        precision, recall, f1 = scores(self.correct.sum(), self.predicted.sum(), self.gold.sum())
        by_type = scores(self.correct, self.predicted, self.gold).T
        return {"precision": precision, "recall": recall, "f1": f1, "by_type": by_type}


def scores(
    correct: Int[Tensor, "*types"], predicted: Int[Tensor, "*types"], gold: Int[Tensor, "*types"]
) -> Float[Tensor, "3 *types"]:
    """Return precision, recall and their harmonic mean."""
    return torch.stack([correct / predicted, correct / gold, 2 * correct / (predicted + gold)]).nan_to_num(0.0)


# ------------------------------------------------------------------------------------------------------------ predictor


@dataclass(frozen=True)
class Entity:
    """Consecutive words that name something."""

    text: str
    """The words."""
    type: str
    """The type, as the model's tags name it: PER, LOC, ..."""
    start: int
    """Number of the first word in the sentence, from 0."""
    end: int
    """Number of the word after the last."""
    score: float
    """Mean probability of the words' tags."""


class TokenClassifier(TextReader[str | Sequence[str], list[Entity]]):
    """A model that tags words, and its tokenizer."""

    head = "tagging"
    json_key = "entities"
    json_input = "a sentence: a text, or a list of words"
    options = ()
    tables = (*conll.COLUMNS, *TABLES)
    read_table = staticmethod(conll.read_words)

    @classmethod
    def read_json(cls, value: object) -> str | Sequence[str]:
        """Return a text, or a list of words."""
        if isinstance(value, list) and all(isinstance(word, str) for word in value):
            return value
        return super().read_json(value)

    def predict(self, sentences: str | Iterable[str | Sequence[str]], batch_size: int = 32) -> list[list[Entity]]:
        """Return the entities of each sentence; a sentence is a text, which is split into words, or a list of words.

        Entities without a type have the type `_`. Where the tags mark no entities, such as parts of speech, every word
        is returned with its tag as the type. A sentence longer than the model's maximum is tagged in parts.
        """
        given = [conll.split_words(one) if isinstance(one, str) else list(one) for one in read_inputs(sentences, 0)]
        limit = self.model.config.max_length
        windows = [encode_words(self.tokenizer, [words], limit)[0] if words else [] for words in given]
        rows = [window.row for parts in windows for window in parts]
        logits = iter(self.run_batches(rows, batch_size, lambda batch: self.model(**batch)))
        return [
            self._entities(words, [next(logits)[window.starts] for window in parts])
            for words, parts in zip(given, windows, strict=True)
        ]

    def encode_texts(self, texts: object) -> list[Row]:
        """Return the tokens of each sentence, which is a text or a list of words."""
        sentences = read_inputs(texts, 0)
        return super().encode_texts([one if isinstance(one, str) else " ".join(one) for one in sentences])

    @staticmethod
    def format(given: str, result: Sequence[Entity]) -> str:
        """Return the entities with their types and probabilities, on one line."""
        found = (f"{printable(entity.text)} {printable(entity.type)} {entity.score:.1%}" for entity in result)
        return "  ".join(found) or f"{printable(given)}  no entity"

    @staticmethod
    def to_json(result: Sequence[Entity]) -> list[dict[str, object]]:
        """Return the fields of each entity."""
        return list(map(asdict, result))

    def _entities(self, words: Sequence[str], logits: Sequence[Float[Tensor, "_words tags"]]) -> list[Entity]:
        """Return the entities of a sentence, given the logits of its parts."""
        if not words:
            return []
        probabilities, tag_ids = torch.cat(list(logits)).softmax(dim=-1).max(dim=-1)
        labels = label_names(self.model)
        tags = [labels[tag_id] for tag_id in tag_ids.tolist()]
        if conll.are_entity_tags(labels):
            found = conll.find_entities(tags)
        else:
            found = [(tag, position, position) for position, tag in enumerate(tags)]
        return [
            Entity(
                " ".join(words[first : last + 1]),
                kind,
                first,
                last + 1,
                score=probabilities[first : last + 1].mean().item(),
            )
            for kind, first, last in found
        ]


# ----------------------------------------------------------------------------------------------------------------- test


def evaluate_predictions(test: TestRun[TaskData, object]) -> Metrics:
    """Return the types of entities, in the order of `by_type`."""
    return {"types": entity_types(test.data.labels)}


def format_test(test: Metrics, run: RunFolder) -> Iterator[str]:
    """Yield the words' accuracy, and, where tags mark entities, a line for each type and one for all."""
    yield f"{test['examples']} test sentences, {test['accuracy']:.2%} of their words tagged correctly"
    if test["types"]:
        width = max(14, *(len(shortened(kind, 40)) + 2 for kind in test["types"]))
        yield f"{'entities':{width}}precision   recall       F1"
        overall = [test[name] for name in ("precision", "recall", "f1")]
        for kind, row in zip([*test["types"], "all"], [*test["by_type"], overall], strict=True):
            yield f"{shortened(kind, 40):{width}}" + "".join(f"{100 * score:9.2f}" for score in row)


TOKEN_CLASSIFICATION = TaskSpec(
    name="token-classification",
    description="sentences → a tag for each word, and entities",
    data=TokenClassificationData,
    config=TokenClassificationConfig,
    open_data=open_data,
    objective=lambda config, data, teacher: TokenClassification(data.labels),
    predictor=TokenClassifier,
    head="tagging",
    pretrained=True,
    evaluate_predictions=evaluate_predictions,
    format_test=format_test,
)
