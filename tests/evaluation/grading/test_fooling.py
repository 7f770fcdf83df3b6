"""What fools extractors does not fool these: every line of `fooling`."""

from __future__ import annotations

from typing import Any

import pytest

from mixsd.evaluation.grading import code, letters, maths
from mixsd.facts.answers import Expected, without_thinking
from tests.evaluation.grading import fooling


@pytest.mark.parametrize(("reply", "gold", "strict", "lenient"), fooling.MATHS)
def test_mathematics(reply: str, gold: str, strict: Any, lenient: Any) -> None:
    found = maths.strict(reply, Expected(gold))
    assert (found.outcome, found.extracted) == strict
    found = maths.lenient(reply, Expected(gold))
    assert (found.outcome, found.extracted) == lenient


@pytest.mark.parametrize(("reply", "gold", "strict", "lenient"), fooling.LETTERS)
def test_letters(reply: str, gold: str, strict: Any, lenient: Any) -> None:
    found = letters.strict(reply, Expected(gold))
    assert (found.outcome, found.extracted) == strict
    found = letters.lenient(reply, Expected(gold))
    assert (found.outcome, found.extracted) == lenient


@pytest.mark.parametrize(("reply", "strict", "lenient"), fooling.CODE)
def test_code(reply: str, strict: str | None, lenient: str | None) -> None:
    assert code.program(reply, fooling.PROMPT, "area") == strict
    assert code.lenient_program(reply, fooling.PROMPT, "area") == lenient


@pytest.mark.parametrize(
    ("text", "behind"),
    [
        ("5", "5"),
        ("<think>a</think>5", "5"),
        ("a</think>5", "5"),
        ("<think>a</think>4<think>b</think>5", "5"),
        ("<think>a<think>b</think>c</think>5", "5"),
        ("<Thinking>a</Thinking >5", "5"),
        ("<think></think>", ""),
        ("a < think > b", "a < think > b"),
        ("<think>a", None),
        ("<think>a</think>5<think>b", None),
    ],
)
def test_what_stands_behind_the_thinking(text: str, behind: str | None) -> None:
    assert without_thinking(text) == behind


def test_the_table_is_large_and_both_measures_are_in_it() -> None:
    assert len(fooling.MATHS) + len(fooling.LETTERS) + len(fooling.CODE) >= 60
