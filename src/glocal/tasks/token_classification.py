"""Token classification: a tag for every word of a sentence, and the entities that the tags mark.

    Tjong Kim Sang and De Meulder 2003, *Introduction to the CoNLL-2003 Shared Task*
    https://aclanthology.org/W03-0419

An entity counts as found if its type and both its ends are right (section 2.3). Which entities a row of tags marks, in
IOB1, IOB2 or BIOES, is decided by seqeval as the shared task's own script conlleval decides it.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from tokenizers import Regex
from tokenizers.pre_tokenizers import Split
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection

from glocal.data.conll import COLUMNS, ENTITY, KINDS, TaggedWords, read_tagged, read_words, spell_entities
from glocal.data.dataset import Encoded, TokenDataset, settle_splits
from glocal.data.encoding import Row, encode_words
from glocal.data.files import TABLES, compose
from glocal.data.text_config import TextDataConfig
from glocal.data.text_sources import Kept, examples_of
from glocal.data.tokenizer import Tokenizer
from glocal.errors import GlocalError, printable, shortened
from glocal.models import Model
from glocal.ops import IGNORED
from glocal.tasks.objective import Accuracy, MeanCrossEntropy, TokenObjective, inputs
from glocal.tasks.predictor import TextReader, label_names, read_texts
from glocal.tasks.spec import Metrics, TaskSpec, TestRun
from glocal.training.run import RunFolder

# ----------------------------------------------------------------------------------------------------------------- data


@dataclass(frozen=True)
class TokenClassificationData(TextDataConfig):
    """Sentences of words, and the tag of each word.

    `source` is a file of columns as CoNLL's, or a folder of them: a word a line, which begins with the word and ends
    with its tag, in the scheme IOB1, IOB2 or BIOES, and a blank line between sentences. A longer sentence is cut into
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
    kept = Kept.of(run, config.source, config)
    examples = examples_of(config.source, KINDS, read_tagged, "sentences", testing=model is not None, kept=kept)
    tags = list(model.labels or []) if model else find_tags(examples.read(examples.splits["train"]))
    if len(tags) < 2:
        raise GlocalError(f"{config.source} holds one tag only ({tags[0]}); expected two or more to tell apart")
    numbers = {tag: number for number, tag in enumerate(tags)}
    for item in examples.read():
        for word, tag in zip(item.words, item.tags, strict=True):
            if tag not in numbers:
                raise GlocalError(
                    f"tag {tag[:40]!r} of {word[:40]!r} in {config.source} is none of training: {', '.join(tags)}"
                )

    def encode(items: Sequence[TaggedWords]) -> Encoded:
        windows = encode_words(tokenizer, [item.words for item in items], config.max_length)
        rows: list[list[Row]] = []
        for item, cut in zip(items, windows, strict=True):
            rows.append([])
            for window in cut:
                labels = np.full(len(window.row["input_ids"]), IGNORED, dtype=np.int32)
                labels[window.starts] = [numbers[item.tags[word]] for word in window.words]
                rows[-1].append(window.row | {"labels": labels})
        return Encoded(rows, {"cut": sum(len(cut) > 1 for cut in windows)})

    splits = settle_splits(examples, config, run)
    return TokenDataset(config, examples, splits, tokenizer, encode, run, unit="sentences", labels=tags)


def find_tags(sentences: Iterable[TaggedWords]) -> list[str]:
    """Return O, and B- and I- of each type of entity; other tags, such as parts of speech, stay as they are."""
    tags = {tag for sentence in sentences for tag in sentence.tags}
    types = sorted({tag[1:] for tag in tags if ENTITY.fullmatch(tag)}) if spell_entities(tags) else []
    return ["O", *(f"{begun}{kind}" for kind in types for begun in "BI")] if types else sorted(tags)


# ------------------------------------------------------------------------------------------------------------ objective


@dataclass(frozen=True)
class TokenClassificationConfig:
    """The task of tagging words."""

    name: Literal["token-classification"] = "token-classification"
    """The task, by which a recipe knows its sections."""


class TokenClassification(TokenObjective):
    """Cross entropy of each word's tag; precision, recall and F1 of the entities.

    Tags other than O, B-..., I-..., E-... and S-... (parts of speech) mark no entities: only words are scored then. B,
    I, E and S without a type mark entities of the type _.
    """

    def __init__(self, tags: Sequence[str]) -> None:
        self.tags = list(tags)
        self.types = entity_types(self.tags)
        """Types of entities, in the order of the metric `by_type`."""

    def predictions_and_targets(
        self, model: nn.Module, batch: dict[str, Tensor]
    ) -> tuple[Float[Tensor, "batch tokens tags"], Int[Tensor, "batch tokens"]]:
        """Return the logits and labels of all tokens."""
        return model(**inputs(batch)), batch["labels"]

    def metrics(self) -> MetricCollection:
        """Return fresh metrics.

        Of words: `loss` in nats, and `accuracy`. Of entities: `precision`, `recall` and `f1` over all types together,
        and `by_type`, a row of the three for each type.
        """
        options: dict[str, Any] = {"nan_strategy": "disable"}
        metrics: dict[str, Metric | MetricCollection] = {
            "loss": MeanCrossEntropy(**options),
            "accuracy": Accuracy(**options),
        }
        if self.types:
            metrics["entities"] = EntityScores(self.tags)
        return MetricCollection(metrics, compute_groups=[[name] for name in metrics])

    def score(self, metrics: dict[str, Any]) -> float:
        """Return the entities' F1; where there are no entities, the words' accuracy."""
        return metrics["f1"] if self.types else metrics["accuracy"]


class EntityScores(Metric):
    """Precision, recall and F1 of entities, from counts, which add up over batches and ranks."""

    full_state_update = False
    correct: Tensor
    """Predicted entities that are right, for each type."""
    predicted: Tensor
    gold: Tensor

    def __init__(self, tags: Sequence[str]) -> None:
        super().__init__()
        self.tags, self.types = list(tags), entity_types(tags)
        for name in ("correct", "predicted", "gold"):
            self.add_state(name, torch.zeros(len(self.types), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, logits: Float[Tensor, "batch tokens tags"], labels: Int[Tensor, "batch tokens"]) -> None:
        """Add sentences, a row each."""
        real = (labels != IGNORED).cpu()
        predicted = self.entities(logits.argmax(dim=-1).cpu(), real)
        gold = self.entities(labels.cpu(), real)
        self.correct += self.count(predicted & gold)
        self.predicted += self.count(predicted)
        self.gold += self.count(gold)

    def entities(
        self, tags: Int[Tensor, "batch tokens"], real: Bool[Tensor, "batch tokens"]
    ) -> set[tuple[str, int, int]]:
        """Return the type, the first and the last word of each; words are numbered through all sentences."""
        from seqeval.metrics.sequence_labeling import get_entities  # imports scikit-learn: a second and a half

        sentences = [[self.tags[tag] for tag in row[words].tolist()] for row, words in zip(tags, real, strict=True)]
        return set(get_entities(sentences))

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


def entity_types(tags: Sequence[str]) -> list[str]:
    """Return the types of entities that tags can mark; none where they are no tags of entities."""
    return sorted({tag[2:] or "_" for tag in tags if tag != "O"}) if spell_entities(tags) else []


# ------------------------------------------------------------------------------------------------------------ predictor

WORDS = Split(
    Regex(
        r"[\p{L}\p{M}\p{N}_](?:[\p{L}\p{M}\p{N}_.,'’/\x{200C}\x{200D}-]*[\p{L}\p{M}\p{N}_])?[\x{200C}\x{200D}]*"
        r"|(?![\s\p{Cc}\p{Cf}])\X"
    ),
    "removed",
    invert=True,
)
"""Splits a text into words and single other characters, each with its combining marks and joiners."""


@dataclass(frozen=True)
class Entity:
    """Words of a sentence that name something."""

    text: str
    """The words."""
    type: str
    """The type in the model's tags: PER, LOC, ..."""
    start: int
    """Number of the first word in the sentence, from 0."""
    end: int
    """Number of the word after the last."""
    score: float
    """Mean probability of the words' tags."""


class TokenClassifier(TextReader):
    """A model that tags words, and its tokenizer."""

    head = "tagging"
    json_key = "entities"
    json_input = "a sentence: a text, or a list of words"
    options = ()
    tables = (*COLUMNS, *TABLES)
    read_table = staticmethod(read_words)

    @classmethod
    def read_json(cls, value: object) -> str | list[str]:
        """Return a text, or a list of words."""
        if isinstance(value, list) and all(isinstance(word, str) for word in value):
            return value
        return super().read_json(value)

    def predict(self, sentences: str | Iterable[str | Sequence[str]], batch_size: int = 32) -> list[list[Entity]]:
        """Return the entities of each sentence; a sentence is a text, which is split into words, or a list of words.

        Tags are read as CoNLL-2000's script reads them, in any of the schemes IOB1, IOB2 and BIOES. Entities without a
        type are of the type _; where the tags mark no entities (parts of speech), every word is returned. A sentence
        longer than the model's maximum is tagged in parts.
        """
        sentences = read_texts(sentences, parts=(0,))
        given = [self.words(each) if isinstance(each, str) else list(each) for each in sentences]
        limit = self.model.config.max_length
        windows = [encode_words(self.tokenizer, [words], limit)[0] if words else [] for words in given]
        rows = [window.row for of in windows for window in of]
        logits = iter(self.run_batches(rows, batch_size, lambda batch: self.model(**batch)))
        return [
            self._entities(words, [next(logits)[window.starts] for window in of])
            for words, of in zip(given, windows, strict=True)
        ]

    def encode_texts(self, texts: Any) -> list[Row]:
        """Return the tokens of each sentence, which is a text or a list of words."""
        sentences = read_texts(texts, parts=(0,))
        return super().encode_texts([each if isinstance(each, str) else " ".join(each) for each in sentences])

    @staticmethod
    def words(sentence: str) -> list[str]:
        """Split a sentence as corpora are split: punctuation by itself, except inside U.S, 3,000 and Jean-Luc.

        Accents are composed (Unicode NFC); combining marks and joiners belong to their word.
        """
        return [word for word, _ in WORDS.pre_tokenize_str(compose(sentence))]

    @staticmethod
    def format(given: str, result: Sequence[Entity]) -> str:
        """Return the entities with their types and probabilities, on one line."""
        found = (f"{printable(each.text)} {printable(each.type)} {each.score:.1%}" for each in result)
        return "  ".join(found) or f"{printable(given)}  no entity"

    @staticmethod
    def to_json(result: Sequence[Entity]) -> list[dict[str, Any]]:
        """Return the fields of each entity."""
        return list(map(asdict, result))

    def _entities(self, words: Sequence[str], logits: Sequence[Float[Tensor, "_words tags"]]) -> list[Entity]:
        """Read the tags of a sentence, whose logits may come in parts."""
        from seqeval.metrics.sequence_labeling import get_entities  # imports scikit-learn: a second and a half

        if not words:
            return []
        best, numbers = torch.cat(list(logits)).softmax(dim=-1).max(dim=-1)
        labels = label_names(self.model)
        tags = [labels[number] for number in numbers.tolist()]
        found = get_entities(tags) if spell_entities(labels) else [(tag, word, word) for word, tag in enumerate(tags)]
        return [
            Entity(" ".join(words[first : last + 1]), kind, first, last + 1, best[first : last + 1].mean().item())
            for kind, first, last in found
        ]


# ----------------------------------------------------------------------------------------------------------------- test


def evaluate_answers(test: TestRun) -> Metrics:
    """Return the types of entities, in the order of `by_type`."""
    return {"types": entity_types(test.data.labels)}


def format_test(test: Metrics, run: RunFolder) -> Iterator[str]:
    """Yield a line for each type of entity and one for all; for other tags, the words' accuracy alone."""
    yield f"{test['examples']} test sentences, {test['accuracy']:.2%} of their words tagged right"
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
    evaluate_answers=evaluate_answers,
    format_test=format_test,
)
