"""MQuAKE's published file: the edits, the multi-hop answers and the retrieval backgrounds, derived anew from its records."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pytest

from mixsd.facts.answers import contains_answer
from mixsd.facts.corpus import Corpus
from mixsd.facts.fact import unique
from mixsd.facts.published import collect, mquake, read_cases
from tests.facts.mquake_records import background

Published = Callable[[str], str]

MQUAKE_2002 = "mquake/MQuAKE-2002.json"


@pytest.fixture(scope="module")
def raw(published: Published) -> list[dict[str, Any]]:
    cases: list[dict[str, Any]] = json.loads(Path(published(MQUAKE_2002)).read_text(encoding="utf-8"))
    return cases


@pytest.fixture(scope="module")
def real(published: Published) -> Corpus:
    return mquake(published(MQUAKE_2002))


def chosen_edits(real: Corpus) -> dict[tuple[str | None, str], str]:
    return {(fact.subject, fact.meta["relation"]): fact.answer for fact in real.facts()}


def test_real_edits(real: Corpus, raw: list[dict[str, Any]]) -> None:
    facts = list(real.facts())
    assert len(facts) == len(unique((fact.id, fact) for fact in facts).facts) == 100
    counts = Counter(fact.meta["relation"] for fact in facts)
    sizes = Counter(relation for _, relation in {(r["subject"], r["relation_id"]) for c in raw for r in c["requested_rewrite"]})
    assert counts.keys() == sizes.keys()
    open_types = [counts[relation] for relation, size in sizes.items() if counts[relation] < size]
    assert max(open_types) - min(open_types) <= 1
    by_case = {c["case_id"]: c["requested_rewrite"] for c in raw}
    for fact in facts:
        [rewrite] = [r for r in by_case[fact.meta["case"]] if r["question"] == fact.question]
        assert fact.answer == rewrite["target_new"]["str"]
        assert fact.old_answer == rewrite["target_true"]["str"]
        assert fact.statement in (f"{fact.cloze} {fact.answer}.", f"{fact.cloze} {fact.answer}")
        assert fact.cloze == rewrite["prompt"].format(fact.subject)
        assert "  " not in fact.statement
        # A reply with the old answer, or one that only repeats the question, is not the new one.
        for text in (fact.question, fact.old_answer, *fact.meta["old_aliases"]):
            assert not contains_answer(text or "", fact.answer, fact.aliases)


def test_real_edits_that_are_left_out(real: Corpus, raw: list[dict[str, Any]], published: Published) -> None:
    path = Path(published(MQUAKE_2002))
    usable = {(edit.fact.subject, edit.relation): edit.fact.answer for edit in collect(read_cases(path)).edits}
    targets = defaultdict(set)
    for c in raw:
        for r in c["requested_rewrite"]:
            targets[r["subject"], r["relation_id"]].add(r["target_new"]["str"])
    assert [key for key, answers in targets.items() if len(answers) > 1] == [("Ford Mustang", "P176")]
    assert usable["Ford Mustang", "P176"] == "Fiat S.p.A."
    assert all(answer in targets[key] for key, answer in usable.items())
    [note] = [note for note in real.notes if "contradicts" in note]
    assert note.startswith("case 2566: edit left out: ")
    assert note.endswith("of case 231")
    # The others have a note for each case that asks for them.
    gone = targets.keys() - usable.keys()
    cases = {c["case_id"] for c in raw for r in c["requested_rewrite"] if (r["subject"], r["relation_id"]) in gone}
    assert (len(targets), len(usable)) == (2146, 2138)
    assert {int(note.split()[1].rstrip(":")) for note in real.notes if "edit left out" in note} == cases | {2566}


def test_real_multi_hop_answers_by_walking(real: Corpus, raw: list[dict[str, Any]]) -> None:
    """Answers derived anew: the world as the cases tell it, the chosen edits written over it, and a walk along the relations."""
    world: dict[tuple[str, str], set[str]] = defaultdict(set)
    label: dict[str, str] = {}
    for c in raw:
        orig = c["orig"]
        edited = [tuple(triple) for triple in orig["edit_triples"]]
        for triples, labels in (("triples", "triples_labeled"), ("new_triples", "new_triples_labeled")):
            for ids, names in zip(orig[triples], orig[labels], strict=True):
                label[ids[0]], label[ids[2]] = names[0], names[2]
                if triples == "triples" or tuple(ids) not in edited:
                    world[ids[0], ids[1]].add(ids[2])
    chosen = chosen_edits(real)
    changed = {}
    for c in raw:
        for subject, relation, target in c["orig"]["edit_triples"]:
            if chosen.get((label[subject], relation)) == label[target]:
                changed[subject, relation] = target

    def walk(start: str, relations: list[str], edits: dict[tuple[str, str], str]) -> set[str]:
        reached = {start}
        for relation in relations:
            reached = {
                end
                for entity in reached
                for end in ({edits[entity, relation]} if (entity, relation) in edits else world[entity, relation])
            }
        return {label[entity] for entity in reached}

    by_case = {c["case_id"]: c for c in raw}
    tests = list(real.splits["multi_hop"]())
    for test in tests:
        c = by_case[test.meta["case"]]
        relations = [triple[1] for triple in c["orig"]["new_triples"]]
        start = c["orig"]["new_triples"][0][0]
        assert walk(start, relations, changed) == {test.answer}
        assert test.old_answer in walk(start, relations, {})
        assert test.answer not in walk(start, relations, {})
        assert test.question in [question.strip() for question in c["questions"]]
        assert test.meta["hops"] == len(c["single_hops"])
    # No case was forgotten: all that the chosen edits complete are asked, three times, or have a note.
    complete = {
        c["case_id"]
        for c in raw
        if all(chosen.get((r["subject"], r["relation_id"])) == r["target_new"]["str"] for r in c["requested_rewrite"])
    }
    noted = {int(note.split()[1].rstrip(":")) for note in real.notes if "left out of multi_hop" in note}
    asked = Counter(test.meta["case"] for test in tests)
    assert asked.keys() | noted == complete
    assert set(asked.values()) == {3}
    assert len(asked) > 50


def test_real_retrieval_is_held_out(real: Corpus, raw: list[dict[str, Any]]) -> None:
    chosen = {subject for subject, _ in chosen_edits(real)}
    told: dict[str, list[tuple[str, str, str]]] = defaultdict(list)
    for c in raw:
        for r in c["requested_rewrite"]:
            target = r["target_new"]["str"]
            sentence = f"{r['prompt'].format(r['subject'])} {target}"
            told[sentence.rstrip(".") + "."].append((r["subject"], r["relation_id"], target))
    tests = list(real.splits["retrieval"]())
    assert len(tests) == 100
    sharing = 0
    for test in tests:
        lines = background(test)
        assert len(lines) == len(set(lines)) == 50
        assert lines.count(test.statement) == 1
        facts = {told[line][0] for line in lines}
        assert chosen.isdisjoint(subject for subject, _, _ in facts)
        same = [fact for fact in facts if fact[:2] == (test.subject, test.meta["relation"])]
        assert same == [(test.subject, test.meta["relation"], test.answer)]
        # Nobody else is married to the one the question is about, and so on.
        assert not [fact for fact in facts if fact[1] == test.meta["relation"] and fact[2] == test.subject]
        sharing += sum(fact[2] == test.answer or fact[0] in (test.subject, test.answer) for fact in facts) - 1
        assert test.meta["fact"].startswith("mquake-Q")
    assert sharing > 100


def test_real_file_keeps_one_order_for_every_number(real: Corpus, published: Published) -> None:
    """So 50 edits are a part of 100: curves over the number of edits compare like with like."""
    fewer = mquake(published(MQUAKE_2002), edits=50)
    assert all(one == two for one, two in zip_longest(fewer.facts(), list(real.facts())[:50]))
