"""Evolution: within its budget, nothing twice, the same for the same seed, and better than chance."""

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glocal.errors import GlocalError
from glocal.search.budget import Budget
from glocal.search.evolution import EvolutionConfig, evolve, random_search

SPACE = [tuple("abcdef")] * 8
WORTH = {"a": 0, "b": 3, "c": 1, "d": 7, "e": 2, "f": 5}
SMALL = EvolutionConfig(population=12, generations=4, parents=3, crossover=5, mutation=5)
OPEN = Budget(len)


def fitness(paths):
    return [sum(WORTH[option] * (i + 1) for i, option in enumerate(path)) / 7 for path in paths]


def cost(path):
    return sum("abcdef".index(option) for option in path)


@pytest.mark.parametrize("search", [evolve, random_search])
@settings(max_examples=25, deadline=None)
@given(lower=st.integers(0, 20), width=st.integers(0, 20), seed=st.integers(0, 99))
def test_no_path_twice_and_none_outside_of_the_budget(search, lower, width, seed):
    evaluated = []

    def evaluate(paths):
        evaluated.extend(paths)
        return fitness(paths)

    generations = list(search(SPACE, evaluate, Budget(cost, lower, lower + width), replace(SMALL, seed=seed)))
    assert len(set(evaluated)) == len(evaluated)
    assert all(lower <= cost(path) <= lower + width for path in evaluated)
    assert evaluated == [candidate.path for generation in generations for candidate in generation.candidates]
    assert sorted(evaluated) == sorted(candidate.path for candidate in generations[-1].ranking)
    for generation in generations:
        scores = [candidate.fitness for candidate in generation.ranking]
        assert scores == sorted(scores, reverse=True)
        assert scores == fitness([candidate.path for candidate in generation.ranking])


@pytest.mark.parametrize("search", [evolve, random_search])
def test_the_seed_is_the_search(search):
    budget = Budget(cost, 10, 25)
    first = list(search(SPACE, fitness, budget, SMALL))
    assert first == list(search(SPACE, fitness, budget, SMALL))
    assert first != list(search(SPACE, fitness, budget, replace(SMALL, seed=1)))


def test_figures_of_the_paper():
    for search in (evolve, random_search):
        generations = list(search(SPACE, fitness, OPEN, EvolutionConfig()))
        assert [generation.number for generation in generations] == list(range(20))
        assert [len(generation.candidates) for generation in generations] == [50] * 20


def test_evolution_finds_the_optimum_where_chance_does_not():
    found = {evolve: 0, random_search: 0}
    best = fitness([("d",) * 8])[0]  # one path of 1.7 million, in 1000 tries
    for search in found:
        for seed in range(8):
            *_, last = search(SPACE, fitness, OPEN, EvolutionConfig(seed=seed))
            found[search] += last.ranking[0].fitness == best
    assert found[evolve] >= 7
    assert found[random_search] == 0


def test_children_are_of_the_fittest():
    first, second = list(evolve(SPACE, fitness, OPEN, EvolutionConfig(generations=2)))
    parents = [candidate.path for candidate in first.ranking[:10]]
    for child in second.candidates[:25]:
        assert any(all(g in pair for g, *pair in zip(child.path, a, b, strict=True)) for a in parents for b in parents)
    changed = [
        min(sum(a != b for a, b in zip(child.path, parent, strict=True)) for parent in parents)
        for child in second.candidates[25:]
    ]
    assert 1 <= sum(changed) / len(changed) <= 2  # a tenth of eight options, but at least one
    assert next(random_search(SPACE, fitness, OPEN, EvolutionConfig())) == first


def test_where_parents_agree_random_paths_fill_the_generation():
    config = EvolutionConfig(population=20, generations=2, parents=1, crossover=20, mutation=0)
    _, second = list(evolve(SPACE, fitness, OPEN, config))
    assert len(second.candidates) == 20


def test_a_space_that_runs_out_ends_the_search():
    generations = list(evolve([[0, 1]] * 4, lambda paths: [sum(path) for path in paths], Budget(sum, 1, 2), SMALL))
    assert sum(len(generation.candidates) for generation in generations) == 10
    assert len(generations) == 1
    only = list(evolve([[1], [2]], lambda paths: [0.5], OPEN, SMALL))
    assert [candidate.path for generation in only for candidate in generation.candidates] == [(1, 2)]


def test_equals_stand_in_the_order_in_which_they_came_and_nan_stands_last():
    def evaluate(paths):
        return [math.nan if path[0] == "a" else 1.0 for path in paths]

    *_, last = random_search(SPACE, evaluate, OPEN, SMALL)
    drawn = [path for path, _ in last.ranking]
    assert [path[0] == "a" for path in drawn] == sorted(path[0] == "a" for path in drawn)
    assert drawn[0] == next(path for path, value in last.ranking if value == 1.0)
    *_, constant = random_search(SPACE, lambda paths: [0.0] * len(paths), OPEN, SMALL)
    assert constant.ranking[-12:] == constant.candidates


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"population": 0}, "population is 0"),
        ({"generations": 0}, "generations is 0"),
        ({"mutation": -1}, "mutation is -1"),
        ({"population": 49}, "25 children by crossover and 25 by mutation, but a generation has 49"),
        ({"parents": 51}, "51 parents of a population of 50"),
        ({"mutation_rate": 0.0}, "mutation_rate is 0.0"),
        ({"mutation_rate": 1.5}, "mutation_rate is 1.5"),
    ],
)
def test_contradictions_are_refused(wrong, message):
    with pytest.raises(GlocalError, match=message):
        EvolutionConfig(**wrong).check()
    with pytest.raises(GlocalError, match=message):
        next(evolve(SPACE, fitness, OPEN, EvolutionConfig(**wrong)))


def test_a_budget_that_no_path_meets_is_refused_before_anything_is_evaluated():
    with pytest.raises(GlocalError, match="no path of the search space"):
        next(evolve(SPACE, pytest.fail, Budget(cost, 41, 50), SMALL))
