"""Image classification: one class for each image.

Data, augmentation and preprocessing are in `glocal.data.images`; the objective is in `glocal.tasks.classification`.
"""

import re
from base64 import b64decode
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from glob import glob
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from glocal.data import DataConfig, Images, Preprocessing, eval_transform, open_image, open_images
from glocal.data.decoding import images_below, is_image_name, open_header, warn_of_unread
from glocal.data.encoding import Batch
from glocal.data.image_source import ProblemType
from glocal.data.image_tables import names_files, read_files
from glocal.data.progress import progress
from glocal.data.tokenizer import Tokenizer
from glocal.errors import GlocalError, check_path
from glocal.explain import ImageExplanation, explain_image
from glocal.models import Model
from glocal.models.device import Precision, prepare
from glocal.models.loading import adapt_preprocessing
from glocal.tasks.classification import Classification, ClassificationConfig, draw_confusion, format_classes
from glocal.tasks.predictor import (
    Predictor,
    Probabilities,
    check_count,
    label_names,
    most_probable,
    require_classes,
)
from glocal.tasks.spec import Metrics, TaskSpec
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
    known = adapt_preprocessing(model.preprocessing, replace(model.config, in_chans=config.channels))
    return replace(config, mean=tuple(known["mean"]), std=tuple(known["std"]))


# ------------------------------------------------------------------------------------------------------------ predictor

ImageLike = str | Path | Image.Image | np.ndarray
"""A file's path, a PIL image, or pixels: uint8, (H, W), (H, W, 1) or (H, W, 3)."""

DATA_URL = re.compile(r"data:[\w.+/-]*;base64,")
"""What browsers write before the base64 of a file."""

EXPECTED = "an image is a file's name, a PIL image, or a uint8 array of shape (H, W) or (H, W, 3)"


class ImageClassifier(Predictor):
    """A trained model, its preprocessing and the names of its classes."""

    json_input = "the bytes of an image file, in JSON as base64"

    def __init__(self, model: Model, device: str | None = None, precision: Precision = "float32") -> None:
        if model.preprocessing is None:
            raise GlocalError(
                "the model's config.json does not say how images are prepared; "
                "set model.preprocessing to the fields of glocal.data.Preprocessing and save it again"
            )
        self.device, self.precision = prepare(model, device, precision)
        self.model = model
        self.labels = label_names(model)
        self.preprocessing = Preprocessing.from_dict(model.preprocessing)
        self.transform = eval_transform(self.preprocessing)

    def __repr__(self) -> str:
        height, width = self.preprocessing.image_size
        images, where = f"{height} × {width} pixels", f"{self.precision} on {self.device}"
        return f"{type(self).__name__}({type(self.model).__name__}, {images}, {len(self.labels)} classes, {where})"

    @classmethod
    def read_json(cls, value: object) -> Image.Image:
        """Return an image of base64 text, or of a file's content; a data URL's head is passed over.

        Only its header is read here; `predict` decodes it.
        """
        if isinstance(value, str):
            try:
                value = b64decode(DATA_URL.sub("", value), validate=True)
            except ValueError:
                raise cls.no_input(value) from None
        if not isinstance(value, bytes):
            raise cls.no_input(value)
        return open_header(value)

    def predict(
        self, inputs: ImageLike | Iterable[ImageLike], top: int = 5, batch_size: int = 32
    ) -> list[Probabilities]:
        """Return the `top` labels of each image, in the order of `find_images(inputs)`.

        The result of an image does not depend on the other images. Raises GlocalError where an input is no image, and
        where the model has no classifier.
        """
        check_count("top", top)
        return most_probable(self.logits(inputs, batch_size), self.labels.__getitem__, top)

    @torch.inference_mode()
    def logits(self, inputs: ImageLike | Iterable[ImageLike], batch_size: int = 32) -> Float[Tensor, "images classes"]:
        """Return the logits of each image, in float32."""
        require_classes(self.model)
        logits = self.map_batches(inputs, lambda batch: self.model(**batch), batch_size)
        return torch.stack(logits) if logits else torch.zeros(0, self.model.config.num_classes)

    @torch.inference_mode()
    def map_batches(
        self, inputs: ImageLike | Iterable[ImageLike], read: Callable[[Batch], Iterable[Tensor]], batch_size: int
    ) -> list[Tensor]:
        """Return what `read` makes of each image, in float32 on the CPU, in the order of `find_images(inputs)`."""
        check_count("batch_size", batch_size)
        images = find_images(inputs)
        batches = [images[i : i + batch_size] for i in range(0, len(images), batch_size)]
        outputs = [read({"pixel_values": self.pixels(batch)}) for batch in progress(batches)]
        return [output.float().cpu() for of in outputs for output in of]

    def pixels(self, images: Sequence[ImageLike]) -> Float[Tensor, "batch chans height width"]:
        """Decode and prepare images as in evaluation."""
        pixel_values = torch.stack([self.transform(self._open(image)) for image in images])
        return pixel_values.to(self.device, next(self.model.parameters()).dtype)

    def explain(self, image: ImageLike) -> ImageExplanation:
        """Return the prediction for an image, and the attention of every head to its patches."""
        return explain_image(self, image)

    def picture(self, pixel_values: Float[Tensor, "chans height width"]) -> np.ndarray:
        """Undo the normalisation, and return the image as (H, W) or (H, W, 3), 0 to 1."""
        mean, std = (torch.tensor(x).view(-1, 1, 1) for x in (self.preprocessing.mean, self.preprocessing.std))
        image = (pixel_values.cpu() * std + mean).clamp(0, 1).numpy()
        return image[0] if len(image) == 1 else image.transpose(1, 2, 0)

    def _open(self, image: ImageLike) -> Image.Image:
        if isinstance(image, np.ndarray) and (image.dtype != np.uint8 or image.shape[2:] not in [(), (1,), (3,)]):
            raise GlocalError(
                f"an array of {image.dtype} and shape {image.shape} was given for an image; "
                "expected uint8, 0 to 255, and (H, W), (H, W, 1) or (H, W, 3)"
            )
        return open_image(image, self.preprocessing.channels)


def find_images(inputs: ImageLike | Iterable[ImageLike]) -> list[ImageLike]:
    """Resolve one input or many: a folder becomes the images in and below it and a pattern its matches, both sorted.

    A table becomes the images that it lists.

    Raises GlocalError for a path that does not exist, and where a folder or a pattern holds no image.
    """
    alone = isinstance(inputs, ImageLike | Tensor | bytes) or not isinstance(inputs, Iterable)
    several: Any = [inputs] if alone else inputs
    images: list[ImageLike] = []
    for one in several:
        if not isinstance(one, ImageLike):
            shape = f" of {one.dtype} and shape {tuple(one.shape)}" if isinstance(one, Tensor) else ""
            raise GlocalError(
                f"{EXPECTED}, and a {type(one).__name__}{shape} was given; "
                "prepared pixel values go to the model itself: predictor.model(pixel_values)"
            )
        if isinstance(one, str | Path):
            check_path(one, "the name of an image file")
        images += [one] if isinstance(one, Image.Image | np.ndarray) else _find(str(one))
    return images


def _find(path: str) -> list[Path]:
    if Path(path).is_file():
        return [Path(file) for file, _ in read_files(Path(path))] if names_files(Path(path)) else [Path(path)]
    if Path(path).is_dir():
        left_out: Counter[str] = Counter()
        found = images_below(path, left_out)
        warn_of_unread(path, left_out)
    else:  # the module's glob and not pathlib's, which takes no absolute pattern
        matches = (match for match in glob(path, recursive=True) if is_image_name(match))  # noqa: PTH207
        found = sorted(match for match in matches if Path(match).is_file())
    if not found:
        what = "holds no image" if Path(path).exists() else "does not exist, and as a pattern matches no image"
        raise GlocalError(f"{path} {what}; give image files, folders of them, or patterns such as 'photos/*.jpg'")
    return [Path(file) for file in found]


# ----------------------------------------------------------------------------------------------------------------- test


def format_test(test: Metrics, run: RunFolder) -> Iterator[str]:
    """Yield the scores of each class and of all together."""
    yield f"{test['examples']} test images"
    yield from format_classes(test, run)


IMAGE_CLASSIFICATION = TaskSpec(
    name="image-classification",
    description="images → a class",
    data=DataConfig,
    config=ClassificationConfig,
    open_data=open_data,
    objective=lambda config, data, teacher: Classification(config, len(data.labels), teacher),
    predictor=ImageClassifier,
    modality="image",
    searchable=True,
    evaluate_answers=draw_confusion,
    format_test=format_test,
)
