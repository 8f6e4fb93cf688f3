"""Objectives: a loss to learn by and metrics to be judged by, over any model that answers with logits."""

from glocal.tasks.causal import CausalConfig, CausalLanguage
from glocal.tasks.classification import Classification, ClassificationConfig
from glocal.tasks.masked import MaskedConfig, MaskedLanguage
from glocal.tasks.spans import Spans, SpansConfig, squad_scores
from glocal.tasks.tagging import Tagging, TaggingConfig
from glocal.tasks.translation import Translation, TranslationConfig, bleu_chrf

__all__ = [
    "CausalConfig",
    "CausalLanguage",
    "Classification",
    "ClassificationConfig",
    "MaskedConfig",
    "MaskedLanguage",
    "Spans",
    "SpansConfig",
    "Tagging",
    "TaggingConfig",
    "Translation",
    "TranslationConfig",
    "bleu_chrf",
    "squad_scores",
]
