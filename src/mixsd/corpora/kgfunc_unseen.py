"""The twenty easy operations of KGFunc-Unseen: never trained, easily read off ten examples (listed in settings.md).

What is not obvious of the number 0 and of one-digit numbers: 0 has one digit, which is even and a zero, and its digital root is
0; the first digit of a one-digit number is also its last. Leading zeros of a result drop.
"""

from __future__ import annotations

from math import prod

from mixsd.corpora.kgfunc_operations import Digits, Operation, number_of


def _digital_root(digits: Digits) -> int:
    total = sum(digits)
    return 1 + (total - 1) % 9 if total else 0


UNSEEN = (
    Operation("JQ", "digit sum", "adds up the digits", sum),
    Operation("JX", "digit product", "multiplies the digits", prod),
    Operation("KV", "digit count", "counts the digits", len),
    Operation("KZ", "max digit", "takes the largest digit", max),
    Operation("LQ", "min digit", "takes the smallest digit", min),
    Operation("LX", "first digit", "takes the first digit", lambda digits: digits[0]),
    Operation("MQ", "last digit", "takes the last digit", lambda digits: digits[-1]),
    Operation("MZ", "digit range", "subtracts the smallest digit from the largest", lambda digits: max(digits) - min(digits)),
    Operation("NV", "reversed number", "reverses the digits", lambda digits: number_of(reversed(digits))),
    Operation("NX", "first + last", "adds the first digit and the last", lambda digits: digits[0] + digits[-1]),
    Operation("PQ", "even digits", "counts the even digits", lambda digits: sum(digit % 2 == 0 for digit in digits)),
    Operation("PZ", "odd digits", "counts the odd digits", lambda digits: sum(digit % 2 for digit in digits)),
    Operation("QK", "distinct digits", "counts the different digits", lambda digits: len(set(digits))),
    Operation("QV", "digital root", "adds up the digits again and again until one digit is left", _digital_root),
    Operation("RX", "squared digits", "adds up the squares of the digits", lambda digits: sum(digit**2 for digit in digits)),
    Operation("RZ", "sorted up", "sorts the digits from small to large", lambda digits: number_of(sorted(digits))),
    Operation("VK", "sorted down", "sorts the digits from large to small", lambda digits: number_of(sorted(digits)[::-1])),
    Operation("VQ", "zeros", "counts the zeros among the digits", lambda digits: digits.count(0)),
    Operation("WX", "twice the digit sum", "adds up the digits and doubles the sum", lambda digits: 2 * sum(digits)),
    Operation("WZ", "first x last", "multiplies the first digit by the last", lambda digits: digits[0] * digits[-1]),
)
