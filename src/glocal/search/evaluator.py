"""The fitness of a path: the task's score with the supernet's weights, on examples held out of the training split.

Two things make it cheaper to evaluate a generation together than path by path. Neither changes a score:

    prefix tree   paths that begin with the same blocks share their computation, and BatchNorm's statistics
    race          a path that can hardly reach the best any more is evaluated no further (see `is_eliminated`)
"""

import math
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import TypedDict

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from glocal.search.budget import Architecture
from glocal.search.supernet import BlockFunction, Statistics, Supernet
from glocal.training.evaluation import move
from glocal.training.interfaces import Batch, Data, ScoredObjective

PathStatistics = dict[Architecture, Statistics]
"""BatchNorm's statistics of the last block of each prefix of a path; empty where no block has BatchNorm."""
Scores = Float[np.ndarray, "2 _"]
"""The score of each example, and the weight of the example in the mean over all examples."""


class Record(TypedDict):
    """The result of a path."""

    fitness: float
    """The task's score, such as an accuracy from 0 to 1 or a negative loss: the higher, the better."""
    examples: int
    """Examples on which the path was evaluated."""


@dataclass
class Evaluator:
    """Evaluates whole generations, each path on the same examples; several processes share the paths.

    BatchNorm's statistics in a supernet are a mixture of all paths, so they are measured again for each path, on
    `calibration` training examples that are augmented as in training (Guo et al. 2019, section 3.4). If `survivors` is
    given, a path is eliminated as soon as it will hardly be among the best `survivors`.
    """

    supernet: Supernet
    task: ScoredObjective
    data: Data
    split: str
    accelerator: Accelerator
    calibration: int = 512
    batch_size: int = 250
    survivors: int | None = None

    def __post_init__(self) -> None:
        self.supernet.to(self.accelerator.device).eval()
        self.task.to(self.accelerator.device)
        if self.supernet.has_batch_norm:
            self.calibration_batch = self.read_calibration()

    def read_calibration(self) -> Batch:
        """Return the training examples to calibrate on, as one batch."""
        batches = self.data.train_batches(min(self.calibration, self.batch_size), 0)
        parts = list(islice(batches, math.ceil(self.calibration / self.batch_size)))
        batch = {name: torch.cat([part[name] for part in parts])[: self.calibration] for name in parts[0]}
        return move(batch, self.accelerator.device)

    @torch.inference_mode()
    def __call__(self, paths: list[Architecture]) -> list[Record]:
        """Return one record per path.

        The fitness of an eliminated path is its score when it was eliminated, or less: it is below the fitness of all
        paths that remain.
        """
        order = sorted(range(len(paths)), key=lambda i: repr(paths[i]))  # paths with equal beginnings become neighbours
        mine = np.array_split(order, self.accelerator.num_processes)[self.accelerator.process_index].tolist()
        statistics = self.calibrate([paths[i] for i in mine])

        batches = self.data.eval_batches(self.split, self.batch_size)
        scores: list[list[Scores]] = [[] for _ in paths]
        running = set(order)
        for count, batch in enumerate(batches, start=1):
            chosen = [i for i in mine if i in running]
            found = self.score_batch(paths, chosen, statistics, move(batch, self.accelerator.device))
            for i, batch_scores in gather_object(found):
                scores[i].append(batch_scores)
            if self.survivors is not None and count < len(batches):
                running -= self.eliminated(scores, sorted(running), count / len(batches), self.survivors)
        return self.records([np.concatenate(path_scores, axis=1) for path_scores in scores], running)

    def calibrate(self, paths: list[Architecture]) -> PathStatistics:
        """Return BatchNorm's statistics for every prefix of the paths. Paths with equal beginnings are neighbours."""
        statistics: PathStatistics = {}
        if not self.supernet.has_batch_norm:
            return statistics
        cache = PrefixCache()

        def measure(prefix: Architecture, x: Tensor, **inputs: object) -> Tensor:
            block = self.supernet.shared_blocks[len(prefix) - 1]
            refined, statistics[prefix] = block.calibrate(prefix[-1], x, **inputs)
            return refined

        with self.accelerator.autocast():
            for path in paths:
                blocks = [cache.cached(prefix, partial(measure, prefix)) for prefix in prefixes(path)]
                self.task.predictions_and_targets(self.supernet.with_blocks(blocks), self.calibration_batch)
        return statistics

    def score_batch(
        self, paths: list[Architecture], chosen: list[int], statistics: PathStatistics, batch: Batch
    ) -> list[tuple[int, Scores]]:
        """Return the index of each chosen path, and the path's scores on a batch.

        Paths with equal beginnings are neighbours in `chosen`.
        """
        cache = PrefixCache()
        found = []
        with self.accelerator.autocast():
            for i in chosen:
                blocks = [
                    cache.cached(prefix, partial(block, prefix[-1], statistics=statistics.get(prefix)))
                    for block, prefix in zip(self.supernet.shared_blocks, prefixes(paths[i]), strict=True)
                ]
                scores, weights = self.task.example_scores(self.supernet.with_blocks(blocks), batch)
                found.append((i, torch.stack([scores, weights]).double().cpu().numpy()))
        return found

    def eliminated(self, scores: list[list[Scores]], running: list[int], share: float, survivors: int) -> set[int]:
        """Return which of the running paths are eliminated after this share of the examples."""
        table = np.array([np.concatenate(scores[i], axis=1) for i in running])
        lost = is_eliminated(table[:, 0], share, survivors, weights=table[0, 1])
        return {i for i, is_lost in zip(running, lost, strict=True) if is_lost}

    def records(self, scores: list[Scores], running: set[int]) -> list[Record]:
        """Return the scores over all examples. Eliminated paths get less than all paths that remain."""
        means = [float(weighted_mean(*path_scores)) for path_scores in scores]
        least = float(np.nextafter(min(means[i] for i in running), -math.inf))
        return [
            {"fitness": mean if i in running else min(mean, least), "examples": path_scores.shape[1]}
            for i, (mean, path_scores) in enumerate(zip(means, scores, strict=True))
        ]


@dataclass
class PrefixCache:
    """Outputs of blocks for one batch: for each depth the last output, and the prefix of a path that it belongs to.

    Without dropout, a block's output follows from the batch and from the blocks up to it. Paths that begin with the
    same blocks, and come one after the other, therefore compute these blocks once.
    """

    outputs: dict[int, tuple[Architecture, Tensor]] = field(default_factory=dict)

    def cached(self, prefix: Architecture, block: BlockFunction) -> BlockFunction:
        """Return the last block of a prefix as a function that computes only what is not in the cache."""

        def cached_block(x: Tensor, **inputs: object) -> Tensor:
            known = self.outputs.get(len(prefix))
            if known is None or known[0] != prefix:
                known = self.outputs[len(prefix)] = prefix, block(x, **inputs)
            return known[1]

        return cached_block


def prefixes(path: Architecture) -> list[Architecture]:
    """Return the beginnings of a path, from the first block alone to the whole path."""
    return [path[: depth + 1] for depth in range(len(path))]


def weighted_mean(
    scores: Shaped[np.ndarray, "*paths examples"], weights: Float[np.ndarray, " examples"]
) -> Float[np.ndarray, "*paths"] | np.floating:
    """Return the weighted mean over the examples."""
    return (scores * weights).sum(axis=-1) / weights.sum()


def is_eliminated(
    scores: Shaped[np.ndarray, "paths examples"],
    share: float,
    survivors: int,
    margin: float = 2.5,
    weights: Float[np.ndarray, " examples"] | None = None,
) -> Bool[np.ndarray, " paths"]:
    """Return which paths will hardly be among the best `survivors`, by the first `share` of the examples.

    Each path is compared, example by example, with the path that is now the last of the best `survivors`. The weighted
    mean of the differences is taken as normal. Its variance is estimated from the differences over the examples so far,
    times 1 - share, since the examples are finite and drawn without replacement. A path is eliminated where it is
    behind by `margin` standard deviations. In simulated generations of 50 paths with 2000 or 5000 images, 2.5 keeps
    exactly the ten best in 95 % of the generations or more, however alike the paths.
    """
    if len(scores) <= survivors:
        return np.zeros(len(scores), dtype=bool)
    weights = np.ones(scores.shape[1]) if weights is None else weights
    last = scores[np.argsort(-weighted_mean(scores, weights), kind="stable")[survivors - 1]]
    behind = last.astype(float) - scores
    mean = np.asarray(weighted_mean(behind, weights))
    spread = (((behind - mean[:, None]) * weights) ** 2).sum(axis=1)
    return mean > margin * np.sqrt(spread * (1 - share)) / weights.sum()
