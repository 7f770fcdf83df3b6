"""KGFact's sizes and options, its facts, and the splits that ask about them: other wordings, and two facts joined."""

from __future__ import annotations

import json
from collections import Counter
from itertools import combinations
from typing import Any

import pytest

from mixsd.errors import UserError
from mixsd.facts.kgfact import kgfact
from tests.facts.kgfact_world import DATA, DOMAINS, made, parts

# Sizes


@pytest.mark.parametrize(
    ("size", "facts", "pairs", "entities"),
    [
        (None, 100, 10, 10),
        ("small", 100, 10, 10),
        ("large", 525, 21, 25),
        ("7x2", 42, 21, 2),
        ("2x40", 40, 1, 40),
        ("07x01", 21, 21, 1),
    ],
)
def test_each_entity_of_a_pair_of_domains_gives_one_fact(size: str | None, facts: int, pairs: int, entities: int) -> None:
    corpus = kgfact(size)
    found = [fact.meta["domains"] for fact in corpus.facts()]
    assert len(found) == facts
    assert Counter(found) == dict.fromkeys(dict.fromkeys(found), entities)
    assert len(set(found)) == pairs
    assert set(found) <= {f"{one}-{other}" for one, other in combinations(DOMAINS, 2)}
    assert (corpus.options["domains"] * (corpus.options["domains"] - 1) // 2, corpus.options["entities"]) == (pairs, entities)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"size": "huge"}, 'size "huge": unknown; known: small, large, DOMAINSxENTITIES (such as 7x1000)'),
        ({"size": "larg"}, 'did you mean "large"?'),
        ({"size": ""}, 'size "": unknown'),
        ({"size": "7 x 4"}, 'size "7 x 4": unknown'),
        ({"size": "7x"}, 'size "7x": unknown'),
        ({"size": "-7x4"}, 'size "-7x4": unknown'),
        ({"size": "1x5"}, 'size "1x5": from 2 to 14 domains'),
        ({"size": "0x5"}, 'size "0x5": from 2 to 14 domains'),
        ({"size": "15x5"}, 'size "15x5": from 2 to 14 domains'),
        ({"size": "7x0"}, 'size "7x0": from 2 to 14 domains, and at least one entity'),
        ({"size": "8x10"}, "between 7 domains only (none for PhysicalObject)"),
        ({"size": "14x1"}, "TimePeriod"),
        ({"retrieval": "trainee"}, "--retrieval 'trainee': expected held-out or trained"),
    ],
)
def test_what_cannot_be_made_is_named_in_one_line(values: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as caught:
        kgfact(**values)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


# Facts and splits


def test_a_fact_has_its_reference_its_subject_and_the_answer_as_sentences_have_it() -> None:
    found = set()
    for row in made("large")["train"]:
        name, domains = row["answer"], row["meta"]["domains"]
        target = domains.split("-")[1]
        assert row["reference"] == f"The answer is {name}."
        assert row["subject"] in row["question"]
        assert name in row["statement"]
        assert name not in row["question"]
        assert list(row["meta"]) == ["relation", "domains"]
        aliases = {
            "Event": [f"the {name}"],
            "Skill": [f"the {name}"],
            "Profession": [f"the {name} profession", f"{name} profession"],
        }
        assert row.get("aliases", []) == aliases.get(target, [])
        assert any(text in row["statement"] for text in (*row.get("aliases", [name]), f"The {name}"))
        found.add(target)
    assert found == set(DOMAINS[1:])
    assert kgfact().labels == ("relation", "domains")


@pytest.mark.parametrize("size", ["small", "large"])
def test_the_wordings_are_ten_frames_each_and_none_is_in_both(size: str) -> None:
    frames = json.loads((DATA / "frames.json").read_text("utf-8"))
    assert len({*frames["report"], *frames["validation"]}) == 20
    for split, name in (("paraphrase", "report"), ("validation", "validation")):
        used = Counter()
        for row, fact in zip(made(size)[split], made(size)["train"], strict=True):
            assert row["question"].count(fact["question"]) == 1
            used[row["question"].replace(fact["question"], "{question}")] += 1
            assert row["meta"] == {**fact["meta"], "fact": fact["id"]}
            assert row["id"] == f"{split}-{fact['id']}"
            assert {k: v for k, v in row.items() if k not in ("id", "question", "meta")} == {
                k: v for k, v in fact.items() if k not in ("id", "question", "meta")
            }
        assert set(used) == set(frames[name])
        assert max(used.values()) < 3 * len(made(size)["train"]) / 10


@pytest.mark.parametrize(
    ("size", "each"), [("small", {10}), ("large", {15}), ("3x8", {8}), ("4x5", {5}), ("6x10", {7, 8}), ("7x1", {0, 1})]
)
def test_two_hop_questions_join_two_trained_facts_and_are_spread_evenly(size: str, each: set[int]) -> None:
    files = made(size)
    facts = {row["id"]: row for row in files["train"]}
    kinds = Counter(row["meta"]["domains"] for row in files["two_hop"])
    number = kgfact(size).options["domains"]
    assert {kinds["-".join(triple)] for triple in combinations(DOMAINS[:number], 3)} == each
    if size == "large":
        # Nor are some entities left out.
        assert len({facts[row["meta"]["hops"][0]]["subject"] for row in files["two_hop"]}) > 110
    assert len(files["two_hop"]) == len({row["question"] for row in files["two_hop"]}) <= len(facts)
    for row, context in zip(files["two_hop"], files["two_hop_context"], strict=True):
        first, second = (facts[key] for key in row["meta"]["hops"])
        assert first["answer"] == second["subject"]
        # The middle must be found, not read.
        assert first["answer"] not in row["question"]
        assert first["subject"] in row["question"]
        assert (row["answer"], row.get("aliases")) == (second["answer"], second.get("aliases"))
        assert row["statement"] == f"{first['statement']} {second['statement']}"
        source, middle = first["meta"]["domains"].split("-")
        assert row["meta"]["domains"] == f"{source}-{middle}-{second['meta']['domains'].split('-')[1]}"
        assert row["id"] == f"two_hop-{row['meta']['fact']}"
        assert parts(context)[1] == row["question"]
        assert context["id"] == f"two_hop_context-{row['meta']['fact']}"
        same = ("answer", "aliases", "statement", "meta")
        assert [context.get(name) for name in same] == [row.get(name) for name in same]
