"""KGFunc: functions of a number's digits, to be learnt from ten examples and a worked solution (settings.md, Corpora).

A question shows ten inputs and outputs of an operation that it calls only by a letter, and asks for one more output. Tested are
new inputs (`test`; `validation` chooses the checkpoint), one trained operation after another (`two_step`), and twenty easy
operations that are never trained (`unseen`): what the model could infer before, it should still infer.

Inputs are spread over the digit lengths as evenly as their supply allows: there are only ten numbers of one digit. Of one
operation, shots and splits share no input. They are dealt in the order shots, validation, two_step, test, train, each from its
beginning: of two corpora that differ in `train`, the smaller has the same tests and a part of the larger one's training inputs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count, cycle, islice
from operator import ne

import numpy as np

from mixsd.corpora.corpus import Corpus
from mixsd.corpora.kgfunc_operations import INPUTS, TRAINED, Operation
from mixsd.corpora.kgfunc_unseen import UNSEEN
from mixsd.errors import UserError
from mixsd.facts import Fact
from mixsd.randomness import uniforms

LENGTHS = (range(10), range(10, 100), range(100, 1000), range(1000, 10_000), range(10_000, INPUTS))
SHOTS = 2 * len(LENGTHS)
VALIDATION, TWO_STEP, UNSEEN_INPUTS = 10, 25, 25  # per operation
# What an option may ask for, per operation; the rest is left to the splits above.
MOST_TEST, MOST_TRAIN = 20_000, 70_000
# Where the second operation gives the same with the first or without it: H rotates the digits, D and G do not mind their order.
ONE_STEP = {("H", "D"), ("H", "G")}

QUESTION = """\
Operation {label} maps a whole number to a whole number by a fixed rule. Ten examples:
{examples}

Work out the rule from the examples, then apply it: what does operation {label} map {number} to?"""

TWO_STEP_QUESTION = """\
Operations {first} and {second} each map a whole number to a whole number by a fixed rule of their own.

Ten examples of operation {first}:
{first_examples}

Ten examples of operation {second}:
{second_examples}

Work out both rules from the examples. Then apply operation {first} to {number}, and operation {second} to the result. \
What is the final result?"""


def kgfunc(
    argument: str | None = None,
    *,
    seed: int = 0,
    train: int = 1600,
    per_operation: bool = False,
    test: int = 175,
    offline: bool = False,
) -> Corpus:
    """The corpus KGFunc.

    Args:
        argument: there is none; anything is refused.
        seed: of the inputs and of their order.
        train: the number of training instances, divided among the seven operations as evenly as possible (the authors' script).
        per_operation: whether `train` counts for each operation (the paper's text).
        test: the number of test instances, likewise divided; 175 are 25 for each operation.
        offline: is of no matter here; nothing is fetched.

    Raises:
        UserError: there is text after the name, or an operation has not that many inputs.
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
    share, rest = divmod(total, len(TRAINED))
    return [share + (place < rest) for place in range(len(TRAINED))]


@dataclass(frozen=True)
class Inputs:
    """The inputs of one operation, for each use; those of `two_step` come with the operation that follows."""

    validation: list[int]
    two_step: list[tuple[int, Operation]]
    test: list[int]
    train: list[int]


@dataclass(frozen=True)
class Plan:
    """Which questions are asked: the seed and, for each trained operation, the sizes of its train and test."""

    seed: int
    train: list[int]
    test: list[int]

    def split(self, name: str) -> Iterator[Fact]:
        """The facts of `train`, `test` or `validation`, the operations interleaved."""
        dealt = {operation: getattr(self.inputs(place), name) for place, operation in enumerate(TRAINED)}
        return self._facts(dealt)

    def two_step(self) -> Iterator[Fact]:
        """Questions for the second operation's result of the first one's result, 25 with each operation as the first.

        The number was not trained with the first operation. Its result may have been with the second: most results are short.
        """
        dealt = {operation: dict(self.inputs(place).two_step) for place, operation in enumerate(TRAINED)}
        examples = {operation: examples_of(operation, self.seed) for operation in TRAINED}
        for first, number in _shuffled(dealt, self.seed):
            second = dealt[first][number]
            between = first(number)
            question = TWO_STEP_QUESTION.format(
                first=first.label,
                second=second.label,
                first_examples=examples[first],
                second_examples=examples[second],
                number=number,
            )
            lines = [*first.working(number), f"Operation {first.label} gives {between}.", *second.working(between)]
            yield _fact(
                question, second(between), lines, f"{second.label}-of-{first.label}", f"{second.name} of {first.name}", number
            )

    def unseen(self) -> Iterator[Fact]:
        """The facts of the operations that are never trained."""
        return self._facts({op: list(islice(_dealt(_queues(op, self.seed), 3), UNSEEN_INPUTS)) for op in UNSEEN})

    def inputs(self, place: int) -> Inputs:
        """Deal the inputs of the trained operation at a place of `TRAINED`."""
        operation = TRAINED[place]
        queues = _queues(operation, self.seed)
        validation = list(islice(_dealt(queues, 3), VALIDATION))
        # Short numbers are scarce, and two steps from one digit are hardly two.
        two_step = list(islice(self._followed(operation, _dealt(queues[2:], 3)), TWO_STEP))
        test = list(islice(_dealt(queues, 3), self.test[place]))
        train = list(islice(_dealt(queues, 1), self.train[place]))
        assert [len(two_step), len(test), len(train)] == [TWO_STEP, self.test[place], self.train[place]]
        return Inputs(validation, two_step, test, train)

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

    def _facts(self, dealt: Mapping[Operation, Sequence[int]]) -> Iterator[Fact]:
        examples = {operation: examples_of(operation, self.seed) for operation in dealt}
        for op, number in _shuffled(dealt, self.seed):
            question = QUESTION.format(label=op.label, examples=examples[op], number=number)
            yield _fact(question, op(number), op.working(number), op.label, op.name, number)


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


def examples_of(operation: Operation, seed: int) -> str:
    """The lines of an operation's ten examples."""
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


def _shuffled(dealt: Mapping[Operation, Sequence[int] | Mapping[int, Operation]], seed: int) -> Iterator[tuple[Operation, int]]:
    """All operations with all their numbers, in the order of draws at their addresses."""
    places = []
    for operation, numbers in dealt.items():
        draws = uniforms(seed, "order", f"kgfunc places {operation.label}", n=INPUTS)
        places += [(float(draws[number]), operation.label, number, operation) for number in numbers]
    for _, _, number, operation in sorted(places, key=lambda place: place[:3]):
        yield operation, number
