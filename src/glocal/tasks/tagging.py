"""A tag for every word, and the entities that the tags spell.

    Tjong Kim Sang and De Meulder 2003, *Introduction to the CoNLL-2003 Shared Task*
    https://aclanthology.org/W03-0419

An entity is right if its type and both its ends are (section 2.3). What entities a row of tags spells, in IOB1, IOB2 or
BIOES, seqeval says as the shared task's own script conlleval does.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection

from glocal.data.text.labelled.tagged import spell_entities
from glocal.ops import IGNORED
from glocal.tasks.metrics import Accuracy, MeanCrossEntropy
from glocal.tasks.tokens import TokenTask, inputs


@dataclass(frozen=True)
class TaggingConfig:
    """What is asked of a tagger."""

    name: Literal["tagging"] = "tagging"
    """The kind of task, by which a recipe knows its sections."""


class Tagging(TokenTask):
    """The objective: `labels` (B, N) are indices of `tags` at each word's first token, -100 elsewhere.

    Tags other than O, B-..., I-..., E-... and S-... spell no entities (parts of speech do not): words alone are judged.
    B, I, E and S without a kind spell entities of the type _.
    """

    def __init__(self, tags: Sequence[str]) -> None:
        self.tags = list(tags)
        self.types = entity_types(self.tags)
        """Kinds of entities, in the order of the metric `by_type`."""

    def answers(
        self, model: nn.Module, batch: dict[str, Tensor]
    ) -> tuple[Float[Tensor, "batch tokens tags"], Int[Tensor, "batch tokens"]]:
        """Logits and labels of all tokens: a row is a sentence, in which an entity ends."""
        return model(**inputs(batch)), batch["labels"]

    def metrics(self) -> MetricCollection:
        """Fresh metrics, to be updated by `answers`, which add up exactly over ranks.

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
        """The entities' F1 decides which weights are the best; accuracy, where there are no entities."""
        return metrics["f1"] if self.types else metrics["accuracy"]


class EntityScores(Metric):
    """Precision, recall and F1 of entities, from counts of them, which add up over batches and ranks."""

    full_state_update = False
    found: Tensor
    """Entities of each type that are there and were told."""
    told: Tensor
    there: Tensor

    def __init__(self, tags: Sequence[str]) -> None:
        super().__init__()
        self.tags, self.types = list(tags), entity_types(tags)
        for name in ("found", "told", "there"):
            self.add_state(name, torch.zeros(len(self.types), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, logits: Float[Tensor, "batch tokens tags"], labels: Int[Tensor, "batch tokens"]) -> None:
        """Add sentences."""
        real = labels != IGNORED
        told, there = (self.entities(tags.cpu(), real.cpu()) for tags in (logits.argmax(dim=-1), labels))
        self.found += self.count(told & there)
        self.told += self.count(told)
        self.there += self.count(there)

    def entities(
        self, tags: Int[Tensor, "batch tokens"], real: Bool[Tensor, "batch tokens"]
    ) -> set[tuple[str, int, int]]:
        """Type, first and last word of each, the sentences' words numbered through."""
        from seqeval.metrics.sequence_labeling import get_entities  # it brings scikit-learn: a second and a half

        sentences = [[self.tags[tag] for tag in row[words].tolist()] for row, words in zip(tags, real, strict=True)]
        return set(get_entities(sentences))

    def count(self, entities: set[tuple[str, int, int]]) -> Int[Tensor, " types"]:
        """How many there are of each type."""
        counts = Counter(kind for kind, _, _ in entities)
        return torch.tensor([counts[kind] for kind in self.types], device=self.found.device)

    def compute(self) -> dict[str, Float[Tensor, "..."]]:
        """Of all sentences; 0 where undefined."""
        precision, recall, f1 = scores(self.found.sum(), self.told.sum(), self.there.sum())
        by_type = scores(self.found, self.told, self.there).T
        return {"precision": precision, "recall": recall, "f1": f1, "by_type": by_type}


def scores(
    found: Int[Tensor, "*types"], told: Int[Tensor, "*types"], there: Int[Tensor, "*types"]
) -> Float[Tensor, "3 *types"]:
    """Precision, recall and their harmonic mean."""
    return torch.stack([found / told, found / there, 2 * found / (told + there)]).nan_to_num(0.0)


def entity_types(tags: Sequence[str]) -> list[str]:
    """Kinds of entities that tags can spell, none where they are no tags of entities."""
    return sorted({tag[2:] or "_" for tag in tags if tag != "O"}) if spell_entities(tags) else []
