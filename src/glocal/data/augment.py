"""Transforms and mixing by timm, seeded so that they are a pure function of (seed, epoch, position).

timm is imported where it is used, because importing it with all its models takes seconds.
"""

import math
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image, ImageOps
from torch import Tensor

from glocal.data.config import IMAGENET_MEAN, IMAGENET_STD, AugmentConfig, DataConfig
from glocal.errors import GlocalError
from glocal.files import JSONObject

Transform = Callable[[Image.Image], Float[Tensor, "chans height width"]]
Pixels = Float[Tensor, "batch chans height width"]
Labels = Int[Tensor, " batch"] | Float[Tensor, "batch classes"]
Mix = Callable[[Pixels, Labels], tuple[Pixels, Float[Tensor, "batch classes"]]]


@runtime_checkable
class Steps(Protocol):
    """A transform that is a list of steps, such as torchvision's Compose."""

    transforms: list[Callable[..., object]]

    def __call__(self, img: Image.Image) -> Float[Tensor, "chans height width"]:
        """Return the result of all steps."""
        ...


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes a model's input; stored with the weights, as `asdict(preprocessing)`."""

    image_size: tuple[int, int]
    """Height and width, in pixels."""
    channels: int
    """1 or 3."""
    mean: tuple[float, ...]
    """Mean of each channel, for values from 0 to 1."""
    std: tuple[float, ...]
    """Standard deviation of each channel."""
    interpolation: str = "bicubic"
    """timm's name of the interpolation."""
    crop_pct: float = 1.0
    """Share of the resized image's side that is kept, cut from its centre."""
    crop_mode: Literal["center", "squash", "border"] = "center"
    """timm's name of how an image of another shape is resized: to fit its shorter side, both sides, or its longer."""
    crop_corner: Literal["nearest", "floor"] = "nearest"
    """Whether the crop's corner, if between two pixels, is rounded to an even number (timm) or down (transformers)."""

    def __post_init__(self) -> None:
        sides, numbers = self.image_size, (*self.mean, *self.std, self.crop_pct)
        whole = len(sides) == 2 and all(isinstance(side, int) and side > 0 for side in sides)
        if not whole or self.channels not in (1, 3):
            raise GlocalError(f"image_size {sides}, channels {self.channels}; expected [height, width], and 1 or 3")
        if not len(self.mean) == len(self.std) == self.channels or not all(isinstance(n, int | float) for n in numbers):
            raise GlocalError(f"mean {self.mean}, std {self.std}; expected {self.channels} numbers each, one a channel")
        if not all(map(math.isfinite, numbers)) or min(*self.std, self.crop_pct) <= 0:
            raise GlocalError(f"std {self.std}, crop_pct {self.crop_pct}; expected finite numbers above 0")
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise GlocalError(f"{name} {getattr(self, name)!r:.60}; expected {', '.join(known)}")

    @classmethod
    def of(cls, config: DataConfig) -> "Preprocessing":
        """Return the preprocessing of a config, with defaults for what it leaves open."""
        height, width = (config.image_size,) * 2 if isinstance(config.image_size, int) else config.image_size
        mean = config.mean or (IMAGENET_MEAN if config.channels == 3 else (0.5,))
        std = config.std or (IMAGENET_STD if config.channels == 3 else (0.5,))
        return cls((height, width), config.channels, mean, std, crop_pct=config.crop_pct)

    @classmethod
    def from_dict(cls, stored: JSONObject) -> "Preprocessing":
        """Return the preprocessing stored as JSON. Raises GlocalError if a field is missing or unknown."""
        parts: JSONObject = {key: tuple(part) if isinstance(part, list) else part for key, part in stored.items()}
        try:
            return cls(**parts)
        except (TypeError, GlocalError) as error:
            raise GlocalError(f"no usable preprocessing: {error}") from None

    def timm_arguments(self) -> JSONObject:
        """Return the same as arguments of `timm.data.create_transform`."""
        ours = ("image_size", "channels", "crop_corner")
        return {"input_size": self.image_size} | {
            name: value for name, value in asdict(self).items() if name not in ours
        }


CHOICES: dict[str, tuple[str, ...]] = {
    "interpolation": ("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"),
    "crop_mode": ("center", "squash", "border"),
    "crop_corner": ("nearest", "floor"),
}
"""Values of the fields of Preprocessing that are one of several words."""


def eval_transform(preprocessing: Preprocessing) -> Steps:
    """Return the transform of evaluation and prediction: resize, crop the centre, scale to 0..1, normalise.

    Its input is an image of `open_image(source, preprocessing.channels)`.
    """
    from timm.data import create_transform

    transform = _quickly(create_transform(**preprocessing.timm_arguments(), is_training=False))
    if preprocessing.crop_corner == "floor":
        transform.transforms[1] = partial(_crop_down, size=preprocessing.image_size)
    return transform


def _crop_down(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Crop the centre, its corner rounded down; a smaller image is padded with black (as in transformers)."""
    left, top = (int((side - wanted) / 2) for side, wanted in zip(image.size, reversed(size), strict=True))
    return image.crop((left, top, left + size[1], top + size[0]))


def train_transform(preprocessing: Preprocessing, config: AugmentConfig) -> Transform:
    """Return the transform of training, with the same normalisation; it draws from the global generators."""
    from timm.data import create_transform
    from torchvision.transforms import RandomCrop

    try:
        transform = create_transform(
            **preprocessing.timm_arguments() | {"color_jitter": config.color_jitter or None},
            is_training=True,
            scale=config.crop if isinstance(config.crop, tuple) else None,
            hflip=config.flip,
            auto_augment=config.auto_augment,
            re_prob=config.random_erasing,
            re_mode="pixel",
        )
    except (AssertionError, KeyError, ValueError) as error:
        raise GlocalError(f"auto_augment {config.auto_augment!r} is not a policy of timm: {error}") from None
    for step in transform.transforms:
        for operation in getattr(step, "ops", ()):
            if operation.name.startswith("Posterize"):
                operation.aug_fn = _posterize
    # The first step, a random resized crop, is replaced, as DeiT does for small images.
    resize, center_crop, *_ = eval_transform(preprocessing).transforms
    if config.crop == "center":
        transform.transforms[:1] = [resize, center_crop]
    elif config.crop == "pad":
        height, width = preprocessing.image_size
        transform.transforms[:1] = [resize, RandomCrop((height, width), padding=(width // 8, height // 8))]
    return _quickly(transform)


def _quickly(transform: Steps) -> Steps:
    """Replace ToTensor and Normalize, a third of the time of a small image, by one faster step."""
    from torchvision.transforms import Normalize

    steps = transform.transforms
    place, last = next((place, step) for place, step in enumerate(steps) if isinstance(step, Normalize))
    steps[place - 1 : place + 1] = [_Normalized(last.mean, last.std)]
    return transform


class _Normalized:
    """(x/255 - mean)/std of an 8-bit image, the channels first."""

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        self.mean, self.std = mean.view(-1, 1, 1), std.view(-1, 1, 1)

    def __call__(self, image: Image.Image) -> Float[Tensor, "chans height width"]:
        pixels = torch.from_numpy(np.array(image)).view(image.height, image.width, -1).permute(2, 0, 1)
        return pixels.to(torch.float32, memory_format=torch.contiguous_format).div_(255).sub_(self.mean).div_(self.std)


def _posterize(image: Image.Image, bits: int, **_: object) -> Image.Image:
    """Keep the upper bits. With 0 bits the image is black, as in the published runs; newer Pillow raises an error."""
    return ImageOps.posterize(image, bits) if bits else Image.new(image.mode, image.size)


def mixing(config: AugmentConfig, num_classes: int) -> Mix | None:
    """Return Mixup or CutMix of a batch with its reverse, with soft labels; None where both are off.

    Label smoothing is left to the loss, which is equivalent.
    """
    from timm.data import Mixup

    if not config.mixup and not config.cutmix:
        return None
    mixup = Mixup(mixup_alpha=config.mixup, cutmix_alpha=config.cutmix, label_smoothing=0.0, num_classes=num_classes)
    return partial(_mix, mixup)


def _mix(mixup: "TimmMixup", pixel_values: Pixels, labels: Labels) -> tuple[Pixels, Float[Tensor, "batch classes"]]:
    """Mix a batch; where an image has several classes, its labels are mixed by the shares of the two images."""
    if labels.ndim == 1:
        return mixup(pixel_values, labels)
    mixup.num_classes = len(labels)
    pixel_values, shares = mixup(pixel_values, torch.arange(len(labels)))
    return pixel_values, shares @ labels


@runtime_checkable
class TimmMixup(Protocol):
    """timm's Mixup."""

    num_classes: int

    def __call__(self, x: Pixels, target: Int[Tensor, " batch"]) -> tuple[Pixels, Float[Tensor, "batch classes"]]:
        """Mix a batch with its reverse."""
        ...


@contextmanager
def borrowed_generators() -> Iterator[None]:
    """Restore the global generators of Python, numpy and torch after the block, which reseeds them.

    The transforms draw from all three, and the network's dropout draws from torch's.
    """
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


def seed_generators(*key: int | str) -> None:
    """Seed the three global generators by a key, but not those of CUDA, which the network draws from."""
    random.seed(" ".join(map(str, key)))
    np.random.seed(random.getrandbits(32))
    torch.default_generator.manual_seed(random.getrandbits(63))
