"""KGFunc's corpus: how many facts its splits hold, that nothing that is tested was shown, and what seed and options change."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

import pytest

from mixsd.errors import UserError
from mixsd.facts import corpus as facts_corpus
from mixsd.facts.fact import Fact, unique
from mixsd.facts.kgfunc import UNSEEN, Operation, kgfunc, shots_of
from tests.facts.kgfunc_corpus import BY_LABEL, LABELS, default, everything, label_of
from tests.facts.kgfunc_oracle import fingerprint, oracle

# What the default corpus is, byte for byte; changes only when somebody means to change it.
GOLDEN = "b1e0cf7b2f4c3d559109245052cdd236"


def inputs(facts: Iterable[Fact], label: str) -> list[int]:
    return [fact.meta["input"] for fact in facts if label_of(fact) == label]


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
    program = (
        "from tests.facts.kgfunc_oracle import fingerprint; from mixsd.facts.kgfunc import kgfunc; print(fingerprint(kgfunc()))"
    )
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
    counts = facts_corpus.write(corpus, tmp_path / "kgfunc")
    assert counts == {"train": 35, "test": 14, "validation": 70, "two_step": 175, "unseen": 500}
    again = facts_corpus.read(tmp_path / "kgfunc")
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
