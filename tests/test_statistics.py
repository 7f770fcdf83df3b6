"""Intervals and tests against hand-computed values, brute force and simulated coverage."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace
from fractions import Fraction
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats import contingency_tables
from statsmodels.stats.proportion import proportion_confint

from mixsd import statistics
from mixsd.statistics import (
    Estimate,
    log_ratio_interval,
    mcnemar,
    mean,
    paired_difference,
    paired_ratio_difference,
    proportion,
    ratio_of_sums,
    resample_indices,
    seeds_interval,
    student_t,
)

Z = 1.959963984540054


def _close(interval: Estimate, value: float, low: float, high: float, tolerance: float = 1e-9) -> bool:
    return np.allclose([interval.value, interval.low, interval.high], [value, low, high], rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    # At 0 and n of n Wilson's inner end is z^2 / (n + z^2); at half it is symmetric: 1/2 -+ z / (2 sqrt(n + z^2)).
    [
        (24, 24, 24 / (24 + Z**2), 1.0),
        (0, 24, 0.0, Z**2 / (24 + Z**2)),
        (1, 1, 1 / (1 + Z**2), 1.0),
        (50, 100, 0.5 - Z / (2 * math.sqrt(100 + Z**2)), 0.5 + Z / (2 * math.sqrt(100 + Z**2))),
    ],
)
def test_wilson_by_hand(successes: int, n: int, low: float, high: float) -> None:
    assert _close(proportion(successes, n), successes / n, low, high)


@settings(deadline=None)
@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_ends_solve_the_score_equation(case: tuple[int, int]) -> None:
    successes, n = case
    interval = proportion(successes, n)
    share = successes / n
    z = NormalDist().inv_cdf(0.975)
    assert 0 <= interval.low <= share <= interval.high <= 1
    for end in (interval.low, interval.high):
        # The end is a true share from which the observed one lies z standard errors away.
        assert (share - end) ** 2 == pytest.approx(z**2 * end * (1 - end) / n, rel=1e-9, abs=1e-12)


def test_mean_of_zeros_and_ones_is_a_proportion() -> None:
    assert mean([1] * 24) == mean([True] * 24) == proportion(24, 24)
    assert mean([0, 1, 1.0]) == proportion(2, 3)
    assert mean([0, 1, 0.5]) != mean([0, 1, 1])


def _oracle(rows: list[tuple[float, float]], resamples: int) -> tuple[float, float]:
    """The percentile bootstrap of sum/sum in plain Python, on the same draws."""
    rows = sorted(rows)
    ratios = []
    for resample in range(resamples):
        drawn = [rows[index] for index in resample_indices(len(rows), resample)]
        ratios.append(math.fsum(row[0] for row in drawn) / math.fsum(row[1] for row in drawn))
    ratios.sort()

    def quantile(q: float) -> float:
        place = q * (resamples - 1)
        below = int(place)
        return ratios[below] + (place - below) * (ratios[min(below + 1, resamples - 1)] - ratios[below])

    return quantile(0.025), quantile(0.975)


reals = st.floats(-100, 100, allow_subnormal=False)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(reals, reals, st.integers(1, 50)), min_size=2, max_size=12))
def test_every_bootstrap_against_the_oracle(rows: list[tuple[float, float, int]]) -> None:
    a, b, tokens = (list(column) for column in zip(*rows, strict=True))
    change = [y - x for x, y in zip(a, b, strict=True)]
    ones = [1.0] * len(a)
    cases = [(ratio_of_sums, (a, tokens), a, tokens), (paired_ratio_difference, (a, b, tokens), change, tokens)]
    if not set(a) <= {0.0, 1.0}:
        cases += [(mean, (a,), a, ones), (paired_difference, (a, b), change, ones)]
    for function, arguments, above, below in cases:
        low, high = _oracle(list(zip(above, below, strict=True)), 40)
        interval = function(*arguments, resamples=40)
        assert interval.n == len(rows)
        assert _close(interval, math.fsum(above) / math.fsum(below), low, high)


def test_the_bootstrap_equals_the_exact_one_on_three_items() -> None:
    """All 27 equally likely resamples of (0, 3, 9) are enumerated; 2,000 draws must come near their quantiles."""
    means = sorted(sum(drawn) / 3 for drawn in itertools.product((0, 3, 9), repeat=3))
    low, high = np.quantile(means, [0.025, 0.975], method="inverted_cdf")
    interval = mean([0, 3, 9])
    assert interval.value == 4
    assert interval.low == pytest.approx(low, abs=1.01)
    assert interval.high == pytest.approx(high, abs=1.01)
    drawn = np.concatenate([resample_indices(3, resample) for resample in range(2000)])
    assert np.bincount(drawn) / len(drawn) == pytest.approx([1 / 3] * 3, abs=0.02)


def test_a_long_reply_counts_by_its_tokens() -> None:
    interval = ratio_of_sums([10.0, 1.0], [90, 10])
    assert interval.value == pytest.approx(0.11)
    assert interval.low == pytest.approx(0.1)
    assert interval.high == pytest.approx(10 / 90)


def test_paired_ratio_difference_by_hand() -> None:
    interval = paired_ratio_difference([10.0, 20.0], [16.0, 24.0], [10, 10])
    assert interval.value == pytest.approx(0.5)
    assert interval.low == pytest.approx(0.4)
    assert interval.high == pytest.approx(0.6)
    # Pairing: the same change on items of very different level leaves no doubt.
    assert _close(paired_difference([1.0, 50.0, 900.0], [1.5, 50.5, 900.5]), 0.5, 0.5, 0.5)


def test_paired_binary_difference_has_width_where_nothing_changed() -> None:
    interval = paired_difference([1] * 24, [1] * 24)
    # Bonett and Price with no changed pair: -+ z * sqrt(2 / (n + 2) / (n + 2)).
    assert _close(interval, 0.0, -Z * math.sqrt(2) / 26, Z * math.sqrt(2) / 26)
    lost = paired_difference([1] * 24, [0] * 24)
    assert lost.value == lost.low == -1
    assert lost.high < -0.7
    assert paired_difference([1, 1, 0, 0], [0, 1, 0, 0]).value == -0.25


def test_the_order_of_items_does_not_matter_and_the_draws_are_fixed() -> None:
    values = [0.3, 2.5, -1.0, 7.0, 0.1, 4.4]
    tokens = [1, 2, 3, 4, 5, 6]
    shuffled = [4, 2, 0, 5, 3, 1]
    assert mean(values) == mean([values[index] for index in shuffled]) == mean(values)
    other = ratio_of_sums([values[index] for index in shuffled], [tokens[index] for index in shuffled])
    assert ratio_of_sums(values, tokens) == other
    assert seeds_interval(values) == seeds_interval(values[::-1])
    state = np.random.get_state()[1].copy()
    mean(values)
    assert (np.random.get_state()[1] == state).all()


@pytest.mark.parametrize("kind", ["mean", "proportion", "binary pairs"])
def test_coverage(kind: str) -> None:
    generator = np.random.Generator(np.random.Philox(7))
    hits = 0
    trials = 300
    for _ in range(trials):
        if kind == "mean":
            truth, interval = 1.0, mean(generator.exponential(1.0, 60), resamples=150)
        elif kind == "proportion":
            truth, interval = 0.93, proportion(int(generator.binomial(40, 0.93)), 40)
        else:
            before = generator.random(50) < 0.8
            after = np.where(generator.random(50) < 0.1, ~before, before)
            truth, interval = -0.06, paired_difference(before, after)  # flips: 0.1 * 0.2 gained, 0.1 * 0.8 lost
        hits += interval.low <= truth <= interval.high
    assert 0.90 <= hits / trials <= 0.99


@settings(deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=12))
def test_mcnemar_by_enumeration(pairs: list[tuple[bool, bool]]) -> None:
    """Over all ways in which the changed pairs could have fallen: how often is the split at least as uneven?"""
    gained = sum(after and not before for before, after in pairs)
    lost = sum(before and not after for before, after in pairs)
    changed = gained + lost
    uneven = sum(abs(2 * sum(signs) - changed) >= abs(gained - lost) for signs in itertools.product((0, 1), repeat=changed))
    before, after = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    assert mcnemar(before, after) == float(Fraction(uneven, 2**changed))
    assert mcnemar(after, before) == mcnemar(before, after)


def test_mcnemar_by_hand_and_at_size() -> None:
    assert mcnemar([1, 1, 1, 1, 1, 0], [0, 0, 0, 0, 0, 0]) == 2 / 32
    assert mcnemar([1, 0], [1, 0]) == 1.0
    assert mcnemar([], []) == 1.0
    half = [0, 1] * 7000
    assert mcnemar(half, half[::-1]) == 1.0
    assert mcnemar([0] * 14000, [1] * 14000) == pytest.approx(0.0, abs=1e-300)


@pytest.mark.parametrize(
    ("level", "df", "expected"),
    [
        (0.95, 1, 12.7062047),
        (0.95, 2, 4.3026527),
        (0.95, 3, 3.1824463),
        (0.95, 4, 2.7764451),
        (0.95, 9, 2.2621572),
        (0.95, 29, 2.0452296),
        (0.95, 30, 2.0422725),
        (0.99, 4, 4.6040949),
        (0.90, 5, 2.0150484),
        (0.5, 1, 1.0),
        (0.95, 100_000, 1.9599878),
    ],
)
def test_student_t_against_the_printed_tables(level: float, df: int, expected: float) -> None:
    assert student_t(level, df) == pytest.approx(expected, abs=2e-6)


@given(st.floats(0.01, 0.999), st.integers(1, 40))
@settings(max_examples=30, deadline=None)
def test_student_t_against_numeric_integration(level: float, df: int) -> None:
    quantile = student_t(level, df)
    # With t = sqrt(df) tan(theta) the density is proportional to cos(theta)^(df - 1).
    constant = math.gamma((df + 1) / 2) / math.gamma(df / 2) / math.sqrt(math.pi)
    theta = np.linspace(0, math.atan(quantile / math.sqrt(df)), 20_001)
    density = np.cos(theta) ** (df - 1)
    area = 2 * constant * float(((density[1:] + density[:-1]) / 2).sum() * (theta[1] - theta[0]))
    assert area == pytest.approx(level, abs=1e-6)


def test_seeds_by_hand() -> None:
    # Mean 2, standard deviation 1, n 3: 2 -+ 4.302653 / sqrt(3).
    assert _close(seeds_interval([1, 2, 3]), 2, 2 - 4.30265273 / math.sqrt(3), 2 + 4.30265273 / math.sqrt(3), 1e-7)
    assert seeds_interval([5.0]) == Estimate(5.0, n=1, over="seeds")


def test_log_ratio_by_hand() -> None:
    # Ratios 1, 2, 4: logs 0, ln 2, 2 ln 2, so mean ln 2 with standard deviation ln 2.
    half = 4.30265273 / math.sqrt(3)
    assert _close(log_ratio_interval([1, 4, 12], [1, 2, 3]), 2, 2 ** (1 - half), 2 ** (1 + half), 1e-6)
    constant = log_ratio_interval([3, 6], [1, 2])
    assert _close(constant, 3, 3, 3)
    assert log_ratio_interval([3], [2]) == Estimate(pytest.approx(1.5), n=1, unit="ratio", over="seeds")


def test_nothing_and_one_item_are_valid_json() -> None:
    nothing = {"value": None, "n": 0, "low": None, "high": None}
    empty = [proportion(0, 0), mean([]), paired_difference([], []), ratio_of_sums([], []), seeds_interval([])]
    assert [made.to_json() for made in (*empty, log_ratio_interval([], []), paired_ratio_difference([], [], []))] == [nothing] * 7
    one = [mean([0.5]), ratio_of_sums([3.0], [6]), paired_difference([0.25], [0.75])]
    assert [made.to_json() for made in one] == [Estimate(0.5, n=1).to_json()] * 3
    full = [mean([0.5, 1.5]), proportion(1, 2), paired_difference([1], [1]), ratio_of_sums([1, 2], [3, 4])]
    text = json.dumps([interval.to_json() for interval in [*empty, *one, *full]], allow_nan=False)
    assert "NaN" not in text
    assert all(type(number) in (int, float) for interval in full for number in interval.to_json().values())


@pytest.mark.parametrize(
    "call",
    [
        lambda: proportion(3, 2),
        lambda: proportion(-1, 2),
        lambda: mean([0.5, float("nan")]),
        lambda: mean([[0.5], [1.0]]),
        lambda: paired_difference([1, 2], [1]),
        lambda: ratio_of_sums([1, 2], [1, 0]),
        lambda: mcnemar([0, 2], [1, 1]),
        lambda: log_ratio_interval([1, 0], [1, 1]),
        lambda: student_t(0.95, 0),
    ],
)
def test_wrong_arguments_are_refused(call) -> None:
    with pytest.raises(ValueError, match=r"must|expected|takes|needs"):
        call()


def test_memory_is_linear_in_the_items(monkeypatch) -> None:
    """10,000 items x 2,000 resamples would be 160 MB as one matrix; no single request is larger than the items."""
    largest = 0
    original = statistics.uniforms

    def watched(*args, n: int, **kwargs) -> np.ndarray:
        nonlocal largest
        largest = max(largest, n)
        return original(*args, n=n, **kwargs)

    monkeypatch.setattr(statistics, "uniforms", watched)
    interval = mean(np.linspace(0, 1, 10_000), resamples=100)
    assert largest == 10_000
    assert interval.high - interval.low == pytest.approx(2 * Z * math.sqrt(1 / 12 / 10_000), rel=0.3)


def test_unit_sign_and_what_is_counted_are_known_where_the_number_is_made() -> None:
    share, change = proportion(1, 2), paired_difference([1, 0], [1, 1])
    assert (share.unit, share.signed, share.over) == ("share", False, "questions")
    assert (change.unit, change.signed) == ("share", True)
    assert paired_difference([0.5, 2.0], [1.0, 2.0]).signed
    assert paired_ratio_difference([1.0, 2.0], [2.0, 2.0], [1, 2]).signed
    assert statistics.grouped_difference([0, 1], [0, 1], ["a", "b"]).signed
    assert statistics.grouped_difference([0, 1], [1, 1], ["a", "b"]).signed
    assert (seeds_interval([1, 2]).over, log_ratio_interval([1, 2], [1, 1]).unit) == ("seeds", "ratio")


def test_an_interval_is_cut_or_left_out() -> None:
    made = Estimate(0.9, 0.7, 1.1, 3)
    assert made.within(0.0, 1.0) == replace(made, high=1.0)
    assert made.without_interval() == made.without_interval().within(0.0, 1.0) == Estimate(0.9, n=3)


@pytest.mark.parametrize(("successes", "n"), [(0, 24), (23, 24), (24, 24), (412, 1319), (2.5, 7)])
def test_wilson_is_that_of_statsmodels(successes: float, n: int) -> None:
    """To the last digits but two: statsmodels has another quantile of the normal distribution."""
    low, high = proportion_confint(successes, n, alpha=0.05, method="wilson")
    assert _close(proportion(successes, n), successes / n, low, high, 1e-14)


@pytest.mark.parametrize(("gained", "lost"), [(0, 1), (3, 9), (25, 11), (40, 40)])
def test_mcnemar_is_that_of_statsmodels(gained: int, lost: int) -> None:
    before, after = [0] * gained + [1] * lost + [1], [1] * gained + [0] * lost + [1]
    other = contingency_tables.mcnemar([[1, lost], [gained, 0]], exact=True)
    assert mcnemar(before, after) == pytest.approx(other.pvalue, rel=1e-12)


@given(st.floats(0.01, 0.999), st.integers(1, 2000))
@settings(max_examples=50, deadline=None)
def test_student_t_is_that_of_scipy(level: float, df: int) -> None:
    assert student_t(level, df) == pytest.approx(float(stats.t.ppf((1 + level) / 2, df)), rel=1e-9)


@given(st.lists(st.integers(-5000, 5000).map(lambda value: value / 100), min_size=2, max_size=6))
@settings(deadline=None)
def test_seeds_are_an_interval_of_scipy(values: list[float]) -> None:
    low, high = (
        stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values)) if np.ptp(values) else (values[0],) * 2
    )
    assert _close(seeds_interval(values), float(np.mean(values)), low, high, 1e-8)
