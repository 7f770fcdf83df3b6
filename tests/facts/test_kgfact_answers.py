"""KGFact's questions have one right answer each, by the independent `world_checker`; and it finds whatever is broken on purpose."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from itertools import combinations
from math import comb
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mixsd.facts.fact import Fact, unique
from tests.facts.kgfact_world import BACKGROUND, SPLITS, Files, check_backgrounds, checker, made, parts, templates
from tests.facts.world_checker import Checker, Query, Relation, Triple

# One right answer


@pytest.mark.parametrize("retrieval", ["held-out", "trained"])
@pytest.mark.parametrize(("size", "seed"), [("small", 0), ("large", 0), ("small", 1), ("large", 7)])
def test_every_question_of_the_papers_corpora_has_exactly_one_right_answer(size: str, seed: int, retrieval: str) -> None:
    assert checker().problems(made(size, seed, retrieval)) == []


@given(st.integers(0, 2**63), st.integers(2, 7), st.integers(1, 30), st.sampled_from(["held-out", "trained"]))
@example(0, 7, 1, "held-out")
@example(0, 2, 1, "trained")
@example(5, 7, 30, "held-out")
@settings(max_examples=10, deadline=None)
def test_every_question_of_any_corpus_has_exactly_one_right_answer(seed: int, number: int, entities: int, retrieval: str) -> None:
    files = made.__wrapped__(f"{number}x{entities}", seed, retrieval)
    # A checker of its own: this one remembers every statement.
    assert Checker(templates()).problems(files) == []
    facts = entities * number * (number - 1) // 2
    assert {name: len(rows) for name, rows in files.items()} == {
        name: min(facts, entities * comb(number, 3)) if "two_hop" in name else facts for name in ["train", *SPLITS]
    }
    check_backgrounds(files, retrieval)
    for rows in files.values():
        assert len({row["id"] for row in rows}) == len(unique(("", Fact(**row)) for row in rows).facts) == len(rows)


# The checker finds what is wrong


def inverse_of_birth() -> dict[str, str]:
    """A relation that says from the place what 'born_in' says from the person."""
    return {
        "source": "Location",
        "target": "Person",
        "relation": "birthplace_of",
        "inverse": "born_in",
        "statement": "{s} saw the birth of {t}.",
        "question": "Of which person did {s} see the birth?",
        "phrase": "the person whose birth {s} saw",
    }


def test_the_checker_reads_statements_and_questions() -> None:
    born = Relation("Person", "Location", "born_in")
    spring = Relation("Location", "Event", "hosts_in_spring")
    query = checker().query("Tell me: In which place was Una Vell born? Thanks!")
    assert query == Query(born, "Una Vell")
    nested = checker().query("Which event takes place every spring in the place where Una Vell was born?")
    assert nested == Query(spring, Query(born, "Una Vell"))
    birth = checker().triple("Una Vell was born during a storm in Orm Bay.")
    event = checker().triple("The Kell Summit takes place every spring in Orm Bay.")
    assert (birth, event) == (Triple("Una Vell", born, "Orm Bay"), Triple("Orm Bay", spring, "Kell Summit"))
    assert checker().answers(nested, {birth, event}) == {"Kell Summit"}
    assert checker().answers(nested, {event}) == checker().answers(query, {event}) == set()
    both = Checker([*templates(), inverse_of_birth()])
    back = both.triple("Orm Bay saw the birth of Una Vell.")
    assert both.closed([back]) == both.closed([birth]) == {back, birth}
    assert both.answers(query, both.closed([back])) == {"Orm Bay"}


def pair(files: Files, split: str = "train") -> tuple[dict[str, Any], dict[str, Any]]:
    """Two rows that share the pair of domains and nothing else."""
    rows = files[split]
    return next(
        (one, other)
        for one, other in combinations(rows, 2)
        if one["meta"]["domains"] == other["meta"]["domains"]
        and one["meta"].get("relation", "") != other["meta"].get("relation", "-")
        and one["answer"] != other["answer"]
    )


def second_target(files: Files) -> None:
    one, other = pair(files)
    extra = {**one, "statement": one["statement"].replace(one["answer"], other["answer"]), "answer": other["answer"]}
    files["train"].append(extra)


def second_source(files: Files) -> None:
    one, other = pair(files)
    swap = {name: one[name].replace(one["subject"], other["subject"]) for name in ("statement", "question")}
    files["train"].append({**one, **swap})


def twice(files: Files) -> None:
    files["train"].append(files["train"][3])


def swapped(files: Files) -> None:
    one, other = pair(files, "paraphrase")
    one["answer"], other["answer"] = other["answer"], one["answer"]


def foreign_alias(files: Files) -> None:
    one, other = pair(files, "validation")
    one["aliases"] = [other["answer"]]


def nothing_true(files: Files) -> None:
    row = files["retrieval"][5]
    row["question"] = row["question"].replace(f"- {row['statement']}\n", "")


def contradiction(files: Files) -> None:
    row, other = pair(files, "retrieval")
    wrong = row["statement"].replace(row["answer"], other["answer"])
    row["question"] = row["question"].replace(BACKGROUND, f"{BACKGROUND}- {wrong}\n")


def repeated(files: Files) -> None:
    row = files["two_hop_context"][5]
    row["question"] = row["question"].replace(BACKGROUND, f"{BACKGROUND}- {parts(row)[0][7]}\n")


def halfway(files: Files) -> None:
    row = files["two_hop"][8]
    (first,) = [fact for fact in files["train"] if fact["id"] == row["meta"]["hops"][0]]
    row["answer"] = first["answer"]


def unfitting(files: Files) -> None:
    row = files["two_hop"][0]
    row["question"] = "Which event takes place every spring in the organization founded by Una Vell?"


def unreadable(files: Files) -> None:
    files["train"][7]["statement"] += " Or so they say."


def no_question(files: Files) -> None:
    files["validation"][7]["question"] = "What about Una Vell?"


def two_questions(files: Files) -> None:
    files["validation"][7]["question"] += f" {files['train'][8]['question']}"


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (second_target, ["two targets", "is right"]),
        (second_source, ["two sources"]),
        (twice, ["said twice"]),
        (swapped, ["paraphrase", "is right"]),
        (foreign_alias, ["validation", "is given"]),
        (nothing_true, ["retrieval 6: [] is right"]),
        (contradiction, ["retrieval", "two targets", "is right"]),
        (repeated, ["two_hop_context 6: a statement stands there twice"]),
        (halfway, ["two_hop 9", "is right"]),
        (unfitting, ["two_hop 1: a Organization stands for a Location"]),
        (unreadable, ["train: 0 readings", "[] is right"]),
        (no_question, ["validation 8: 0 readings"]),
        (two_questions, ["validation 8: 2 readings"]),
    ],
)
def test_the_checker_finds_a_broken_world(break_it: Callable[[Files], None], said: list[str]) -> None:
    files = deepcopy(made())
    break_it(files)
    found = "\n".join(checker().problems(files))
    assert [text for text in said if text not in found] == []


def test_the_checker_finds_what_only_an_inverse_relation_makes_ambiguous() -> None:
    files = {
        "train": [
            {
                "question": "In which place was Una Vell born?",
                "answer": "Orm Bay",
                "statement": "Una Vell was born during a storm in Orm Bay.",
            },
            {
                "question": "Of which person did Kell Cove see the birth?",
                "answer": "Bo Vell",
                "statement": "Kell Cove saw the birth of Bo Vell.",
            },
        ]
    }
    both = Checker([*templates(), inverse_of_birth()])
    assert both.problems(files) == []
    files["train"][1] = {
        "question": "Of which person did Kell Cove see the birth?",
        "answer": "Una Vell",
        "statement": "Kell Cove saw the birth of Una Vell.",
    }
    assert [problem.split(":")[0] for problem in both.problems(files)] == ["train", "train", "train 1"]
    assert "train: Una Vell has by born_in two targets: Kell Cove, Orm Bay" in both.problems(files)
    assert "train: Una Vell has by birthplace_of two sources: Kell Cove, Orm Bay" in both.problems(files)
    # Without the inverse they would be facts of their own.
    assert Checker([*templates(), {**inverse_of_birth(), "inverse": ""}]).problems(files) == []
    files["train"][1] = {
        "question": "Of which person did Orm Bay see the birth?",
        "answer": "Una Vell",
        "statement": "Orm Bay saw the birth of Una Vell.",
    }
    assert any("said twice" in problem for problem in both.problems(files))


def test_the_checker_finds_templates_that_cannot_be_told_apart() -> None:
    used = made()["train"][0]["meta"]["relation"]
    (row,) = [row for row in templates() if row["relation"] == used and row["source"] == "Person"]
    for column, where in (("statement", "train: "), ("question", "train 1: "), ("phrase", "two_hop 1: ")):
        alike = {**inverse_of_birth(), "inverse": "", column: row[column]}
        found = Checker([*templates(), alike]).problems(made())
        assert any(problem.startswith(f"{where}2 readings") for problem in found)
