"""What a model predicts for an input, as the page shows it: one function a kind of predictor."""

import torch
from torch import Tensor

from glocal.data.conll import split_words
from glocal.errors import GlocalError
from glocal.explain import encode_text
from glocal.page.contract import Answer, Entity, Label, Result
from glocal.page.readings import Given, Text
from glocal.tasks import AnyPredictor, FillMask, QuestionAnswerer, TokenClassifier
from glocal.tasks.multi_label_image_classification import MultiLabelImageClassifier
from glocal.tasks.multi_label_text_classification import MultiLabelTextClassifier
from glocal.tasks.predictor import Classifier, most_probable
from glocal.tasks.regression import Regressor

TOP = 10
"""Classes that are shown."""
WORDS = 5
"""Words that are shown for a masked one."""
MOST_MASKED = 64
"""Tokens of the longest text of which each is masked in turn."""


def predict(predictor: AnyPredictor, given: Given) -> Result:
    """Return the classes, the number, the entities or the answers; nothing of a model without such a head."""
    if isinstance(predictor, TokenClassifier):
        assert isinstance(given, str)
        return {"entities": find_entities(predictor, given)}
    if isinstance(predictor, QuestionAnswerer):
        assert isinstance(given, tuple)
        (answers,) = predictor.predict([given], top=3)
        return {"answers": [Answer(text=a.text, start=a.start, end=a.end, score=a.score) for a in answers]}
    if isinstance(predictor, Regressor):
        (score,) = predictor.predict([given])
        return {"score": score}
    if isinstance(predictor, Classifier) and predictor.model.config.num_classes:
        (labels,) = predictor.predict([given], top=TOP)
        several = isinstance(predictor, MultiLabelImageClassifier | MultiLabelTextClassifier)
        return {"labels": with_names(labels), "exclusive": not several}
    return {}


def with_names(probabilities: list[tuple[str, float]]) -> list[Label]:
    """Return labels with the names of their fields."""
    return [{"label": label, "probability": round(probability, 6)} for label, probability in probabilities]


def find_entities(predictor: TokenClassifier, text: str) -> list[Entity]:
    """Return the entities of a text, by its characters."""
    words = split_words(text)
    ends, end = [], 0
    for word in words:  # in the order of the text, with white space between some
        start = text.index(word, end)
        end = start + len(word)
        ends.append((start, end))
    (entities,) = predictor.predict([words])
    return [
        {"type": each.type, "start": ends[each.start][0], "end": ends[each.end - 1][1], "score": each.score}
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
        logits: Tensor = predictor.model.mlm_logits(features[:, place])  # type: ignore[operator]
        (words,) = most_probable(logits, lambda word: predictor.tokenizer.tokens([word])[0], WORDS)
        found[str(place)] = with_names(words)
    return found


def maskable(predictor: FillMask, ids: Tensor) -> list[int]:
    """Return the tokens that may be masked: words, and those that are masked already."""
    tokenizer = predictor.tokenizer
    masked = [place for place, token in enumerate(ids.tolist()) if token == predictor.mask_id]
    if len(ids) > MOST_MASKED:
        return masked
    special = {tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id}
    return [place for place, token in enumerate(ids.tolist()) if token not in special]
