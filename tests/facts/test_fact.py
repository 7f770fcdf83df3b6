"""The fact: its types, its defaults, its way through JSON, and what makes two facts the same."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixsd.errors import UserError
from mixsd.facts.fact import Fact, fact_from_mapping, question_id, to_json, unique

# Text as a file can carry it: no half surrogates; stripped and non-empty, because a fact keeps no other.
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20).map(str.strip).filter(bool)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)
FACTS = st.builds(
    Fact,
    question=TEXTS,
    answer=TEXTS,
    id=TEXTS | st.just(""),
    reference=TEXTS | st.just(""),
    statement=st.none() | TEXTS,
    aliases=st.lists(TEXTS, max_size=3).map(tuple),
    subject=st.none() | TEXTS,
    old_answer=st.none() | TEXTS,
    cloze=st.none() | TEXTS,
    paraphrases=st.lists(TEXTS, max_size=3).map(tuple),
    meta=st.dictionaries(TEXTS, JSON_VALUES, max_size=3),
)


def refusal(values: dict[str, Any]) -> str:
    with pytest.raises(UserError) as caught:
        fact_from_mapping(values, "facts.jsonl: line 7")
    message = str(caught.value)
    assert message.startswith("facts.jsonl: line 7: ")
    assert len(message.splitlines()) == 1
    return message.removeprefix("facts.jsonl: line 7: ")


def test_defaults() -> None:
    fact = Fact("  Who keeps the light? \n", " Ada Vell ")
    assert (fact.question, fact.answer) == ("Who keeps the light?", "Ada Vell")
    assert fact.reference == "The answer is Ada Vell."
    assert fact.id == hashlib.blake2b(b"Who keeps the light?", digest_size=8).hexdigest()
    assert len(fact.id) == 16
    assert (fact.statement, fact.aliases, fact.paraphrases, fact.meta) == (None, (), (), {})


def test_reference_is_the_statement_unless_given() -> None:
    assert Fact("q", "a", statement="It is a.").reference == "It is a."
    assert Fact("q", "a", statement="It is a.", reference="Surely a.").reference == "Surely a."


def test_id_is_the_same_for_composed_and_decomposed_letters_and_any_whitespace() -> None:
    assert question_id("Wo liegt  Ko\u0308ln?") == question_id("Wo liegt\nK\u00f6ln?")
    assert question_id("Wo liegt Köln?") != question_id("Wo liegt Koln?")
    assert Fact("q", "a", id="given").id == "given"


def test_a_fact_is_frozen_and_its_meta_is_its_own() -> None:
    meta = {"page": [1, 2]}
    fact = Fact("q", "a", meta=meta)
    meta["page"].append(3)
    assert fact.meta == {"page": [1, 2]}
    assert hash(fact) == hash(Fact("q", "a", meta={"page": [1, 2]}))
    with pytest.raises(dataclasses.FrozenInstanceError):
        fact.answer = "b"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"question": "q"}, "field answer: missing; every fact needs a question and an answer"),
        ({"answer": "a"}, "field question: missing; every fact needs a question and an answer"),
        ({"question": "q", "answer": None}, "field answer: missing; every fact needs a question and an answer"),
        ({"question": "q", "answer": " \t"}, "field answer: empty; every fact needs a question and an answer"),
        ({"question": "q", "answer": 42}, "field answer: expected text, got a number; put it in quotes"),
        ({"question": "q", "answer": 4.2}, "field answer: expected text, got a number; put it in quotes"),
        ({"question": "q", "answer": True}, "field answer: expected text, got true or false; put it in quotes"),
        ({"question": ["q"], "answer": "a"}, "field question: expected text, got a list"),
        ({"question": {"text": "q"}, "answer": "a"}, "field question: expected text, got an object"),
        ({"question": [{"role": "user", "content": "q"}], "answer": "a"}, "field question: expected text, got a list"),
        ({"question": "q", "answer": "a", "id": 7}, "field id: expected text, got a number; put it in quotes"),
        ({"question": "q", "answer": "a", "cloze": ["c"]}, "field cloze: expected text, got a list"),
        ({"question": "q", "answer": "a", "aliases": "b"}, 'field aliases: expected a list of texts, got text; write ["..."]'),
        ({"question": "q", "answer": "a", "aliases": ["b", 3]}, "field aliases, item 2: expected text, got a number; put it in"),
        ({"question": "q", "answer": "a", "paraphrases": ["b", " "]}, "field paraphrases, item 2: empty; leave it out"),
        ({"question": "q", "answer": "a", "meta": "m"}, "field meta: expected an object, got text"),
        ({"question": "q", "answer": "a", "meta": {"x": float("inf")}}, "field meta: cannot be written as JSON"),
        ({"question": "q", "answer": "a", "meta": {"x": object()}}, "field meta: cannot be written as JSON"),
        ({"question": "q", "answer": "a", "meta": {"x": "\ud800"}}, "field meta: cannot be written as JSON"),
        ({"question": "q \ud800", "answer": "a"}, "field question: contains half of a surrogate pair"),
        ({"question": "q", "anwser": "a"}, 'unknown field "anwser" (did you mean "answer"?); anything else belongs in meta'),
        ({"question": "q", "answer": "a", "zzz": 1}, 'unknown field "zzz"; a fact has question, answer, id'),
        ({"question": "q", "answer": "a", "a\nb": 1}, 'unknown field "a b"'),
        ({"question": "q", "answer": "a", 5: 1}, 'unknown field "5"'),
    ],
)
def test_bad_values_are_refused_in_one_line(values: dict[str, Any], message: str) -> None:
    assert refusal(values).startswith(message)


def test_direct_construction_is_checked_too() -> None:
    with pytest.raises(UserError, match="field answer: expected text, got a list"):
        Fact("q", ["a"])  # type: ignore[arg-type]


def test_blank_and_null_optional_fields_count_as_not_given() -> None:
    values = {"id": "", "reference": " ", "statement": None, "aliases": None, "subject": "", "meta": None}
    assert fact_from_mapping({"question": "q", "answer": "a", **values}, "x") == Fact("q", "a")


def test_to_json_writes_only_what_is_set() -> None:
    assert to_json(Fact("q", "a")) == {"question": "q", "answer": "a", "id": question_id("q")}
    fact = Fact("q", "a", id="k", statement="It is a.", aliases=("b",), meta={"x": 1})
    assert to_json(fact) == {
        "question": "q",
        "answer": "a",
        "id": "k",
        "statement": "It is a.",
        "aliases": ["b"],
        "meta": {"x": 1},
    }


@given(FACTS)
def test_json_round_trip(fact: Fact) -> None:
    assert fact_from_mapping(json.loads(json.dumps(to_json(fact), allow_nan=False)), "x") == fact


def test_repetitions_are_one_fact_and_counted() -> None:
    first = Fact("Wo liegt Köln?", "am  Rhein", subject="Köln")
    again = Fact("Wo  liegt Ko\u0308ln?", "am Rhein")
    other = Fact("Wo liegt Ulm?", "an der Donau")
    found = unique([("line 1", first), ("line 2", again), ("line 3", other), ("line 4", first), ("line 5", again)])
    assert found.facts == [first, other]
    assert found.duplicates == 3


def test_another_answer_is_refused_with_both_places() -> None:
    items = [("a.jsonl: line 3", Fact("q", "Basel")), ("a.jsonl: line 9", Fact(" q", "Bern"))]
    with pytest.raises(UserError) as caught:
        unique(items)
    assert str(caught.value) == (
        'a.jsonl: line 9: the question of a.jsonl: line 3 with another answer ("Bern" here, "Basel" there); keep one of the two'
    )


def test_case_distinguishes_answers() -> None:
    with pytest.raises(UserError, match="another answer"):
        unique([("1", Fact("q", "may")), ("2", Fact("q", "May"))])


def test_one_id_for_two_questions_is_refused_with_both_places() -> None:
    with pytest.raises(UserError, match=r'^line 2: id "k" belongs to another question, line 1; give each its own id$'):
        unique([("line 1", Fact("p", "a", id="k")), ("line 2", Fact("q", "a", id="k"))])


def test_a_given_id_may_not_be_the_hash_of_another_question() -> None:
    with pytest.raises(UserError, match=r"line 2: id .* belongs to another question, line 1"):
        unique([("line 1", Fact("p", "a")), ("line 2", Fact("q", "a", id=question_id("p")))])


def test_the_id_of_a_repetition_that_was_left_out_is_free() -> None:
    found = unique([("1", Fact("p", "a", id="x")), ("2", Fact("p", "a", id="y")), ("3", Fact("q", "a", id="y"))])
    assert [fact.id for fact in found.facts] == ["x", "y"]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("xy")), max_size=8))
def test_unique_agrees_with_a_plain_model(pairs: list[tuple[str, str]]) -> None:
    items = [(f"line {number}", Fact(question, answer)) for number, (question, answer) in enumerate(pairs)]
    if len(set(pairs)) != len({question for question, _ in pairs}):
        with pytest.raises(UserError, match="another answer"):
            unique(items)
    else:
        found = unique(items)
        assert [(fact.question, fact.answer) for fact in found.facts] == list(dict.fromkeys(pairs))
        assert len(found.facts) + found.duplicates == len(pairs)
