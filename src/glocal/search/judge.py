"""The fitness of a path: its accuracy with the supernet's weights, on images held out from training and test.

Two things make a generation cheaper than its paths one by one, and change no accuracy:

    prefix tree   paths that begin with the same blocks share their computation, and BatchNorm's statistics
    race          a path that can hardly reach the best any more is evaluated no further (see `is_eliminated`)
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby, islice
from typing import TypedDict

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from jaxtyping import Bool, Float, Int
from torch import Tensor

from glocal.layers.block import BlockConfig
from glocal.search.space import Blocks
from glocal.search.supernet import Statistics, Supernet
from glocal.training.interfaces import Data

PathStatistics = dict[Blocks, Statistics]
"""BatchNorm's statistics of the last block of each prefix."""


class Record(TypedDict):
    """The result of a path."""

    fitness: float
    """Accuracy, from 0 to 1."""
    examples: int
    """Images on which the path was evaluated."""


@dataclass
class Judge:
    """Evaluates whole generations, each path on the same images; several processes share the paths.

    `calibration` training images, augmented as in training, give each path BatchNorm statistics of its own: those of
    the supernet are a mixture of all paths (Guo et al. 2019, section 3.4). With `survivors`, a path is eliminated when
    it will hardly be among so many best.
    """

    supernet: Supernet
    data: Data
    split: str
    accelerator: Accelerator
    calibration: int = 512
    batch_size: int = 250
    survivors: int | None = None

    def __post_init__(self) -> None:
        self.supernet.to(self.accelerator.device).eval()
        batches = self.data.train_batches(min(self.calibration, self.batch_size), 0)
        pixels = [batch["pixel_values"] for batch in islice(batches, math.ceil(self.calibration / self.batch_size))]
        self.calibration_images = torch.cat(pixels)[: self.calibration].to(self.accelerator.device)

    @torch.inference_mode()
    def __call__(self, paths: list[Blocks]) -> list[Record]:
        """Return a record a path. The fitness of an eliminated path is its accuracy then, below any survivor's."""
        order = sorted(range(len(paths)), key=lambda i: repr(paths[i]))  # equal beginnings become neighbours
        mine = np.array_split(order, self.accelerator.num_processes)[self.accelerator.process_index].tolist()
        statistics: PathStatistics = {}
        with self.accelerator.autocast():
            self.calibrate(paths, statistics, self.supernet.frame.embed(self.calibration_images), mine, 0)

        images = self.data.eval_batches(self.split, self.batch_size)
        hits: list[list[Bool[np.ndarray, " _"]]] = [[] for _ in paths]  # whether a path is right on each image
        running = set(order)
        for seen, batch in enumerate(images, start=1):
            pixels, labels = (batch[name].to(self.accelerator.device) for name in ("pixel_values", "labels"))
            with self.accelerator.autocast():
                tokens = self.supernet.frame.embed(pixels)
                outputs = self.forward_paths(paths, statistics, tokens, [i for i in mine if i in running], 0)
                own = [(i, (self.predict(output) == labels).cpu().numpy()) for i, output in outputs]
            for i, right in gather_object(own):
                hits[i].append(right)
            if self.survivors is not None and seen < len(images):
                running -= self.eliminated(hits, sorted(running), seen / len(images), self.survivors)
        return self.records([np.concatenate(right) for right in hits], running)

    def eliminated(
        self, hits: list[list[Bool[np.ndarray, " _"]]], running: list[int], share: float, survivors: int
    ) -> set[int]:
        """Return which of the running paths are eliminated after this share of the images."""
        table = np.array([np.concatenate(hits[i]) for i in running])
        return {i for i, lost in zip(running, is_eliminated(table, share, survivors), strict=True) if lost}

    def records(self, hits: list[Bool[np.ndarray, " _"]], running: set[int]) -> list[Record]:
        """Return the accuracies; eliminated paths rank below all survivors."""
        least = np.nextafter(min(hits[i].mean() for i in running), 0.0)
        return [
            {"fitness": float(right.mean() if i in running else min(right.mean(), least)), "examples": len(right)}
            for i, right in enumerate(hits)
        ]

    def calibrate(
        self, paths: list[Blocks], statistics: PathStatistics, tokens: Tensor, chosen: list[int], depth: int
    ) -> None:
        """Measure the statistics of every prefix of the chosen paths, depth first, and store them in `statistics`."""
        for prefix, gene, group in group_by_prefix(paths, chosen, depth):
            refined, statistics[prefix] = self.supernet.shared_blocks[depth].calibrate(tokens, gene)
            if depth + 1 < len(self.supernet.shared_blocks):
                self.calibrate(paths, statistics, refined, group, depth + 1)

    def forward_paths(
        self, paths: list[Blocks], statistics: PathStatistics, tokens: Tensor, chosen: list[int], depth: int
    ) -> Iterator[tuple[int, Float[Tensor, "batch queries dim"]]]:
        """Iterate over the chosen paths: the index of each, and its tokens after the last block."""
        if depth == len(self.supernet.shared_blocks):
            yield from ((i, tokens) for i in chosen)
            return
        for prefix, gene, group in group_by_prefix(paths, chosen, depth):
            block = self.supernet.shared_blocks[depth]
            refined = block(tokens, gene, statistics[prefix], self.supernet.num_queries(depth))
            yield from self.forward_paths(paths, statistics, refined, group, depth + 1)

    def predict(self, tokens: Float[Tensor, "batch tokens dim"]) -> Int[Tensor, " batch"]:
        """Return the class with the largest logit, averaged over the heads."""
        return self.supernet.forward_head(tokens).float().mean(dim=1).argmax(dim=-1)


def group_by_prefix(
    paths: list[Blocks], chosen: list[int], depth: int
) -> Iterator[tuple[Blocks, BlockConfig, list[int]]]:
    """Group the chosen paths by their blocks up to `depth`: this prefix, its last block, and the paths' indices."""
    for prefix, group in groupby(chosen, key=lambda i: paths[i][: depth + 1]):
        yield prefix, prefix[-1], list(group)


def is_eliminated(
    hits: Bool[np.ndarray, "paths images"], share: float, survivors: int, margin: float = 2.5
) -> Bool[np.ndarray, " paths"]:
    """Return whether a path will hardly be among the best `survivors`, judged by the first `share` of the images.

    It is compared, image by image, with the last path of these. The mean difference is normal, with the
    variance of the differences over the images seen times 1 - share, since the images are finite and drawn without
    replacement. A path is eliminated where it is `margin` such standard deviations behind. In simulated generations of
    50 paths with 2000 or 5000 images, 2.5 keeps exactly the ten best in 95 % of them or more, however alike the paths.
    """
    if len(hits) <= survivors:
        return np.zeros(len(hits), dtype=bool)
    last = hits[np.argsort(-hits.mean(axis=1), kind="stable")[survivors - 1]]
    behind = last.astype(float) - hits
    deviation = np.sqrt(behind.var(axis=1) * (1 - share) / hits.shape[1])
    return behind.mean(axis=1) > margin * deviation
