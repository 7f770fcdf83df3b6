"""Every number is decided by its address. The oracle is Philox4x64-10 written out in Python's own integers."""

from __future__ import annotations

import hashlib
import itertools
import math
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixsd.randomness import PURPOSES, Purpose, coins, order, uniforms

KEYS = st.text(st.characters(exclude_categories=("Cs",)), max_size=12)
# Keys that try to look like the end of another address.
SLY_KEYS = KEYS | st.lists(st.sampled_from(["0", "1", "12", "|", "coin", "a"]), max_size=6).map("".join)
SMALL = st.integers(0, 12)
ADDRESSES = st.tuples(SMALL, st.sampled_from(PURPOSES), SLY_KEYS, SMALL, SMALL)

MASK = 2**64 - 1

# Seed, purpose, key, sample, attempt.
Address = tuple[int, Purpose, str, int, int]


def block(counter: int, key: int) -> list[int]:
    """Four 64-bit words of Philox4x64-10 (Salmon et al. 2011) for a 256-bit counter and a 128-bit key."""
    c0, c1, c2, c3 = ((counter >> shift) & MASK for shift in (0, 64, 128, 192))
    k0, k1 = key & MASK, key >> 64
    for _ in range(10):
        left, right = 0xD2E7470EE14C6C93 * c0, 0xCA5A826395121157 * c2
        c0, c1, c2, c3 = (right >> 64) ^ c1 ^ k0, right & MASK, (left >> 64) ^ c3 ^ k1, left & MASK
        k0, k1 = (k0 + 0x9E3779B97F4A7C15) & MASK, (k1 + 0xBB67AE8584CAA73B) & MASK
    return [c0, c1, c2, c3]


def philox(key: int, n: int) -> list[int]:
    """The first `n` words of a stream: the blocks are counted from 1."""
    return [word for counter in range(1, n // 4 + 2) for word in block(counter, key)][:n]


def expected(where: Address, n: int) -> list[float]:
    seed, purpose, key, sample, attempt = where
    address = f"{seed}|{purpose}|{len(key)}|{key}|{sample}|{attempt}"
    words = philox(int.from_bytes(hashlib.blake2b(address.encode(), digest_size=16).digest(), "little"), n)
    return [(word >> 11) / 2**53 for word in words]


def draw(address: Address, n: int) -> list[float]:
    seed, purpose, key, sample, attempt = address
    return uniforms(seed, purpose, key, sample=sample, attempt=attempt, n=n).tolist()


def test_the_oracle_is_philox() -> None:
    """Against the generator's published known answers: all bits zero, and all bits one."""
    zeros = [0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B]
    ones = [0x87B092C3013FE90B, 0x438C3C67BE8D0224, 0x9CC7D7C69CD777B6, 0xA09CAEBF594F0BA0]
    assert block(0, 0) == zeros
    assert block(2**256 - 1, 2**128 - 1) == ones


@settings(deadline=None)
@given(ADDRESSES, st.integers(0, 11))
def test_it_equals_the_oracle(address: Address, n: int) -> None:
    assert draw(address, n) == expected(address, n)


def test_pinned_values() -> None:
    """The same bits on any machine and with any release of any library: runs are resumed and compared by them."""
    assert [value.hex() for value in uniforms(0, "coin", "fact", n=3)] == [
        "0x1.78df565ec06e6p-2",
        "0x1.54a168fb95d7cp-1",
        "0x1.94c319f09213ep-1",
    ]
    assert [value.hex() for value in uniforms(7, "noise", "Zürich", sample=2, attempt=3, n=2)] == [
        "0x1.3341f9a38055cp-2",
        "0x1.d9b7d16cd9a12p-2",
    ]
    assert coins(0, "fact", lam=0.5, n=12).tolist() == [value < 0.5 for value in expected((0, "coin", "fact", 0, 0), 12)]
    assert order(0, list("abcdefgh"), epoch=0) == [6, 5, 2, 7, 1, 4, 0, 3]


@settings(deadline=None)
@given(ADDRESSES, st.integers(0, 40), st.integers(0, 40))
def test_a_longer_stream_begins_with_a_shorter_one(address: Address, n: int, more: int) -> None:
    assert draw(address, n + more)[:n] == draw(address, n)


@settings(deadline=None)
@given(ADDRESSES)
def test_shape_and_range(address: Address) -> None:
    values = np.array(draw(address, 50))
    assert values.shape == (50,)
    assert values.dtype == np.float64
    assert ((values >= 0) & (values < 1)).all()


def test_the_largest_number_is_below_one() -> None:
    """All 53 bits set: rounding must not make a 1, which would be no coin for lambda 1."""
    assert float(np.uint64(MASK) >> np.uint64(11)) * 2.0**-53 == 1 - 2**-53
    assert coins(0, "any", lam=1.0, n=1000).all()
    assert not coins(0, "any", lam=0.0, n=1000).any()


@settings(deadline=None)
@given(ADDRESSES, ADDRESSES)
def test_two_addresses_never_share_a_stream(one: Address, two: Address) -> None:
    assert (draw(one, 3) == draw(two, 3)) == (one == two)


def test_addresses_that_read_alike_are_apart() -> None:
    sly: list[Address] = [
        (1, "coin", "a|0", 0, 0),
        (1, "coin", "a", 0, 0),
        (1, "coin", "a|0|0", 0, 0),
        (11, "coin", "a", 0, 0),
        (1, "coin", "1|a", 0, 0),
        (1, "coin", "", 11, 1),
        (1, "coin", "", 1, 11),
        (1, "coin", "", 1, 1),
        (1, "noise", "", 1, 1),
        # One character, or the two that are written the same.
        (1, "coin", "é", 0, 0),
        (1, "coin", "e\u0301", 0, 0),
    ]
    assert len({tuple(draw(address, 2)) for address in sly}) == len(sly)


def test_an_unknown_purpose_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown purpose 'dice'; known: coin, noise"):
        uniforms(0, "dice", "key", n=1)  # type: ignore[arg-type]
    assert get_args(Purpose) == PURPOSES


def test_numbers_are_uniform() -> None:
    """Kolmogorov-Smirnov by hand, along a stream and across streams (first numbers of many keys, attempts and seeds)."""
    n = 20_000
    along = uniforms(3, "noise", "one key", n=n)
    places = itertools.product(range(5), range(400), range(5))
    across = np.array([uniforms(seed, "coin", f"fact {key}", attempt=attempt, n=1)[0] for seed, key, attempt in places])
    for values in (np.sort(along), np.sort(across)):
        grid = np.arange(len(values) + 1) / len(values)
        distance = max((grid[1:] - values).max(), (values - grid[:-1]).max())
        assert distance < 1.63 / math.sqrt(len(values))  # the 1% point


def test_streams_are_independent() -> None:
    """No purpose, seed, sample or attempt repeats or follows another one: correlations stay within 4 standard errors."""
    n = 5000
    streams = [uniforms(0, purpose, "key", n=n) for purpose in get_args(Purpose)]
    streams += [
        uniforms(1, "coin", "key", n=n),
        uniforms(0, "coin", "key", sample=1, n=n),
        uniforms(0, "coin", "key", attempt=1, n=n),
    ]
    streams.append(np.roll(streams[0], 1))
    correlation = np.corrcoef(streams) - np.eye(len(streams))
    assert np.abs(correlation).max() < 4 / math.sqrt(n)


@settings(deadline=None)
@given(KEYS, st.floats(0, 1), st.floats(0, 1), st.integers(0, 3), st.integers(0, 3))
def test_coins_are_nested(key: str, one: float, two: float, sample: int, attempt: int) -> None:
    """A position that is naive at the smaller lambda is naive at the larger."""
    less, more = (coins(5, key, lam=lam, sample=sample, attempt=attempt, n=60) for lam in sorted((one, two)))
    assert less.dtype == np.bool_
    assert (more | ~less).all()


def test_the_share_of_naive_coins_is_lambda() -> None:
    for lam in (0.1, 0.3, 0.5):
        share = np.mean([coins(0, f"fact {key}", lam=lam, n=50).mean() for key in range(200)])
        assert abs(share - lam) < 4 * math.sqrt(lam * (1 - lam) / 10_000)


class TestOrder:
    @settings(deadline=None)
    @given(st.lists(KEYS, unique=True, max_size=12), st.integers(0, 5), st.randoms())
    def test_the_order_of_the_input_does_not_matter(self, keys: list[str], epoch: int, random: object) -> None:
        shuffled = list(keys)
        random.shuffle(shuffled)  # type: ignore[attr-defined]
        first = [keys[index] for index in order(1, keys, epoch=epoch)]
        assert [shuffled[index] for index in order(1, shuffled, epoch=epoch)] == first
        assert sorted(first) == sorted(keys)

    @settings(deadline=None)
    @given(st.lists(KEYS, max_size=12))
    def test_it_is_a_permutation_even_of_equal_keys(self, keys: list[str]) -> None:
        assert sorted(order(1, keys, epoch=0)) == list(range(len(keys)))

    @settings(deadline=None)
    @given(st.lists(KEYS, unique=True, min_size=2, max_size=12))
    def test_one_more_key_leaves_the_others_in_their_order(self, keys: list[str]) -> None:
        without = [key for key in (keys[index] for index in order(1, keys, epoch=0)) if key != keys[0]]
        assert [keys[1:][index] for index in order(1, keys[1:], epoch=0)] == without

    def test_seed_and_epoch_decide(self) -> None:
        keys = [f"fact {number}" for number in range(30)]
        seen = {(seed, epoch): tuple(order(seed, keys, epoch=epoch)) for seed in range(3) for epoch in range(3)}
        assert len(set(seen.values())) == 9
        assert tuple(order(2, keys, epoch=1)) == seen[2, 1]

    def test_every_place_is_as_likely(self) -> None:
        """Where one of 5 keys comes to stand in 2000 epochs: chi-square with 4 degrees of freedom, 0.1% point."""
        places = [order(0, list("abcde"), epoch=epoch).index(2) for epoch in range(2000)]
        counts = np.bincount(places, minlength=5)
        assert ((counts - 400) ** 2 / 400).sum() < 18.47
