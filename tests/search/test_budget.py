"""A budget: never exceeded, uniform where it is wide, reached where it is narrow, refused where no path meets it."""

import random
from collections import Counter

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from glocal.errors import GlocalError
from glocal.search.budget import Budget, random_path

spaces = st.lists(st.lists(st.integers(0, 50), min_size=1, max_size=5, unique=True), min_size=1, max_size=6)
bounds = st.none() | st.integers(0, 300)


@settings(deadline=None)
@given(spaces, bounds, bounds, st.integers(0, 9))
def test_what_is_drawn_is_of_the_space_and_within_the_bounds(space, lower, upper, seed):
    assume(lower is None or upper is None or lower <= upper)
    budget = Budget(sum, lower, upper)
    try:
        path = budget.draw(space, random.Random(seed))
    except GlocalError:
        return
    assert budget.fits(path)
    assert all(option in options for option, options in zip(path, space, strict=True))
    assert lower is None or sum(path) >= lower
    assert upper is None or sum(path) <= upper


def test_bounds_are_included_and_none_is_open():
    assert [cost for cost in range(6) if Budget(sum, 2, 4).fits((cost,))] == [2, 3, 4]
    assert [cost for cost in range(6) if Budget(sum, None, 1).fits((cost,))] == [0, 1]
    assert [cost for cost in range(6) if Budget(sum, 4).fits((cost,))] == [4, 5]


def test_every_path_that_fits_is_drawn_as_often():
    rng = random.Random(0)
    budget = Budget(sum, 3, 4)
    counts = Counter(budget.draw([range(3)] * 4, rng) for _ in range(7000))
    assert len(counts) == 16 + 19  # the ways to write 3 and 4 as four digits of 0, 1, 2
    assert all(140 < count < 260 for count in counts.values())


@pytest.mark.parametrize("bounds", [(0, 0), (1200, None), (600, 600.5), (37, 37)])
def test_a_budget_that_chance_alone_would_not_meet_is_reached(bounds):
    space = [range(101)] * 12  # 1 path of 1e24 costs 0; a millionth or less costs 37
    if bounds == (600, 600.5):
        space = [[0, 50.25, 100]] * 11 + [[0, 49.25, 99.5]]
    budget = Budget(sum, *bounds)
    assert budget.fits(budget.draw(space, random.Random(0)))


def test_a_budget_that_no_path_meets_is_refused_with_the_nearest_cost():
    with pytest.raises(GlocalError, match=r"budget of 50 to 60 ms: the nearest costs 40 ms") as error:
        Budget(sum, 50, 60, "ms").draw([[0, 4, 10]] * 4, random.Random(0))
    assert "\n" not in str(error.value)
    with pytest.raises(GlocalError, match=r"budget of any to 3,999,999 MACs: the nearest costs 4,000,000 MACs"):
        Budget(sum, None, 3_999_999).draw([[1_000_000, 2_000_000]] * 4, random.Random(0))


def test_bounds_that_cross_are_refused():
    with pytest.raises(GlocalError, match="5 to 4 MACs"):
        Budget(sum, 5, 4)


def test_taken_paths_are_drawn_around_until_none_is_left():
    budget, rng, taken = Budget(sum, 1, 1), random.Random(0), []
    while (path := budget.draw([[0, 1]] * 3, rng, taken)) is not None:
        taken.append(path)
    assert sorted(taken) == [(0, 0, 1), (0, 1, 0), (1, 0, 0)]


@settings(deadline=None)
@given(spaces, st.integers(0, 300), st.integers(0, 9))
def test_a_descent_never_leads_away(space, goal, seed):
    rng = random.Random(seed)
    budget = Budget(sum, goal, goal)
    start = random_path(space, rng)
    assert budget.excess(budget.descend(start, space, rng)) <= budget.excess(start)
