"""The judges on the benchmarks' own answers: references are right, other items' references are wrong, both ways of comparing agree."""

from __future__ import annotations

import ast
import re
import textwrap
from fractions import Fraction
from typing import Any

import pytest

from mixsd.evaluation.grading import code, maths, maths_process
from mixsd.evaluation.grading.maths import fold, same_at_sight, without_unit
from mixsd.facts.answers import Expected
from tests.evaluation.grading.conftest import Records


def gsm8k(row: dict[str, Any]) -> tuple[str, str]:
    """A reference's steps without the calculator's marks, and its answer as written."""
    steps, _, answer = row["answer"].rpartition("#### ")
    return re.sub(r"<<[^>]*>>", "", steps), answer


def other(golds: list[str], at: int) -> int:
    """The next item whose answer differs."""
    return next(place % len(golds) for place in range(at + 1, at + len(golds)) if golds[place % len(golds)] != golds[at])


def test_math500_references(records: Records) -> None:
    rows = records("math500/test.jsonl")
    judged = {row["unique_id"]: maths.strict(row["solution"], Expected(row["answer"])) for row in rows}
    assert len(judged) == 500
    assert {key: verdict for key, verdict in judged.items() if verdict.outcome != "correct"} == {}
    assert all(maths.lenient(row["solution"], Expected(row["answer"])) == judged[row["unique_id"]] for row in rows)


@pytest.mark.slow
def test_math500_references_by_math_verify_alone(records: Records) -> None:
    """The spelling decides all references; the way through a worker has to come to the same."""
    rows = records("math500/test.jsonl")
    words = {r"\text{(C)}", r"\text{(E)}", r"\text{(B)}"}
    wrong = []
    for row in rows:
        gold = without_unit(fold(row["answer"]))
        if row["answer"] not in words and maths_process.compare([gold], gold) != ("correct", None):
            wrong.append(row["unique_id"])
    assert wrong == []


@pytest.mark.parametrize("form", ["We find $y$. The answer is $%s$.", "So we get\n\\[%s\\]", "**Answer:** %s", "#### %s"])
def test_math500_without_a_box(form: str, records: Records) -> None:
    for row in records("math500/test.jsonl"):
        reply, expected = form % row["answer"], Expected(row["answer"])
        assert maths.strict(reply, expected).outcome == "unparseable"
        assert maths.lenient(reply, expected).outcome == "correct", row["unique_id"]


def test_math500_shuffled(records: Records) -> None:
    rows = records("math500/test.jsonl")
    golds = [row["answer"] for row in rows]
    same = [
        (rows[at]["unique_id"], golds[at], golds[other(golds, at)])
        for at in range(len(rows))
        if maths.strict(rows[other(golds, at)]["solution"], Expected(golds[at])).outcome != "wrong"
    ]
    assert same == [("test/algebra/1837.json", "5", "x=5")]  # an accident that is right


def test_gsm8k_references_and_shuffled(records: Records) -> None:
    replies = [gsm8k(row) for row in records("gsm8k/test.jsonl")]
    golds = [gold for _, gold in replies]
    assert len(golds) == 1319
    for at, (steps, gold) in enumerate(replies):
        assert maths.strict(f"{steps}\\boxed{{{gold}}}", Expected(gold)).outcome == "correct", at
        others, another = replies[other(golds, at)]
        assert maths.strict(f"{others}\\boxed{{{another}}}", Expected(gold)).outcome == "wrong", at


def test_gsm8k_without_a_box(records: Records) -> None:
    """The last number of a reference's steps is its answer in most: 1,281 of 1,319; the rest end as in "15 of the 24 liters"."""
    replies = [gsm8k(row) for row in records("gsm8k/test.jsonl")]
    right = sum(maths.lenient(steps, Expected(gold)).outcome == "correct" for steps, gold in replies)
    assert right >= 1281
    assert all(maths.lenient(f"{steps}\n#### {gold}", Expected(gold)).outcome == "correct" for steps, gold in replies)


def test_the_spelling_and_math_verify_and_fractions_agree(records: Records) -> None:
    golds = [gsm8k(row)[1] for row in records("gsm8k/test.jsonl")]
    golds += [row["answer"] for row in records("math500/test.jsonl")]
    decided = 0
    for at, gold in enumerate(golds):
        for answer in (gold, golds[other(golds, at)]):
            seen = same_at_sight(gold, answer)
            if seen is None or re.search(r"\\text\{|_", gold):
                continue
            decided += 1
            outcome, _ = maths_process.compare([without_unit(fold(gold))], without_unit(fold(answer)))
            assert (outcome == "correct") == seen, (gold, answer)
            if re.fullmatch(r"-?[\d,]+", gold) and re.fullmatch(r"-?[\d,]+", answer):
                assert (Fraction(gold.replace(",", "")) == Fraction(answer.replace(",", ""))) == seen
    assert decided > 3200


def test_humaneval_solutions_in_many_dresses(records: Records) -> None:
    for row in records("humaneval/HumanEval.jsonl.gz"):
        prompt, name, body = row["prompt"], row["entry_point"], row["canonical_solution"]
        whole = prompt + body
        fenced = [
            f"Sure:\n```python\n{whole}```\nDone.",
            f"```\n{body}```",
            f"```py\n{whole}",
            f"~~~\n{textwrap.dedent(body)}~~~",
            f"```python\n{body.strip()}\n```",
        ]
        for reply in fenced:
            program = code.program(reply, prompt, name)
            assert program is not None, (row["task_id"], reply)
            assert code._returns(program, name), (row["task_id"], reply)
            assert code.lenient_program(reply, prompt, name) == program
        for reply in (whole, body, f"Here it is.\n\n{whole}\n\nThis works because it does."):
            assert code.program(reply, prompt, name) is None
            program = code.lenient_program(reply, prompt, name)
            assert program is not None, (row["task_id"], reply)
            assert code._returns(program, name), (row["task_id"], reply)
        assert ast.dump(ast.parse(code.program(fenced[1], prompt, name) or "")) == ast.dump(ast.parse(whole))
