"""Estimates with their intervals, and paired tests, one home for all of them.

Proportions get closed-form score intervals (24 of 24 is not "100%, no doubt"); means and ratios a percentile bootstrap over items, a
little narrow below some 20 of them; the few seeds of a repeated run Student's t. Arguments of the wrong shape raise `ValueError`.

A result is a pure function of the multiset of its values: items are sorted before they are resampled, and resample r always draws the
same addressed numbers, so intervals of two quantities are not independent evidence. Reports keep every digit: what scipy and statsmodels
give in another last digit (Wilson's interval, McNemar's p, the quantile of t) is computed here; the tests hold it against theirs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from statistics import NormalDist
from typing import Any, Literal

import numpy as np

from mixsd.randomness import uniforms

_LEVEL = 0.95  # of all intervals
_ENDS = [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2]
_Z = NormalDist().inv_cdf(_ENDS[1])
_FEWEST_GROUPS = 5  # that a bootstrap over groups says anything of
_FEW = 512  # items whose resamples are kept

Values = Sequence[float] | Sequence[bool] | np.ndarray

# How a number is written (`formats`): a share in percent, a count whole, "magnitude" with three significant digits, the rest with decimals.
Unit = Literal["share", "nats", "ratio", "count", "seconds", "magnitude", "number"]
Over = Literal["", "questions", "replies", "facts", "seeds", "checkpoints", "tokens", "weights"]


@dataclass(frozen=True)
class Estimate:
    """A number with its interval and its n: the one form in which numbers are measured, stored and shown.

    value is None at n = 0 or where it is not defined, low and high are None where n says nothing; never NaN, so it is valid JSON.
    unit: how it is written. signed: whether it is a change. over: what is counted by n and resampled; "" where nobody says.
    """

    value: float | None = None
    low: float | None = None
    high: float | None = None
    n: int = 0
    unit: Unit = "number"
    signed: bool = False
    over: Over = "questions"

    def without_interval(self) -> Estimate:
        """The same number, where its interval would claim more than is known."""
        return replace(self, low=None, high=None)

    def within(self, lowest: float, highest: float) -> Estimate:
        """The same number, its interval cut to where it can lie: Student's interval knows nothing of that."""
        low, high = (None if end is None else min(max(end, lowest), highest) for end in (self.low, self.high))
        return replace(self, low=low, high=high)

    def to_json(self) -> dict[str, Any]:
        """The numbers, as all JSON files of mixsd hold them."""
        return {"value": self.value, "n": self.n, "low": self.low, "high": self.high}


def proportion(successes: float, n: int) -> Estimate:
    """Share of `successes` among `n` with Wilson's score interval; a fractional count is a mean over groups of answers."""
    if not 0 <= successes <= n:
        raise ValueError(f"successes must lie in 0..n, got {successes} of {n}")
    z = _Z
    if n == 0:
        return Estimate(unit="share")
    share = successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    # min and max: at 0 and n successes one end is the share itself, up to rounding.
    return Estimate(share, max(0.0, min(centre - half, share)), min(1.0, max(centre + half, share)), n, "share")


def mean(values: Values, *, resamples: int = 2000) -> Estimate:
    """Mean of `values`, shape (n,), with a bootstrap interval over items; `proportion` if all of them are 0 or 1."""
    array = _column(values)
    if _is_binary(array) and len(array):
        return proportion(int(array.sum()), len(array))
    return _bootstrap_ratio(array, np.ones_like(array), resamples)


def paired_difference(before: Values, after: Values, *, resamples: int = 2000) -> Estimate:
    """Mean of after - before over items, both of shape (n,), with a bootstrap interval over pairs.

    If all values are 0 or 1 it is that of `share_difference`: with no changed pair the bootstrap would claim exactly zero.
    """
    first, second = _columns(before, after)
    difference = second - first
    if len(first) and _is_binary(first) and _is_binary(second):
        return share_difference(int((difference > 0).sum()), int((difference < 0).sum()), len(difference))
    return replace(_bootstrap_ratio(difference, np.ones_like(difference), resamples), signed=True)


def share_difference(gained: float, lost: float, n: int) -> Estimate:
    """(gained - lost) / n of n paired outcomes, with Bonett and Price's adjusted Wald interval: one gain and one loss are added.

    A fractional count is a mean over groups of pairs.
    """
    if n == 0:
        return Estimate(unit="share", signed=True)
    up, down = (gained + 1) / (n + 2), (lost + 1) / (n + 2)
    half = _Z * math.sqrt((up + down - (up - down) ** 2) / (n + 2))
    return Estimate((gained - lost) / n, max(-1.0, up - down - half), min(1.0, up - down + half), n, "share", signed=True)


def ratio_of_sums(numerators: Values, denominators: Values, *, resamples: int = 2000) -> Estimate:
    """sum(numerators) / sum(denominators > 0) over items, shapes (n,), with a bootstrap interval over items.

    For nats per token: the NLL and the tokens of each reply, so a long reply counts by its tokens but the reply is resampled.
    """
    above, below = _columns(numerators, denominators)
    if (below <= 0).any():
        raise ValueError("denominators must be positive")
    return _bootstrap_ratio(above, below, resamples)


def paired_ratio_difference(
    numerators_a: Values, numerators_b: Values, denominators: Values, *, resamples: int = 2000
) -> Estimate:
    """(sum(b) - sum(a)) / sum(denominators) with a bootstrap interval over items; forgetting (Eq. 2) is this with a = base."""
    first, second = _columns(numerators_a, numerators_b)
    return replace(ratio_of_sums(second - first, denominators, resamples=resamples), signed=True)


def grouped_difference(before: Values, after: Values, groups: Sequence[str], *, resamples: int = 2000) -> Estimate:
    """Mean of after - before over answers, shapes (n,), with a bootstrap interval over the groups that the pairs belong to.

    For several answers to one question, which are one observation. Where no pair differs and all values are 0 or 1, the interval
    is that of `share_difference` over the groups.
    """
    first, second = _columns(before, after, groups)
    places, n = _places(groups)
    if len(first) and (first == second).all() and _is_binary(first):
        return replace(share_difference(0, 0, n), n=len(first))
    sums = np.bincount(places, weights=second - first, minlength=n)
    made = _bootstrap_ratio(sums, np.bincount(places, minlength=n).astype(np.float64), resamples)
    return replace(made, n=len(first), signed=True)


def stratified(
    strata: Sequence[np.ndarray],
    estimate: Callable[[list[np.ndarray]], float | None],
    *,
    resamples: int = 2000,
    address: str = "bootstrap/{}",
) -> Estimate:
    """A function of the sums of several samples, with a bootstrap interval over the items of each, one resample at a time.

    Args:
        strata: one array (quantities, items) per sample; the quantities of one item stay together.
        estimate: gets the sums over the items, shape (quantities,), of every sample; None where it is not defined.
        address: of the draws for a sample, by its number; one for all would draw samples of one size alike.
    """
    n = sum(stratum.shape[1] for stratum in strata)
    ordered = [stratum[:, np.lexsort(stratum)] for stratum in strata]
    value = estimate([stratum.sum(axis=1) for stratum in ordered])
    if value is None or n < 2:
        return Estimate(value, n=n)
    drawn = [_resample_counts(stratum.shape[1], resamples, address.format(place)) for place, stratum in enumerate(ordered)]
    sums = ([(items * count).sum(axis=1) for items, count in zip(ordered, row, strict=True)] for row in zip(*drawn, strict=True))
    found = [again for each in sums if (again := estimate(each)) is not None]
    if len(found) < resamples * 0.99:
        return Estimate(value, n=n)
    low, high = np.quantile(found, _ENDS)
    return Estimate(value, float(low), float(high), n)


def pearson(first: Values, second: Values, groups: Sequence[str] | None = None, *, resamples: int = 2000) -> Estimate:
    """Pearson's correlation of paired values, shapes (n,); None where one of them does not vary.

    Without `groups` the pairs are independent and the interval is Fisher's (n >= 4). With a group for each pair (the run that a
    checkpoint is of) it is a bootstrap over whole groups; below 5 of them there is none.
    """
    one, two = _columns(first, second, groups)
    n, x, y = len(one), _standardized(one), _standardized(two)
    if n < 2 or x is None or y is None:
        return Estimate(n=n)
    sums = np.stack([np.ones(n), x, y, x * x, y * y, x * y])
    value = _correlation([sums.sum(axis=1)])
    if groups is None:
        if value is None or n < 4:
            return Estimate(value, n=n)
        from scipy.stats import pearsonr

        ends = pearsonr(one, two).confidence_interval(_LEVEL)
        return Estimate(value, float(ends.low), float(ends.high), n)
    places, count = _places(groups)
    if count < _FEWEST_GROUPS:
        return Estimate(value, n=n)
    by_group = np.stack([np.bincount(places, weights=row, minlength=count) for row in sums])
    return replace(stratified([by_group], _correlation, resamples=resamples), value=value, n=n)


def _standardized(column: np.ndarray) -> np.ndarray | None:
    spread = float(column.std()) if len(column) else 0.0
    # Rounding of the mean is no variation.
    if not spread > 1e-12 * max(1e-300, float(np.abs(column).max(initial=0.0))):
        return None
    return (column - column.mean()) / spread


def _correlation(sums: Sequence[np.ndarray]) -> float | None:
    """r from (n, sum x, sum y, sum x^2, sum y^2, sum xy); None where x or y does not vary."""
    n, x, y, xx, yy, xy = (float(value) for value in sums[0])
    of_x, of_y = xx - x * x / n, yy - y * y / n
    if of_x <= 1e-12 * n or of_y <= 1e-12 * n:
        return None
    return max(-1.0, min(1.0, (xy - x * y / n) / math.sqrt(of_x * of_y)))


def mcnemar(before: Values, after: Values) -> float:
    """Exact two-sided p of McNemar's test on paired outcomes (0 or 1, or bool), shapes (n,); 1.0 if no pair changed.

    Under the null hypothesis a changed pair is as likely to be a gain as a loss: twice the smaller binomial tail.
    """
    first, second = _columns(before, after)
    if not (_is_binary(first) and _is_binary(second)):
        raise ValueError("McNemar's test takes outcomes that are 0 or 1")
    gained, lost = int((second > first).sum()), int((second < first).sum())
    changed = gained + lost
    term = tail = 1
    for k in range(min(gained, lost)):
        term = term * (changed - k) // (k + 1)  # the next binomial coefficient, an integer at every step
        tail += term
    return min(1.0, 2 * tail / 2**changed)


def seeds_interval(values: Values) -> Estimate:
    """Mean over seeds, shape (seeds,), with Student's t interval; one seed has no interval."""
    array = np.sort(_column(values))
    n = len(array)
    if n == 0:
        return Estimate(over="seeds")
    centre = float(array.mean())
    if n == 1:
        return Estimate(centre, n=1, over="seeds")
    half = student_t(_LEVEL, n - 1) * float(array.std(ddof=1)) / math.sqrt(n)
    return Estimate(centre, centre - half, centre + half, n, over="seeds")


def log_ratio_interval(a_by_seed: Values, b_by_seed: Values) -> Estimate:
    """Geometric mean of a/b over seeds, shapes (seeds,), all positive; Student's t interval on the logarithms."""
    first, second = _columns(a_by_seed, b_by_seed)
    if (first <= 0).any() or (second <= 0).any():
        raise ValueError("a ratio needs positive values")
    logs = seeds_interval(np.log(first) - np.log(second))
    value, low, high = (None if end is None else math.exp(end) for end in (logs.value, logs.low, logs.high))
    return Estimate(value, low, high, logs.n, "ratio", over="seeds")


def student_t(level: float, df: int) -> float:
    """The t with P(|T| <= t) = level for Student's distribution with `df` (a whole number >= 1) degrees of freedom, by bisection."""
    if df < 1:
        raise ValueError(f"df must be at least 1, got {df}")
    low, high = 0.0, math.pi / 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if _central_probability(middle, df) < level else (low, middle)
    return math.sqrt(df) * math.tan(low)


def _central_probability(theta: float, df: int) -> float:
    """P(|T| <= sqrt(df) tan(theta)), a finite sum of sines and cosines."""
    cosine, odd = math.cos(theta), df % 2 == 1
    term = cosine if odd else 1.0
    total = term if df > 1 else 0.0
    for k in range(3 if odd else 2, df, 2):
        term *= (k - 1) / k * cosine * cosine
        total += term
    return 2 / math.pi * (theta + math.sin(theta) * total) if odd else math.sin(theta) * total


def _bootstrap_ratio(numerators: np.ndarray, denominators: np.ndarray, resamples: int) -> Estimate:
    """Ratio of sums with its percentile interval."""
    if not len(numerators):
        return Estimate()
    items = np.stack([denominators, numerators])
    return stratified([items], lambda sums: float(sums[0][1] / sums[0][0]), resamples=resamples, address="bootstrap")


def resample_indices(n: int, resample: int, address: str = "bootstrap") -> np.ndarray:
    """The items of one bootstrap resample: int64, shape (n,), uniform in 0..n-1 with replacement."""
    return (uniforms(0, "evaluation", address, sample=resample, n=n) * n).astype(np.int64)


def _resample_counts(n: int, resamples: int, address: str) -> Iterable[np.ndarray]:
    """How often each of `n` items is in each resample, one row each; those of few items, as most scores have, are drawn once."""
    return _kept_counts(n, resamples, address) if n <= _FEW else _drawn_counts(n, resamples, address)


@lru_cache(maxsize=16)  # 2 MB each at most for 2,000 resamples
def _kept_counts(n: int, resamples: int, address: str) -> np.ndarray:
    return np.array(list(_drawn_counts(n, resamples, address)), dtype=np.int16)


def _drawn_counts(n: int, resamples: int, address: str) -> Iterator[np.ndarray]:
    return (np.bincount(resample_indices(n, resample, address), minlength=n) for resample in range(resamples))


def _is_binary(array: np.ndarray) -> bool:
    return bool(np.isin(array, (0.0, 1.0)).all())


def _column(values: Values) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1:
        raise ValueError(f"expected one number per item, got shape {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError("values must be finite")
    return array


def _columns(first: Values, second: Values, groups: Sequence[str] | None = None) -> tuple[np.ndarray, np.ndarray]:
    one, two = _column(first), _column(second)
    if len(one) != len(two):
        raise ValueError(f"paired values must have equal lengths, got {len(one)} and {len(two)}")
    if groups is not None and len(groups) != len(one):
        raise ValueError(f"expected a group for each of {len(one)} pairs, got {len(groups)}")
    return one, two


def _places(groups: Sequence[str]) -> tuple[list[int], int]:
    """The number of each item's group, and how many groups there are."""
    names = {name: place for place, name in enumerate(dict.fromkeys(groups))}
    return [names[name] for name in groups], len(names)
