"""Data sets of images: splits and batches. A batch is a pure function of (seed, epoch, its number), without state."""

import hashlib
import math
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from glocal.data.augment import (
    Preprocessing,
    Transform,
    borrowed_generators,
    eval_transform,
    mixing,
    seed_generators,
    train_transform,
)
from glocal.data.config import DataConfig
from glocal.data.decoding import open_image
from glocal.data.image_source import LabelFormat, ProblemType, Source, check_trainable
from glocal.data.loader import Batches, Key, KeyedBatches, Loader
from glocal.data.memory import hold
from glocal.data.sources import open_source
from glocal.data.splits import (
    Splits,
    cut_off,
    cut_splits,
    describe_splits,
    in_training,
    no_examples,
    read_splits,
    share_of,
    write_splits,
)
from glocal.errors import GlocalError
from glocal.files import JSONObject

Batch = dict[str, Tensor]
"""`pixel_values` float32 (B, C, H, W); `labels` int64 (B,), float32 (B, K) where images are mixed or have any number of
classes, or float32 (B,) where labels are numbers."""


def open_images(
    config: DataConfig,
    split_file: Path | None = None,
    classes: list[str] | None = None,
    problem_type: ProblemType | None = None,
) -> "Images":
    """Open the images that `config` names, with the splits of `split_file`, which is written where it does not exist.

    With the `classes` of a trained model, data is opened to test it on: all of it is the test split, unless it names
    one. `problem_type` says what labels are, if not one class of several.

    Raises GlocalError if the data or the config is unusable, or the data is not that of `split_file`.
    """
    preprocessing = Preprocessing.of(config)
    form = LabelFormat(problem_type, config.label, getattr(config, "separator", ","))
    source = open_source(config.source, classes, form)
    everything = np.arange(len(source.labels))
    if split_file is not None and split_file.exists():
        splits, skipped = read_splits(split_file, source)
        wanted = np.concatenate(list(splits.values())).astype(int)
        held, _ = hold(source, wanted, config.channels, "raise")
        return Images(config, preprocessing, held, splits, skipped)
    held, broken = hold(source, everything, config.channels, config.on_error)
    usable = np.isin(everything, broken, invert=True)
    splits = cut_splits(source, usable, config.val_fraction, config.test_fraction, config.seed)
    if broken and classes is None:
        check_trainable(source, np.array(splits["train"], dtype=int))
    skipped = [source.describe(index) for index in broken]
    if split_file is not None:
        write_splits(split_file, source, splits, skipped)
    return Images(config, preprocessing, held, splits, skipped)


class Images:
    """A data set of images: classes, splits and batches."""

    def __init__(
        self, config: DataConfig, preprocessing: Preprocessing, source: Source, splits: Splits, skipped: list[str]
    ) -> None:
        self.config = config
        self.preprocessing = preprocessing
        self.source = source
        self.splits = splits
        self.skipped = skipped
        """The names of the images that could not be read and were left out."""
        self.transform = eval_transform(preprocessing)
        self._train_loaders: dict[tuple[int, int, int], Loader[tuple[int, int]]] = {}
        self._eval_loaders: dict[tuple[str, int, int, int], Loader[int]] = {}

    @property
    def labels(self) -> list[str]:
        """Names of the classes, in the order of the labels; none where labels are numbers."""
        return self.source.classes

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of `pixel_values`."""
        return self.preprocessing.image_size

    @property
    def channels(self) -> int:
        """1 or 3."""
        return self.preprocessing.channels

    @property
    def report(self) -> JSONObject:
        """How many images there are, the names of those that could not be read and were left out, and how many of val
        and test are training images, too.
        """
        repeated = {f"{split}_in_training": count for split, count in self.repeated.items()}
        return {"images": len(self.source.labels), "skipped": self.skipped} | repeated

    @cached_property
    def repeated(self) -> dict[str, int]:
        """How many images of val and test are training images, too; only images in memory are compared."""
        items = [each for each in self.source.items if isinstance(each, np.ndarray)]
        if len(items) < len(self.source.items):
            return {}
        hashes = (hashlib.blake2b(repr(each.shape).encode() + each.tobytes(), digest_size=8) for each in items)
        return in_training(np.array([int.from_bytes(each.digest()) for each in hashes], np.uint64), self.splits)

    def describe(self) -> str:
        """Return a line with the numbers of images and classes."""
        sizes = {split: len(images) for split, images in self.splits.items()}
        classes = f", in {len(self.labels)} classes" if self.labels else ""
        return f"{self.source.name}: {describe_splits(sizes, 'images', self.repeated)}{classes}"

    def hold_out(self, fraction: float) -> "Images":
        """Return the training images alone, of which a share, the same of each class, becomes the split `val`."""
        rng = np.random.default_rng(self.config.seed)
        splits = {"train": np.array(self.splits["train"], dtype=int)}
        cut_off(splits, "val", share_of(fraction, len(splits["train"])), self.source.labels, rng)
        lists = {name: indices.tolist() for name, indices in splits.items()}
        return Images(self.config, self.preprocessing, self.source, lists, self.skipped)

    def train_batches(
        self, batch_size: int, epoch: int, start: int = 0, rank: int = 0, world_size: int = 1
    ) -> Batches[tuple[int, int]]:
        """Return the batches `start` and later of an epoch, augmented; each process has `batch_size` images.

        Every process has the same number of full batches; a remainder is left out of the epoch. A batch is never larger
        than a process's share of the data, and its size is even where images are mixed in pairs.
        """
        key = batch_size, rank, world_size
        if key not in self._train_loaders:
            self._train_loaders[key] = Loader(_TrainBatches(self, *key), self.config.workers)
        loader = self._train_loaders[key]
        return Batches(loader, [(epoch, number) for number in range(start, len(loader))])

    def eval_batches(self, split: str, batch_size: int, rank: int = 0, world_size: int = 1) -> Batches[int]:
        """Return the batches of a split in fixed order; the processes together get every image exactly once."""
        if not self.splits.get(split):
            raise no_examples(self.source.name, "images", split)
        key = split, batch_size, rank, world_size
        if key not in self._eval_loaders:
            self._eval_loaders[key] = Loader(_EvalBatches(self, *key), self.config.workers)
        loader = self._eval_loaders[key]
        return Batches(loader, range(len(loader)))


class _Batches(KeyedBatches[Key]):
    """Batches of images, with only what can be sent to a worker process."""

    def __init__(self, images: Images, indices: np.ndarray, transform: Transform) -> None:
        self.source, self.channels = images.source, images.channels
        self.indices = indices
        self.transform = transform

    def pixels(self, index: int) -> Float[Tensor, "chans height width"]:
        return self.transform(open_image(self.source.items[index], self.channels, self.source.describe(index)))


class _EvalBatches(_Batches[int]):
    """The batches of a split in its own order, by number; the last may be smaller."""

    def __init__(self, images: Images, split: str, batch_size: int, rank: int, world_size: int) -> None:
        super().__init__(images, np.array(images.splits[split][rank::world_size], dtype=int), images.transform)
        self.batch_size = batch_size

    def __len__(self) -> int:
        return math.ceil(len(self.indices) / self.batch_size)

    def make(self, key: int) -> Batch:
        chosen = self.indices[key * self.batch_size :][: self.batch_size]
        pixel_values = torch.stack([self.pixels(index) for index in chosen.tolist()])
        return {"pixel_values": pixel_values, "labels": torch.from_numpy(self.source.targets(chosen))}


class _TrainBatches(_Batches[tuple[int, int]]):
    """The batches of every epoch, by (epoch, number)."""

    def __init__(self, images: Images, batch_size: int, rank: int, world_size: int) -> None:
        augment = images.config.augment
        super().__init__(images, np.array(images.splits["train"]), train_transform(images.preprocessing, augment))
        self.seed, self.repeats = images.config.seed, augment.repeats
        self.mix = mixing(augment, len(images.labels))
        self.rank, self.world_size = rank, world_size
        self.batch_size = min(batch_size, len(self.indices) // world_size)
        if self.mix:
            self.batch_size -= self.batch_size % 2
        if self.batch_size < 1:
            raise GlocalError(
                f"batch_size {batch_size} on {world_size} processes, with {len(self.indices)} training images, leaves "
                f"an empty batch; expected {'two images' if self.mix else 'one image'} or more in each"
            )

    def __len__(self) -> int:
        return len(self.indices) // (self.batch_size * self.world_size)

    def make(self, key: tuple[int, int]) -> Batch:
        epoch, number = key
        first = number * self.batch_size * self.world_size
        positions = range(first + self.rank, first + self.batch_size * self.world_size, self.world_size)
        chosen = self.indices[_epoch_order(len(self.indices), self.repeats, self.seed, epoch)[positions]]
        with borrowed_generators():
            pixels = []
            for position, index in zip(positions, chosen.tolist(), strict=True):
                seed_generators(self.seed, epoch, position)
                pixels.append(self.pixels(index))
            pixel_values, labels = torch.stack(pixels), torch.from_numpy(self.source.targets(chosen))
            if self.mix:
                seed_generators(self.seed, epoch, positions[0], "mix")
                pixel_values, labels = self.mix(pixel_values, labels)
        return {"pixel_values": pixel_values, "labels": labels}


@lru_cache(maxsize=2)
def _epoch_order(size: int, repeats: int, seed: int, epoch: int) -> np.ndarray:
    """Return 0..size-1 in an epoch's random order; with repeats, the first of them, each `repeats` times in a row.

    Neighbours go to different processes, so that with as many processes as repeats, no batch holds an image twice
    (DeiT's sampler, timm's RepeatAugSampler).
    """
    shuffled = np.random.default_rng((seed, epoch)).permutation(size)
    return np.repeat(shuffled, repeats)[:size]
