"""From a trained model to answers, explanations and reports.

Beside what is named here stand `figures`, `page` (an HTML report) and `explain` (attention maps), imported by name.
"""

import json
from pathlib import Path

from glocal.data.text import Tokenizer
from glocal.errors import check_path
from glocal.inference.answerer import Answerer, Span
from glocal.inference.cost import count
from glocal.inference.decoding import DecodingConfig, Hypothesis, generate
from glocal.inference.device import Precision
from glocal.inference.fill_mask import FillMask
from glocal.inference.predictor import Predictor, find_images
from glocal.inference.tagger import Entity, Tagger
from glocal.inference.text_classifier import TextClassifier
from glocal.inference.text_generator import TextGenerator
from glocal.inference.texts import TextPredictor, head_of
from glocal.inference.translator import Translator
from glocal.inference.writer import Written
from glocal.models import load_model
from glocal.models.folders import find_folder

__all__ = [
    "Answerer",
    "DecodingConfig",
    "Entity",
    "FillMask",
    "Hypothesis",
    "Predictor",
    "Span",
    "Tagger",
    "TextClassifier",
    "TextGenerator",
    "Translator",
    "Written",
    "count",
    "find_images",
    "generate",
    "load",
]

PREDICTORS: dict[str, type[TextPredictor]] = {
    predictor.head: predictor for predictor in (Translator, TextGenerator, FillMask, TextClassifier, Tagger, Answerer)
}
"""What answers for a model of texts, by its head."""


def load(source: str | Path, device: str | None = None, precision: Precision = "float32") -> Predictor | TextPredictor:
    """Open the model of a finished run, or a folder that a model was saved to, in any layout that models read.

    A model of images becomes a Predictor; one of texts, by its head, a Translator, TextGenerator, FillMask,
    TextClassifier, Tagger or Answerer. Without `device` it goes to the machine's accelerator if there is one.
    `precision` is that of the weights; the predictor's `precision` names the one taken. Raises GlocalError where there
    is no such folder, model, device or precision.
    """
    check_path(source, "a run, a model's folder or a hub id")
    model = load_model(source)
    if (head := head_of(model)) is None:
        return Predictor(model, device, precision)
    folder = find_folder(source)
    predictor = PREDICTORS[head](model, Tokenizer.load(folder), device, precision)
    if isinstance(predictor, Answerer):
        predictor.may_have_none = learned_none(folder.parent / "report.json")
    return predictor


def learned_none(report: Path) -> bool:
    """Whether a run's report counts questions without an answer among those that it was trained on."""
    try:
        return json.loads(report.read_text())["texts"]["impossible"] > 0
    except (OSError, ValueError, LookupError, TypeError):
        return False
