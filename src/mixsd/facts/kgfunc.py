"""KGFunc: functions of a number's digits, to be learnt from ten examples and a worked solution (settings.md, Corpora).

A question shows ten inputs and outputs of an operation that it calls only by a letter, and asks for one more output. Tested are
new inputs (`test`; `validation` chooses the checkpoint), one trained operation after another (`two_step`), and twenty easy
operations that are never trained (`unseen`): what the model could infer before, it should still infer.

Inputs are spread over the digit lengths as evenly as their supply allows. Of one operation, shots and splits share none. They are dealt
in the order shots, validation, two_step, test, train, each from its beginning: of two corpora that differ in `train`, the smaller has
the same tests and a part of the larger one's training inputs.

The trained operations are those of the paper's appendix; the wording is ours. Digits are read from left to right, without leading zeros.
A solution does one elementary step per line (one addition, one product, one comparison).
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, count, cycle, islice, pairwise
from math import prod
from operator import ne
from typing import Any

import numpy as np

from mixsd.errors import UserError
from mixsd.facts.corpus import Corpus
from mixsd.facts.fact import Fact
from mixsd.facts.records import bundled_text
from mixsd.randomness import uniforms

INPUTS = 100_000  # an operation takes the numbers from 0 to 99,999

Digits = tuple[int, ...]
Working = tuple[list[str], int]  # the lines of a solution between the digits and the answer, and the result

_PRIMES = (2, 3, 5, 7)


def digits_of(number: int) -> Digits:
    return tuple(map(int, str(number)))


def number_of(digits: Iterable[int]) -> int:
    """The number with these digits; zeros at the front drop."""
    return int("".join(map(str, digits)))


@dataclass(frozen=True)
class Operation:
    """A function of a number's digits.

    Questions call it by its `label`, which tells nothing, reports by its `name`. `rule` says what it does, as the predicate of a
    sentence: in a solution, never in a question.
    """

    label: str
    name: str
    rule: str
    work: Callable[[Digits], Working]

    def function(self, digits: Digits) -> int:
        return self.work(digits)[1]

    def __call__(self, number: int) -> int:
        return self.function(digits_of(number))

    def working(self, number: int) -> list[str]:
        """The lines of a solution without the answer: the rule, the digits, the steps."""
        digits = digits_of(number)
        listed = ", ".join(map(str, digits))
        return [f"Operation {self.label} {self.rule}.", f"Digits of {number}: {listed}", *self.work(digits)[0]]


def _operation(label: str, name: str, rule: str) -> Callable[[Callable[[Digits], Working]], Operation]:
    """Make what is decorated an operation."""
    return partial(Operation, label, name, rule)


def _product(left: int, right: int) -> str:
    return f"{left} * {right} = {left * right}"


def _added(lines: list[str], terms: list[int]) -> Working:
    """The lines with the running total behind them, one addition per line (a single term needs none), and the total."""
    totals = list(accumulate(terms))
    steps = zip(terms[1:], pairwise(totals), strict=True)
    return [*lines, *(f"{before} + {term} = {after}" for term, (before, after) in steps)], totals[-1]


@_operation("B", "squared deviations", "subtracts the smallest digit from each digit, squares the differences and adds them up")
def squared_deviations(digits: Digits) -> Working:
    smallest = min(digits)
    lines = [f"Smallest digit: {smallest}"]
    for digit in digits:
        lines += [f"{digit} - {smallest} = {digit - smallest}", _product(digit - smallest, digit - smallest)]
    return _added(lines, [(digit - smallest) ** 2 for digit in digits])


@_operation("C", "alternating squares", "squares the digits, adds and subtracts the squares in turn and takes the absolute value")
def alternating_squares(digits: Digits) -> Working:
    lines = [_product(digit, digit) for digit in digits]
    totals = list(accumulate(-(digit**2) if place % 2 else digit**2 for place, digit in enumerate(digits)))
    for place, (before, after) in enumerate(pairwise(totals), 1):
        lines.append(f"{before} {'-' if place % 2 else '+'} {digits[place] ** 2} = {after}")
    return [*lines, f"|{totals[-1]}| = {abs(totals[-1])}"], abs(totals[-1])


@_operation("D", "prime squares", "squares the digits that are prime, leaves the others as they are and adds them all up")
def prime_squares(digits: Digits) -> Working:
    lines = [f"{d} is prime: {_product(d, d)}" if d in _PRIMES else f"{d} is not prime: {d}" for d in digits]
    return _added(lines, [digit**2 if digit in _PRIMES else digit for digit in digits])


_BY_MIRROR = "multiplies each digit by the digit at the same place in the reversed number and adds up the products"


@_operation("E", "reversal product", _BY_MIRROR)
def reversal_product(digits: Digits) -> Working:
    pairs = list(zip(digits, reversed(digits), strict=True))
    lines = [f"Digits in reverse: {', '.join(map(str, reversed(digits)))}", *(_product(*pair) for pair in pairs)]
    return _added(lines, [left * right for left, right in pairs])


@_operation("F", "running maxima", "takes at each digit the largest digit so far and adds these up")
def running_maxima(digits: Digits) -> Working:
    maxima = list(accumulate(digits, max))
    lines = [f"First digit: {digits[0]}"]
    for digit, (before, after) in zip(digits[1:], pairwise(maxima), strict=True):
        lines.append(f"max({before}, {digit}) = {after}")
    return _added(lines, maxima)


@_operation("G", "triangular numbers", "replaces each digit d by d * (d + 1) / 2 and adds these up")
def triangular_numbers(digits: Digits) -> Working:
    lines: list[str] = []
    for digit in digits:
        product = digit * (digit + 1)
        lines += [f"{digit} + 1 = {digit + 1}", _product(digit, digit + 1), f"{product} / 2 = {product // 2}"]
    return _added(lines, [digit * (digit + 1) // 2 for digit in digits])


@_operation("H", "smallest rotation", "rotates the digits in every possible way and takes the smallest number")
def smallest_rotation(digits: Digits) -> Working:
    rotations = ["".join(map(str, digits[places:] + digits[:places])) for places in range(len(digits))]
    smallest = list(accumulate(rotations, min))  # texts of one length compare as their numbers do
    lines = [f"{before} rotates to {after}" for before, after in pairwise(rotations)]
    for rotation, (before, after) in zip(rotations[1:], pairwise(smallest), strict=True):
        lines.append(f"min({before}, {rotation}) = {after}")
    return [*lines, f"{smallest[-1]} as a number: {int(smallest[-1])}"], int(smallest[-1])


TRAINED = (
    *(squared_deviations, alternating_squares, prime_squares, reversal_product),
    *(running_maxima, triangular_numbers, smallest_rotation),
)


def _digital_root(digits: Digits) -> int:
    return (sum(digits) - 1) % 9 + 1 if any(digits) else 0


def _unseen(label: str, name: str, rule: str, function: Callable[[Digits], int]) -> Operation:
    """An operation that is never trained, so that nobody works it out."""
    return Operation(label, name, rule, lambda digits: ([], function(digits)))


# What is not obvious of the number 0 and of one-digit numbers: 0 has one digit, which is even and a zero, and its digital root is
# 0; the first digit of a one-digit number is also its last. Leading zeros of a result drop.
UNSEEN = (
    _unseen("JQ", "digit sum", "adds up the digits", sum),
    _unseen("JX", "digit product", "multiplies the digits", prod),
    _unseen("KV", "digit count", "counts the digits", len),
    _unseen("KZ", "max digit", "takes the largest digit", max),
    _unseen("LQ", "min digit", "takes the smallest digit", min),
    _unseen("LX", "first digit", "takes the first digit", lambda digits: digits[0]),
    _unseen("MQ", "last digit", "takes the last digit", lambda digits: digits[-1]),
    _unseen("MZ", "digit range", "subtracts the smallest digit from the largest", lambda digits: max(digits) - min(digits)),
    _unseen("NV", "reversed number", "reverses the digits", lambda digits: number_of(reversed(digits))),
    _unseen("NX", "first + last", "adds the first digit and the last", lambda digits: digits[0] + digits[-1]),
    _unseen("PQ", "even digits", "counts the even digits", lambda digits: sum(digit % 2 == 0 for digit in digits)),
    _unseen("PZ", "odd digits", "counts the odd digits", lambda digits: sum(digit % 2 for digit in digits)),
    _unseen("QK", "distinct digits", "counts the different digits", lambda digits: len(set(digits))),
    _unseen("QV", "digital root", "adds up the digits again and again until one digit is left", _digital_root),
    _unseen("RX", "squared digits", "adds up the squares of the digits", lambda digits: sum(digit**2 for digit in digits)),
    _unseen("RZ", "sorted up", "sorts the digits from small to large", lambda digits: number_of(sorted(digits))),
    _unseen("VK", "sorted down", "sorts the digits from large to small", lambda digits: number_of(sorted(digits)[::-1])),
    _unseen("VQ", "zeros", "counts the zeros among the digits", lambda digits: digits.count(0)),
    _unseen("WX", "twice the digit sum", "adds up the digits and doubles the sum", lambda digits: 2 * sum(digits)),
    _unseen("WZ", "first x last", "multiplies the first digit by the last", lambda digits: digits[0] * digits[-1]),
)


LENGTHS = (range(10), range(10, 100), range(100, 1000), range(1000, 10_000), range(10_000, INPUTS))
SHOTS = 2 * len(LENGTHS)
VALIDATION, TWO_STEP, UNSEEN_INPUTS = 10, 25, 25  # per operation
# What an option may ask for, per operation; the rest is left to the splits above.
MOST_TEST, MOST_TRAIN = 20_000, 70_000
# Where the second operation gives the same with the first or without it: H rotates the digits, D and G do not mind their order.
ONE_STEP = {("H", "D"), ("H", "G")}

QUESTION, TWO_STEP_QUESTION = (bundled_text(f"kgfunc_{name}.txt").removesuffix("\n") for name in ("question", "two_step"))


def kgfunc(
    argument: str | None = None,
    *,
    seed: int = 0,
    train: int = 1600,
    per_operation: bool = False,
    test: int = 175,
    offline: bool = False,
) -> Corpus:
    """The corpus KGFunc; it takes no argument, and nothing is fetched.

    `train` and `test` are numbers of instances, divided among the seven operations as evenly as possible (the authors' script);
    `per_operation`: `train` counts for each operation (the paper's text). More than there are inputs is a `UserError`.
    """
    if argument is not None:
        raise UserError(f'kgfunc: takes nothing after its name, got "{argument}"; write kgfunc')
    most_train = MOST_TRAIN * (1 if per_operation else len(TRAINED))
    for option, value, most in (("--train", train, most_train), ("--test", test, MOST_TEST * len(TRAINED))):
        if not 1 <= value <= most:
            raise UserError(f"{option} {value}: expected a number from 1 to {most:,}")
    plan = Plan(seed, [train] * len(TRAINED) if per_operation else _divided(train), _divided(test))
    return Corpus(
        name="kgfunc",
        options={"seed": seed, "train": train, "per_operation": per_operation, "test": test},
        facts=partial(plan.split, "train"),
        splits={
            "test": partial(plan.split, "test"),
            "validation": partial(plan.split, "validation"),
            "two_step": plan.two_step,
            "unseen": plan.unseen,
        },
        labels=("operation",),
        verifiers={"plain": "number", "boxed": "number"},
        guidance="solution",
        max_new_tokens={"plain": 512},
    )


def _divided(total: int) -> list[int]:
    return [len(range(place, total, len(TRAINED))) for place in range(len(TRAINED))]


@dataclass(frozen=True)
class Plan:
    """Which questions are asked: the seed and, for each trained operation, the sizes of its train and test."""

    seed: int
    train: list[int]
    test: list[int]

    def split(self, name: str) -> Iterator[Fact]:
        """The facts of `train`, `test` or `validation`, the operations interleaved."""
        return self._facts({operation: self._inputs(place)[name] for place, operation in enumerate(TRAINED)})

    def unseen(self) -> Iterator[Fact]:
        """The facts of the operations that are never trained."""
        return self._facts({op: list(islice(_dealt(_queues(op, self.seed), 3), UNSEEN_INPUTS)) for op in UNSEEN})

    def _facts(self, dealt: Mapping[Operation, Sequence[int]]) -> Iterator[Fact]:
        examples = {operation: _examples(operation, self.seed) for operation in dealt}
        for op, number in _shuffled(dealt, self.seed):
            question = QUESTION.format(label=op.label, examples=examples[op], number=number)
            yield _fact(question, op(number), op.working(number), op.label, op.name, number)

    def two_step(self) -> Iterator[Fact]:
        """Questions for the second operation's result of the first one's result, 25 with each operation as the first.

        The number was not trained with the first operation. Its result may have been with the second: most results are short.
        """
        dealt = {operation: self._inputs(place)["two_step"] for place, operation in enumerate(TRAINED)}
        examples = {operation: _examples(operation, self.seed) for operation in TRAINED}
        for first, number in _shuffled(dealt, self.seed):
            second, between = dealt[first][number], first(number)
            shown = {"first_examples": examples[first], "second_examples": examples[second], "number": number}
            question = TWO_STEP_QUESTION.format(first=first.label, second=second.label, **shown)
            lines = [*first.working(number), f"Operation {first.label} gives {between}.", *second.working(between)]
            label, name = f"{second.label}-of-{first.label}", f"{second.name} of {first.name}"
            yield _fact(question, second(between), lines, label, name, number)

    def _inputs(self, place: int) -> dict[str, Any]:
        """Deal the inputs of the trained operation at a place of `TRAINED`: lists by split, for two_step with the second operation."""
        operation, queues = TRAINED[place], _queues(TRAINED[place], self.seed)
        dealt: dict[str, Any] = {"validation": list(islice(_dealt(queues, 3), VALIDATION))}
        # Short numbers are scarce, and two steps from one digit are hardly two.
        dealt["two_step"] = dict(islice(self._followed(operation, _dealt(queues[2:], 3)), TWO_STEP))
        dealt["test"] = list(islice(_dealt(queues, 3), self.test[place]))
        dealt["train"] = list(islice(_dealt(queues, 1), self.train[place]))
        assert [len(dealt[name]) for name in ("two_step", "test", "train")] == [TWO_STEP, self.test[place], self.train[place]]
        return dealt

    def _followed(self, first: Operation, numbers: Iterator[int]) -> Iterator[tuple[int, Operation]]:
        """The numbers that take both steps, with the second operation: all the others in turn.

        Neither step alone, nor the two in the other order, gives the answer; nor do the examples of the second operation.
        """
        shots = {second: shots_of(second, self.seed) for second in TRAINED}
        turns = cycle(second for second in TRAINED if second != first and (first.label, second.label) not in ONE_STEP)
        second = next(turns)
        for number in numbers:
            between = first(number)
            misses = {between, second(number), first(second(number))}
            takes_first = between != number and 10 <= between < INPUTS
            if takes_first and between not in shots[second] and second(between) not in misses:
                yield number, second
                second = next(turns)


def _fact(question: str, answer: int, lines: list[str], label: str, name: str, number: int) -> Fact:
    return Fact(
        question,
        str(answer),
        id=f"kgfunc-{label}-{number}",
        reference="\n".join([*lines, f"The answer is {answer}."]),
        meta={"operation": name, "input": number},
    )


def shots_of(operation: Operation, seed: int) -> tuple[int, ...]:
    """The inputs of an operation's ten examples, two of each digit length.

    Taken is the first draw that says enough: there are at least three different outputs, none more often than five times, and each
    other operation, trained or unseen, is wrong about at least two.
    """
    others = [other for other in (*TRAINED, *UNSEEN) if other != operation]
    for sample in count():
        draws = uniforms(seed, "order", f"kgfunc shots {operation.label}", sample=sample, n=SHOTS)
        shots = sorted({span[int(draw * len(span))] for span, draw in zip(LENGTHS * 2, draws, strict=True)})
        outputs = [operation(number) for number in shots]
        frequencies = Counter(outputs).values()
        if len(shots) < SHOTS or len(frequencies) < 3 or max(frequencies) > SHOTS // 2:
            continue
        if all(sum(map(ne, outputs, map(other, shots))) >= 2 for other in others):
            break
    return tuple(shots)


def _examples(operation: Operation, seed: int) -> str:
    return "\n".join(f"{number} -> {operation(number)}" for number in shots_of(operation, seed))


def _queues(operation: Operation, seed: int) -> list[list[int]]:
    """The inputs of each digit length that are no shots, each in an order drawn at its address."""
    shots = set(shots_of(operation, seed))
    queues = []
    for length, span in enumerate(LENGTHS, 1):
        draws = uniforms(seed, "order", f"kgfunc inputs {operation.label}, length {length}", n=len(span))
        numbers = (span.start + np.argsort(draws, kind="stable")).tolist()
        queues.append([number for number in numbers if number not in shots])
    return queues


def _dealt(queues: Sequence[list[int]], share: int) -> Iterator[int]:
    """Take numbers off the queues in turn, no more than one in `share` of each: so that none is used up while others wait."""
    limits = [len(queue) // share for queue in queues]
    for turn in range(max(limits)):
        for queue, limit in zip(queues, limits, strict=True):
            if turn < limit:
                yield queue.pop()


def _shuffled(dealt: Mapping[Operation, Iterable[int]], seed: int) -> Iterator[tuple[Operation, int]]:
    """All operations with all their numbers, in the order of draws at their addresses."""
    places = []
    for operation, numbers in dealt.items():
        draws = uniforms(seed, "order", f"kgfunc places {operation.label}", n=INPUTS)
        places += [(float(draws[number]), operation.label, number, operation) for number in numbers]
    for _, _, number, operation in sorted(places, key=lambda place: place[:3]):
        yield operation, number
