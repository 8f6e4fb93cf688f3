"""Masked language modelling: BERT's pre-training, and the words that a pre-trained BERT predicts for masks.

    Devlin et al. 2018, *BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding*, section 3.1
    https://arxiv.org/abs/1810.04805

The data masks words and pairs segments (see `glocal.data.masked`).
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, cast

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import Metric, MetricCollection

from glocal.data.masked import MaskedDocuments, MaskedLMData
from glocal.data.tokenizer import Tokenizer
from glocal.errors import GlocalError
from glocal.models import Model
from glocal.models.device import Precision
from glocal.ops import IGNORED, cross_entropy
from glocal.tasks.objective import TokenObjective, model_inputs, row_scores
from glocal.tasks.predictor import Probabilities, format_probabilities, most_probable, probabilities_to_json
from glocal.tasks.spec import TaskSpec, TestRun
from glocal.tasks.text_predictor import SingleStackTextPredictor, read_texts
from glocal.training.interfaces import Batch, ExampleScores, Metrics
from glocal.training.run import RunFolder


def open_data(
    config: MaskedLMData, run: Path | None = None, tokenizer: Tokenizer | None = None, model: Model | None = None
) -> MaskedDocuments:
    """Open documents whose words are masked (see `TaskSpec.open_data`)."""
    return MaskedDocuments.open(config, run, tokenizer, testing=model is not None)


# ------------------------------------------------------------------------------------------------------------ objective


@dataclass(frozen=True)
class MaskedLMConfig:
    """The task of predicting masked words."""

    name: Literal["masked-lm"] = "masked-lm"
    """The task, which decides the fields of the sections `data` and `task`."""


class PretrainingModel(Protocol):
    """A model with the two heads of BERT's pre-training."""

    def forward_features(self, **inputs: Tensor) -> Float[Tensor, "batch tokens dim"]:
        """Return the refined tokens."""
        ...

    def mlm_logits(self, x: Float[Tensor, "masked dim"]) -> Float[Tensor, "masked vocab"]:
        """Return the logits of masked words."""
        ...

    def nsp_logits(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch 2"]:
        """Return the logits of whether the second segment follows the first."""
        ...


class MaskedLMObjective(TokenObjective):
    """The sum of two losses (appendix A.2): of the masked words, and of whether the second segment is the next one.

    A batch's `labels` (B, N) are the words at the masked places, -100 elsewhere; `next_sentence_label` (B,) is 0 where
    the second segment follows the first, and may be absent.
    """

    uncompiled = ("heads_loss",)
    """torch.compile would compile these methods anew for each number of masked words."""

    def predictions_and_targets(self, model: nn.Module, batch: Batch) -> tuple[Tensor, ...]:
        """Return logits (M, V) and labels (M,) of the masked words; and logits (B, 2) and labels (B,) of the segments.

        The latter are left out where the batch has no segments.
        """
        bert = cast(PretrainingModel, model)
        return self.heads(model, bert.forward_features(**model_inputs(batch)), batch)

    def loss(self, model: nn.Module, batch: Batch) -> Float[Tensor, " parts"]:
        """Return the mean over the masked words, and the mean over the segments, in nats, computed in float32."""
        bert = cast(PretrainingModel, model)
        return self.heads_loss(model, bert.forward_features(**model_inputs(batch)), batch)

    def heads(self, model: nn.Module, x: Float[Tensor, "batch tokens dim"], batch: Batch) -> tuple[Tensor, ...]:
        """Return the logits and the labels of both heads. Words have them at masked tokens only, a seventh of all."""
        bert = cast(PretrainingModel, model)
        masked = batch["labels"] != IGNORED
        words = bert.mlm_logits(x[masked]), batch["labels"][masked]
        if "next_sentence_label" not in batch:
            return words
        return *words, bert.nsp_logits(x), batch["next_sentence_label"]

    def heads_loss(
        self, model: nn.Module, x: Float[Tensor, "batch tokens dim"], batch: Batch
    ) -> Float[Tensor, " parts"]:
        """Return the loss of each head."""
        words, labels, *segments = self.heads(model, x, batch)
        losses = [cross_entropy(words, labels, label_smoothing=0.0)]
        if segments:
            next_logits, next_labels = segments
            losses.append(F.cross_entropy(next_logits.float(), next_labels))
        return torch.stack(losses)

    def example_scores(self, model: nn.Module, batch: Batch) -> ExampleScores:
        """Return the negative sum of each row's two losses, in nats; all rows have the same weight."""
        words, labels, *segments = self.predictions_and_targets(model, batch)
        scores, counts = row_scores(words, labels, batch["labels"])
        if segments:
            next_logits, next_labels = segments
            scores = scores - F.cross_entropy(next_logits.float(), next_labels, reduction="none")
        return ExampleScores(scores, torch.ones_like(counts))

    def size(self, batch: Batch) -> tuple[int, ...]:
        """Return how many words are masked, and how many pairs of segments there are."""
        words = int((batch["labels"] != IGNORED).sum())
        return (words, len(batch["labels"])) if "next_sentence_label" in batch else (words,)

    def metrics(self) -> MetricCollection:
        """Return fresh metrics.

        `masked_loss` in nats per masked word, and `accuracy`, the share of masked words that are predicted right; of
        the segments `next_loss` and `next_accuracy`; and `loss`, the sum of both losses.
        """
        return MetricCollection([PretrainingMetrics()])


class PretrainingMetrics(Metric):
    """The metrics of both heads. They are one class, because a collection passes the same arguments to all metrics."""

    full_state_update = False
    words: Tensor
    """Three numbers: the masked words, the sum of their losses, and the words predicted right."""
    segments: Tensor
    """Three numbers: the pairs of segments, the sum of their losses, and the pairs predicted right."""

    def __init__(self) -> None:
        super().__init__()
        self.add_state("words", torch.zeros(3), dist_reduce_fx="sum")
        self.add_state("segments", torch.zeros(3), dist_reduce_fx="sum")

    def update(
        self,
        words: Float[Tensor, "masked vocab"],
        labels: Int[Tensor, " masked"],
        next_logits: Float[Tensor, "batch 2"] | None = None,
        next_labels: Int[Tensor, " batch"] | None = None,
    ) -> None:
        """Add a batch."""
        self.words += tally(words, labels)
        if next_logits is not None and next_labels is not None:
            self.segments += tally(next_logits, next_labels)

    def compute(self) -> dict[str, Float[Tensor, ""]]:
        """Return the metrics over all batches."""
        masked_loss, accuracy = self.words[1:] / self.words[0]
        metrics = {"loss": masked_loss, "masked_loss": masked_loss, "accuracy": accuracy}
        if self.segments[0]:
            next_loss, next_accuracy = self.segments[1:] / self.segments[0]
            metrics |= {"loss": masked_loss + next_loss, "next_loss": next_loss, "next_accuracy": next_accuracy}
        return metrics


def tally(logits: Float[Tensor, "labels classes"], labels: Int[Tensor, " labels"]) -> Float[Tensor, "3"]:
    """Return the number of labels, the sum of their losses in nats, and how many have the highest logit."""
    loss, right = cross_entropy(logits, labels, reduction="none").sum(), (logits.argmax(dim=-1) == labels).sum()
    return torch.stack([torch.full_like(loss, len(labels)), loss, right])


# ------------------------------------------------------------------------------------------------------------ predictor


class FillMask(SingleStackTextPredictor[str, list[Probabilities]]):
    """A pre-trained BERT and its tokenizer."""

    head = "pretraining"
    json_key = "masks"

    def __init__(
        self, model: Model, tokenizer: Tokenizer, device: str | None = None, precision: Precision = "float32"
    ) -> None:
        super().__init__(model, tokenizer, device, precision)
        if tokenizer.mask_id is None:
            raise GlocalError(
                "the tokenizer has no token for a masked word; take the one that the model was trained with"
            )
        self.mask_id = tokenizer.mask_id

    def predict(self, texts: str | Iterable[str], top: int = 5, batch_size: int = 32) -> list[list[Probabilities]]:
        """Return, for each [MASK] of each text, the `top` words and their probabilities.

        A word that begins with ## continues the one before it. Raises GlocalError if a text has no mask, or is
        longer than the model's maximum.
        """
        texts = read_texts(texts)
        rows = [np.array(encoding.ids) for encoding in self.tokenizer.encodings(texts, parse_special=True)]
        (mask,) = self.tokenizer.tokens([self.mask_id])
        longest = self.model.config.max_length
        for text, row in zip(texts, rows, strict=True):
            if self.mask_id not in row:
                raise GlocalError(f"no word of {text[:40]!r} is masked; write {mask} where one is to be predicted")
            if len(row) > longest:
                raise GlocalError(f"{text[:40]!r} has {len(row)} tokens, and the model takes {longest}; shorten it")
        logits = self.run_batches([{"input_ids": row} for row in rows], batch_size, self._mask_logits)
        return [most_probable(words, lambda word: self.tokenizer.tokens([word])[0], top) for words in logits]

    def _mask_logits(self, batch: Batch) -> Sequence[Tensor]:
        """Return the logits of each text's masked words, (masks, V)."""
        masked = batch["input_ids"] == self.mask_id
        features = self.model.forward_features(**batch)
        words = cast(PretrainingModel, self.model).mlm_logits(features[masked])
        return words.split(masked.sum(dim=1).tolist())

    @staticmethod
    def format(given: str, result: Sequence[Probabilities]) -> str:
        """Return the words of each mask, with a tab between masks."""
        return "\t".join(map(format_probabilities, result))

    @staticmethod
    def to_json(result: Sequence[Probabilities]) -> list[list[dict[str, object]]]:
        """Return the words of each mask."""
        return [probabilities_to_json(words, "word") for words in result]


# ----------------------------------------------------------------------------------------------------------------- test


def unigram_entropy(test: TestRun[MaskedDocuments, object]) -> Metrics:
    """Return the unigram entropy of the text in nats: the loss of a model that knows token frequencies alone."""
    return test.data.unigram_entropy("test")


def format_test(metrics: Metrics, run: RunFolder) -> Iterator[str]:
    """Yield the metrics of both heads beside the unigram entropy."""
    yield f"{metrics['tokens']:,} test tokens, whose unigram entropy is {metrics['unigram_loss']:.3f} nats"
    yield f"masked words: {metrics['accuracy']:.2%} right, loss {metrics['masked_loss']:.3f} nats"
    yield f"next sentence: {metrics['next_accuracy']:.2%} right, loss {metrics['next_loss']:.3f} nats"


MASKED_LM = TaskSpec(
    name="masked-lm",
    description="documents → masked words, and whether a sentence follows another (BERT's pre-training, fill-mask)",
    pipeline_tag="fill-mask",
    data=MaskedLMData,
    config=MaskedLMConfig,
    open_data=open_data,
    objective=lambda config, data, teacher: MaskedLMObjective(),
    predictor=FillMask,
    further_metrics=unigram_entropy,
    format_test=format_test,
)
