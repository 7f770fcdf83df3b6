"""KGFact's backgrounds: whom they are about, that the nearest statements come first, and where the true one stands."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from tests.facts.kgfact_world import check_backgrounds, ends, made, parts


def test_retrieval_asks_about_other_entities_or_about_the_trained_facts() -> None:
    for size in ("small", "large"):
        held_out, trained = made(size)["retrieval"], made(size, retrieval="trained")["retrieval"]
        facts = made(size)["train"]
        assert facts == made(size, retrieval="trained")["train"]
        assert [parts(row)[1] for row in trained] == [fact["question"] for fact in facts]
        assert [row["meta"]["fact"] for row in trained] == [fact["id"] for fact in facts]
        assert len(held_out) == len(facts)
        asked, known = ({name for row in rows for name in (row["subject"], row["answer"])} for rows in (held_out, facts))
        assert asked.isdisjoint(known)
        # As many of each kind.
        assert Counter(row["meta"]["domains"] for row in held_out) == Counter(fact["meta"]["domains"] for fact in facts)
        check_backgrounds(made(size), "held-out")
        check_backgrounds(made(size, retrieval="trained"), "trained")


def test_trained_entities_in_a_background_are_found() -> None:
    files = {**made(), "retrieval": made(retrieval="trained")["retrieval"]}
    with pytest.raises(AssertionError, match="trained entities"):
        check_backgrounds({**files, "retrieval": [shortened(row) for row in files["retrieval"]]}, "held-out")


def shortened(row: dict[str, Any]) -> dict[str, Any]:
    """With one statement less in the background, not the true one."""
    spare = next(statement for statement in parts(row)[0] if statement != row["statement"])
    return {**row, "question": row["question"].replace(f"- {spare}\n", "", 1)}


def levels(statements: list[str], chosen: set[str]) -> dict[str, int]:
    """How far every statement is from the chosen ones: 1 if they share an entity, 2 if one in between does, and so on."""
    found = dict.fromkeys(chosen, 0)
    reached: set[str] = set()
    level = 0
    while True:
        reached |= {name for statement in found for name in ends(statement)}
        level += 1
        new = [statement for statement in statements if statement not in found and reached.intersection(ends(statement))]
        if not new:
            return {statement: found.get(statement, level) for statement in statements}
        found.update(dict.fromkeys(new, level))


@pytest.mark.parametrize("retrieval", ["held-out", "trained"])
@pytest.mark.parametrize("size", ["small", "large", "2x70", "3x18", "7x2"])
def test_a_background_has_the_nearest_statements(size: str, retrieval: str) -> None:
    """Whatever touches either entity comes before everything else, then the neighbours, then what no path leads to."""
    files = made(size, 3, retrieval)
    trained = [row["statement"] for row in files["train"]]
    by_id = {row["id"]: row["statement"] for row in files["train"]}
    whole = [row["statement"] for row in files["retrieval"]]
    touching = []
    for row in files["retrieval"][::7]:
        distances = levels(whole, {row["statement"]})
        background, _ = parts(row)
        assert sorted(distances[statement] for statement in background) == sorted(distances.values())[: len(background)]
        touching.append(sum(distance == 1 for distance in distances.values()))
    if size == "large":
        # Nothing that touches the entities is ever left out, and there is room for more.
        assert 0 < min(touching) < max(touching) < 49
    for row in files["two_hop_context"][::11]:
        distances = levels(trained, {by_id[key] for key in row["meta"]["hops"]})
        background, _ = parts(row)
        assert sorted(distances[statement] for statement in background) == sorted(distances.values())[: len(background)]


def test_the_true_statement_stands_anywhere() -> None:
    for retrieval, length in (("held-out", 50), ("trained", 51)):
        places = Counter(parts(row)[0].index(row["statement"]) for row in made("large", 0, retrieval)["retrieval"])
        assert set(places) <= set(range(length))
        assert len(places) >= 45
        assert max(places.values()) < 30
        assert 0.42 < sum(place * n for place, n in places.items()) / 525 / (length - 1) < 0.58
