"""The fitness of a path: the task's score with the supernet's weights, on examples held out from training and test.

Two things make a generation cheaper than its paths one by one, and change no score:

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

from glocal.search.space import Blocks
from glocal.search.supernet import BlockFunction, Statistics, Supernet
from glocal.training.evaluation import move
from glocal.training.interfaces import Batch, Data, ScoredObjective

PathStatistics = dict[Blocks, Statistics]
"""BatchNorm's statistics of the last block of each prefix; empty where no block has BatchNorm."""
Scores = Float[np.ndarray, "2 _"]
"""The score of each example, and its weight in the mean over all."""


class Record(TypedDict):
    """The result of a path."""

    fitness: float
    """The task's score, such as an accuracy from 0 to 1 or a negative loss: the higher, the better."""
    examples: int
    """Examples on which the path was evaluated."""


@dataclass
class Judge:
    """Evaluates whole generations, each path on the same examples; several processes share the paths.

    `calibration` training examples, augmented as in training, give each path BatchNorm statistics of its own: those of
    the supernet are a mixture of all paths (Guo et al. 2019, section 3.4). With `survivors`, a path is eliminated when
    it will hardly be among so many best.
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
    def __call__(self, paths: list[Blocks]) -> list[Record]:
        """Return a record a path. The fitness of an eliminated path is its score then, below any survivor's."""
        order = sorted(range(len(paths)), key=lambda i: repr(paths[i]))  # equal beginnings become neighbours
        mine = np.array_split(order, self.accelerator.num_processes)[self.accelerator.process_index].tolist()
        statistics = self.calibrate([paths[i] for i in mine])

        batches = self.data.eval_batches(self.split, self.batch_size)
        scores: list[list[Scores]] = [[] for _ in paths]
        running = set(order)
        for count, batch in enumerate(batches, start=1):
            own = [i for i in mine if i in running]
            found = self.evaluate(paths, own, statistics, move(batch, self.accelerator.device))
            for i, of_batch in gather_object(found):
                scores[i].append(of_batch)
            if self.survivors is not None and count < len(batches):
                running -= self.eliminated(scores, sorted(running), count / len(batches), self.survivors)
        return self.records([np.concatenate(of_path, axis=1) for of_path in scores], running)

    def calibrate(self, paths: list[Blocks]) -> PathStatistics:
        """Return BatchNorm's statistics of every prefix of the paths, whose equal beginnings are neighbours."""
        statistics: PathStatistics = {}
        if not self.supernet.has_batch_norm:
            return statistics
        memory = PrefixMemory()

        def measure(prefix: Blocks, x: Tensor, **inputs: object) -> Tensor:
            block = self.supernet.shared_blocks[len(prefix) - 1]
            refined, statistics[prefix] = block.calibrate(prefix[-1], x, **inputs)
            return refined

        with self.accelerator.autocast():
            for path in paths:
                blocks = [memory.remember(prefix, partial(measure, prefix)) for prefix in prefixes(path)]
                self.task.predictions_and_targets(self.supernet.with_blocks(blocks), self.calibration_batch)
        return statistics

    def evaluate(
        self, paths: list[Blocks], chosen: list[int], statistics: PathStatistics, batch: Batch
    ) -> list[tuple[int, Scores]]:
        """Return the index of each chosen path and its scores on a batch; equal beginnings are neighbours."""
        memory = PrefixMemory()
        found = []
        with self.accelerator.autocast():
            for i in chosen:
                blocks = [
                    memory.remember(prefix, partial(block, prefix[-1], statistics=statistics.get(prefix)))
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
        """Return the scores over all examples; eliminated paths rank below all survivors."""
        means = [float(weighted_mean(*of_path)) for of_path in scores]
        least = float(np.nextafter(min(means[i] for i in running), -math.inf))
        return [
            {"fitness": mean if i in running else min(mean, least), "examples": of_path.shape[1]}
            for i, (mean, of_path) in enumerate(zip(means, scores, strict=True))
        ]


@dataclass
class PrefixMemory:
    """What blocks have returned for one batch: of each depth the last output, and the prefix that it belongs to.

    Without dropout, a block's output follows from the batch and from the blocks up to it. Paths that begin alike and
    come one after the other therefore compute their common blocks once.
    """

    outputs: dict[int, tuple[Blocks, Tensor]] = field(default_factory=dict)

    def remember(self, prefix: Blocks, block: BlockFunction) -> BlockFunction:
        """Return the last block of a prefix as a function that computes only what is not known."""

        def remembered(x: Tensor, **inputs: object) -> Tensor:
            known = self.outputs.get(len(prefix))
            if known is None or known[0] != prefix:
                known = self.outputs[len(prefix)] = prefix, block(x, **inputs)
            return known[1]

        return remembered


def prefixes(path: Blocks) -> list[Blocks]:
    """Return the beginnings of a path, from the first block alone to the whole path."""
    return [path[: depth + 1] for depth in range(len(path))]


def weighted_mean(
    scores: Shaped[np.ndarray, "*paths examples"], weights: Float[np.ndarray, " examples"]
) -> Float[np.ndarray, "*paths"] | np.floating:
    """Return the mean over the examples, by their weights."""
    return (scores * weights).sum(axis=-1) / weights.sum()


def is_eliminated(
    scores: Shaped[np.ndarray, "paths examples"],
    share: float,
    survivors: int,
    margin: float = 2.5,
    weights: Float[np.ndarray, " examples"] | None = None,
) -> Bool[np.ndarray, " paths"]:
    """Return whether a path will hardly be among the best `survivors`, judged by the first `share` of the examples.

    It is compared, example by example, with the last path of these. The weighted mean difference is normal, with the
    variance of the differences over the examples seen times 1 - share, since the examples are finite and drawn without
    replacement. A path is eliminated where it is `margin` such standard deviations behind. In simulated generations of
    50 paths with 2000 or 5000 images, 2.5 keeps exactly the ten best in 95 % of them or more, however alike the paths.
    """
    if len(scores) <= survivors:
        return np.zeros(len(scores), dtype=bool)
    weights = np.ones(scores.shape[1]) if weights is None else weights
    last = scores[np.argsort(-weighted_mean(scores, weights), kind="stable")[survivors - 1]]
    behind = last.astype(float) - scores
    mean = np.asarray(weighted_mean(behind, weights))
    spread = (((behind - mean[:, None]) * weights) ** 2).sum(axis=1)
    return mean > margin * np.sqrt(spread * (1 - share)) / weights.sum()
