"""From a source to batches. A batch is a pure function of (seed, epoch, its number): no state, nothing to save."""

import atexit
import math
import signal
import weakref
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

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
from glocal.data.memory import hold
from glocal.data.sources import open_source
from glocal.data.splits import (
    Splits,
    cut_off,
    cut_splits,
    describe_splits,
    no_examples,
    read_splits,
    share_of,
    write_splits,
)
from glocal.errors import GlocalError

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

    `classes` of a trained model open other data to test it on: then all of it is the test split, unless it names one.
    `problem_type` says what labels are, if not one class of several.
    Raises GlocalError where the data or the config is unusable, or the data is not that of `split_file`.
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
    """A data set that is ready to learn from: classes, splits, and batches of them."""

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
        self._loaders: dict[tuple[str, int, int, int], DataLoader] = {}

    @property
    def labels(self) -> list[str]:
        """Names of the classes, in the order of the labels; none where these are numbers."""
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
    def report(self) -> dict[str, Any]:
        """How many images there are, and the names of those that could not be read and were left out."""
        return {"images": len(self.source.labels), "skipped": self.skipped}

    def describe(self) -> str:
        """Return a line that counts the images and the classes."""
        sizes = {split: len(images) for split, images in self.splits.items()}
        classes = f", in {len(self.labels)} classes" if self.labels else ""
        return f"{self.source.name}: {describe_splits(sizes, 'images')}{classes}"

    def hold_out(self, fraction: float) -> "Images":
        """Return the training images alone, a share of them, even over the classes, as `val`; no others are there."""
        rng = np.random.default_rng(self.config.seed)
        splits = {"train": np.array(self.splits["train"], dtype=int)}
        cut_off(splits, "val", share_of(fraction, len(splits["train"])), self.source.labels, rng)
        lists = {name: indices.tolist() for name, indices in splits.items()}
        return Images(self.config, self.preprocessing, self.source, lists, self.skipped)

    def train_batches(self, batch_size: int, epoch: int, start: int = 0, rank: int = 0, world: int = 1) -> "Batches":
        """Batches `start` and later of an epoch, augmented; `batch_size` images for each of `world` processes.

        Every process gets equally many full batches; what does not fill one waits for another epoch's order. A batch is
        never larger than a process's share of the data, and even where images are mixed in pairs.
        """
        loader = self._loader("train", batch_size, rank, world)
        count = len(loader.dataset)  # type: ignore[arg-type]
        return Batches(loader, [(epoch, number) for number in range(start, count)])

    def eval_batches(self, split: str, batch_size: int, rank: int = 0, world: int = 1) -> "Batches":
        """Return a split as it is, in its fixed order; over the `world` processes every image comes exactly once."""
        if not self.splits.get(split):
            raise no_examples(self.source.name, "images", split)
        loader = self._loader(f"eval {split}", batch_size, rank, world)
        return Batches(loader, range(len(loader.dataset)))  # type: ignore[arg-type]

    def _loader(self, kind: str, batch_size: int, rank: int, world: int) -> DataLoader:
        """One loader for all passes of a kind, so that its worker processes live from epoch to epoch."""
        key = (kind, batch_size, rank, world)
        if key not in self._loaders:
            batches: _Batches
            if kind == "train":
                batches = _TrainBatches(self, batch_size, rank, world)
            else:
                batches = _EvalBatches(self, kind.removeprefix("eval "), batch_size, rank, world)
            workers = self.config.workers
            self._loaders[key] = DataLoader(
                batches,
                batch_size=None,
                sampler=[],  # filled by each pass
                num_workers=workers,
                persistent_workers=workers > 0,
                worker_init_fn=_leave_interrupts_to_the_parent,
                pin_memory=torch.cuda.is_available(),
                generator=torch.Generator(),  # else each pass would draw a number from the network's
            )
        return self._loaders[key]


def _leave_interrupts_to_the_parent(worker: int) -> None:
    """Ctrl-C, and what stops a job, reach every process of it; the one that trains needs its workers until it saved."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


_ENDED_AT_EXIT: "weakref.WeakSet[DataLoader]" = weakref.WeakSet()


def _end_workers(loader: "weakref.ref[DataLoader]") -> None:
    """End the workers of a loader that an error's traceback keeps alive: the SIGTERM of Python's exit they ignore."""
    iterator = getattr(loader(), "_iterator", None)
    if iterator is not None:
        iterator._shutdown_workers()


class Batches:
    """One pass over some batches, each made when its turn comes. A new pass of the same kind ends an older one."""

    def __init__(self, loader: DataLoader, keys: Sequence[Any]) -> None:
        self.loader, self.keys = loader, keys

    def __len__(self) -> int:
        return len(self.keys)

    def __iter__(self) -> Iterator[Batch]:
        self.loader.sampler[:] = self.keys  # type: ignore[index]
        iterator = iter(self.loader)
        if self.loader not in _ENDED_AT_EXIT:
            _ENDED_AT_EXIT.add(self.loader)
            atexit.register(_end_workers, weakref.ref(self.loader))  # after torch's own, so that it runs before them
        for batch in iterator:
            if isinstance(batch, GlocalError):
                raise batch
            yield batch


class _Batches(Dataset[Batch | GlocalError], ABC):
    """Batches by their key. What a worker process needs, and nothing that cannot be sent to one."""

    def __init__(self, images: Images, indices: np.ndarray, transform: Transform) -> None:
        self.source, self.channels = images.source, images.channels
        self.indices = indices
        self.transform = transform

    def __getitem__(self, key: Any) -> Batch | GlocalError:
        try:
            return self.make(key)
        except GlocalError as error:  # raised by a worker, its one line would be wrapped in a traceback
            return error

    @abstractmethod
    def make(self, key: Any) -> Batch:
        """Return the batch of a key."""

    def pixels(self, index: int) -> Float[Tensor, "chans height width"]:
        return self.transform(open_image(self.source.items[index], self.channels, self.source.describe(index)))


class _EvalBatches(_Batches):
    """The batches of a split in its own order, by number; the last may be smaller."""

    def __init__(self, images: Images, split: str, batch_size: int, rank: int, world: int) -> None:
        super().__init__(images, np.array(images.splits[split][rank::world], dtype=int), images.transform)
        self.batch_size = batch_size

    def __len__(self) -> int:
        return math.ceil(len(self.indices) / self.batch_size)

    def make(self, number: int) -> Batch:
        chosen = self.indices[number * self.batch_size :][: self.batch_size]
        pixel_values = torch.stack([self.pixels(index) for index in chosen.tolist()])
        return {"pixel_values": pixel_values, "labels": torch.from_numpy(self.source.targets(chosen))}


class _TrainBatches(_Batches):
    """The batches of every epoch, by (epoch, number)."""

    def __init__(self, images: Images, batch_size: int, rank: int, world: int) -> None:
        augment = images.config.augment
        super().__init__(images, np.array(images.splits["train"]), train_transform(images.preprocessing, augment))
        self.seed, self.repeats = images.config.seed, augment.repeats
        self.mix = mixing(augment, len(images.labels))
        self.rank, self.world = rank, world
        self.batch_size = min(batch_size, len(self.indices) // world)
        if self.mix:
            self.batch_size -= self.batch_size % 2
        if self.batch_size < 1:
            raise GlocalError(
                f"batch_size {batch_size} on {world} processes, with {len(self.indices)} training images, leaves "
                f"an empty batch; expected {'two images' if self.mix else 'one image'} or more in each"
            )

    def __len__(self) -> int:
        return len(self.indices) // (self.batch_size * self.world)

    def make(self, key: tuple[int, int]) -> Batch:
        epoch, number = key
        first = number * self.batch_size * self.world
        positions = range(first + self.rank, first + self.batch_size * self.world, self.world)
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
    """Shuffle 0..size-1 for an epoch; with repeats, each that is drawn comes `repeats` times in a row, to fill as many.

    Neighbours go to different processes, so on as many processes as repeats no batch holds an image twice (DeiT's
    sampler, timm's RepeatAugSampler).
    """
    shuffled = np.random.default_rng((seed, epoch)).permutation(size)
    return np.repeat(shuffled, repeats)[:size]
