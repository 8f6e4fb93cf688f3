"""Attention, explained: the weights of every layer and head, rollout over images, what heads attend to over texts.

The package can be called: `glocal.explain(run, input)` is `glocal.tasks.explain`.
"""

from glocal.explain.attention import (
    AttentionKind,
    Projections,
    TokenAttention,
    attention_projections,
    attention_weights,
)
from glocal.explain.images import ImageExplanation, explain_image, patch_map, rollout
from glocal.explain.texts import HeadPatterns, encode_text, explain_text, head_patterns, pattern_shares, strongest
from glocal.explain.translations import TranslationExplanation, explain_translation
from glocal.modules import make_callable

__all__ = [
    "AttentionKind",
    "HeadPatterns",
    "ImageExplanation",
    "Projections",
    "TokenAttention",
    "TranslationExplanation",
    "attention_projections",
    "attention_weights",
    "encode_text",
    "explain_image",
    "explain_text",
    "explain_translation",
    "head_patterns",
    "patch_map",
    "pattern_shares",
    "rollout",
    "strongest",
]

make_callable(__name__, "glocal.tasks", "explain")
