"""Values cross whole, and nothing but values crosses."""

from __future__ import annotations

import contextlib
import enum
import json
import math
from collections import Counter, OrderedDict, namedtuple
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixsd.sandbox.worker import Foreign, UnfitError, pack, unpack

MOST = 1_000_000

_hashable = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=1 << 60, max_value=1 << 4000)
    | st.floats()
    | st.complex_numbers()
    | st.text(st.characters(exclude_categories=()))
    | st.binary()
    | st.fractions()
    | st.decimals(allow_nan=False),
    lambda inner: st.lists(inner, max_size=4).map(tuple) | st.frozensets(inner, max_size=4),
    max_leaves=6,
)
_values = st.recursive(
    _hashable,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_hashable, inner, max_size=4) | st.sets(_hashable, max_size=4),
    max_leaves=12,
)


def same(left: Any, right: Any) -> bool:  # noqa: PLR0911
    """Equal in value and in every type, a NaN to a NaN and a zero to a zero of its sign."""
    if type(left) is not type(right):
        return False
    if isinstance(left, float):
        return (math.isnan(left) and math.isnan(right)) or (left == right and math.copysign(1, left) == math.copysign(1, right))
    if isinstance(left, complex):
        return same(left.real, right.real) and same(left.imag, right.imag)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, dict):
        return same(list(left.items()), list(right.items()))
    if isinstance(left, set | frozenset):
        rest = list(right)
        for item in left:
            index = next((index for index, other in enumerate(rest) if same(item, other)), None)
            if index is None:
                return False
            rest.pop(index)
        return not rest
    return bool(left == right)


@given(_values)
def test_a_value_comes_back_as_it_was(value: Any) -> None:
    assert same(unpack(pack(value, MOST)), value)


def test_subclasses_become_plain() -> None:
    color = enum.IntEnum("color", "red")
    point = namedtuple("point", "x y")
    text = type("text", (str,), {"__str__": lambda self: "other", "__eq__": lambda *_: True, "__hash__": str.__hash__})
    for value, plain in [
        (OrderedDict(a=1), {"a": 1}),
        (Counter("aab"), {"a": 2, "b": 1}),
        (point(1, [2]), (1, [2])),
        (color.red, 1),
        (text("own"), "own"),
        (bytearray(b"ab"), b"ab"),
        ({1: Fraction(1, 3)}, {1: Fraction(1, 3)}),
        (Fraction(10**5000 + 1, -3), Fraction(-(10**5000) - 1, 3)),  # longer than Python writes in decimals
        (Decimal("1.50"), Decimal("1.50")),
    ]:
        back = unpack(pack(value, MOST))
        assert back == plain
        assert type(back) is type(plain)


def test_anything_else_equals_nothing() -> None:
    class Equal:
        def __eq__(self, other: object) -> bool:
            return True

        __hash__ = object.__hash__

    back = unpack(pack([Equal(), range(3), object, iter("ab")], MOST))
    assert all(isinstance(item, Foreign) for item in back)
    assert not any(item == other or other == item for item in back for other in (True, 1, [0, 1, 2], "ab", None))
    assert all(item != 1 for item in back)
    assert [list(item) for item in (back[1], back[3])] == [[0, 1, 2], ["a", "b"]]
    with pytest.raises(TypeError, match="not iterable"):
        list(back[0])
    assert not unpack(pack(range(0), MOST))


def test_size_and_depth_are_bounded() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    endless: list[Any] = []
    endless.append(endless)
    doubled: Any = ()
    for _ in range(60):
        doubled = (doubled, doubled)
    for value in (deep, endless, doubled, "x" * MOST, b"x" * MOST, 1 << (8 * MOST), [0] * MOST, iter(int, 1)):
        with pytest.raises(UnfitError):
            pack(value, MOST)


@given(st.binary())
def test_garbage_is_refused(data: bytes) -> None:
    with contextlib.suppress(UnfitError):
        unpack(data)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists, max_leaves=20))
def test_well_formed_garbage_is_refused(value: Any) -> None:
    with contextlib.suppress(UnfitError):
        unpack(json.dumps(value).encode())


@pytest.mark.parametrize(
    "data",
    [
        b"[" * 100_000,
        b'["l",' * 1000 + b'["l"]' + b"]" * 1000,
        b"9" * 5000,
        b"1.5",
        b'{"a":1}',
        b'["s",["l"]]',
        b'["d",[["l"],1]]',
        b'["q",1,0]',
        b'["f",1]',
        b'["m","x"]',
        b'["__import__"]',
        b'["x"]',
        b"[[]]",
    ],
)
def test_crafted_garbage_is_refused(data: bytes) -> None:
    with pytest.raises(UnfitError):
        unpack(data)
