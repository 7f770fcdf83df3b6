"""KGFunc's operations: their results are the oracle's, and their solutions can be checked line by line.

A solution with any one digit changed, or any line too many or too few, must not pass the reader of `kgfunc_oracle`.
"""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixsd.facts.answers import Expected, number
from mixsd.facts.fact import Fact
from mixsd.facts.kgfunc import TRAINED, UNSEEN, Operation, digits_of, number_of
from tests.facts.kgfunc_corpus import BY_LABEL, LABELS, default, everything, label_of
from tests.facts.kgfunc_oracle import ORACLES, oracle, read_reference


def test_the_operations_are_those_of_the_oracle() -> None:
    assert [operation.label for operation in TRAINED] == list(LABELS)
    assert len(UNSEEN) == 20
    assert list(BY_LABEL) == list(ORACLES)
    assert len({operation.name for operation in BY_LABEL.values()}) == 27


@pytest.mark.parametrize("operation", TRAINED, ids=lambda operation: operation.label)
def test_a_trained_operation_agrees_with_the_oracle_everywhere(operation: Operation) -> None:
    assert [operation(x) for x in range(100_000)] == oracle(operation.label)


@pytest.mark.parametrize("operation", UNSEEN, ids=lambda operation: operation.label)
def test_an_unseen_operation_agrees_with_the_oracle(operation: Operation) -> None:
    sample = [*range(10_000), *range(10_000, 100_000, 7)]
    assert [operation(x) for x in sample] == [oracle(operation.label)[x] for x in sample]


# Worked by hand from the paper's definitions.
@pytest.mark.parametrize(
    ("label", "x", "result"),
    [
        ("B", 40213, 16 + 0 + 4 + 1 + 9),
        ("B", 575, 0 + 4 + 0),
        ("C", 40213, 16 - 0 + 4 - 1 + 9),
        ("C", 19, 80),
        ("D", 12345, 1 + 4 + 9 + 4 + 25),
        ("D", 97, 9 + 49),
        ("E", 123, 3 + 4 + 3),
        ("E", 90, 0),
        ("F", 31425, 3 + 3 + 4 + 4 + 5),
        ("G", 305, 6 + 0 + 15),
        ("H", 40213, 2134),
        ("H", 321, 132),
        ("H", 100, 1),
        ("H", 0, 0),
        ("QV", 0, 0),
        ("QV", 99999, 9),
        ("VQ", 0, 1),
        ("PQ", 0, 1),
        ("NX", 7, 14),
        ("WZ", 7, 49),
        ("RZ", 3020, 23),
        ("NV", 1200, 21),
    ],
)
def test_results_worked_by_hand(label: str, x: int, result: int) -> None:
    assert BY_LABEL[label](x) == oracle(label)[x] == result


DIGITS = st.lists(st.integers(0, 9), min_size=1, max_size=5).map(tuple)


@given(st.integers(0, 99_999))
def test_digits_there_and_back(x: int) -> None:
    assert number_of(digits_of(x)) == x
    assert "".join(map(str, digits_of(x))) == str(x)


@given(DIGITS, st.integers(0, 4))
def test_rotating_does_not_change_the_smallest_rotation(digits: tuple[int, ...], places: int) -> None:
    operation = BY_LABEL["H"]
    rotated = digits[places % len(digits) :] + digits[: places % len(digits)]
    assert operation.function(rotated) == operation.function(digits) <= number_of(digits)
    assert str(operation.function(digits)).zfill(len(digits)) in "".join(map(str, digits * 2))


@given(DIGITS, st.randoms(use_true_random=False))
def test_what_the_order_of_the_digits_does(digits: tuple[int, ...], random: Any) -> None:
    shuffled = list(digits)
    random.shuffle(shuffled)
    for label in "BDG":
        assert BY_LABEL[label].function(tuple(shuffled)) == BY_LABEL[label].function(digits)
    for label in "CE":
        assert BY_LABEL[label].function(digits[::-1]) == BY_LABEL[label].function(digits)
    ascending, running = tuple(sorted(digits)), BY_LABEL["F"].function
    assert sum(digits) == running(ascending) <= running(digits) <= running(ascending[::-1]) == len(digits) * max(digits)


@given(st.sampled_from(LABELS), st.integers(0, 99_999))
def test_any_solution_can_be_checked(label: str, x: int) -> None:
    operation = BY_LABEL[label]
    reference = "\n".join([*operation.working(x), f"The answer is {operation(x)}."])
    assert read_reference(f"kgfunc-{label}-{x}", reference) == oracle(label)[x]


def test_every_solution_of_every_split_is_right() -> None:
    for fact in everything():
        assert str(read_reference(fact.id, fact.reference)) == fact.answer, fact.id


def test_the_answers_are_the_oracles() -> None:
    for name, facts in default().items():
        for fact in facts:
            result = oracle(label_of(fact))[fact.meta["input"]]
            if name == "two_step":
                result = oracle(fact.id.split("-")[1])[result]
            assert fact.answer == str(result)


def _one_of_each_operation() -> list[Fact]:
    """For each operation and each pair, a solution with a number as long as possible."""
    kinds: dict[str, Fact] = {}
    for fact in sorted(everything(), key=lambda fact: fact.meta["input"]):
        if label_of(fact) in LABELS:
            kinds[fact.id.rsplit("-", 1)[0]] = fact
    assert len(kinds) == 7 + 40
    return list(kinds.values())


def test_a_corrupted_solution_is_noticed() -> None:
    for fact in _one_of_each_operation():
        lines = fact.reference.split("\n")
        for place, line in enumerate(lines):
            for other in (lines[:place] + lines[place + 1 :], [*lines[:place], line, *lines[place:]]):
                with pytest.raises((AssertionError, IndexError)):
                    read_reference(fact.id, "\n".join(other))
            for digit in re.finditer(r"\d", line) if "(d + 1)" not in line else ():
                wrong = line[: digit.start()] + str((int(digit[0]) + 1) % 10) + line[digit.end() :]
                with pytest.raises((AssertionError, IndexError)):
                    read_reference(fact.id, "\n".join([*lines[:place], wrong, *lines[place + 1 :]]))


def test_the_verifier_takes_the_solution_and_no_other_answer() -> None:
    for fact in everything():
        expected = Expected(fact.answer)
        assert number(fact.reference, expected).outcome == "correct"
        changed = re.sub(r"\d+\.$", f"{int(fact.answer) + 1}.", fact.reference)
        assert changed != fact.reference
        assert number(changed, expected).outcome == "wrong"
