"""Where a model looks: attention weights a layer and a head.

Of an image, what the class token sees, and its rollout through the depth; of a translation, what every token of the
source and of the target sees; of a text, what every token sees, and what each head looks at over many texts.
"""

from glocal.inference.explain.attention import Sight, TokenAttention, attention_weights
from glocal.inference.explain.images import Explanation, explain, patch_map, rollout
from glocal.inference.explain.texts import HeadPatterns, explain_text, head_patterns, strongest
from glocal.inference.explain.translations import TranslationExplanation, explain_translation

__all__ = [
    "Explanation",
    "HeadPatterns",
    "Sight",
    "TokenAttention",
    "TranslationExplanation",
    "attention_weights",
    "explain",
    "explain_text",
    "explain_translation",
    "head_patterns",
    "patch_map",
    "rollout",
    "strongest",
]
