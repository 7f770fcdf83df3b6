"""KGFunc's questions: the shots say enough to find the rule, and nothing else in the question hints at it."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from mixsd.facts.fact import Fact
from mixsd.facts.kgfunc import UNSEEN, shots_of
from tests.facts.kgfunc_corpus import BY_LABEL, default
from tests.facts.kgfunc_oracle import oracle

EXAMPLES = r"(?:\d+ -> \d+\n){10}"
QUESTION = (
    r"Operation ([A-Z]{1,2}) maps a whole number to a whole number by a fixed rule\. Ten examples:\n"
    + EXAMPLES
    + r"\nWork out the rule from the examples, then apply it: what does operation \1 map (\d+) to\?"
)
TWO_STEP = (
    r"Operations ([B-H]) and ([B-H]) each map a whole number to a whole number by a fixed rule of their own\.\n\n"
    rf"Ten examples of operation \1:\n{EXAMPLES}\nTen examples of operation \2:\n{EXAMPLES}\n"
    r"Work out both rules from the examples\. Then apply operation \1 to (\d+), and operation \2 to the result\. "
    r"What is the final result\?"
)


def shown(fact: Fact, label: str) -> list[tuple[int, int]]:
    """The examples of an operation in a question."""
    block = re.search(
        rf"peration {label}\b[^\n]*xamples:\n((?:\d+ -> \d+\n)+)|xamples of operation {label}:\n((?:\d+ -> \d+\n)+)",
        fact.question,
    )
    assert block
    return [(int(a), int(b)) for a, b in re.findall(r"(\d+) -> (\d+)", block[1] or block[2])]


@pytest.mark.parametrize("seed", range(3))
def test_the_shots_say_enough(seed: int) -> None:
    for operation in BY_LABEL.values():
        shots = shots_of(operation, seed)
        assert Counter(len(str(x)) for x in shots) == dict.fromkeys(range(1, 6), 2)
        outputs = [oracle(operation.label)[x] for x in shots]
        assert len(set(outputs)) >= 3
        assert max(Counter(outputs).values()) <= 5
        for other in BY_LABEL.keys() - {operation.label}:
            assert sum(oracle(other)[x] != output for x, output in zip(shots, outputs, strict=True)) >= 2


def test_every_question_of_an_operation_shows_the_same_shots() -> None:
    for name, facts in default().items():
        for fact in facts:
            for label in fact.id.split("-")[1:-1:2]:
                shots = shots_of(BY_LABEL[label], 0)
                assert shown(fact, label) == [(x, oracle(label)[x]) for x in shots], name


def test_a_question_holds_labels_and_numbers_and_no_hint() -> None:
    words: set[str] = set()
    for name, facts in default().items():
        for fact in facts:
            match = re.fullmatch(TWO_STEP if name == "two_step" else QUESTION, fact.question)
            assert match, fact.question
            parts = match.groups()
            asked = f"{parts[1]}-of-{parts[0]}-{parts[2]}" if name == "two_step" else "-".join(parts)
            assert fact.id == f"kgfunc-{asked}"
            words |= set(re.findall("[a-z]{2,}", fact.question.lower()))
    hints = {word for operation in BY_LABEL.values() for word in re.findall("[a-z]{2,}", f"{operation.name} {operation.rule}")}
    assert words & hints == {"and", "by", "each", "from", "is", "number", "of", "the", "to"}


def test_labels_of_unseen_operations_are_no_trained_ones_and_no_initials() -> None:
    for operation in UNSEEN:
        assert re.fullmatch("[^B-HAEIOUa-z]{2}", operation.label)
        assert operation.label.lower() != "".join(word[0] for word in operation.name.split()[:2])
