"""What a model predicts for an image or a text, as the page shows it."""

from typing import cast

import torch
from torch import Tensor

from glocal.data.conll import WORDS
from glocal.data.decoding import ImageLike
from glocal.errors import GlocalError
from glocal.explain import encode_text
from glocal.explain.texts import Text
from glocal.page.contract import Answer, Entity, Label, Result
from glocal.page.readings import AnyImagePredictor, AnyReader
from glocal.tasks import (
    FillMask,
    ImageClassifier,
    ImageRegressor,
    MultiLabelImageClassifier,
    MultiLabelTextClassifier,
    QuestionAnswerer,
    TextClassifier,
    TextRegressor,
    TokenClassifier,
)
from glocal.tasks.masked_lm import PretrainingModel
from glocal.tasks.predictor import most_probable

TOP = 10
"""Classes that are shown."""
ANSWERS = 3
"""Answers that are shown."""
CANDIDATES = 5
"""Words that are shown for a masked one."""
MAX_MASKED_TOKENS = 64
"""Tokens of the longest text of which each is masked in turn."""


def predict_image(predictor: AnyImagePredictor, image: ImageLike) -> Result:
    """Return the classes of an image, or its number; nothing of an encoder without a classifier."""
    if isinstance(predictor, ImageRegressor):
        return {"score": predictor.predict([image])[0]}
    if not isinstance(predictor, ImageClassifier) or not predictor.model.config.num_classes:
        return {}
    (labels,) = predictor.predict([image], top=TOP)
    return {"labels": with_names(labels), "exclusive": not isinstance(predictor, MultiLabelImageClassifier)}


def predict_text(predictor: AnyReader, text: Text) -> Result:
    """Return the classes of a text, its number, its entities or the answers in it; nothing of a model without those."""
    if isinstance(predictor, TokenClassifier):
        return {"entities": find_entities(predictor, text if isinstance(text, str) else " ".join(text))}
    if isinstance(predictor, QuestionAnswerer):
        assert isinstance(text, tuple)
        return {"answers": find_answers(predictor, text)}
    if isinstance(predictor, TextRegressor):
        return {"score": predictor.predict([text])[0]}
    if not isinstance(predictor, TextClassifier) or not predictor.model.config.num_classes:
        return {}
    (labels,) = predictor.predict([text], top=TOP)
    return {"labels": with_names(labels), "exclusive": not isinstance(predictor, MultiLabelTextClassifier)}


def with_names(probabilities: list[tuple[str, float]]) -> list[Label]:
    """Return labels with the names of their fields."""
    return [{"label": label, "probability": round(probability, 6)} for label, probability in probabilities]


def find_answers(predictor: QuestionAnswerer, asked: tuple[str, str]) -> list[Answer]:
    """Return the best answers to a question in its context."""
    (spans,) = predictor.predict([asked], top=ANSWERS)
    return [{"text": span.text, "start": span.start, "end": span.end, "score": span.score} for span in spans]


def find_entities(predictor: TokenClassifier, text: str) -> list[Entity]:
    """Return the entities of a text, by its characters."""
    places = [place for _, place in WORDS.pre_tokenize_str(text)]  # the words that predict splits it into
    (entities,) = predictor.predict([text])
    return [
        {"type": each.type, "start": places[each.start][0], "end": places[each.end - 1][1], "score": each.score}
        for each in entities
    ]


@torch.inference_mode()
def fill_masks(predictor: FillMask, text: Text, token: int | None = None) -> dict[str, list[Label]]:
    """Return the most probable words in the place of one token, or of each token in turn.

    Special tokens are left as they are, except for those that are masked already. A long text has none but these.
    """
    batch = encode_text(predictor, text)
    ids = batch["input_ids"][0]
    if token is not None and token >= len(ids):
        raise GlocalError(f"token {token} of a text of {len(ids)}; expected 0 to {len(ids) - 1}")
    places = maskable(predictor, ids) if token is None else [token]
    masked = ids.repeat(len(places), 1)
    masked[torch.arange(len(places)), places] = predictor.mask_id
    found: dict[str, list[Label]] = {}
    for row, place in zip(masked, places, strict=True):
        features = predictor.model.forward_features(**batch | {"input_ids": row[None]})
        logits = cast(PretrainingModel, predictor.model).mlm_logits(features[:, place])
        (words,) = most_probable(logits, lambda word: predictor.tokenizer.tokens([word])[0], CANDIDATES)
        found[str(place)] = with_names(words)
    return found


def maskable(predictor: FillMask, ids: Tensor) -> list[int]:
    """Return the tokens that may be masked: words, and those that are masked already."""
    tokenizer = predictor.tokenizer
    masked = [place for place, token in enumerate(ids.tolist()) if token == predictor.mask_id]
    if len(ids) > MAX_MASKED_TOKENS:
        return masked
    special = {tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id}
    return [place for place, token in enumerate(ids.tolist()) if token not in special]
