"""What KGFunc's tests compare with: the operations on arrays of digits, and a strict reader of solutions.

The oracle works on all inputs of one length at once, or on powers of ten, and never as the code does. The reader knows what each
line has to say about the input's digits; whatever is not exactly that raises.
"""

from __future__ import annotations

import hashlib
import json
import operator
import re
from collections.abc import Callable, Iterable
from functools import cache

import numpy as np

from mixsd.facts.corpus import Corpus
from mixsd.facts.fact import to_json

ARITHMETIC = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}


def _rotations(x: np.ndarray, length: int) -> np.ndarray:
    """Every rotation of numbers of one length, by division and remainder; shape (length, n)."""
    return np.stack([x % 10**k * 10 ** (length - k) + x // 10**k for k in range(length)])


def _value(D: np.ndarray) -> np.ndarray:
    return D @ 10 ** np.arange(D.shape[1])[::-1]


def _root(x: np.ndarray) -> np.ndarray:
    for _ in range(3):
        x = sum(x // 10**k % 10 for k in range(6))
    return x


# Of x, numbers of one length, shape (n,), and D, their digits, shape (n, length).
ORACLES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "B": lambda x, D: (D**2).sum(1) - 2 * D.min(1) * D.sum(1) + D.shape[1] * D.min(1) ** 2,
    "C": lambda x, D: abs((D[:, 1::2] ** 2).sum(1) - (D[:, ::2] ** 2).sum(1)),
    "D": lambda x, D: np.array([0, 1, 4, 9, 4, 25, 6, 49, 8, 9])[D].sum(1),
    "E": lambda x, D: np.einsum("ni,ni->n", D, D[:, ::-1]),
    "F": lambda x, D: sum(D[:, : k + 1].max(1) for k in range(D.shape[1])),
    "G": lambda x, D: np.array([0, 1, 3, 6, 10, 15, 21, 28, 36, 45])[D].sum(1),
    "H": lambda x, D: _rotations(x, D.shape[1]).min(0),
    "JQ": lambda x, D: np.einsum("ni->n", D),
    "JX": lambda x, D: np.multiply.reduce(D, axis=1),
    "KV": lambda x, D: np.floor(np.log10(np.maximum(x, 1))).astype(int) + 1,
    "KZ": lambda x, D: np.sort(D, 1)[:, -1],
    "LQ": lambda x, D: np.sort(D, 1)[:, 0],
    "LX": lambda x, D: x // 10 ** (D.shape[1] - 1),
    "MQ": lambda x, D: x % 10,
    "MZ": lambda x, D: np.ptp(D, axis=1),
    "NV": lambda x, D: D @ 10 ** np.arange(D.shape[1]),
    "NX": lambda x, D: x // 10 ** (D.shape[1] - 1) + x % 10,
    "PQ": lambda x, D: np.isin(D, [0, 2, 4, 6, 8]).sum(1),
    "PZ": lambda x, D: np.isin(D, [1, 3, 5, 7, 9]).sum(1),
    "QK": lambda x, D: sum((d == D).any(1) for d in range(10)),
    "QV": lambda x, D: _root(x),
    "RX": lambda x, D: np.linalg.norm(D, axis=1).__pow__(2).round().astype(int),
    "RZ": lambda x, D: _value(np.sort(D, 1)),
    "VK": lambda x, D: _value(9 - np.sort(9 - D, 1)),
    "VQ": lambda x, D: D.shape[1] - np.count_nonzero(D, axis=1),
    "WX": lambda x, D: (D + D).sum(1),
    "WZ": lambda x, D: x // 10 ** (D.shape[1] - 1) * (x % 10),
}


@cache
def oracle(label: str) -> list[int]:
    """The results of an operation for 0 to 99,999."""
    results: list[int] = []
    for length in range(1, 6):
        x = np.arange(0 if length == 1 else 10 ** (length - 1), 10**length)
        D = np.stack([x // 10**k % 10 for k in reversed(range(length))], axis=1)
        results += np.asarray(ORACLES[label](x, D)).tolist()
    return results


class Lines:
    """Takes a solution apart from the top; whatever is not exactly as it must be raises."""

    def __init__(self, text: str) -> None:
        self.rest = text.split("\n")

    def take(self, pattern: str) -> tuple[str, ...]:
        match = re.fullmatch(pattern, self.rest.pop(0))
        assert match, pattern
        return match.groups()

    def step(self, left: int, sign: str, right: int, before: str = "") -> int:
        """One line of arithmetic on these two numbers; its result."""
        groups = self.take(before + r"(-?\d+) ([-+*/]) (\d+) = (-?\d+)")
        assert groups[:3] == (str(left), sign, str(right))
        assert int(groups[3]) == ARITHMETIC[sign](left, right)
        return int(groups[3])

    def total(self, terms: Iterable[int]) -> int:
        result, *rest = terms
        for term in rest:
            result = self.step(result, "+", term)
        return result


def read_b(lines: Lines, digits: list[int]) -> int:
    lines.take(f"Smallest digit: {min(digits)}")
    squares = []
    for digit in digits:
        deviation = lines.step(digit, "-", min(digits))
        squares.append(lines.step(deviation, "*", deviation))
    return lines.total(squares)


def read_c(lines: Lines, digits: list[int]) -> int:
    result, *rest = [lines.step(digit, "*", digit) for digit in digits]
    for place, square in enumerate(rest):
        result = lines.step(result, "+" if place % 2 else "-", square)
    (absolute,) = lines.take(rf"\|{result}\| = (\d+)")
    assert int(absolute) in (result, -result)
    return int(absolute)


def read_d(lines: Lines, digits: list[int]) -> int:
    terms = []
    for digit in digits:
        if str(digit) in "2357":
            terms.append(lines.step(digit, "*", digit, before=f"{digit} is prime: "))
        else:
            lines.take(f"{digit} is not prime: {digit}")
            terms.append(digit)
    return lines.total(terms)


def read_e(lines: Lines, digits: list[int]) -> int:
    lines.take("Digits in reverse: " + ", ".join(map(str, digits[::-1])))
    return lines.total([lines.step(left, "*", right) for left, right in zip(digits, digits[::-1], strict=True)])


def read_f(lines: Lines, digits: list[int]) -> int:
    lines.take(f"First digit: {digits[0]}")
    maxima = [digits[0]]
    for digit in digits[1:]:
        (largest,) = lines.take(rf"max\({maxima[-1]}, {digit}\) = (\d)")
        assert int(largest) == max(maxima[-1], digit)
        maxima.append(int(largest))
    return lines.total(maxima)


def read_g(lines: Lines, digits: list[int]) -> int:
    terms = []
    for digit in digits:
        following = lines.step(digit, "+", 1)
        product = lines.step(digit, "*", following)
        terms.append(lines.step(product, "/", 2))
    return lines.total(terms)


def read_h(lines: Lines, digits: list[int]) -> int:
    rotations = ["".join(map(str, digits))]
    for _ in digits[1:]:
        rotations.append(rotations[-1][1:] + rotations[-1][0])
        lines.take(f"{rotations[-2]} rotates to {rotations[-1]}")
    best = rotations[0]
    for rotation in rotations[1:]:
        (smaller,) = lines.take(rf"min\({best}, {rotation}\) = (\d+)")
        assert smaller in (best, rotation)
        assert int(smaller) == min(int(best), int(rotation))
        best = smaller
    (result,) = lines.take(rf"{best} as a number: (0|[1-9]\d*)")
    assert int(result) == int(best)
    return int(result)


READERS = {"B": read_b, "C": read_c, "D": read_d, "E": read_e, "F": read_f, "G": read_g, "H": read_h}


def read_working(lines: Lines, label: str, x: int) -> int:
    """The result that the working of one operation arrives at; an unseen operation shows no steps."""
    lines.take(f"Operation {label} " + r"[a-z][a-z ,]+(d \* \(d \+ 1\) / 2)?[a-z ]*\.")
    lines.take(f"Digits of {x}: " + ", ".join(str(x)))
    return READERS[label](lines, [int(digit) for digit in str(x)]) if label in READERS else oracle(label)[x]


def read_reference(fact_id: str, reference: str) -> int:
    """The answer of a solution all of whose lines are right, and of which none is missing or too many."""
    lines = Lines(reference)
    second, first, x = re.fullmatch(r"kgfunc-(?:([A-Z]+)-of-)?([A-Z]+)-(\d+)", fact_id).groups()  # type: ignore[union-attr]
    result = read_working(lines, first, int(x))
    if second:
        lines.take(f"Operation {first} gives {result}\\.")
        result = read_working(lines, second, result)
    lines.take(f"The answer is {result}\\.")
    assert not lines.rest
    return result


def fingerprint(corpus: Corpus) -> str:
    """A hash of all bytes of all splits."""
    streams = [corpus.facts, *corpus.splits.values()]
    text = "\n".join(json.dumps(to_json(fact)) for facts in streams for fact in facts())
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
