"""What a subnet may cost, and how to find one that keeps to it."""

import math
import random
from collections.abc import Callable, Collection, Hashable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from glocal.errors import GlocalError

Path = tuple[Any, ...]
"""A subnet: one gene a layer. A gene is whatever the space offers there; it need only be hashable."""
Space = Sequence[Sequence[Hashable]]
"""The genes to choose from, layer by layer."""

DRAWS = 1000
"""Uniform draws that may miss the budget in a row before a path is led there."""
DESCENTS = 50
"""Random starts from which a path is led to the budget before it counts as out of reach."""


def random_path(space: Space, rng: random.Random) -> Path:
    """Draw a path uniformly from the whole space."""
    return tuple(rng.choice(genes) for genes in space)


@dataclass(frozen=True)
class Budget:
    """An interval that the cost of a path must fall into, its bounds included."""

    cost: Callable[[Path], float]
    """What a path costs: multiply-accumulates, parameters, milliseconds."""
    lower: float | int | None = None
    """The least it may cost; None is open."""
    upper: float | int | None = None
    """The most it may cost; None is open."""
    unit: str = "MACs"
    """What cost is counted in, for messages."""

    def __post_init__(self) -> None:
        if self.lower is not None and self.upper is not None and self.lower > self.upper:
            raise GlocalError(f"the budget is {self}: its lower bound is above its upper; swap them")

    def __str__(self) -> str:
        lower, upper = ("any" if bound is None else f"{bound:,.10g}" for bound in (self.lower, self.upper))
        return f"{lower} to {upper} {self.unit}"

    def fits(self, path: Path) -> bool:
        """Whether the path is within the budget."""
        return self.excess(path) == 0.0

    def excess(self, path: Path) -> float:
        """How far the path is outside of the budget, in its unit; 0 within it."""
        cost = self.cost(path)
        below = 0.0 if self.lower is None else self.lower - cost
        above = 0.0 if self.upper is None else cost - self.upper
        return float(max(below, above, 0.0))

    def draw(self, space: Space, rng: random.Random, taken: Collection[Path] = ()) -> Path | None:
        """Draw a path within the budget, uniformly from all but those `taken` before; None where no more is found.

        Where `DRAWS` draws miss a narrow budget, random paths are led to it instead: a path is found, but no longer
        uniformly.

        Raises GlocalError, with the nearest cost found, where not even a first one is found.
        """
        drawn = (random_path(space, rng) for _ in range(DRAWS))
        led = (self.descend(random_path(space, rng), space, rng) for _ in range(DESCENTS))
        nearest: Path = ()
        least = math.inf
        for path in chain(drawn, led):
            excess = self.excess(path)
            if excess == 0.0 and path not in taken:
                return path
            if excess <= least:
                nearest, least = path, excess
        if taken:
            return None
        raise GlocalError(
            f"no path of the search space was found within the budget of {self}: the nearest costs "
            f"{self.cost(nearest):,.10g} {self.unit}; move the bounds, or widen the space"
        )

    def descend(self, path: Path, space: Space, rng: random.Random) -> Path:
        """Lead a path toward the budget, one gene at a time, until it is there or no single change brings it nearer."""
        least, excess = math.inf, self.excess(path)
        while 0.0 < excess < least:
            least = excess
            for i in rng.sample(range(len(space)), len(space)):
                changed = ((*path[:i], gene, *path[i + 1 :]) for gene in space[i])
                path = min([path, *changed], key=self.excess)
            excess = self.excess(path)
        return path
