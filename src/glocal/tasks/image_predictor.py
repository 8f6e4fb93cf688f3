"""What predictors of images share: finding, decoding and preparing images, and the logits of a model."""

import re
from base64 import b64decode
from collections import Counter
from collections.abc import Iterable, Sequence
from glob import glob
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from glocal.data import Preprocessing, eval_transform, open_image
from glocal.data.decoding import ImageLike, images_below, is_image_name, open_header, warn_of_unread
from glocal.data.image_tables import names_files, read_files
from glocal.data.progress import progress
from glocal.errors import GlocalError, check_path
from glocal.explain import ImageExplanation, explain_image
from glocal.models import Model
from glocal.models.device import Precision, prepare
from glocal.tasks.predictor import (
    Predictor,
    Probabilities,
    ReadBatch,
    Result,
    check_count,
    label_names,
    require_classes,
)

DATA_URL = re.compile(r"data:[\w.+/-]*;base64,")
"""The head of a file in base64, as browsers write it."""

EXPECTED = "an image is a file's name, a PIL image, or a uint8 array of shape (H, W) or (H, W, 3)"


class ImagePredictor(Predictor[ImageLike, Result]):
    """A trained image model and its preprocessing."""

    json_input = "the bytes of an image file, in JSON as base64"
    labels: list[str]
    """Names of the classes; none where the model has no classifier."""

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
        """Return an image of base64 text, or of a file's content; the head of a data URL is left out.

        Only the file's header is read here; `predict` decodes the image.
        """
        if isinstance(value, str):
            try:
                value = b64decode(DATA_URL.sub("", value), validate=True)
            except ValueError:
                raise cls.invalid_input(value) from None
        if not isinstance(value, bytes):
            raise cls.invalid_input(value)
        return open_header(value)

    @torch.inference_mode()
    def logits(self, inputs: ImageLike | Iterable[ImageLike], batch_size: int = 32) -> Float[Tensor, "images classes"]:
        """Return the logits of each image, in float32."""
        require_classes(self.model)
        logits = self.map_batches(inputs, lambda batch: self.model(**batch), batch_size)
        return torch.stack(logits) if logits else torch.zeros(0, self.model.config.num_classes)

    @torch.inference_mode()
    def map_batches(self, inputs: ImageLike | Iterable[ImageLike], read: ReadBatch, batch_size: int) -> list[Tensor]:
        """Return what `read` returns for each image, in float32 on the CPU, in the order of `find_images(inputs)`."""
        check_count("batch_size", batch_size)
        images = find_images(inputs)
        batches = [images[i : i + batch_size] for i in range(0, len(images), batch_size)]
        outputs = [read({"pixel_values": self.pixels(batch)}) for batch in progress(batches)]
        return [output.float().cpu() for batch in outputs for output in batch]

    def pixels(self, images: Sequence[ImageLike]) -> Float[Tensor, "batch chans height width"]:
        """Decode and prepare images as in evaluation."""
        pixel_values = torch.stack([self.transform(self._open(image)) for image in images])
        return pixel_values.to(self.device, next(self.model.parameters()).dtype)

    def explain(self, image: ImageLike) -> ImageExplanation:
        """Return the prediction for an image, and the attention of every head to its patches."""
        return explain_image(self, image)

    def probabilities(self, image: ImageLike) -> Probabilities:
        """Return the most probable labels of an image; none where the model predicts no classes."""
        return []

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
    given: Iterable[object] = [inputs]
    if isinstance(inputs, Iterable) and not isinstance(inputs, ImageLike | Tensor | bytes):
        given = inputs
    images: list[ImageLike] = []
    for one in given:
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
        found = sorted(match for match in matches if not Path(match).is_dir())
    if not found:
        what = "holds no image" if Path(path).exists() else "does not exist, and as a pattern matches no image"
        raise GlocalError(f"{path} {what}; give image files, folders of them, or patterns such as 'photos/*.jpg'")
    return [Path(file) for file in found]
