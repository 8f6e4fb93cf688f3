"""Objectives: a loss to learn by and metrics to be judged by, over any model that answers with logits."""

from glocal.tasks.classification import Classification, ClassificationConfig
from glocal.tasks.translation import Translation, TranslationConfig, bleu_chrf

__all__ = ["Classification", "ClassificationConfig", "Translation", "TranslationConfig", "bleu_chrf"]
