"""Image classification: one class for each image.

Data, augmentation and preprocessing are in `glocal.data.images`; the objective is in `glocal.tasks.classification`.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from glocal.data import DataConfig, Images, open_images
from glocal.data.decoding import ImageLike
from glocal.data.image_source import ProblemType
from glocal.data.tokenizer import Tokenizer
from glocal.models import Model
from glocal.models.loading import adapt_preprocessing
from glocal.tasks.classification import ClassificationConfig, ClassificationObjective, draw_confusion, format_classes
from glocal.tasks.image_predictor import ImagePredictor
from glocal.tasks.predictor import Classifier, Probabilities, check_count, most_probable
from glocal.tasks.spec import TaskSpec
from glocal.training.interfaces import Metrics
from glocal.training.run import RunFolder


def open_data(
    config: DataConfig,
    run: Path | None = None,
    tokenizer: Tokenizer | None = None,
    model: Model | None = None,
    problem_type: ProblemType | None = None,
) -> Images:
    """Open images (see `TaskSpec.open_data`). A trained model's images are scaled as in its training."""
    if model is not None:
        config = scaled_for(config, model)
    classes = None if run or not model else list(model.labels or [])
    return open_images(config, None if run is None else run / "splits.json", classes, problem_type)


def scaled_for(config: DataConfig, model: Model) -> DataConfig:
    """Return the config with the mean and the deviation that a trained model was trained with, unless it names some."""
    if config.mean is not None or model.preprocessing is None:
        return config
    known = adapt_preprocessing(model.preprocessing, model.config.image_size, config.channels)
    return replace(config, mean=tuple(known["mean"]), std=tuple(known["std"]))


# ------------------------------------------------------------------------------------------------------------ predictor


class ImageClassifier(Classifier, ImagePredictor[Probabilities]):
    """A trained model, its preprocessing and the names of its classes."""

    def predict(
        self, inputs: ImageLike | Iterable[ImageLike], top: int = 5, batch_size: int = 32
    ) -> list[Probabilities]:
        """Return the `top` labels of each image, in the order of `find_images(inputs)`.

        The result of an image does not depend on the other images. Raises GlocalError if an input is no image, and
        where the model has no classifier.
        """
        check_count("top", top)
        return most_probable(self.logits(inputs, batch_size), self.labels.__getitem__, top)

    def probabilities(self, image: ImageLike) -> Probabilities:
        """Return the most probable labels of an image; none where the model is an encoder without a classifier."""
        return self.predict([image])[0] if self.labels else []


# ----------------------------------------------------------------------------------------------------------------- test


def format_test(metrics: Metrics, run: RunFolder) -> Iterator[str]:
    """Yield the scores of each class and of all together."""
    yield f"{metrics['examples']} test images"
    yield from format_classes(metrics, run)


IMAGE_CLASSIFICATION = TaskSpec(
    name="image-classification",
    description="images → a class",
    data=DataConfig,
    config=ClassificationConfig,
    open_data=open_data,
    objective=lambda config, data, teacher: ClassificationObjective(config, len(data.labels), teacher),
    predictor=ImageClassifier,
    modality="image",
    further_metrics=draw_confusion,
    format_test=format_test,
)
