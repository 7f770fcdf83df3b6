"""NLL of tokens: numbers worked out by hand, and laws against plain counting."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixsd.statistics import ratio_of_sums
from mixsd.targets.target import Overlap, TokenLosses, cdf, count_above, high_ids, mean_nll, share_above, share_difference


def losses_of(targets: list[tuple[str, list[float]]]) -> TokenLosses:
    found = TokenLosses()
    for fact, nll in targets:
        found.add(fact, nll)
    return found


NLL = st.lists(st.floats(0, 30).map(lambda value: round(value, 1)), min_size=1, max_size=8)
TARGETS = st.lists(st.tuples(st.sampled_from("abcde"), NLL), min_size=1, max_size=8)

BY_HAND = [("a", [1.0, 6.0, 9.0]), ("b", [5.0, 8.0, 8.5])]


def test_mean_and_shares_by_hand():
    losses = losses_of(BY_HAND)
    assert mean_nll(losses).value == pytest.approx(37.5 / 6)
    # A token at the threshold is not above it.
    assert [count_above(losses, level) for level in (5, 8)] == [4, 2]
    assert share_above(losses, 5).value == pytest.approx(4 / 6)
    assert share_above(losses, 8).value == pytest.approx(2 / 6)
    assert mean_nll(losses).n == share_above(losses, 8).n == 2


def test_the_interval_is_over_facts():
    rows = [("a", [1.0, 9.0]), ("b", [9.0, 9.0, 1.0]), ("c", [2.0, 3.0]), ("a", [9.0])]
    # The two targets of "a" are one unit, as if they were one target.
    expected = replace(ratio_of_sums([2, 2, 0], [3, 3, 2]), unit="share", over="facts")
    assert share_above(losses_of(rows), 8) == expected
    assert share_above(losses_of([("a", [1.0, 9.0, 9.0]), *rows[1:3]]), 8) == expected
    assert mean_nll(losses_of(rows)) == replace(ratio_of_sums([19, 19, 5], [3, 3, 2]), unit="nats", over="facts")


def test_no_token_above_gives_no_interval():
    found = share_above(losses_of(BY_HAND), 20)
    assert (found.value, found.n, found.low, found.high) == (0.0, 2, None, None)


def test_the_difference_is_over_shared_facts():
    ours = losses_of([("a", [9.0, 1.0, 1.0, 1.0]), ("b", [1.0, 1.0]), ("only here", [9.0])])
    theirs = losses_of([("a", [9.0, 9.0]), ("b", [9.0, 1.0]), ("only there", [1.0])])
    found = share_difference(ours, theirs, 8)
    assert found.value == pytest.approx(1 / 6 - 3 / 4)
    assert found.n == 2
    assert found.low == pytest.approx(0.25 - 1.0)
    assert found.high == pytest.approx(0 - 0.5)
    assert share_difference(ours, losses_of([("z", [1.0])]), 8).value is None


def test_only_some_facts():
    losses = losses_of([*BY_HAND, ("a", [2.0])])
    assert losses.of({"b"}).values.tolist() == [5.0, 8.0, 8.5]
    assert losses.of({"a"}).by_fact() == {"a": (18.0, 4)}
    assert losses.of({"a", "b", "z"}) is losses
    assert mean_nll(losses.of(set())).value is None


@pytest.mark.parametrize("nll", [[], [float("nan")], [1.0, float("inf")]])
def test_what_is_no_loss_is_refused(nll):
    with pytest.raises(ValueError, match="finite"):
        TokenLosses().add("a", nll)


def test_cdf_by_hand():
    assert cdf(losses_of([("a", [3.0, 1.0]), ("b", [3.0, 7.0])])) == ([1.0, 3.0, 7.0], [0.25, 0.75, 1.0])
    assert cdf(TokenLosses()) == ([], [])


@settings(max_examples=20, deadline=None)
@given(TARGETS, st.floats(0, 30).map(lambda value: round(value, 1)))
def test_counts_are_those_of_plain_counting(targets, level):
    losses = losses_of(targets)
    tokens = [value for _, nll in targets for value in nll]
    above = sum(value > level for value in tokens)
    assert count_above(losses, level) == above
    assert share_above(losses, level).value == pytest.approx(above / len(tokens))
    assert mean_nll(losses).value == pytest.approx(sum(tokens) / len(tokens))


@settings(deadline=None)
@given(TARGETS, st.integers(2, 12))
def test_cdf_steps_are_exact(targets, most):
    tokens = [value for _, nll in targets for value in nll]
    x, y = cdf(losses_of(targets), most)
    assert x == sorted(set(x))
    assert y == sorted(set(y))
    assert x[0] == min(tokens)
    assert x[-1] == max(tokens)
    assert y[-1] == 1.0
    assert len(x) == min(most, len(set(tokens)))
    for place, share in zip(x, y, strict=True):
        assert share == pytest.approx(sum(value <= place for value in tokens) / len(tokens))


def test_a_long_cdf_is_thinned_evenly():
    values = np.random.default_rng(0).exponential(3, 5000).tolist()
    x, y = cdf(losses_of([("a", values)]))
    assert len(x) == 400
    assert max(np.diff(y)) < 2 / 399


def test_overlap_by_hand():
    # The reference of "a" asks for 7 and 9 (7 twice), of "b" for 4; that of "c" holds nothing improbable.
    wanted = {
        "a": high_ids([7, 3, 7, 9], [8.1, 8.0, 1.0, 20.0], 8),
        "b": high_ids([4, 5], [9.0, 2.0], 8),
        "c": high_ids([4], [8.0], 8),
    }
    assert wanted == {"a": {7, 9}, "b": {4}, "c": set()}
    overlap = Overlap(wanted)
    for fact, ids in (("a", [1, 9, 9]), ("b", [4, 4]), ("c", [4]), ("unknown", [4])):
        overlap.add(fact, ids)
    everything = {"a", "b", "c", "unknown"}
    assert overlap.mean(everything).value == pytest.approx((1 / 2 + 1) / 2)
    assert overlap.pooled(everything).value == pytest.approx(2 / 3)
    assert overlap.mean(everything).n == 2
    assert overlap.without(everything) == 1
    assert overlap.mean({"b", "c"}).value == 1.0
    assert overlap.mean({"c"}).value is None


IDS = st.lists(st.tuples(st.integers(0, 9), st.floats(0, 20)), min_size=1, max_size=8)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(IDS, st.lists(st.integers(0, 9), min_size=1, max_size=8)), min_size=1, max_size=6), st.floats(0, 20))
def test_overlap_is_that_of_a_naive_count(pairs, level):
    overlap = Overlap({str(i): high_ids([t for t, _ in ref], [v for _, v in ref], level) for i, (ref, _) in enumerate(pairs)})
    shares = []
    for i, (reference, target) in enumerate(pairs):
        overlap.add(str(i), target)
        high = []
        for token, value in reference:
            if value > level and token not in high:
                high.append(token)
        if high:
            shares.append(len([token for token in high if token in target]) / len(high))
    found = overlap.mean({str(i) for i in range(len(pairs))})
    assert found.n == len(shares)
    if shares:
        assert found.value == pytest.approx(sum(shares) / len(shares))
        assert 0 <= found.value <= 1
