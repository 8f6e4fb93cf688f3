"""The tasks, one file each: data, objective, predictor, test. `TASKS` is the only registry of tasks.

To add a task, write a file like `token_classification.py`, which ends with a `TaskSpec`, and add that to `TASKS`.
"""

import json
from contextlib import suppress
from pathlib import Path

from glocal.data.tokenizer import Tokenizer
from glocal.errors import GlocalError, check_path
from glocal.explain import ImageExplanation, TokenAttention, TranslationExplanation
from glocal.models import Model, load_model
from glocal.models.device import Precision
from glocal.models.folders import find_folder
from glocal.tasks.causal_lm import CAUSAL_LM, CausalLMObjective, TextGenerator
from glocal.tasks.classification import ClassificationConfig, ClassificationObjective
from glocal.tasks.completion import COMPLETION
from glocal.tasks.image_classification import IMAGE_CLASSIFICATION, ImageClassifier
from glocal.tasks.image_predictor import ImagePredictor
from glocal.tasks.image_regression import IMAGE_REGRESSION, ImageRegressor
from glocal.tasks.masked_lm import MASKED_LM, FillMask, MaskedLMObjective
from glocal.tasks.multi_label_image_classification import MULTI_LABEL_IMAGE_CLASSIFICATION, MultiLabelImageClassifier
from glocal.tasks.multi_label_text_classification import MULTI_LABEL_TEXT_CLASSIFICATION, MultiLabelTextClassifier
from glocal.tasks.predictor import AnyPredictor, Predictor
from glocal.tasks.question_answerer import QuestionAnswerer
from glocal.tasks.question_answering import QUESTION_ANSWERING, QuestionAnsweringObjective
from glocal.tasks.spec import AnyTaskSpec, TaskSpec
from glocal.tasks.text_classification import TEXT_CLASSIFICATION, TextClassifier
from glocal.tasks.text_predictor import SingleStackTextPredictor, TextPredictor, head_of
from glocal.tasks.text_regression import TEXT_REGRESSION, TextRegressor
from glocal.tasks.token_classification import TOKEN_CLASSIFICATION, TokenClassificationObjective, TokenClassifier
from glocal.tasks.translation import TRANSLATION, TranslationObjective, Translator

__all__ = [
    "TASKS",
    "AnyPredictor",
    "AnyTaskSpec",
    "CausalLMObjective",
    "ClassificationConfig",
    "ClassificationObjective",
    "FillMask",
    "ImageClassifier",
    "ImagePredictor",
    "ImageRegressor",
    "MaskedLMObjective",
    "MultiLabelImageClassifier",
    "MultiLabelTextClassifier",
    "Predictor",
    "QuestionAnswerer",
    "QuestionAnsweringObjective",
    "SingleStackTextPredictor",
    "TaskSpec",
    "TextClassifier",
    "TextGenerator",
    "TextPredictor",
    "TextRegressor",
    "TokenClassificationObjective",
    "TokenClassifier",
    "TranslationObjective",
    "Translator",
    "explain",
    "load",
    "task_of",
]

TASKS: dict[str, AnyTaskSpec] = {
    task.name: task
    for task in (
        IMAGE_CLASSIFICATION,
        MULTI_LABEL_IMAGE_CLASSIFICATION,
        IMAGE_REGRESSION,
        TEXT_CLASSIFICATION,
        MULTI_LABEL_TEXT_CLASSIFICATION,
        TEXT_REGRESSION,
        TOKEN_CLASSIFICATION,
        QUESTION_ANSWERING,
        MASKED_LM,
        CAUSAL_LM,
        COMPLETION,
        TRANSLATION,
    )
}
"""By name."""


def load(source: str | Path, device: str | None = None, precision: Precision = "float32") -> AnyPredictor:
    """Return a predictor for the model of a finished run, of a folder in any layout that models read, or of the hub.

    For an image model it is an ImageClassifier, MultiLabelImageClassifier or ImageRegressor, by the `problem_type` of
    config.json; for a text model, by its head, a Translator, TextGenerator, FillMask, TokenClassifier,
    QuestionAnswerer, TextClassifier, MultiLabelTextClassifier or TextRegressor.

    Args:
        source: a run, a model's folder, or a hub id.
        device: `cpu`, `cuda`, `cuda:1`, `mps`; by default the machine's accelerator, if there is one.
        precision: of the weights; the predictor's `precision` names the one taken for `auto`.

    Raises GlocalError if there is no such folder, model, device or precision.
    """
    check_path(source, "a run, a model's folder or a hub id")
    model = load_model(source)
    predictor = predictor_of(model)
    if issubclass(predictor, ImagePredictor):
        return predictor(model, device, precision)
    assert issubclass(predictor, TextPredictor)
    folder = find_folder(source)
    loaded = predictor(model, Tokenizer.load(folder), device, precision)
    with suppress(OSError, ValueError, LookupError, TypeError):  # a folder without a run's report keeps the defaults
        loaded.configure(json.loads((folder.parent / "report.json").read_text()))
    return loaded


def predictor_of(model: Model) -> type[AnyPredictor]:
    """Return the class that predicts with a model, by the model's head."""
    task = task_of(model)
    if task is None:
        raise GlocalError(f"a {type(model).__name__} with the head {head_of(model)!r} predicts for no task")
    return task.predictor


def task_of(model: Model) -> AnyTaskSpec | None:
    """Return the first task whose predictor takes a model, by the model's head; None where there is none."""
    kind = head_of(model), model.problem_type
    return next((task for task in TASKS.values() if (task.head, task.problem_type) == kind), None)


def explain(
    model: str | Path | AnyPredictor, given: object
) -> ImageExplanation | TokenAttention | TranslationExplanation:
    """Return the attention of every head for an input: an image, a sentence to translate, a text or a pair of texts.

    `model` is a run, a folder, or what `load` returned. The result is an ImageExplanation, a TranslationExplanation or
    a TokenAttention. Raises GlocalError if the model cannot take the input.
    """
    predictor = model if isinstance(model, Predictor) else load(model)
    return predictor.explain(given)
