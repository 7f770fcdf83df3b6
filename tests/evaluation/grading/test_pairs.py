"""Pairs of answers of our own writing, see `answer_pairs`."""

from __future__ import annotations

import pytest

from mixsd.evaluation.grading import maths
from mixsd.facts.answers import Expected
from tests.evaluation.grading.answer_pairs import DIFFERENT, EQUAL, KNOWN_MISSES

ALL = [(gold, answer, "correct") for gold, answer in EQUAL] + [(gold, answer, "wrong") for gold, answer in DIFFERENT]


@pytest.mark.parametrize(("gold", "answer", "outcome"), ALL)
def test_pair(gold: str, answer: str, outcome: str) -> None:
    judged = maths.strict(f"So it is $\\boxed{{{answer}}}$.", Expected(gold)).outcome
    if (gold, answer) in KNOWN_MISSES:
        assert judged != outcome, "no miss any more: take it out of KNOWN_MISSES"
    else:
        assert judged == outcome


@pytest.mark.parametrize(("gold", "answer", "outcome"), ALL)
def test_an_alias_is_as_good_as_the_answer(gold: str, answer: str, outcome: str) -> None:
    judged = maths.strict(f"\\boxed{{{answer}}}", Expected(r"\text{nothing of the kind}", (gold,)))
    assert (judged.outcome == outcome) != ((gold, answer) in KNOWN_MISSES)


def test_the_table_is_large_and_hides_little() -> None:
    assert min(len(EQUAL), len(DIFFERENT)) >= 60
    for table in (EQUAL, DIFFERENT):
        assert len(set(table)) == len(table)
        assert len(set(table) & set(KNOWN_MISSES)) <= len(table) // 30
