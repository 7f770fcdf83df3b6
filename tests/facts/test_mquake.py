"""MQuAKE's corpus of made-up records: which edits are chosen, and which tests its splits ask or leave out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from mixsd.facts import corpus as facts_corpus
from mixsd.facts.corpus import Corpus
from mixsd.facts.fact import Fact
from mixsd.facts.published import ChangedFact, World, collect, evenly, names_of, read_cases
from tests.facts.mquake_records import answers, background, case, load, many

# The choice


def test_edits_that_complete_a_case_alone_come_first(tmp_path: Path) -> None:
    together = [case(n, (f"A{n}x", "P1", f"B{n}x", "Old"), (f"B{n}x", "P1", f"C{n}x", "Old")) for n in range(20)]
    alone = [case(50 + n, (f"D{n}x", "P1", f"E{n}x", "Old")) for n in range(5)]
    for seed in range(3):
        chosen = load(tmp_path, together + alone, edits=5, seed=seed)
        assert {subject for subject, _ in answers(chosen)} == {f"D{n}x" for n in range(5)}


def test_the_choice_is_even_and_drawn_at_addresses(tmp_path: Path) -> None:
    cases = many(90)
    corpus = load(tmp_path, cases, edits=30)
    chosen = list(corpus.facts())
    counts = Counter(fact.meta["relation"] for fact in chosen)
    # P1, P10 and P2 are used up; the other 24 are shared by three.
    assert counts == {"P1": 1, "P10": 2, "P2": 3, "P3": 8, "P4": 8, "P5": 8}
    # Neither the order of the cases nor how many are asked for changes who comes first.
    assert {fact.id for fact in load(tmp_path, cases[::-1], edits=30).facts()} == {fact.id for fact in chosen}
    assert [fact.id for fact in load(tmp_path, cases, edits=12).facts()] == [fact.id for fact in chosen][:12]
    other = load(tmp_path, cases, edits=30, seed=1)
    assert {fact.id for fact in other.facts()} != {fact.id for fact in chosen}
    assert other.identity != corpus.identity


def test_round_robin_takes_each_type_in_turn() -> None:
    def edit(name: str, relation: str) -> ChangedFact:
        return ChangedFact(Fact("q", "a", id=name, meta={"relation": relation}), names_of(name, "", relation))

    edits = [edit(f"{relation}{n}", relation) for relation, size in (("b", 1), ("a", 3), ("c", 2)) for n in range(size)]
    for number in range(7):
        assert [edit.relation for edit in evenly(edits, number, seed=0)] == ["a", "b", "c", "a", "c", "a"][:number]


# Multi-hop questions


def test_multi_hop_asks_complete_cases_only(tmp_path: Path) -> None:
    first, second, other = ("Ann", "P1", "Bea", "Old"), ("Bea", "P2", "Cid", "Dan"), ("Xen", "P3", "Yan", "Zed")
    aliases = {"Bea": ["Beatrice", "Dannie"], "Dan": ["Daniel", "it"], "Cid": ["Cyd", "Daniel"]}
    cases = [
        case(1, first, aliases=aliases),
        case(2, first, second, aliases=aliases),
        case(3, second, ("Cid", "P8", "Far Away")),
        case(4, first, other),
    ]
    corpus = load(tmp_path, cases, edits=2)
    tests = list(corpus.splits["multi_hop"]())
    assert Counter(test.meta["case"] for test in tests) == {1: 3, 2: 3, 3: 3}
    assert tests[3] == Fact(
        "Wording 1: where does chain 2 end?",
        "Cid",
        id="multi_hop-case-2-1",
        reference="The answer is Cid.",
        aliases=("Cyd",),
        old_answer="Dan",
        meta={"case": 2, "hops": 2, "fact": "case-2", "old_aliases": []},
    )
    assert [test.meta["hops"] for test in tests[::3]] == [1, 2, 2]
    assert (tests[-1].answer, tests[-1].old_answer) == ("Far Away", "Earlier")
    # The same answer under the same edit of another case is no conflict.
    assert not any("multi_hop" in note for note in corpus.notes)


def test_a_step_that_another_chosen_edit_changes(tmp_path: Path) -> None:
    """By label, by id, and not where the other edit says the same."""
    changed = ("Bea", "P2", "Cid", "Dan")
    cases = [
        case(1, changed),
        case(2, ("Ann", "P1", "Bea", "Old"), ("Bea", "P2", "Eve")),
        case(3, ("Fay", "P1", "Bea", "Old"), ("Bea", "P2", "Cid")),
        case(4, ("Gus", "P1", "Beata", "Old"), ("Beata", "P2", "Eve")),
        case(5, ("Hal", "P1", "Bea", "Old"), ("Bea", "P3", "Eve")),
    ]
    cases[3]["orig"]["new_triples"][1][0] = "QBea"
    corpus = load(tmp_path, cases, edits=5)
    assert {test.meta["case"] for test in corpus.splits["multi_hop"]()} == {1, 3, 5}
    reason = 'left out of multi_hop: "The P2 of Bea is Cid." of case 1 changes a step of its chain'
    assert [note for note in corpus.notes if "multi_hop" in note] == [f"case 2: {reason}", f"case 4: {reason}"]
    # Without that edit there is no conflict.
    assert len(list(load(tmp_path, cases[1:2], edits=1).splits["multi_hop"]())) == 3


def test_a_case_whose_answers_cannot_be_told_apart(tmp_path: Path) -> None:
    cases = [case(n, (f"A{n}x", "P1", "Bea", "Old"), ("Bea", "P2", "English")) for n in (1, 2, 3)]
    cases[0]["answer"] = "American English"
    cases[1]["questions"][2] = "Is it English?"
    corpus = load(tmp_path, cases, edits=3)
    assert {test.meta["case"] for test in corpus.splits["multi_hop"]()} == {3}
    assert [note for note in corpus.notes if "multi_hop" in note] == [
        'case 1: left out of multi_hop: the new answer "English" stands in the old answer, "American English"',
        'case 2: left out of multi_hop: the new answer "English" stands in the question, "Is it English?"',
    ]


def test_no_complete_case_is_no_split(tmp_path: Path) -> None:
    corpus = load(tmp_path, [case(1, ("Ann", "P1", "Bea", "Old"), ("Bea", "P1", "Cid", "Dan"))], edits=1)
    assert list(corpus.splits) == ["paraphrase", "validation"]
    assert corpus.notes == (
        "no multi_hop: none of the 1 cases has all its edits among those chosen",
        "retrieval: 0 tests, not 1: there are 1 edits about other subjects, and a background needs 50",
    )


# Retrieval


def test_retrieval_asks_about_held_out_edits(tmp_path: Path) -> None:
    cases = many(90)
    corpus = load(tmp_path, cases, edits=30)
    chosen = {fact.subject for fact in corpus.facts()}
    of_statement = {f"The {step[1]} of {step[0]} is {step[2]}.": step for c in cases for step in c["orig"]["new_triples_labeled"]}
    tests = list(corpus.splits["retrieval"]())
    assert len(tests) == len({test.id for test in tests}) == 30
    places = []
    for test in tests:
        lines = background(test)
        assert len(lines) == len(set(lines)) == 50
        assert lines.count(test.statement) == 1
        places.append(lines.index(test.statement or ""))
        told = [of_statement[line] for line in lines]
        assert chosen.isdisjoint(subject for subject, _, _ in told)
        assert [(test.subject, test.meta["relation"], test.answer)] == [tuple(step) for step in told if step[0] == test.subject]
        assert test.question.endswith(
            f"Use the background information to answer this question: What is the {test.meta['relation']} of {test.subject}?"
        )
        assert test.meta["fact"] == f"mquake-Q{test.subject}-{test.meta['relation']}"
        # Those that share the answer come before the rest.
        sharing = {line for line, step in of_statement.items() if step[2] == test.answer and step[0] not in chosen}
        assert {line for line in sharing if not line.startswith("The P9")} <= set(lines)
    assert len(set(places)) > 10


def test_no_statement_gives_a_second_answer(tmp_path: Path) -> None:
    """Another relation of the same subject with answers of the same kind, a longer name of it, and marriage from the other side."""
    fillers = [case(100 + n, (f"F{n}x", "P7", f"G{n}x", "Old G")) for n in range(60)]
    cases = [
        case(1, ("Land", "P6", "Ann", "Bea")),
        case(2, ("Land", "P35", "Cid", "Ann")),  # head of state and head of government share Ann
        case(3, ("Land", "P36", "Town", "City")),  # a capital is no head
        case(4, ("New Land", "P35", "Eve", "Fay")),
        case(5, ("Gus", "P26", "Hal", "Ida")),
        case(6, ("Jim", "P26", "Gus", "Kay")),  # married to Gus
        *fillers,
    ]
    (tmp_path / "m.json").write_text(json.dumps(cases))
    found = collect(read_cases(tmp_path / "m.json"))
    world = World(0, [edit for edit in found.edits if edit.relation == "P7"][:10], found)
    seen = {(test.subject, test.meta["relation"]): set(background(test)) for test in world.retrieval()}
    assert seen.keys() >= {("Land", "P6"), ("Gus", "P26"), ("Jim", "P26")}
    assert seen["Land", "P6"].isdisjoint({"The P35 of Land is Cid.", "The P35 of New Land is Eve."})
    assert "The P36 of Land is Town." in seen["Land", "P6"]
    assert {"The P6 of Land is Ann.", "The P35 of New Land is Eve."}.isdisjoint(seen["Land", "P35"])
    assert "The P26 of Jim is Gus." not in seen["Gus", "P26"]
    assert "The P26 of Gus is Hal." in seen["Jim", "P26"]


# The whole


def everything(corpus: Corpus) -> Iterator[Fact]:
    yield from corpus.facts()
    for split in corpus.splits.values():
        yield from split()


def test_written_and_read(tmp_path: Path) -> None:
    corpus = load(tmp_path, many(90), edits=30)
    counts = facts_corpus.write(corpus, tmp_path / "corpus")
    assert list(counts) == ["train", "paraphrase", "validation", "multi_hop", "retrieval"]
    read = facts_corpus.read(tmp_path / "corpus")
    assert list(everything(read)) == list(everything(corpus))
    assert (read.manners, read.notes) == (corpus.manners, corpus.notes)


def test_the_same_under_any_hash_seed(tmp_path: Path) -> None:
    load(tmp_path, many(90), edits=30)
    program = (
        "import sys; from mixsd.facts import corpus; from mixsd.facts.published import mquake; from pathlib import Path;"
        "corpus.write(mquake(sys.argv[1], edits=30), Path(sys.argv[2]))"
    )
    written = []
    for seed in ("1", "2"):
        folder = tmp_path / seed
        subprocess.run(
            [sys.executable, "-c", program, str(tmp_path / "m.json"), str(folder)],
            env={**os.environ, "PYTHONHASHSEED": seed},
            check=True,
        )
        written.append({path.name: path.read_bytes() for path in sorted(folder.iterdir())})
    assert written[0] == written[1]
