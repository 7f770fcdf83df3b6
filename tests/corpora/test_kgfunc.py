"""KGFunc: the numbers are right, the solutions can be checked line by line, and nothing that is tested was shown.

The oracle and the reader of solutions are those of `kgfunc_oracle`; a solution with any one digit changed, or any line too many or
too few, must not pass the reader.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixsd.answers import Expected, number
from mixsd.corpora import corpus as corpora
from mixsd.corpora.kgfunc import kgfunc, shots_of
from mixsd.corpora.kgfunc_operations import TRAINED, Operation, digits_of, number_of
from mixsd.corpora.kgfunc_unseen import UNSEEN
from mixsd.errors import UserError
from mixsd.facts import Fact, unique
from tests.corpora.kgfunc_oracle import ORACLES, fingerprint, oracle, read_reference

BY_LABEL = {operation.label: operation for operation in (*TRAINED, *UNSEEN)}
LABELS = "BCDEFGH"
# What the default corpus is, byte for byte; changes only when somebody means to change it.
GOLDEN = "b1e0cf7b2f4c3d559109245052cdd236"


@cache
def default() -> dict[str, list[Fact]]:
    corpus = kgfunc()
    return {"train": list(corpus.facts()), **{name: list(facts()) for name, facts in corpus.splits.items()}}


def everything() -> Iterator[Fact]:
    for facts in default().values():
        yield from facts


def label_of(fact: Fact) -> str:
    return fact.id.split("-")[-2]


def inputs(facts: Iterable[Fact], label: str) -> list[int]:
    return [fact.meta["input"] for fact in facts if label_of(fact) == label]


def shown(fact: Fact, label: str) -> list[tuple[int, int]]:
    """The examples of an operation in a question."""
    block = re.search(
        rf"peration {label}\b[^\n]*xamples:\n((?:\d+ -> \d+\n)+)|xamples of operation {label}:\n((?:\d+ -> \d+\n)+)",
        fact.question,
    )
    assert block
    return [(int(a), int(b)) for a, b in re.findall(r"(\d+) -> (\d+)", block[1] or block[2])]


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


def test_how_many_there_are() -> None:
    counts = {name: len(facts) for name, facts in default().items()}
    assert counts == {"train": 1600, "test": 175, "validation": 70, "two_step": 175, "unseen": 500}
    assert sorted(Counter(map(label_of, default()["train"])).values()) == [228] * 3 + [229] * 4
    for name, each in (("test", 25), ("validation", 10), ("two_step", 25)):
        assert Counter(map(label_of, default()[name])) == dict.fromkeys(LABELS, each)
    assert Counter(map(label_of, default()["unseen"])) == {operation.label: 25 for operation in UNSEEN}


@pytest.mark.parametrize(("train", "total"), [(1, 7), (300, 2100)])
def test_train_can_count_for_each_operation(train: int, total: int) -> None:
    facts = list(kgfunc(train=train, per_operation=True).facts())
    assert len(facts) == total
    assert Counter(map(label_of, facts)) == dict.fromkeys(LABELS, train)


def test_the_papers_text_fits() -> None:
    corpus = kgfunc(train=1600, per_operation=True)
    assert sum(1 for _ in corpus.facts()) == 7 * 1600


def test_ids_and_questions_are_unique_and_tell_what_they_are() -> None:
    assert unique(("", fact) for fact in everything()).duplicates == 0
    assert len({fact.id for fact in everything()}) == 2520
    for name, facts in default().items():
        for fact in facts:
            if name == "two_step":
                _, second, _, first, x = fact.id.split("-")
                operation = f"{BY_LABEL[second].name} of {BY_LABEL[first].name}"
            else:
                _, label, x = fact.id.split("-")
                operation = BY_LABEL[label].name
            assert fact.meta == {"operation": operation, "input": int(x)}


@pytest.mark.parametrize("operation", BY_LABEL.values(), ids=BY_LABEL)
def test_shots_and_splits_share_no_input(operation: Operation) -> None:
    parts = [inputs(facts, operation.label) for facts in default().values()] + [list(shots_of(operation, 0))]
    together = [x for part in parts for x in part]
    assert len(together) == len(set(together))
    assert all(0 <= x < 100_000 for x in together)


def test_inputs_are_spread_over_the_digit_lengths() -> None:
    for label in LABELS:
        lengths = {name: Counter(len(str(x)) for x in inputs(facts, label)) for name, facts in default().items()}
        assert lengths["validation"] == dict.fromkeys(range(1, 6), 2)
        assert lengths["test"] == {1: 2, 2: 6, 3: 6, 4: 6, 5: 5}
        # What is left of the ten numbers with one digit, then an even share.
        assert lengths["train"][1] == 10 - 2 - 2 - 2
        assert {lengths["train"][length] for length in range(2, 6)} <= {56, 57}
        assert set(lengths["two_step"]) == {3, 4, 5}
        assert min(lengths["two_step"].values()) >= 5
    for operation in UNSEEN:
        assert Counter(len(str(x)) for x in inputs(default()["unseen"], operation.label)) == {1: 2, 2: 6, 3: 6, 4: 6, 5: 5}


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


def test_two_steps_need_both_steps() -> None:
    pairs: Counter[tuple[str, str]] = Counter()
    for fact in default()["two_step"]:
        second, first = fact.id.split("-")[1:-1:2]
        x = fact.meta["input"]
        between = oracle(first)[x]
        pairs[first, second] += 1
        assert 10 <= between < 100_000
        assert between != x
        assert between not in shots_of(BY_LABEL[second], 0)
        assert int(fact.answer) not in {between, oracle(second)[x], oracle(first)[oracle(second)[x]]}
    # Of the 42 pairs, two take one step whatever the input; see ONE_STEP.
    assert len(pairs) == 40
    assert min(pairs.values()) >= 4
    assert all(a != b for a, b in pairs)
    for second in "DG":
        assert all(oracle(second)[oracle("H")[x]] == oracle(second)[x] for x in range(100_000))


@pytest.mark.parametrize("seed", [2, 12345])
def test_other_seeds_hold_as_much(seed: int) -> None:
    corpus = kgfunc(seed=seed, train=70)
    counts = {name: sum(1 for _ in facts()) for name, facts in corpus.splits.items()}
    assert counts == {"test": 175, "validation": 70, "two_step": 175, "unseen": 500}


def test_the_operations_are_interleaved() -> None:
    for name, facts in default().items():
        labels = [label_of(fact) for fact in facts[:60]]
        assert len(set(labels)) >= (15 if name == "unseen" else 7)
        assert sum(a == b for a, b in pairwise(labels)) < 25


def test_the_same_bytes_whatever_the_hash_seed() -> None:
    here = Path(__file__).parents[2]
    program = "from tests.corpora.kgfunc_oracle import fingerprint; from mixsd.corpora.kgfunc import kgfunc; print(fingerprint(kgfunc()))"
    assert fingerprint(kgfunc(offline=True)) == GOLDEN
    for hash_seed in ("1", "2"):
        env = {**os.environ, "PYTHONHASHSEED": hash_seed}
        done = subprocess.run([sys.executable, "-c", program], cwd=here, env=env, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == GOLDEN


def test_a_stream_can_be_read_again_and_in_part() -> None:
    corpus = kgfunc()
    some = [fact for fact, _ in zip(corpus.facts(), range(5), strict=False)]
    assert some == list(corpus.facts())[:5] == default()["train"][:5]


def test_another_seed_gives_other_inputs() -> None:
    other = kgfunc(seed=1)
    streams: dict[str, Iterable[Fact]] = {"train": other.facts(), **{name: facts() for name, facts in other.splits.items()}}
    for name, facts in streams.items():
        ours, theirs = {fact.id for fact in default()[name]}, {fact.id for fact in facts}
        assert len(ours & theirs) < len(ours) / 2
    assert all(shots_of(operation, 0) != shots_of(operation, 1) for operation in BY_LABEL.values())
    assert other.identity != kgfunc().identity


def test_a_smaller_train_has_the_same_tests_and_a_part_of_the_inputs() -> None:
    small = kgfunc(train=400)
    for name in ("test", "validation", "two_step"):
        assert list(small.splits[name]()) == default()[name]
    ids = {fact.id for fact in small.facts()}
    assert len(ids) == 400
    assert [fact for fact in default()["train"] if fact.id in ids] == list(small.facts())


def test_a_smaller_test_is_a_part_of_the_larger() -> None:
    small = kgfunc(test=70).splits
    assert len(ids := {fact.id for fact in small["test"]()}) == 70
    assert ids < {fact.id for fact in default()["test"]}
    assert list(small["two_step"]()) == default()["two_step"]
    assert list(small["validation"]()) == default()["validation"]


def test_how_it_is_asked_and_judged() -> None:
    corpus = kgfunc(seed=3, train=14, test=7)
    assert corpus.name == "kgfunc"
    assert corpus.options == {"seed": 3, "train": 14, "per_operation": False, "test": 7}
    assert corpus.manners == {
        "labels": ["operation"],
        "verifiers": {"plain": "number", "boxed": "number"},
        "guidance": "solution",
        "max_new_tokens": {"plain": 512},
    }


def test_written_and_read_again(tmp_path: Path) -> None:
    corpus = kgfunc(train=35, test=14)
    counts = corpora.write(corpus, tmp_path / "kgfunc")
    assert counts == {"train": 35, "test": 14, "validation": 70, "two_step": 175, "unseen": 500}
    again = corpora.read(tmp_path / "kgfunc")
    assert fingerprint(again) == fingerprint(corpus)
    assert again.manners == corpus.manners


@pytest.mark.parametrize("train", [0, -1, 490_001, 10**9])
def test_a_bad_train_is_refused(train: int) -> None:
    with pytest.raises(UserError, match=f"^--train {train}: expected a number from 1 to 490,000$"):
        kgfunc(train=train)


@pytest.mark.parametrize("train", [0, -1, 70_001])
def test_a_bad_train_for_each_operation_is_refused(train: int) -> None:
    with pytest.raises(UserError, match=f"^--train {train}: expected a number from 1 to 70,000$"):
        kgfunc(train=train, per_operation=True)


@pytest.mark.parametrize("test", [0, -1, 140_001])
def test_a_bad_test_is_refused(test: int) -> None:
    with pytest.raises(UserError, match=f"^--test {test}: expected a number from 1 to 140,000$"):
        kgfunc(test=test)


@pytest.mark.parametrize("argument", ["", "small", "B"])
def test_an_argument_is_refused(argument: str) -> None:
    with pytest.raises(UserError, match=f'^kgfunc: takes nothing after its name, got "{argument}"; write kgfunc$'):
        kgfunc(argument)


def test_the_most_that_can_be_asked_for_is_there() -> None:
    corpus = kgfunc(train=490_000, test=140_000)
    facts = corpus.facts()
    assert next(facts).reference  # all inputs are dealt before the first fact
