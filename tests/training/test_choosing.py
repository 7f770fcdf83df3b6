from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixsd.training.choosing import Scored, choose, is_stable, still_open

# (training score, validation score) of each checkpoint, percent; the place that is chosen, from 0; what the case shows.
CASES = [
    ([(10, 10)], 0, "a single checkpoint"),
    ([(10, 10), (50, 50), (90, 80)], 2, "the best training score, though nothing follows it"),
    ([(90, 80), (90, 80), (90, 80)], 0, "the first of equals"),
    ([(10, 10), (100, 90), (100, 95), (100, 95)], 1, "the first with the best training score, not the best validation"),
    ([(50, 90), (100, 100), (100, 90), (100, 100), (100, 100)], 2, "a fall right after, then a stable one"),
    ([(50, 90), (100, 100), (100, 100), (100, 94)], 3, "a fall at the second that follows counts too"),
    ([(50, 50), (100, 100), (100, 100), (100, 100), (100, 0)], 1, "the third that follows does not count"),
    ([(50, 50), (100, 100), (90, 95), (80, 95)], 1, "exactly 5% less is no fall"),
    ([(50, 50), (100, 100), (90, 94), (80, 94)], 2, "a little more is one, so the next best stable one"),
    ([(50, 20), (100, 20), (100, 19), (100, 19)], 1, "5% of the score itself, not five points"),
    ([(50, 20), (100, 20), (100, 18.9), (100, 18.9)], 2, "a fall of 5.5% of a small score"),
    ([(100, 0), (100, 0), (100, 0)], 0, "a validation score of nothing cannot fall"),
    ([(90, 100), (95, 80), (99, 60), (100, 40)], 3, "falling all along: the last has nothing after it"),
    (
        [(30, 40), (60, 80), (60, 60), (60, 78)],
        2,
        "a dip makes the peak before it unstable, and is itself stable where it is not left downwards",
    ),
]


def scored(values: list[tuple[float, float]]) -> list[Scored]:
    return [Scored(20 * place, train / 100, validation / 100) for place, (train, validation) in enumerate(values, 1)]


@pytest.mark.parametrize(("values", "place", "shows"), CASES, ids=[case[2] for case in CASES])
def test_the_rule(values: list[tuple[float, float]], place: int, shows: str) -> None:
    assert choose(scored(values)).step == 20 * (place + 1), shows


def test_why_names_the_scores() -> None:
    why = choose(scored([(10, 10), (100, 90), (100, 88), (100, 95)])).why
    assert "training score, 1" in why
    assert "validation 0.9, then 0.88, 0.95" in why


shares = st.integers(0, 8).map(lambda eighths: eighths / 8)


@given(st.lists(st.tuples(shares, shares), min_size=1, max_size=9))
def test_the_chosen_one_is_stable_and_no_stable_one_is_better_or_as_good_and_earlier(values: list[tuple[float, float]]) -> None:
    rows = [Scored(place, train, validation) for place, (train, validation) in enumerate(values)]
    step = choose(rows).step
    # The last checkpoint is always stable, so there is always one.
    assert is_stable(rows, step)
    for place, row in enumerate(rows):
        if is_stable(rows, place):
            assert (row.train, -place) <= (rows[step].train, -step)


@given(st.lists(st.tuples(shares, shares), min_size=1, max_size=9), st.integers(1, 9))
def test_what_is_chosen_in_the_end_was_open_all_along(values: list[tuple[float, float]], seen: int) -> None:
    rows = [Scored(place, train, validation) for place, (train, validation) in enumerate(values)]
    step = choose(rows).step
    kept = still_open(rows[:seen])
    assert step in kept or step >= seen
    assert len(kept) <= 3
