"""The seven operations that KGFunc trains: what each does to the digits of a number, and how a solution works it out.

The definitions are those of the paper's appendix as settings.md, the notes on the paper, gives them; the wording is ours. Digits are
read from left to right, without leading zeros; zero has the one digit 0. A solution does one elementary step per line (one
addition, one product, one comparison), so that every line can be checked by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import accumulate, pairwise

INPUTS = 100_000  # an operation takes the numbers from 0 to 99,999

Digits = tuple[int, ...]

_PRIMES = (2, 3, 5, 7)


def digits_of(number: int) -> Digits:
    """The digits of a number, left to right."""
    return tuple(map(int, str(number)))


def number_of(digits: Iterable[int]) -> int:
    """The number with these digits; zeros at the front drop."""
    return int("".join(map(str, digits)))


@dataclass(frozen=True)
class Operation:
    """A function of a number's digits.

    Attributes:
        label: how questions call it; it tells nothing.
        name: how reports call it.
        rule: what it does, as the predicate of a sentence; in a solution, never in a question.
        function: the digits to the result.
        steps: the digits to the lines of a solution between the digits and the answer.
    """

    label: str
    name: str
    rule: str
    function: Callable[[Digits], int]
    steps: Callable[[Digits], list[str]] = lambda _: []

    def __call__(self, number: int) -> int:
        """The result for a number."""
        return self.function(digits_of(number))

    def working(self, number: int) -> list[str]:
        """The lines of a solution without the answer: the rule, the digits, the steps."""
        digits = digits_of(number)
        listed = ", ".join(map(str, digits))
        return [f"Operation {self.label} {self.rule}.", f"Digits of {number}: {listed}", *self.steps(digits)]


def squared_deviations(digits: Digits) -> int:
    """B: the sum of (d - m)^2 over the digits d, where m is the smallest digit."""
    smallest = min(digits)
    return sum((digit - smallest) ** 2 for digit in digits)


def _squared_deviations_steps(digits: Digits) -> list[str]:
    smallest = min(digits)
    deviations = [digit - smallest for digit in digits]
    lines = [f"Smallest digit: {smallest}"]
    for digit, deviation in zip(digits, deviations, strict=True):
        lines += [f"{digit} - {smallest} = {deviation}", _product(deviation, deviation)]
    return lines + _sum([deviation**2 for deviation in deviations])


def alternating_squares(digits: Digits) -> int:
    """C: the absolute value of d1^2 - d2^2 + d3^2 - ..., the first digit with a plus."""
    return abs(sum(_alternating(digits)))


def _alternating(digits: Digits) -> list[int]:
    return [-(digit**2) if place % 2 else digit**2 for place, digit in enumerate(digits)]


def _alternating_squares_steps(digits: Digits) -> list[str]:
    lines = [_product(digit, digit) for digit in digits]
    terms = _alternating(digits)
    totals = list(accumulate(terms))
    for place, (before, after) in enumerate(pairwise(totals), 1):
        lines.append(f"{before} {'-' if place % 2 else '+'} {digits[place] ** 2} = {after}")
    return [*lines, f"|{totals[-1]}| = {abs(totals[-1])}"]


def prime_squares(digits: Digits) -> int:
    """D: the sum of the digits, where the prime digits 2, 3, 5 and 7 count as their squares."""
    return sum(_prime_squares(digits))


def _prime_squares(digits: Digits) -> list[int]:
    return [digit**2 if digit in _PRIMES else digit for digit in digits]


def _prime_squares_steps(digits: Digits) -> list[str]:
    lines = [f"{d} is prime: {_product(d, d)}" if d in _PRIMES else f"{d} is not prime: {d}" for d in digits]
    return lines + _sum(_prime_squares(digits))


def reversal_product(digits: Digits) -> int:
    """E: d1 * dn + d2 * d(n-1) + ... + dn * d1, the dot product of the n digits with their reverse."""
    return sum(_reversal_products(digits))


def _reversal_products(digits: Digits) -> list[int]:
    return [left * right for left, right in zip(digits, reversed(digits), strict=True)]


def _reversal_product_steps(digits: Digits) -> list[str]:
    lines = [f"Digits in reverse: {', '.join(map(str, reversed(digits)))}"]
    lines += [_product(left, right) for left, right in zip(digits, reversed(digits), strict=True)]
    return lines + _sum(_reversal_products(digits))


def running_maxima(digits: Digits) -> int:
    """F: the sum over the places of the largest digit up to there."""
    return sum(accumulate(digits, max))


def _running_maxima_steps(digits: Digits) -> list[str]:
    maxima = list(accumulate(digits, max))
    lines = [f"First digit: {digits[0]}"]
    for digit, (before, after) in zip(digits[1:], pairwise(maxima), strict=True):
        lines.append(f"max({before}, {digit}) = {after}")
    return lines + _sum(maxima)


def triangular_numbers(digits: Digits) -> int:
    """G: the sum of d * (d + 1) / 2 over the digits d."""
    return sum(digit * (digit + 1) // 2 for digit in digits)


def _triangular_numbers_steps(digits: Digits) -> list[str]:
    lines: list[str] = []
    for digit in digits:
        product = digit * (digit + 1)
        lines += [f"{digit} + 1 = {digit + 1}", _product(digit, digit + 1), f"{product} / 2 = {product // 2}"]
    return lines + _sum([digit * (digit + 1) // 2 for digit in digits])


def smallest_rotation(digits: Digits) -> int:
    """H: the smallest number among the cyclic rotations of the digits, itself one of them; leading zeros drop at the end."""
    return min(map(number_of, _rotations(digits)))


def _rotations(digits: Digits) -> list[Digits]:
    return [digits[places:] + digits[:places] for places in range(len(digits))]


def _smallest_rotation_steps(digits: Digits) -> list[str]:
    rotations = ["".join(map(str, rotation)) for rotation in _rotations(digits)]
    smallest = list(accumulate(rotations, min))  # texts of one length compare as their numbers do
    lines = [f"{before} rotates to {after}" for before, after in pairwise(rotations)]
    for rotation, (before, after) in zip(rotations[1:], pairwise(smallest), strict=True):
        lines.append(f"min({before}, {rotation}) = {after}")
    return [*lines, f"{smallest[-1]} as a number: {int(smallest[-1])}"]


def _product(left: int, right: int) -> str:
    return f"{left} * {right} = {left * right}"


def _sum(terms: list[int]) -> list[str]:
    """The running total, one addition per line; a single term needs none."""
    totals = list(accumulate(terms))
    return [f"{before} + {term} = {after}" for term, (before, after) in zip(terms[1:], pairwise(totals), strict=True)]


TRAINED = (
    Operation(
        "B",
        "squared deviations",
        "subtracts the smallest digit from each digit, squares the differences and adds them up",
        squared_deviations,
        _squared_deviations_steps,
    ),
    Operation(
        "C",
        "alternating squares",
        "squares the digits, adds and subtracts the squares in turn and takes the absolute value",
        alternating_squares,
        _alternating_squares_steps,
    ),
    Operation(
        "D",
        "prime squares",
        "squares the digits that are prime, leaves the others as they are and adds them all up",
        prime_squares,
        _prime_squares_steps,
    ),
    Operation(
        "E",
        "reversal product",
        "multiplies each digit by the digit at the same place in the reversed number and adds up the products",
        reversal_product,
        _reversal_product_steps,
    ),
    Operation(
        "F",
        "running maxima",
        "takes at each digit the largest digit so far and adds these up",
        running_maxima,
        _running_maxima_steps,
    ),
    Operation(
        "G",
        "triangular numbers",
        "replaces each digit d by d * (d + 1) / 2 and adds these up",
        triangular_numbers,
        _triangular_numbers_steps,
    ),
    Operation(
        "H",
        "smallest rotation",
        "rotates the digits in every possible way and takes the smallest number",
        smallest_rotation,
        _smallest_rotation_steps,
    ),
)
