"""What a path may cost, and how to find a path within these bounds."""

import math
import random
from collections.abc import Callable, Collection, Hashable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from glocal.errors import GlocalError

Architecture = tuple[Any, ...]
"""A path: one option for each block. In a supernet an option is a `BlockConfig`; here it need only be hashable."""
Space = Sequence[Sequence[Hashable]]
"""The options of each block."""

DRAWS = 1000
"""Uniform draws that may miss the budget in a row before random paths are moved toward it."""
DESCENTS = 50
"""Random paths that are moved toward the budget before it counts as out of reach."""


def random_path(space: Space, rng: random.Random) -> Architecture:
    """Draw a path uniformly from the whole space."""
    return tuple(rng.choice(options) for options in space)


@dataclass(frozen=True)
class Budget:
    """An interval that the cost of a path must fall into, its bounds included."""

    cost: Callable[[Architecture], float]
    """Returns the cost of a path: multiply-accumulates, parameters or milliseconds."""
    lower: float | int | None = None
    """The least cost; None is no bound."""
    upper: float | int | None = None
    """The greatest cost; None is no bound."""
    unit: str = "MACs"
    """The unit of cost, for messages."""

    def __post_init__(self) -> None:
        if self.lower is not None and self.upper is not None and self.lower > self.upper:
            raise GlocalError(f"the budget is {self}: its lower bound is above its upper; swap them")

    def __str__(self) -> str:
        lower, upper = ("any" if bound is None else f"{bound:,.10g}" for bound in (self.lower, self.upper))
        return f"{lower} to {upper} {self.unit}"

    def fits(self, path: Architecture) -> bool:
        """Return whether the path is within the budget."""
        return self.excess(path) == 0.0

    def excess(self, path: Architecture) -> float:
        """Return how far the path's cost is outside of the budget, in the budget's unit; 0 within it."""
        cost = self.cost(path)
        below = 0.0 if self.lower is None else self.lower - cost
        above = 0.0 if self.upper is None else cost - self.upper
        return float(max(below, above, 0.0))

    def check_reachable(self, space: Space) -> None:
        """Raise GlocalError, with the nearest cost found, where no path of the space is found within the budget."""
        self.draw(space, random.Random(0))

    def draw(self, space: Space, rng: random.Random, taken: Collection[Architecture] = ()) -> Architecture | None:
        """Draw a path within the budget, uniformly from the paths that are not `taken`; None where none is found.

        Where `DRAWS` draws miss a narrow budget, random paths are moved toward it instead: a path is found, but no
        longer uniformly.

        Raises GlocalError, with the nearest cost found, where none is found and `taken` is empty.
        """
        drawn = (random_path(space, rng) for _ in range(DRAWS))
        moved = (self.descend(random_path(space, rng), space, rng) for _ in range(DESCENTS))
        nearest: Architecture = ()
        least = math.inf
        for path in chain(drawn, moved):
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

    def draw_distinct(self, space: Space, rng: random.Random, count: int) -> list[Architecture]:
        """Draw `count` different paths within the budget, or as many as are found, as `draw` does."""
        drawn: list[Architecture] = []
        while len(drawn) < count and (path := self.draw(space, rng, taken=drawn)) is not None:
            drawn.append(path)
        return drawn

    def descend(self, path: Architecture, space: Space, rng: random.Random) -> Architecture:
        """Change a path, one block at a time, until it is within the budget or no single change brings it nearer."""
        least, excess = math.inf, self.excess(path)
        while 0.0 < excess < least:
            least = excess
            for i in rng.sample(range(len(space)), len(space)):
                changed = ((*path[:i], option, *path[i + 1 :]) for option in space[i])
                path = min([path, *changed], key=self.excess)
            excess = self.excess(path)
        return path
