"""The config of image data: a recipe's section `data`."""

from dataclasses import dataclass
from typing import Literal

from glocal.errors import GlocalError, check_range

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class AugmentConfig:
    """The augmentation of training images, by default none. Values have the same meaning as in timm."""

    crop: Literal["center", "pad"] | tuple[float, float] = "center"
    """`center` as in evaluation; `pad`: a random place after padding by an eighth (4 pixels of 32);
    `[0.08, 1.0]`: a random part of the image covering that share of its area, resized."""
    flip: float = 0.0
    """Probability of a horizontal flip; 0 for digits and letters, which flips change into other signs."""
    auto_augment: str | None = None
    """timm's name of a policy, such as `rand-m9-mstd0.5-inc1` (RandAugment, Cubuk et al. 2019)."""
    color_jitter: float = 0.0
    """Range of brightness, contrast and saturation. timm ignores it with `auto_augment`, so both together are an
    error."""
    random_erasing: float = 0.0
    """Probability that a rectangle is filled with noise (Zhong et al. 2017)."""
    mixup: float = 0.0
    """α of Mixup (Zhang et al. 2017), λ drawn once a batch; with it labels are soft. 0 is off."""
    cutmix: float = 0.0
    """α of CutMix (Yun et al. 2019); with both, each batch takes one or the other at even odds. 0 is off."""
    repeats: int = 1
    """Repeated augmentation (Hoffer et al. 2019): how often an epoch has the same image. The epoch's length does not
    change, so that it has one image in `repeats`."""

    def __post_init__(self) -> None:
        low, high = self.crop if isinstance(self.crop, tuple) else (1.0, 1.0)
        if not 0 < low <= high <= 1:
            raise GlocalError(f"augment.crop {self.crop}; expected center, pad, or a low and a high share of the area")
        for name in ("flip", "random_erasing"):
            check_range(f"data.augment.{name}", getattr(self, name), least=0, most=1)
        for name in ("color_jitter", "mixup", "cutmix"):
            check_range(f"data.augment.{name}", getattr(self, name), least=0)
        check_range("data.augment.repeats", self.repeats, least=1)
        if self.auto_augment and self.color_jitter:
            raise GlocalError(
                f"augment.auto_augment {self.auto_augment} and color_jitter {self.color_jitter} together; "
                "timm leaves the jitter out beside a policy: set one of them"
            )


LIGHT = AugmentConfig(crop="pad", flip=0.5)
"""For small photographs: the crop and flip of the CIFAR literature (He et al. 2015, section 4.2)."""

DEIT = AugmentConfig(
    crop=(0.08, 1.0),
    flip=0.5,
    auto_augment="rand-m9-mstd0.5-inc1",
    random_erasing=0.25,
    mixup=0.8,
    cutmix=1.0,
    repeats=3,
)
"""DeiT's (Touvron et al. 2021, table 9). Its released command also has a colour jitter, which timm ignores with
RandAugment."""


@dataclass(frozen=True)
class DataConfig:
    """The image source, its preprocessing and its splits."""

    source: str = "digits"
    """A folder of class folders (also inside train, val and test folders); a table (CSV, TSV, JSONL, Parquet) whose
    column file_name, image or path names image files relative to it; a folder that holds such a table as metadata.csv,
    or tables named train, val and test; Parquet files of images, or a folder of them; a folder of IDX files; `digits`,
    which scikit-learn ships; or, where no such path exists, OWNER/NAME of a data set of the hub."""
    image_size: int | tuple[int, int] = 224
    """Side, or height and width, of the model's input in pixels."""
    channels: Literal[1, 3] = 3
    """3 for colour, 1 for grey; images are converted."""
    mean: tuple[float, ...] | None = None
    """Mean of each channel, of values from 0 to 1; ImageNet's by default, 0.5 for grey."""
    std: tuple[float, ...] | None = None
    """Standard deviation of each channel; ImageNet's by default, 0.5 for grey."""
    crop_pct: float = 1.0
    """Share of the resized image's side that evaluation keeps, cut from its centre."""
    augment: AugmentConfig = AugmentConfig()
    """The augmentation of training images."""
    label: str | None = None
    """Name of the column of labels in a table; by default label, or what else is usual."""
    val_fraction: float = 0.1
    """Share of the training images set aside for validation where the data names no such split."""
    test_fraction: float = 0.1
    """Share of the training images set aside for testing where the data names no such split."""
    seed: int = 0
    """Seed of the splits, of the order of every epoch and of the augmentation."""
    on_error: Literal["raise", "skip"] = "raise"
    """`raise` stops at a broken image; `skip` decodes every image once, and leaves out and counts the broken ones."""
    workers: int = 0
    """Processes that prepare batches; with 0, the training process prepares them. The batches are the same."""

    def __post_init__(self) -> None:
        size = (self.image_size,) if isinstance(self.image_size, int) else self.image_size
        if min(size) < 1 or not 0 < self.crop_pct <= 1:
            raise GlocalError(
                f"data.image_size {self.image_size}, crop_pct {self.crop_pct}; "
                "expected a pixel or more, and a share above 0 and up to 1"
            )
        for name, values in {"mean": self.mean, "std": self.std}.items():
            if values is not None and len(values) != self.channels:
                raise GlocalError(f"data.{name} {values}; expected {self.channels} numbers, one a channel")
            for value in values or ():
                check_range(f"one of data.{name}", value, **{"above": 0} if name == "std" else {})
        check_fractions(self.val_fraction, self.test_fraction)
        check_range("data.seed", self.seed, least=0, below=2**63)
        check_range("data.workers", self.workers, least=0)


def check_fractions(val: float, test: float) -> None:
    """Raise GlocalError if validation and test leave nothing to train on."""
    if not (val >= 0 and test >= 0 and val + test < 1):  # nan is none of the three
        raise GlocalError(
            f"data.val_fraction {val} and test_fraction {test} leave nothing to train on; expected 0 or more, and less "
            "than 1 together"
        )
