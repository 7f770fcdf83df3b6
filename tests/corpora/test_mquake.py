"""MQuAKE: which edits are taught, which questions they change, and what is left out, on made-up cases and on a published file.

Made-up chains are written as steps (subject, relation, new object) or, edited, (subject, relation, new object, old object).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pytest

from mixsd.answers import contains_answer
from mixsd.corpora import corpus as corpora
from mixsd.corpora.corpus import Corpus
from mixsd.corpora.mquake import World, evenly, mquake
from mixsd.corpora.mquake_cases import read_cases
from mixsd.corpora.mquake_edits import Edit, collect, names_of, telling
from mixsd.errors import UserError
from mixsd.facts import Fact, unique
from mixsd.storage import digest, file_digest

Published = Callable[[str], str]

MQUAKE_2002 = "mquake/MQuAKE-2002.json"


def hop(subject: str, relation: str, answer: str, aliases: dict[str, list[str]]) -> dict[str, Any]:
    return {
        "question": f"What is the {relation} of {subject}?",
        "cloze": f"The {relation} of {subject} is",
        "answer": answer,
        "answer_alias": aliases.get(answer, []),
    }


def case(number: int, *steps: tuple[str, ...], aliases: dict[str, list[str]] | None = None) -> dict[str, Any]:
    """A record of the file; entity X has the id QX."""
    aliases = aliases or {}
    labelled = [list(step[:3]) for step in steps]
    old_end = steps[-1][3] if len(steps[-1]) == 4 else "Earlier"
    return {
        "case_id": number,
        "requested_rewrite": [
            {
                "prompt": f"The {relation} of {{}} is",
                "relation_id": relation,
                "target_new": {"str": new, "id": f"Q{new}"},
                "target_true": {"str": old[0], "id": f"Q{old[0]}"},
                "subject": subject,
                "question": f"What is the {relation} of {subject}?",
            }
            for subject, relation, new, *old in steps
            if old
        ],
        "questions": [f"Wording {n}: where does chain {number} end?" for n in (1, 2, 3)],
        "answer": old_end,
        "answer_alias": aliases.get(old_end, []),
        "new_answer": steps[-1][2],
        "new_answer_alias": aliases.get(steps[-1][2], []),
        "single_hops": [hop(step[0], step[1], step[3], aliases) for step in steps if len(step) == 4],
        "new_single_hops": [hop(step[0], step[1], step[2], aliases) for step in steps],
        "orig": {
            "new_triples": [[f"Q{subject}", relation, f"Q{end}"] for subject, relation, end in labelled],
            "new_triples_labeled": labelled,
        },
    }


def many(number: int) -> list[dict[str, Any]]:
    """So many cases of one edit each, over six relation types of different sizes; every third has a second, unedited step."""
    sizes = [("P1", 1), ("P10", 2), ("P2", 3)]
    relations = [relation for relation, size in sizes for _ in range(size)] + ["P3", "P4", "P5"] * number
    cases = []
    for n in range(number):
        relation = relations[n]
        steps: list[tuple[str, ...]] = [(f"Person {n}x", relation, f"New {relation} {n % 7}x", f"Old {relation}")]
        if n % 3 == 0:
            steps.append((steps[0][2], "P9", "Somewhere"))
        cases.append(case(n, *steps))
    return cases


def load(folder: Path, cases: Any, **options: Any) -> Corpus:
    path = folder / "m.json"
    path.write_text(json.dumps(cases))
    return mquake(str(path), **options)


def answers(corpus: Corpus) -> list[tuple[str | None, str]]:
    return [(fact.subject, fact.answer) for fact in corpus.facts()]


# A fact


def test_an_edit_as_a_fact(tmp_path: Path) -> None:
    aliases = {"New Town": ["NT", "Newtown", "Old Town"], "Old Town": ["OT", "Oldtown", "Newtown"]}
    corpus = load(tmp_path, [case(7, ("Ora Lind", "P19", "New Town", "Old Town"), aliases=aliases)], edits=1)
    [fact] = corpus.facts()
    assert fact == Fact(
        "What is the P19 of Ora Lind?",
        "New Town",
        id="mquake-QOra Lind-P19",
        reference="The answer is New Town.",
        statement="The P19 of Ora Lind is New Town.",
        aliases=(),
        subject="Ora Lind",
        old_answer="Old Town",
        cloze="The P19 of Ora Lind is",
        meta={"relation": "P19", "case": 7, "old_aliases": ["Oldtown"]},
    )
    assert corpus.notes[-1].startswith("aliases of the chosen edits left out: 5 of 6;")
    assert (corpus.name, corpus.labels, corpus.guidance) == ("mquake", ("relation",), "knowledge")
    assert corpus.verifiers == {"plain": "contains", "boxed": "boxed"}
    assert corpus.options == {"seed": 0, "edits": 1, "file": file_digest(tmp_path / "m.json")}


def test_one_full_stop_and_an_id_without_a_triple(tmp_path: Path) -> None:
    record = case(7, ("Ora Lind", "P19", "Bay, D.C.", "Old Town"))
    record["orig"] = {"new_triples": [["Q1", "P5", "Q2"]], "new_triples_labeled": [["Brum", "maker", "Hall"]]}
    [fact] = load(tmp_path, [record], edits=1).facts()
    assert fact.reference == "The answer is Bay, D.C."
    assert fact.statement == "The P19 of Ora Lind is Bay, D.C."
    assert fact.id == f"mquake-{digest('Ora Lind')[:16]}-P19"


@pytest.mark.parametrize(
    ("aliases", "others", "kept"),
    [
        (["it", "IT", "ita", "Italiano"], ["French"], ("Italiano",)),  # codes
        (["CAN", "Can", "USA", "the US", "US", "U.S."], [], ("USA", "the US", "U.S.")),
        (["NO", "NOR", "Norge", "L.", "2B", "🇳🇴"], [], ("Norge", "🇳🇴")),
        (["football", "soccer"], ["Association Football"], ("soccer",)),  # part of the old answer
        (["Britain", "UK."], ["Great Britain"], ()),
        (["Art", "Arts"], ["What kind of art?"], ("Arts",)),  # whole words
        ([" a b c ", "a b c", ""], [], ("a b c",)),
        (["West"], ["New", "Westend"], ("West",)),
        (["one two"], ["one", "two"], ("one two",)),  # not across two texts
    ],
)
def test_aliases_that_tell(aliases: list[str], others: list[str], kept: tuple[str, ...]) -> None:
    assert telling(aliases, others) == kept


def test_old_aliases_are_found_in_any_case(tmp_path: Path) -> None:
    """An edit further down the chain is about a subject that the old chain never reached."""
    first = case(1, ("Ann", "P1", "Bea", "Old"), aliases={"Old": ["Olden"]})
    second = case(2, ("Cid", "P2", "Dan", "Old"))
    second["single_hops"] = []
    facts = list(load(tmp_path, [first, second], edits=2).facts())
    assert [fact.meta["old_aliases"] for fact in facts] == [["Olden"], ["Olden"]]


# Which edits


def test_repeated_edits_are_one_and_contradicting_ones_are_left_out(tmp_path: Path) -> None:
    edit = ("Ann", "P1", "Bea", "Old")
    cases = [case(1, edit), case(2, edit, ("Bea", "P2", "Cid", "Dan")), case(3, ("Ann", "P1", "Eve", "Old")), case(4, edit)]
    corpus = load(tmp_path, cases, edits=2)
    assert answers(corpus) == [("Ann", "Bea"), ("Bea", "Cid")]
    assert corpus.notes[0] == ('case 3: edit left out: "The P1 of Ann is Eve." contradicts "The P1 of Ann is Bea." of case 1')
    assert {test.meta["case"] for test in corpus.splits["multi_hop"]()} == {1, 2, 4}
    with pytest.raises(UserError, match=r"mquake: 3 edits asked for; .*m\.json has 2: choose a number from 1 to that"):
        load(tmp_path, cases, edits=3)
    with pytest.raises(UserError, match="mquake: 0 edits asked for"):
        load(tmp_path, cases, edits=0)


def test_two_subjects_that_a_question_cannot_tell_apart_are_one(tmp_path: Path) -> None:
    """The same label with two ids, and the same id with two labels."""
    cases = [case(n, ("Ann", "P1", new, "Old")) for n, new in enumerate(["Bea", "Cid", "Bea"])]
    cases[1]["orig"]["new_triples"][0][0] = cases[2]["orig"]["new_triples"][0][0] = "QOther"
    cases.append(case(3, ("Anna", "P1", "Dan", "Old")))
    cases[3]["orig"]["new_triples"][0][0] = "QAnn"
    cases.append(case(4, ("Brum", "P2", "Dan", "Old")))
    cases[4]["requested_rewrite"][0]["question"] = "What  is the P1 of Ann?"
    corpus = load(tmp_path, cases, edits=1)
    assert answers(corpus) == [("Ann", "Bea")]
    assert [note[:6] for note in corpus.notes if "contradicts" in note] == ["case 1", "case 3", "case 4"]
    assert {test.meta["case"] for test in corpus.splits["multi_hop"]()} == {0, 2}


def test_an_edit_that_contains_cannot_judge_is_left_out(tmp_path: Path) -> None:
    town = {"Los Angeles": ["Los Angeles, California"]}
    cases = [
        case(1, ("Ann", "P1", "California", "Los Angeles"), aliases=town),
        case(2, ("Lady Madonna", "P2", "Madonna", "Brum")),
        case(3, ("Cid", "P1", "football", "American football")),
        case(4, ("Dan", "P1", "footballs", "American football")),
    ]
    corpus = load(tmp_path, cases, edits=1)
    assert answers(corpus) == [("Dan", "footballs")]
    assert corpus.notes[:3] == (
        'case 1: edit left out: the new answer "California" stands in the old answer, "Los Angeles, California"',
        'case 2: edit left out: the new answer "Madonna" stands in the question, "What is the P2 of Lady Madonna?"',
        'case 3: edit left out: the new answer "football" stands in the old answer, "American football"',
    )


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
    def edit(name: str, relation: str) -> Edit:
        return Edit(name, name, relation, "q", "c", "a", "o", (), (), names_of(name, "", relation), 1)

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


def background(test: Fact) -> list[str]:
    return [line[2:] for line in test.question.splitlines() if line.startswith("- ")]


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


# Errors


def broken(place: str, value: Any) -> list[dict[str, Any]]:
    """Two cases, a field of the second replaced; with `del` as value, removed."""
    cases = [case(n, (f"A{n}x", "P1", "Bea", "Old")) for n in (5, 6)]
    *path, last = [int(part) if part.isdigit() else part for part in place.split(".")]
    inside: Any = cases[1]
    for part in path:
        inside = inside[part]
    if value == "del":
        del inside[last]
    else:
        inside[last] = value
    return cases


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("case_id", "del", "m.json: record 2: field case_id: field required; expected a case of MQuAKE-CF"),
        ("case_id", 1.5, "m.json: record 2: field case_id"),
        ("case_id", 5, "m.json: case 5: is there twice; give each case its own case_id"),
        ("requested_rewrite", [], "m.json: case 6: field requested_rewrite: list should have at least 1 item"),
        ("requested_rewrite", {}, "m.json: case 6: field requested_rewrite: input should be a valid list"),
        ("requested_rewrite.0.subject", " ", "m.json: case 6: field requested_rewrite, 1, subject: string should have at least"),
        (
            "requested_rewrite.0.relation_id",
            27,
            "m.json: case 6: field requested_rewrite, 1, relation_id: input should be a valid",
        ),
        ("requested_rewrite.0.question", None, "m.json: case 6: field requested_rewrite, 1, question: input should be"),
        (
            "requested_rewrite.0.target_new.str",
            "del",
            "m.json: case 6: field requested_rewrite, 1, target_new, str: field required",
        ),
        ("requested_rewrite.0.target_true", "Old", "m.json: case 6: field requested_rewrite, 1, target_true: input should be"),
        ("requested_rewrite.0.prompt", "no place", "m.json: case 6: field requested_rewrite, 1, prompt: must hold {} once"),
        ("requested_rewrite.0.prompt", "{} and {}", "m.json: case 6: field requested_rewrite, 1, prompt: must hold {} once"),
        ("questions", [], "m.json: case 6: field questions: list should have at least 1 item"),
        ("questions.1", 3, "m.json: case 6: field questions, 2: input should be a valid string"),
        ("answer", ["a"], "m.json: case 6: field answer: input should be a valid string"),
        ("new_answer", "del", "m.json: case 6: field new_answer: field required"),
        ("new_answer_alias", "Bea", "m.json: case 6: field new_answer_alias: input should be a valid list"),
        ("answer_alias", [0], "m.json: case 6: field answer_alias, 1: input should be a valid string"),
        ("new_single_hops.0.answer", 0, "m.json: case 6: field new_single_hops, 1, answer: input should be a valid string"),
        ("single_hops", "del", "m.json: case 6: field single_hops: field required"),
        ("orig", "del", "m.json: case 6: field orig: field required"),
        ("orig.new_triples.0", ["Q1", "P1"], "m.json: case 6: field orig, new_triples, 1: list should have at least 3 items"),
        ("orig.new_triples", [], "m.json: case 6: field orig, new_triples_labeled: must have as many steps as new_triples"),
    ],
)
def test_broken_records(tmp_path: Path, place: str, value: Any, message: str) -> None:
    with pytest.raises(UserError) as caught:
        load(tmp_path, broken(place, value), edits=1)
    text = str(caught.value)
    assert text.startswith(f"{tmp_path}/{message}")
    assert len(text.splitlines()) == 1


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone\.json: no such file"):
        mquake(str(tmp_path / "gone.json"))
    with pytest.raises(UserError, match=r"m\.json: expected one list"):
        load(tmp_path, {"cases": []})
    with pytest.raises(UserError, match=r"m\.json: record 1: expected an object"):
        load(tmp_path, ["case"])
    with pytest.raises(UserError, match=r"100 edits asked for; .*m\.json has 0"):
        load(tmp_path, [])


@pytest.mark.parametrize("offline", [False, True])
def test_without_a_file_the_error_tells_where_it_is(no_network: list[Any], offline: bool) -> None:
    with pytest.raises(UserError) as caught:
        mquake(offline=offline)
    assert str(caught.value) == (
        "mquake: needs its file: get datasets/MQuAKE-CF-3k-v2.json from github.com/princeton-nlp/MQuAKE and name it as mquake:PATH"
    )
    assert no_network == []


# The whole


def everything(corpus: Corpus) -> Iterator[Fact]:
    yield from corpus.facts()
    for split in corpus.splits.values():
        yield from split()


def test_written_and_read(tmp_path: Path) -> None:
    corpus = load(tmp_path, many(90), edits=30)
    counts = corpora.write(corpus, tmp_path / "corpus")
    assert list(counts) == ["train", "paraphrase", "validation", "multi_hop", "retrieval"]
    read = corpora.read(tmp_path / "corpus")
    assert list(everything(read)) == list(everything(corpus))
    assert (read.manners, read.notes) == (corpus.manners, corpus.notes)


def test_the_same_under_any_hash_seed(tmp_path: Path) -> None:
    load(tmp_path, many(90), edits=30)
    program = (
        "import sys; from mixsd.corpora import corpus as corpora; from mixsd.corpora.mquake import mquake; from pathlib import Path;"
        "corpora.write(mquake(sys.argv[1], edits=30), Path(sys.argv[2]))"
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


# The published file


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
    usable = {(edit.subject, edit.relation): edit.answer for edit in collect(read_cases(path)).edits}
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
