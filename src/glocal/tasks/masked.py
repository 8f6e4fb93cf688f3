"""BERT's pre-training: hidden words, and whether one sentence follows another.

    Devlin et al. 2018, *BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding*, section 3.1
    https://arxiv.org/abs/1810.04805

Which words are hidden, and which sentences stand together, the data draws.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import Metric, MetricCollection

from glocal.ops import IGNORED, cross_entropy
from glocal.tasks.tokens import TokenTask, inputs


@dataclass(frozen=True)
class MaskedConfig:
    """What is asked of an encoder that is pre-trained."""

    name: Literal["masked"] = "masked"
    """The kind of task, by which a recipe knows its sections."""


class MaskedLanguage(TokenTask):
    """Two objectives whose losses are added (appendix A.2): the masked words, and the next sentence.

    A batch's `labels` (B, N) are the words that stood at the masked places, -100 elsewhere; `next_sentence_label` (B,)
    is 0 where the second sentence follows the first, and may be absent.
    """

    uncompiled = ("heads_loss",)
    """Each batch has another number of masked words, which would be another graph of torch.compile."""

    def answers(self, model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """Logits (M, V) and labels (M,) of the masked words, then those of the sentences, (B, 2) and (B,).

        Only masked places meet the vocabulary: a seventh of a batch.
        """
        return self.heads(model, model.forward_features(**inputs(batch)), batch)  # type: ignore[operator]

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Float[Tensor, " parts"]:
        """Mean over the masked words, and the mean over the sentences, in nats, computed in float32."""
        return self.heads_loss(model, model.forward_features(**inputs(batch)), batch)  # type: ignore[operator]

    def heads(
        self, model: nn.Module, x: Float[Tensor, "batch tokens dim"], batch: dict[str, Tensor]
    ) -> tuple[Tensor, ...]:
        """Read both heads' logits, each with its labels, off refined tokens."""
        masked = batch["labels"] != IGNORED
        words = model.mlm_logits(x[masked]), batch["labels"][masked]  # type: ignore[operator]
        if "next_sentence_label" not in batch:
            return words
        return *words, model.nsp_logits(x), batch["next_sentence_label"]  # type: ignore[operator]

    def heads_loss(
        self, model: nn.Module, x: Float[Tensor, "batch tokens dim"], batch: dict[str, Tensor]
    ) -> Float[Tensor, " parts"]:
        """Return the loss of each head."""
        words, labels, *sentences = self.heads(model, x, batch)
        losses = [cross_entropy(words, labels, label_smoothing=0.0)]
        if sentences:
            follows, truth = sentences
            losses.append(F.cross_entropy(follows.float(), truth))
        return torch.stack(losses)

    def size(self, batch: dict[str, Tensor]) -> tuple[int, ...]:
        """How many words are masked, and how many pairs of sentences there are."""
        words = int((batch["labels"] != IGNORED).sum())
        return (words, len(batch["labels"])) if "next_sentence_label" in batch else (words,)

    def metrics(self) -> MetricCollection:
        """Fresh metrics, to be updated by `answers`, which add up exactly over ranks.

        `masked_loss` in nats a masked word, and `accuracy`, the share of them that is found; of the sentences
        `next_loss` and `next_accuracy`; and `loss`, the sum.
        """
        return MetricCollection([PretrainingMetrics()])


class PretrainingMetrics(Metric):
    """Both objectives at once, because one collection updates all of its metrics alike."""

    full_state_update = False
    words: Tensor
    """Masked words: how many there were, the sum of their losses, and how many were found."""
    sentences: Tensor
    """The same of pairs of sentences."""

    def __init__(self) -> None:
        super().__init__()
        self.add_state("words", torch.zeros(3), dist_reduce_fx="sum")
        self.add_state("sentences", torch.zeros(3), dist_reduce_fx="sum")

    def update(
        self,
        words: Float[Tensor, "masked vocab"],
        labels: Int[Tensor, " masked"],
        follows: Float[Tensor, "batch 2"] | None = None,
        truth: Int[Tensor, " batch"] | None = None,
    ) -> None:
        """Add a batch."""
        self.words += tally(words, labels)
        if follows is not None and truth is not None:
            self.sentences += tally(follows, truth)

    def compute(self) -> dict[str, Float[Tensor, ""]]:
        """Of all batches."""
        masked_loss, accuracy = self.words[1:] / self.words[0]
        metrics = {"loss": masked_loss, "masked_loss": masked_loss, "accuracy": accuracy}
        if self.sentences[0]:
            next_loss, next_accuracy = self.sentences[1:] / self.sentences[0]
            metrics |= {"loss": masked_loss + next_loss, "next_loss": next_loss, "next_accuracy": next_accuracy}
        return metrics


def tally(logits: Float[Tensor, "labels classes"], labels: Int[Tensor, " labels"]) -> Float[Tensor, "3"]:
    """How many labels there are, the sum of their losses in nats, and how many have the highest logit."""
    loss, right = cross_entropy(logits, labels, reduction="none").sum(), (logits.argmax(dim=-1) == labels).sum()
    return torch.stack([torch.full_like(loss, len(labels)), loss, right])
