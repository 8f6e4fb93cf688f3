"""Token classification: a tag for each word of a sentence, and the entities that the tags mark.

    Tjong Kim Sang and De Meulder 2003, *Introduction to the CoNLL-2003 Shared Task*
    https://aclanthology.org/W03-0419

A predicted entity is correct if its type, its first word and its last word are correct (section 2.3). seqeval
extracts entities from tags in the scheme IOB1, IOB2 or BIOES, by the rules of the shared task's script conlleval.
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
from glocal.data.dataset import TokenDataset, open_splits
from glocal.data.encoding import Row, WordWindow, encode_words
from glocal.data.files import TABLES
from glocal.data.text_config import TextDataConfig
from glocal.data.text_sources import ReadingCache, examples_of
from glocal.data.tokenizer import Tokenizer
from glocal.errors import printable, shortened
from glocal.models import Model
from glocal.ops import IGNORED
from glocal.tasks.objective import Accuracy, MeanCrossEntropy, TokenObjective, model_inputs
from glocal.tasks.predictor import label_names, split_list, trained_labels
from glocal.tasks.spec import TaskData, TaskSpec, TestRun
from glocal.tasks.text_predictor import SingleStackTextPredictor, read_inputs
from glocal.training.interfaces import Batch, Metrics
from glocal.training.run import RunFolder

# ----------------------------------------------------------------------------------------------------------------- data


@dataclass(frozen=True)
class TokenClassificationDataConfig(TextDataConfig):
    """The config of the data: sentences of words, and the tag of each word.

    `source` is a file in CoNLL's column format, or a folder of such files. Each line begins with a word and
    ends with its tag. A blank line ends a sentence. One of more than `max_length` tokens is cut into several rows.
    """


def open_data(
    config: TokenClassificationDataConfig,
    run: Path | None = None,
    tokenizer: Tokenizer | None = None,
    model: Model | None = None,
) -> TokenDataset[conll.TaggedWords]:
    """Open tagged sentences (see `TaskSpec.open_data`); tags of entities are converted to O, B-TYPE and I-TYPE.

    Batches hold `input_ids`, `attention_mask`, `token_type_ids` and `labels`, each (B, N). In `labels`, the first token
    of a word has the index of the word's tag, and every other token has -100.
    """
    assert tokenizer is not None
    cache = ReadingCache.of(run, config.source, config)
    examples = examples_of(
        config.source, conll.EXTENSIONS, conll.read_tagged, "sentences", testing=model is not None, reading_cache=cache
    )
    tags = conll.all_tags(examples.read(examples.splits["train"])) if model is None else trained_labels(model, least=2)
    conll.check_tags(tags, examples.read(), config.source)
    tag_ids = {tag: index for index, tag in enumerate(tags)}

    def encode(sentences: Sequence[conll.TaggedWords]) -> Encoded:
        windows_of_sentences = encode_words(tokenizer, [sentence.words for sentence in sentences], config.max_length)
        rows_of_sentences: list[list[Row]] = []
        for sentence, windows in zip(sentences, windows_of_sentences, strict=True):
            rows = []
            for window in windows:
                labels = np.full(len(window.row["input_ids"]), IGNORED, dtype=np.int32)
                labels[window.starts] = [tag_ids[sentence.tags[word]] for word in window.word_indices]
                rows.append(window.row | {"labels": labels})
            rows_of_sentences.append(rows)
        return Encoded(rows_of_sentences, {"cut_into_windows": sum(len(rows) > 1 for rows in rows_of_sentences)})

    splits = open_splits(examples, config, run)
    return TokenDataset(config, examples, splits, tokenizer, encode, run, unit="sentences", labels=tags)


# ------------------------------------------------------------------------------------------------------------ objective


@dataclass(frozen=True)
class TokenClassificationConfig:
    """The task of tagging words."""

    name: Literal["token-classification"] = "token-classification"
    """The task, which decides the fields of the sections `data` and `task`."""


class TokenClassificationObjective(TokenObjective):
    """Cross entropy of each word's tag; precision, recall and F1 of the entities.

    Tags other than O, B-..., I-..., E-... and S-..., such as parts of speech, mark no entities; then only words are
    scored. B, I, E and S without a type mark entities of the type `_`.
    """

    def __init__(self, tags: Sequence[str]) -> None:
        self.tags = list(tags)
        self.types = conll.entity_types(self.tags)
        """Types of entities, in the order of the metric `by_type`."""

    def predictions_and_targets(
        self, model: nn.Module, batch: Batch
    ) -> tuple[Float[Tensor, "batch tokens tags"], Int[Tensor, "batch tokens"]]:
        """Return the logits and labels of all tokens."""
        return model(**model_inputs(batch)), batch["labels"]

    def metrics(self) -> MetricCollection:
        """Return fresh metrics.

        Of words: `loss` in nats, and `accuracy`. Of entities: `precision`, `recall` and `f1` over all types together,
        and `by_type`, a row of the three for each type.
        """
        metrics: dict[str, Metric | MetricCollection] = {"loss": MeanCrossEntropy(), "accuracy": Accuracy()}
        if self.types:
            metrics["entities"] = EntityScores(self.tags)
        return MetricCollection(metrics, compute_groups=False)  # no merging of metrics with equal states

    def score(self, metrics: Metrics) -> float:
        """Return the entities' F1, or the words' accuracy if the tags do not mark entities."""
        return metrics["f1"] if self.types else metrics["accuracy"]


class EntityScores(Metric):
    """Precision, recall and F1 of entities, from counts that add up over batches and processes."""

    full_state_update = False
    correct: Tensor
    """Correctly predicted entities of each type."""
    predicted: Tensor
    """Predicted entities of each type."""
    gold: Tensor
    """Labelled entities of each type."""

    def __init__(self, tags: Sequence[str]) -> None:
        super().__init__()
        self.tags, self.types = list(tags), conll.entity_types(tags)
        for name in ("correct", "predicted", "gold"):
            self.add_state(name, torch.zeros(len(self.types), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, logits: Float[Tensor, "batch tokens tags"], labels: Int[Tensor, "batch tokens"]) -> None:
        """Add a batch of sentences."""
        first_of_word = (labels != IGNORED).cpu()
        predicted = self.entities(logits.argmax(dim=-1).cpu(), first_of_word)
        gold = self.entities(labels.cpu(), first_of_word)
        self.correct += self.count(predicted & gold)
        self.predicted += self.count(predicted)
        self.gold += self.count(gold)

    def entities(
        self, tag_ids: Int[Tensor, "batch tokens"], first_of_word: Bool[Tensor, "batch tokens"]
    ) -> set[tuple[str, int, int]]:
        """Return the type, the first and the last word of each entity; words are numbered across the batch."""
        sentences = []
        for ids, is_first in zip(tag_ids, first_of_word, strict=True):
            sentences.append([self.tags[tag_id] for tag_id in ids[is_first].tolist()])
        return set(conll.find_entities(sentences))

    def count(self, entities: set[tuple[str, int, int]]) -> Int[Tensor, " types"]:
        """Count entities by type."""
        counts = Counter(entity_type for entity_type, _, _ in entities)
        return torch.tensor([counts[entity_type] for entity_type in self.types], device=self.correct.device)

    def compute(self) -> dict[str, Float[Tensor, "..."]]:
        """Return the scores over all sentences; 0 where undefined."""
        precision, recall, f1 = precision_recall_f1(self.correct.sum(), self.predicted.sum(), self.gold.sum())
        by_type = precision_recall_f1(self.correct, self.predicted, self.gold).T
        return {"precision": precision, "recall": recall, "f1": f1, "by_type": by_type}


def precision_recall_f1(
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
    """Index of the first word in the sentence, from 0."""
    end: int
    """Index of the word after the last."""
    score: float
    """Mean probability of the words' tags."""


class TokenClassifier(SingleStackTextPredictor[str | Sequence[str], list[Entity]]):
    """A model that tags words, and its tokenizer."""

    head = "tagging"
    json_key = "entities"
    json_input = "a sentence: a text, or a list of words"
    options = ()
    table_extensions = (*conll.COLUMN_EXTENSIONS, *TABLES)
    read_table = staticmethod(conll.read_words)

    @classmethod
    def read_json(cls, value: object) -> str | Sequence[str]:
        """Return a text, or a list of words."""
        if isinstance(value, list) and all(isinstance(word, str) for word in value):
            return value
        return super().read_json(value)

    def predict(self, sentences: str | Iterable[str | Sequence[str]], batch_size: int = 32) -> list[list[Entity]]:
        """Return the entities of each sentence; a sentence is a text, which is split into words, or a list of words.

        Entities without a type have the type `_`. If the tags mark no entities, such as parts of speech, every word
        is returned with its tag as the type. A sentence longer than the model's maximum is tagged in parts.
        """
        given = read_inputs(sentences, allow_word_lists=True)
        word_lists = [conll.split_words(item) if isinstance(item, str) else list(item) for item in given]
        limit = self.model.config.max_length
        windows = [encode_words(self.tokenizer, [words], limit)[0] if words else [] for words in word_lists]
        rows = [window.row for sentence_windows in windows for window in sentence_windows]
        logits = self.run_batches(rows, batch_size, lambda batch: self.model(**batch))
        return list(map(self._entities, word_lists, windows, split_list(logits, map(len, windows))))

    def encode_texts(self, texts: object) -> list[Row]:
        """Return the inputs that `features` gives to the model; a list of words is joined by spaces."""
        sentences = read_inputs(texts, allow_word_lists=True)
        return super().encode_texts([text if isinstance(text, str) else " ".join(text) for text in sentences])

    @staticmethod
    def format(given: str, result: Sequence[Entity]) -> str:
        """Return the entities with their types and probabilities, on one line."""
        found = (f"{printable(entity.text)} {printable(entity.type)} {entity.score:.1%}" for entity in result)
        return "  ".join(found) or f"{printable(given)}  no entity"

    @staticmethod
    def to_json(result: Sequence[Entity]) -> list[dict[str, object]]:
        """Return the fields of each entity."""
        return list(map(asdict, result))

    def _entities(self, words: Sequence[str], windows: Sequence[WordWindow], logits: Sequence[Tensor]) -> list[Entity]:
        """Return the entities of a sentence, given its windows and the logits (tokens, tags) of each window."""
        if not words:
            return []
        word_logits = torch.cat([tokens[window.starts] for window, tokens in zip(windows, logits, strict=True)])
        probabilities, tag_ids = word_logits.softmax(dim=-1).max(dim=-1)
        labels = label_names(self.model)
        tags = [labels[tag_id] for tag_id in tag_ids.tolist()]
        marked = conll.are_entity_tags(labels)
        found = conll.find_entities(tags) if marked else [(tag, i, i) for i, tag in enumerate(tags)]
        entities = []
        for entity_type, first, last in found:
            text, score = " ".join(words[first : last + 1]), probabilities[first : last + 1].mean().item()
            entities.append(Entity(text, entity_type, first, last + 1, score))
        return entities


# ----------------------------------------------------------------------------------------------------------------- test


def entity_types_metric(test: TestRun[TaskData, object]) -> Metrics:
    """Return the types of entities, which name the rows of the metric `by_type` in the report."""
    return {"types": conll.entity_types(test.data.labels)}


def format_test(metrics: Metrics, run: RunFolder) -> Iterator[str]:
    """Yield the words' accuracy, and, if the tags mark entities, a line for each type and one for all."""
    yield f"{metrics['examples']} test sentences, {metrics['accuracy']:.2%} of their words tagged correctly"
    if metrics["types"]:
        width = max(14, *(len(shortened(entity_type, 40)) + 2 for entity_type in metrics["types"]))
        yield f"{'entities':{width}}precision   recall       F1"
        overall = [metrics[name] for name in ("precision", "recall", "f1")]
        for entity_type, row in zip([*metrics["types"], "all"], [*metrics["by_type"], overall], strict=True):
            yield f"{shortened(entity_type, 40):{width}}" + "".join(f"{100 * score:9.2f}" for score in row)


TOKEN_CLASSIFICATION = TaskSpec(
    name="token-classification",
    description="sentences → a tag for each word, and entities",
    data=TokenClassificationDataConfig,
    config=TokenClassificationConfig,
    open_data=open_data,
    objective=lambda config, data, teacher: TokenClassificationObjective(data.labels),
    predictor=TokenClassifier,
    needs_pretrained=True,
    further_metrics=entity_types_metric,
    format_test=format_test,
)
