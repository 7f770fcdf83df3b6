"""Pearson's correlation of `mixsd.statistics`."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixsd.statistics import pearson

_NUMBERS = st.floats(-1e3, 1e3, allow_nan=False).map(lambda value: round(value, 3))


def test_by_hand() -> None:
    # x - mean: -1 0 1; y - mean: -1 1 0; r = 1 / (sqrt 2 sqrt 2).
    assert pearson([1, 2, 3], [0, 2, 1]).value == pytest.approx(0.5)
    assert pearson([1, 2, 3], [2, 4, 6]).value == pytest.approx(1.0)
    assert pearson([1, 2, 3], [6, 4, 2]).value == pytest.approx(-1.0)


def test_fishers_interval_by_hand() -> None:
    """r = 0.5 of 28 pairs: atanh 0.5 = 0.549306, 1.959964 / 5 = 0.391993, tanh of the ends."""
    x = np.arange(28) - 13.5
    rest = np.where(np.arange(28) % 2, 1.0, -1.0) * np.sign(x)  # even in x up to sign, then made orthogonal
    rest = rest - rest.mean() - x * (rest @ x) / (x @ x)
    y = 0.5 * x / np.linalg.norm(x) + math.sqrt(0.75) * rest / np.linalg.norm(rest)
    found = pearson(x, y)
    assert (found.value, found.n) == (pytest.approx(0.5), 28)
    assert (found.low, found.high) == (
        pytest.approx(math.tanh(0.549306 - 0.391993), abs=1e-5),
        pytest.approx(math.tanh(0.941299), abs=1e-5),
    )


@settings(deadline=None)
@given(st.lists(st.tuples(_NUMBERS, _NUMBERS), min_size=3, max_size=30))
def test_equals_numpy(pairs: list[tuple[float, float]]) -> None:
    x, y = np.array(pairs).T
    found = pearson(x, y)
    if min(x.std(), y.std()) < 1e-6:
        return
    assert found.value == pytest.approx(np.corrcoef(x, y)[0, 1], abs=1e-9)
    grouped = pearson(x, y, [str(place % 6) for place in range(len(x))], resamples=5)
    assert (grouped.value, grouped.n) == (found.value, len(x))


def test_pairs_on_one_line_leave_no_doubt() -> None:
    found = pearson([1, 2, 3, 4], [2, 4, 6, 8])
    assert (found.low, found.high) == (pytest.approx(1.0), pytest.approx(1.0))
    assert pearson([1, 2, 3], [2, 4, 7]).low is None  # below four pairs Fisher's interval is not defined


@pytest.mark.parametrize("pairs", [[], [(1, 2)], [(1, 2), (1, 3), (1, 5)], [(0.1, 1), (0.1, 2), (0.1, 4)]])
def test_what_does_not_vary_has_no_correlation(pairs: list[tuple[float, float]]) -> None:
    x, y = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    found = pearson(x, y)
    assert (found.value, found.low, found.high, found.n) == (None, None, None, len(pairs))


def test_groups_are_resampled_whole() -> None:
    """Twenty copies of five points are five observations: the interval is that of the five, far wider than that of a hundred."""
    x, y = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [1.2, 1.9, 3.3, 3.5, 5.4, 4.2]
    names = list("abcdef")
    once = pearson(x, y, names)
    often = pearson(x * 20, y * 20, names * 20)
    assert (often.low, often.high) == (pytest.approx(once.low), pytest.approx(once.high))
    independent = pearson(x * 20, y * 20)
    assert None not in (often.low, often.high, independent.low, independent.high)
    assert often.high - often.low > 2 * (independent.high - independent.low)  # type: ignore[operator]
    assert often.low <= often.value <= often.high  # type: ignore[operator]


def test_the_bootstrap_by_an_oracle_of_its_own() -> None:
    generator = np.random.default_rng(0)
    groups = [str(place // 4) for place in range(80)]
    x = generator.normal(size=20).repeat(4) + 0.1 * generator.normal(size=80)
    y = 0.7 * x + generator.normal(size=20).repeat(4)
    found = pearson(x, y, groups)
    drawn = []
    for _ in range(4000):
        places = np.concatenate([np.arange(4) + 4 * group for group in generator.integers(0, 20, 20)])
        drawn.append(np.corrcoef(x[places], y[places])[0, 1])
    low, high = np.quantile(drawn, [0.025, 0.975])
    assert found.low == pytest.approx(low, abs=0.04)
    assert found.high == pytest.approx(high, abs=0.04)


def test_below_five_groups_there_is_no_interval() -> None:
    x, y = list(range(12)), [value % 5 for value in range(12)]
    four = pearson(x, y, ["a", "b", "c", "d"] * 3)
    assert four.value is not None
    assert (four.low, four.high) == (None, None)
    with pytest.raises(ValueError, match="group"):
        pearson(x, y, ["a"])
