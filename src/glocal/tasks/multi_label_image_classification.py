"""Multi-label image classification: any number of classes for each image, such as the things that are in it.

The data is read as in image classification, with several labels per row; the objective is in
`glocal.tasks.multi_label`.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

from glocal.data import DataConfig
from glocal.data.decoding import ImageLike
from glocal.tasks.image_classification import ImageClassifier, open_data
from glocal.tasks.multi_label import THRESHOLD, MultiLabelConfig, MultiLabelObjective, format_test
from glocal.tasks.predictor import Probabilities, independent_probabilities
from glocal.tasks.spec import TaskSpec


@dataclass(frozen=True)
class MultiLabelImageDataConfig(DataConfig):
    """Images and the classes of each; see image classification for the sources."""

    separator: str = ","
    """What separates the classes of a row in a text file. JSONL and Parquet may hold lists. An empty text or list is an
    image of no class."""


class MultiLabelImageClassifier(ImageClassifier):
    """A model that scores each class by itself, its preprocessing and the names of its classes."""

    options = ("top", "threshold")

    def predict(
        self,
        inputs: ImageLike | Iterable[ImageLike],
        top: int | None = None,
        batch_size: int = 32,
        threshold: float = THRESHOLD,
    ) -> list[Probabilities]:
        """Return the classes of each image with their probabilities, the most probable first.

        These are the classes from `threshold` on, or the `top` ones where a number is given.
        """
        return independent_probabilities(self.logits(inputs, batch_size), self.labels, threshold, top)


MULTI_LABEL_IMAGE_CLASSIFICATION = TaskSpec(
    name="multi-label-image-classification",
    description="images → any number of classes",
    pipeline_tag="image-classification",
    data=MultiLabelImageDataConfig,
    config=MultiLabelConfig,
    open_data=partial(open_data, problem_type="multi_label_classification"),
    objective=lambda config, data, teacher: MultiLabelObjective(len(data.labels)),
    predictor=MultiLabelImageClassifier,
    modality="image",
    problem_type="multi_label_classification",
    format_test=format_test,
)
