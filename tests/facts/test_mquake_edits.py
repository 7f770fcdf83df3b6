"""MQuAKE's edits: what each says as a fact, which of its aliases tell, and which edits are the same, contradict or cannot be judged."""

from __future__ import annotations

from pathlib import Path

import pytest

from mixsd.errors import UserError
from mixsd.facts.fact import Fact
from mixsd.facts.published import telling
from mixsd.storage import digest, file_digest
from tests.facts.mquake_records import answers, case, load

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


# Which are edits, and which are left out


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
