"""Where a model looks: attention weights a layer and a head.

Of an image, what the class token sees, and its rollout through the depth; of a translation, what every token of the
source and of the target sees; of a text, what every token sees, and what each head looks at over many texts.
"""

from pathlib import Path
from typing import Any

from glocal.inference import Predictor, Translator, load
from glocal.inference.explain.attention import Sight, TokenAttention, attention_weights
from glocal.inference.explain.images import Explanation, explain_image, patch_map, rollout
from glocal.inference.explain.texts import HeadPatterns, explain_text, head_patterns, strongest
from glocal.inference.explain.translations import TranslationExplanation, explain_translation
from glocal.inference.texts import TextPredictor, read_texts

__all__ = [
    "Explanation",
    "HeadPatterns",
    "Sight",
    "TokenAttention",
    "TranslationExplanation",
    "attention_weights",
    "explain",
    "explain_image",
    "explain_text",
    "explain_translation",
    "head_patterns",
    "patch_map",
    "rollout",
    "strongest",
]


def explain(
    model: str | Path | Predictor | TextPredictor, given: Any
) -> Explanation | TranslationExplanation | TokenAttention:
    """Return where a model looks in what is `given`: an image, a sentence to translate, a text or a pair of texts.

    `model` is a run, a folder, or what `load` returned. Raises GlocalError where it cannot take what is given.
    """
    predictor = model if isinstance(model, Predictor | TextPredictor) else load(model)
    if isinstance(predictor, Predictor):
        return explain_image(predictor, given)
    if isinstance(predictor, Translator):
        (sentence,) = read_texts([given])
        return explain_translation(predictor, sentence)
    (text,) = read_texts([given], parts=(1, 2))
    return explain_text(predictor, text)
