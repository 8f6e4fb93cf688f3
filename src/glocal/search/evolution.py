"""The evolution of SPOS (Guo et al. 2019, "Single Path One-Shot NAS with Uniform Sampling", section 3.4, algorithm 1).

    for generation in evolve(space, fitness, budget, EvolutionConfig()):
        print(generation.number, generation.ranking[0].fitness)
    best = generation.ranking[:5]

`fitness` evaluates a whole generation at once. So it may divide the paths among processes, compute once what several
paths have in common, and stop evaluating a path that cannot reach the best of the generation. All else here is a pure
function of the seed and of the fitness values so far: with the same values from a journal, a search is the same.
"""

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import NamedTuple

from glocal.errors import GlocalError, check_range
from glocal.search.budget import Architecture, Budget, Space

Fitness = Callable[[list[Architecture]], Sequence[float]]
"""Evaluates a generation of new, distinct paths: the higher, the fitter; NaN is below all."""

TRIES = 100
"""Children bred for each child that is wanted. Those that are known already or outside of the budget are dropped, and
random paths take the place of children that are still missing then."""


@dataclass(frozen=True)
class EvolutionConfig:
    """How the evolution proceeds. The defaults are SPOS's and GLiT's: 20 generations of 50 paths, 1000 in all."""

    population: int = 50
    """Paths per generation. The first generation is drawn at random. In later ones, crossover and mutation make most
    paths, and the rest are drawn at random."""
    generations: int = 20
    """Generations, the first included."""
    parents: int = 10
    """The fittest of all paths so far, from which children are bred."""
    crossover: int = 25
    """Children per generation that take each block's option from one of two parents."""
    mutation: int = 25
    """Children per generation that are a parent with the options of some blocks drawn again."""
    mutation_rate: float = 0.1
    """Probability at which a block's option is drawn again."""
    seed: int = 0
    """Seed of every draw."""

    def check(self) -> None:
        """Raise GlocalError if the values contradict each other or mean nothing."""
        for name, least in {"population": 1, "generations": 1, "parents": 1, "crossover": 0, "mutation": 0}.items():
            check_range(f"search.evolution.{name}", getattr(self, name), least=least)
        if self.parents > self.population:
            raise GlocalError(
                f"evolution has {self.parents} parents of a population of {self.population}; lower parents"
            )
        if self.crossover + self.mutation > self.population:
            raise GlocalError(
                f"evolution breeds {self.crossover} children by crossover and {self.mutation} by mutation, but a "
                f"generation has {self.population}; raise population, or lower them"
            )
        check_range("search.evolution.mutation_rate", self.mutation_rate, above=0, most=1)


class Candidate(NamedTuple):
    """An evaluated path."""

    path: Architecture
    fitness: float


@dataclass(frozen=True)
class Generation:
    """An evaluated generation."""

    number: int
    """Counted from 0."""
    candidates: list[Candidate]
    """The paths of this generation, in the order in which they were drawn."""
    ranking: list[Candidate]
    """The paths of all generations so far, the fittest first; of equally fit paths, the earlier one first."""


def evolve(space: Space, fitness: Fitness, budget: Budget, config: EvolutionConfig) -> Iterator[Generation]:
    """Search `space` for the fittest path within `budget`, and yield each generation once it is evaluated.

    No path is evaluated twice, and none outside of the budget. Where too few new paths are found within the budget, a
    generation is smaller than `population`; where none is found, the search ends.

    Raises GlocalError if the config contradicts itself, or no path is found within the budget.
    """
    config.check()
    ranking: list[Candidate] = []
    for number in range(config.generations):
        # A generation depends on the seed, its number and the ranking alone, so that a search can resume.
        rng = random.Random(f"{config.seed}, {number}")
        paths = breed(space, ranking, budget, config, rng)
        if not paths:
            return
        candidates = [Candidate(*evaluated) for evaluated in zip(paths, map(float, fitness(paths)), strict=True)]
        ranking = sorted(ranking + candidates, key=lambda each: (math.isnan(each.fitness), -each.fitness))
        yield Generation(number, candidates, ranking)


def random_search(space: Space, fitness: Fitness, budget: Budget, config: EvolutionConfig) -> Iterator[Generation]:
    """Evaluate as many paths as `evolve`, all drawn at random: its baseline, from the same first generation."""
    return evolve(space, fitness, budget, replace(config, crossover=0, mutation=0))


def breed(
    space: Space, ranking: list[Candidate], budget: Budget, config: EvolutionConfig, rng: random.Random
) -> list[Architecture]:
    """Return the generation that follows `ranking`: new paths within the budget, children of the fittest if it can."""
    parents = [candidate.path for candidate in ranking[: config.parents]]
    known = {candidate.path for candidate in ranking}
    paths: list[Architecture] = []

    def crossover() -> Architecture:
        return tuple(rng.choice(pair) for pair in zip(*rng.choices(parents, k=2), strict=True))

    def mutation() -> Architecture:
        parent = zip(rng.choice(parents), space, strict=True)
        return tuple(rng.choice(options) if rng.random() < config.mutation_rate else kept for kept, options in parent)

    for child, count in ((crossover, config.crossover), (mutation, config.mutation)):
        children = (child() for _ in range(TRIES * count if parents else 0))
        fresh = (path for path in children if path not in known and budget.fits(path))
        for path in islice(fresh, count):
            known.add(path)
            paths.append(path)
    while len(paths) < config.population and (drawn := budget.draw(space, rng, taken=known)) is not None:
        known.add(drawn)
        paths.append(drawn)
    return paths
