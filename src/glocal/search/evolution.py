"""The evolution of SPOS (Guo et al. 2019, "Single Path One-Shot NAS with Uniform Sampling", section 3.4, algorithm 1).

    for generation in evolve(space, fitness, budget, EvolutionConfig()):
        print(generation.number, generation.ranking[0].fitness)
    best = generation.ranking[:5]

A whole generation is judged at once, so that whoever judges it may share it over processes, compute what its paths
have in common only once, and leave a path early that cannot reach the best of `generation.ranking`. All else here is a
pure function of the seed and the fitnesses so far: replayed with the fitnesses it remembers, a search is the same.
"""

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import NamedTuple

from glocal.errors import GlocalError, check_range
from glocal.search.budget import Budget, Path, Space

Fitness = Callable[[list[Path]], Sequence[float]]
"""Judges a generation of new, distinct paths: the higher, the fitter; NaN is below all."""

TRIES = 100
"""Children bred for each that is wanted, before random paths take the place of those that were known or too dear."""


@dataclass(frozen=True)
class EvolutionConfig:
    """How the search goes. The defaults are SPOS's and GLiT's: 20 generations of 50, 1000 subnets altogether."""

    population: int = 50
    """Paths a generation. All of the first are drawn at random, and of the others what crossover and mutation leave."""
    generations: int = 20
    """Generations, the first included."""
    parents: int = 10
    """The fittest of all paths so far, of which children are bred."""
    crossover: int = 25
    """Children a generation that take each gene from one of two parents."""
    mutation: int = 25
    """Children a generation that are a parent with some genes drawn anew."""
    mutation_rate: float = 0.1
    """Probability at which a gene is drawn anew."""
    seed: int = 0
    """Fixes every draw."""

    def check(self) -> None:
        """Raise GlocalError where the values contradict each other or mean nothing."""
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
    """A path that was judged."""

    path: Path
    fitness: float


@dataclass(frozen=True)
class Generation:
    """A generation after it was judged."""

    number: int
    """From 0."""
    candidates: list[Candidate]
    """Its own, in the order in which they were drawn."""
    ranking: list[Candidate]
    """Those of all generations so far, the fittest first; of equals, the earlier."""


def evolve(space: Space, fitness: Fitness, budget: Budget, config: EvolutionConfig) -> Iterator[Generation]:
    """Search `space` for the fittest path within `budget`, and yield each generation as it is judged.

    No path is judged twice or outside of the budget. Where no more of them are found within it, a generation is smaller
    than `population`, and the search ends before one that would be empty.

    Raises GlocalError where the config contradicts itself, or no path is found within the budget.
    """
    config.check()
    ranking: list[Candidate] = []
    for number in range(config.generations):
        # A generation hangs on the seed, its number and the ranking alone: there is no other state to remember.
        rng = random.Random(f"{config.seed}, {number}")
        paths = breed(space, ranking, budget, config, rng)
        if not paths:
            return
        candidates = [Candidate(*judged) for judged in zip(paths, map(float, fitness(paths)), strict=True)]
        ranking = sorted(ranking + candidates, key=lambda each: (math.isnan(each.fitness), -each.fitness))
        yield Generation(number, candidates, ranking)


def random_search(space: Space, fitness: Fitness, budget: Budget, config: EvolutionConfig) -> Iterator[Generation]:
    """Draw as many paths as `evolve` and breed none: its baseline, from the same first generation."""
    return evolve(space, fitness, budget, replace(config, crossover=0, mutation=0))


def breed(
    space: Space, ranking: list[Candidate], budget: Budget, config: EvolutionConfig, rng: random.Random
) -> list[Path]:
    """Make the generation that follows `ranking`: new paths within the budget, bred of the fittest where possible."""
    parents = [candidate.path for candidate in ranking[: config.parents]]
    known = {candidate.path for candidate in ranking}
    paths: list[Path] = []

    def crossover() -> Path:
        return tuple(rng.choice(genes) for genes in zip(*rng.choices(parents, k=2), strict=True))

    def mutation() -> Path:
        parent = zip(rng.choice(parents), space, strict=True)
        return tuple(rng.choice(genes) if rng.random() < config.mutation_rate else gene for gene, genes in parent)

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
