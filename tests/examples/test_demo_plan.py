"""How the demo divides its time: a pure function, so that slow and fast machines are tested on any."""

from dataclasses import replace

import pytest
from demo_plan import Part, plan
from hypothesis import given
from hypothesis import strategies as st

VIT = Part("vit", "epochs", least=10, most=75, share=3, overhead=2)
FINER = Part("finer", "epochs", least=3, most=20, share=1, overhead=1, needs="vit")
SEARCH = Part("search", "epochs", least=8, most=28, share=2, overhead=6)
PARTS = [VIT, FINER, SEARCH]
PACE = {"vit": 1.2, "finer": 2.0, "search": 3.0}
BUDGET = 180.0


def rounds(pace, budget=BUDGET, parts=PARTS):
    return {each.part.name: each.rounds for each in plan(parts, pace, budget)}


def times(factor):
    return {name: seconds * factor for name, seconds in PACE.items()}


def test_the_budget_is_divided_by_shares_above_what_each_part_needs_least():
    least = 12 * 1.2 + 4 * 2.0 + 14 * 3.0
    spare = BUDGET - least
    expected = {
        "vit": int(10 + spare * 3 / 6 / 1.2),
        "finer": int(3 + spare * 1 / 6 / 2.0),
        "search": int(8 + spare * 2 / 6 / 3.0),
    }
    assert rounds(PACE) == expected


def test_a_machine_ten_times_faster_learns_all_there_is_to_learn_in_less_time():
    plans = plan(PARTS, times(0.1), BUDGET)
    assert [each.rounds for each in plans] == [75, 20, 28]
    assert sum(each.seconds for each in plans) < BUDGET / 4


def test_a_machine_ten_times_slower_does_less_and_not_longer():
    plans = plan(PARTS, times(10), BUDGET)
    kept = [each for each in plans if each.rounds]
    assert [each.part.name for each in kept] == ["vit"]
    assert VIT.least <= kept[0].rounds < rounds(PACE)["vit"]
    assert sum(each.seconds for each in kept) <= BUDGET
    assert plans[2].length == "left out"
    assert plans[2].seconds == pytest.approx((8 + 6) * 30)  # what it would have needed


def test_on_a_machine_that_is_slow_at_one_part_only_this_part_is_left_out():
    assert rounds(PACE | {"search": 30.0}) == {"vit": 75, "finer": 20, "search": 0}


def test_a_part_is_left_out_with_the_part_that_it_starts_from():
    assert rounds(PACE | {"vit": 100.0})["finer"] == 0
    assert rounds({"finer": 2.0}, parts=[FINER])["finer"] == 20  # the other is done, and not planned again


def test_what_a_part_cannot_use_goes_to_the_others():
    short = replace(VIT, most=11)
    assert rounds(PACE, parts=[short, SEARCH])["search"] > rounds(PACE, parts=[VIT, SEARCH])["search"]
    assert rounds(PACE, parts=[short, SEARCH])["vit"] == 11


def test_part_of_the_budget_is_kept_for_more_than_the_least():
    needed = 12 * 1.2 + 14 * 3.0
    assert rounds(PACE, budget=1.4 * needed, parts=[VIT, SEARCH])["search"] == 0
    assert rounds(PACE, budget=1.6 * needed, parts=[VIT, SEARCH])["search"] >= SEARCH.least
    assert rounds(PACE, budget=14 * 3.0, parts=[SEARCH])["search"] == SEARCH.least  # the first may take all of it


def test_nothing_fits_into_no_time():
    assert set(rounds(PACE, budget=-5.0).values()) == {0}


@given(
    st.lists(st.floats(0.001, 1000), min_size=3, max_size=3),
    st.floats(1, 2000),
)
def test_no_plan_exceeds_its_budget_or_a_part_s_bounds(seconds, budget):
    plans = plan(PARTS, dict(zip(PACE, seconds, strict=True)), budget)
    assert sum(each.seconds for each in plans if each.rounds) <= budget * (1 + 1e-6)
    assert all(each.rounds == 0 or each.part.least <= each.rounds <= each.part.most for each in plans)
