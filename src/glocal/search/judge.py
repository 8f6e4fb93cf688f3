"""How good is a path? Its accuracy with the supernet's weights, on images that neither training nor testing sees.

Two things make a generation cheaper than its paths one by one, and change no accuracy:

    a tree   paths that begin with the same blocks share their computation, and BatchNorm's statistics
    a race   a path that can no longer be among the best is left; the others go on (see `outrun`)
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby, islice
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from jaxtyping import Bool, Float, Int
from torch import Tensor

from glocal.search.space import Blocks
from glocal.search.supernet import State, Supernet
from glocal.training.interfaces import Data

Leaves = Iterator[tuple[int, Tensor]]


@dataclass
class Judge:
    """Judges whole generations, each path on the same images; over several processes, each takes its share of paths.

    `calibration` training images, augmented as in training, give each path BatchNorm statistics of its own: those of
    the supernet are a mixture of all paths (Guo et al. 2019, section 3.4). With `survivors`, paths race for so many
    places.
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
    def __call__(self, paths: list[Blocks]) -> list[dict[str, Any]]:
        """Return a record a path: `fitness`, and `examples`, the images it was judged on before it fell behind.

        A path that fell behind gets the accuracy it had then, but less than the last survivor's.
        """
        order = sorted(range(len(paths)), key=lambda i: repr(paths[i]))  # neighbours begin alike
        mine = np.array_split(order, self.accelerator.num_processes)[self.accelerator.process_index].tolist()
        statistics: dict[Blocks, State] = {}
        with self.accelerator.autocast():
            self.calibrate(paths, statistics, self.supernet.frame.embed(self.calibration_images), mine, 0)

        images = self.data.eval_batches(self.split, self.batch_size)
        hits: list[list[np.ndarray]] = [[] for _ in paths]  # for each path, whether it was right on each image
        running = set(order)
        for seen, batch in enumerate(images, start=1):
            pixels, labels = (batch[name].to(self.accelerator.device) for name in ("pixel_values", "labels"))
            with self.accelerator.autocast():
                tokens = self.supernet.frame.embed(pixels)
                leaves = self.leaves(paths, statistics, tokens, [i for i in mine if i in running], 0)
                own = [(i, (self.answer(leaf) == labels).cpu().numpy()) for i, leaf in leaves]
            for i, right in gather_object(own):
                hits[i].append(right)
            if self.survivors is not None and seen < len(images):
                standing = sorted(running)
                table = np.array([np.concatenate(hits[i]) for i in standing])
                share = seen / len(images)
                running -= {i for i, lost in zip(standing, outrun(table, share, self.survivors), strict=True) if lost}
        return self.records([np.concatenate(right) for right in hits], running)

    def records(self, hits: list[np.ndarray], running: set[int]) -> list[dict[str, Any]]:
        """Accuracies, those of the left ones below any survivor's."""
        least = np.nextafter(min(hits[i].mean() for i in running), 0.0)
        return [
            {"fitness": float(right.mean() if i in running else min(right.mean(), least)), "examples": len(right)}
            for i, right in enumerate(hits)
        ]

    def calibrate(
        self, paths: list[Blocks], statistics: dict[Blocks, State], tokens: Tensor, chosen: list[int], depth: int
    ) -> None:
        """Measure the statistics of every prefix of the chosen paths, depth first."""
        for prefix, gene, group in branches(paths, chosen, depth):
            refined, statistics[prefix] = self.supernet.stores[depth].calibrate(tokens, gene)
            if depth + 1 < len(self.supernet.stores):
                self.calibrate(paths, statistics, refined, group, depth + 1)

    def leaves(
        self, paths: list[Blocks], statistics: dict[Blocks, State], tokens: Tensor, chosen: list[int], depth: int
    ) -> Leaves:
        """Tokens after the last block of each chosen path."""
        if depth == len(self.supernet.stores):
            yield from ((i, tokens) for i in chosen)
            return
        for prefix, gene, group in branches(paths, chosen, depth):
            refined = self.supernet.stores[depth](tokens, gene, statistics[prefix], self.supernet.kept(depth))
            yield from self.leaves(paths, statistics, refined, group, depth + 1)

    def answer(self, tokens: Float[Tensor, "batch tokens dim"]) -> Int[Tensor, " batch"]:
        """The class that the heads agree on."""
        return self.supernet.answer(tokens).float().mean(dim=1).argmax(dim=-1)


def branches(paths: list[Blocks], chosen: list[int], depth: int) -> Iterator[tuple[Blocks, Any, list[int]]]:
    """Group the chosen paths by their block at a depth: their common prefix, that block, and who they are."""
    for prefix, group in groupby(chosen, key=lambda i: paths[i][: depth + 1]):
        yield prefix, prefix[-1], list(group)


def outrun(
    hits: Bool[np.ndarray, "paths images"], share: float, places: int, margin: float = 2.5
) -> Bool[np.ndarray, " paths"]:
    """Whether a path will hardly reach the best `places`, judged by the first `share` of the images.

    It is compared, image by image, with the path in the last of these places: the mean difference is normal with the
    variance of the differences over the images seen, times 1 - share, since the images are finite and without
    replacement. A path is left where it is `margin` such standard deviations behind. In simulated generations of 50
    with 2000 or 5000 images, 2.5 keeps the very ten best in 95 % of them or more, however alike the paths are.
    """
    if len(hits) <= places:
        return np.zeros(len(hits), dtype=bool)
    last = hits[np.argsort(-hits.mean(axis=1), kind="stable")[places - 1]]
    behind = last.astype(float) - hits
    deviation = np.sqrt(behind.var(axis=1) * (1 - share) / hits.shape[1])
    return behind.mean(axis=1) > margin * deviation
