"""Attention in a translation: of each token to earlier ones, and to the tokens of the source."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch

from glocal.explain.attention import AttentionKind, TextModel, TokenAttention, attention_weights, readable
from glocal.generation import GenerationOutput
from glocal.models import Model


@runtime_checkable
class TranslationModel(TextModel, Protocol):
    """A translation model with its tokenizer: a predictor."""

    def predict(self, texts: list[str]) -> list[GenerationOutput]:
        """Return translations."""
        ...


@dataclass(frozen=True)
class TranslationExplanation:
    """A sentence, its translation, and the attention of every head."""

    source: str
    translation: str
    attention: dict[AttentionKind, TokenAttention]
    """`encoder`: source to source; `decoder`: target to target; `cross`: target to source. An LSTM has `cross` alone,
    of one layer and one head."""


@torch.inference_mode()
def explain_translation(
    translator: TranslationModel, source: str, translation: str | None = None
) -> TranslationExplanation:
    """Return the attention of every head for a sentence and its translation, by default the model's own."""
    if translation is None:
        translation = translator.predict([source])[0].text
    tokenizer = translator.tokenizer
    (source_ids,), (written_ids,) = tokenizer.encode([source]), tokenizer.encode([translation], target=True)
    read_ids = [tokenizer.bos_id, *written_ids[:-1]]
    weights = attention_weights(
        translator.model, *(torch.tensor([ids], device=translator.device) for ids in (source_ids, read_ids))
    )
    source_tokens, read, written = (readable(tokenizer.tokens(ids)) for ids in (source_ids, read_ids, written_ids))
    ends: dict[AttentionKind, tuple[list[str], list[str]]] = {
        "encoder": (source_tokens, source_tokens),
        "decoder": (written, read),
        "cross": (written, source_tokens),
    }
    attention = {
        kind: TokenAttention(*ends[kind], each[:, 0].float().cpu(), _local_heads(translator.model, kind))
        for kind, each in weights.items()
    }
    return TranslationExplanation(source, translation, attention)


def _local_heads(model: Model, kind: AttentionKind) -> list[int]:
    """Return how many heads of each layer are local; those of cross-attention are not."""
    return [block.local_heads for block in getattr(model.config, kind, ())]
