"""Plain values as JSON, so that nothing but values crosses from the judged program to its tests.

Never pickle, marshal or eval: what arrives is built here, from the types named below, and bounded in size and depth. A
subclass (an OrderedDict, a namedtuple, an IntEnum) degrades to its plain type; anything else arrives as a `Foreign`, which
equals nothing but keeps its truth and its items. The file is also sent into the sandbox as source, so it needs the standard library only.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from decimal import Decimal
from fractions import Fraction
from typing import Any

MAX_DEPTH = 64
MAX_NODES = 200_000
# Integers below this are exact in every JSON reader and are written as they are; others as hex digits, read in linear time.
_SMALL = 1 << 53


class UnfitError(Exception):
    """A value that cannot cross (too large, too deep), or bytes that are no value."""


class Foreign:
    """What stands for a value of a type that does not cross. It equals nothing; it is true or false as the value was.

    Some tests wrap a result in `tuple()`, so that a generator is as good as a list: the items cross, too.
    """

    __hash__ = object.__hash__

    def __init__(self, name: str, truth: bool, items: Iterable[Any] | None) -> None:
        self._name, self._truth = name, truth
        self._items = None if items is None else list(items)

    def __eq__(self, other: object) -> bool:
        return False

    def __ne__(self, other: object) -> bool:
        return True

    def __bool__(self) -> bool:
        return self._truth

    def __iter__(self) -> Iterator[Any]:
        if self._items is None:
            raise TypeError(f"'{self._name}' object is not iterable")
        return iter(self._items)

    def __repr__(self) -> str:
        return f"<a {self._name}>"


def pack(value: Any, most: int) -> bytes:
    """Write a value as at most `most` bytes of JSON; `UnfitError` if it does not fit."""
    encoded = _Encoder(most).encode(value, 0)
    data = json.dumps(encoded, separators=(",", ":")).encode("ascii")
    if len(data) > most:
        raise UnfitError("too large")
    return data


def unpack(data: bytes) -> Any:
    """Read what `pack` wrote; `UnfitError` for anything else."""
    try:
        return _decode(json.loads(data), 0)
    except UnfitError:
        raise
    except Exception as error:  # whatever the bytes provoke, they are no value
        raise UnfitError("not a value") from error


class _Encoder:
    def __init__(self, most: int) -> None:
        self.most = most
        self.nodes = 0

    def encode(self, value: Any, depth: int) -> Any:  # noqa: PLR0911
        self.nodes += 1
        if self.nodes > MAX_NODES:
            raise UnfitError("too large")
        if depth > MAX_DEPTH:
            raise UnfitError("nested too deeply")
        if value is None or value is True or value is False:
            return value
        # The methods of the plain types, not those of a subclass, which may mean something else by them.
        if isinstance(value, str):
            return self._text(str.__getitem__(value, slice(None)))
        if isinstance(value, int):
            return self._integer(int.__pos__(value))
        if isinstance(value, float):
            return ["f", float.hex(float.__pos__(value))]
        if isinstance(value, complex):
            return ["c", float.hex(value.real), float.hex(value.imag)]
        if isinstance(value, bytes | bytearray):
            self._room(2 * len(value))
            return ["b", bytes(value).hex()]
        return self._container(value, depth + 1)

    def _container(self, value: Any, depth: int) -> Any:
        for tag, kind in _CONTAINERS.items():
            if isinstance(value, kind):
                return [tag, *[self.encode(item, depth) for item in kind.__iter__(value)]]
        if isinstance(value, dict):
            return ["d", *[[self.encode(key, depth), self.encode(item, depth)] for key, item in dict.items(value)]]
        if isinstance(value, Fraction):
            return ["q", self._integer(value.numerator), self._integer(value.denominator)]
        if isinstance(value, Decimal):
            return ["m", str(value)]
        items = [[self.encode(item, depth) for item in value]] if isinstance(value, Iterable) else []
        return ["x", type(value).__name__[:80], bool(value), *items]

    def _text(self, value: str) -> Any:
        self._room(len(value))
        # Two halves of a surrogate pair would come back from JSON as one character.
        if any("\ud800" <= character <= "\udfff" for character in value):
            return ["u", value.encode("utf-32-le", "surrogatepass").hex()]
        return value

    def _integer(self, value: int) -> Any:
        if -_SMALL < value < _SMALL:
            return value
        self._room(value.bit_length() // 4)
        return ["i", format(value, "x")]

    def _room(self, size: int) -> None:
        if size > self.most:
            raise UnfitError("too large")


def _decode(node: Any, depth: int) -> Any:
    if depth > MAX_DEPTH + 1:
        raise UnfitError("nested too deeply")
    if node is None or isinstance(node, bool | int | str):
        return node
    if not isinstance(node, list) or not node:
        raise UnfitError("not a value")
    tag, *rest = node
    if tag in _CONTAINERS:
        return _CONTAINERS[tag](_decode(item, depth + 1) for item in rest)
    if tag == "d":
        return {_decode(key, depth + 1): _decode(value, depth + 1) for key, value in rest}
    if tag == "q":
        numerator, denominator = rest
        return Fraction(_decode(numerator, depth + 1), _decode(denominator, depth + 1))
    if tag == "x":
        name, truth, *items = rest
        return Foreign(str(name), bool(truth), [_decode(item, depth + 1) for item in items[0]] if items else None)
    return _SCALARS[tag](*rest)


_CONTAINERS: dict[str, Any] = {"l": list, "t": tuple, "s": set, "z": frozenset}
_SCALARS: dict[str, Callable[..., Any]] = {
    "i": lambda digits: int(digits, 16),
    "f": float.fromhex,
    "c": lambda real, imaginary: complex(float.fromhex(real), float.fromhex(imaginary)),
    "b": bytes.fromhex,
    "u": lambda digits: bytes.fromhex(digits).decode("utf-32-le", "surrogatepass"),
    "m": Decimal,
}
