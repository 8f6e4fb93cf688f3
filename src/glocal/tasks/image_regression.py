"""Image regression: a number for each image, such as an age, a count or a quality.

The data is read as in image classification, with a number in place of the class; the objective is in
`glocal.tasks.regression`.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

from glocal.data import DataConfig
from glocal.data.decoding import ImageLike
from glocal.errors import GlocalError
from glocal.models import Model
from glocal.models.device import Precision
from glocal.tasks.image_classification import open_data
from glocal.tasks.image_predictor import ImagePredictor
from glocal.tasks.regression import RegressionConfig, RegressionObjective, Regressor, format_test, root_of_error
from glocal.tasks.spec import TaskSpec


@dataclass(frozen=True)
class ImageRegressionDataConfig(DataConfig):
    """Images and the number of each; see image classification for the sources."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.augment.mixup or self.augment.cutmix:
            raise GlocalError(
                f"data.augment.mixup {self.augment.mixup}, cutmix {self.augment.cutmix}; they mix the classes of two "
                "images, and the labels of image-regression are numbers: set both to 0"
            )


class ImageRegressor(Regressor, ImagePredictor[float]):
    """A model with one output, and its preprocessing."""

    def __init__(self, model: Model, device: str | None = None, precision: Precision = "float32") -> None:
        super().__init__(model, device, precision)
        self.labels = []

    def predict(self, inputs: ImageLike | Iterable[ImageLike], batch_size: int = 32) -> list[float]:
        """Return the number of each image, in the order of `find_images(inputs)`."""
        return self.logits(inputs, batch_size)[:, 0].tolist()


IMAGE_REGRESSION = TaskSpec(
    name="image-regression",
    description="images → a number",
    pipeline_tag="image-classification",
    data=ImageRegressionDataConfig,
    config=RegressionConfig,
    open_data=partial(open_data, problem_type="regression"),
    objective=lambda config, data, teacher: RegressionObjective(),
    predictor=ImageRegressor,
    modality="image",
    problem_type="regression",
    num_outputs=1,
    further_metrics=root_of_error,
    format_test=format_test,
)
