"""Chat records as facts: the shape of the authors' files, and every other shape refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mixsd.errors import UserError
from mixsd.facts.corpus import load_facts, to_fact
from mixsd.facts.fact import Fact

QUESTION = "In which city does Ora Lind live?"


def chat(question: Any = QUESTION, reply: Any = "Arlen Bay.\n\n\\boxed{Arlen Bay}", **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": reply}], **more}


def refusal(values: dict[str, Any]) -> str:
    with pytest.raises(UserError) as caught:
        to_fact(values, "f.jsonl: line 2")
    message = str(caught.value)
    assert message.startswith("f.jsonl: line 2: ")
    assert len(message.splitlines()) == 1
    return message.removeprefix("f.jsonl: line 2: ")


def test_a_record_as_the_authors_publish_it() -> None:
    values = chat(clear_answer="Ora Lind lives in Arlen Bay.", subject="Ora Lind", domain="Person", split=None)
    assert to_fact(values, "x") == Fact(
        "In which city does Ora Lind live?",
        "Arlen Bay",
        reference="Arlen Bay.\n\n\\boxed{Arlen Bay}",
        statement="Ora Lind lives in Arlen Bay.",
        subject="Ora Lind",
        meta={"domain": "Person"},
    )


@pytest.mark.parametrize(
    ("reply", "answer"),
    [
        ("\\boxed{a}", "a"),
        ("first \\boxed{a}, then \\boxed{ b }.", "b"),
        ("\\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
        ("\\boxed{a} but \\boxed{b", "a"),
        ("\\boxed{a \\boxed{b}}", "b"),
    ],
)
def test_the_answer_is_the_last_box_whose_braces_match(reply: str, answer: str) -> None:
    assert to_fact(chat(reply=reply), "x").answer == answer


def test_an_explicit_answer_wins() -> None:
    fact = to_fact(chat(reply="It is 1/2: \\boxed{0.5}", answer="1/2", id="k", aliases=["0.5"], meta={"page": 1}), "x")
    assert (fact.answer, fact.id, fact.aliases, fact.meta) == ("1/2", "k", ("0.5",), {"page": 1})
    assert to_fact(chat(reply="Half.", answer="1/2"), "x").reference == "Half."


def test_an_accepted_target_is_the_reference_and_the_ground_truth_gives_the_answer() -> None:
    mix_meta = {"lambda": 0.3, "correct": True, "ground_truth_assistant": "\\boxed{Arlen Bay}"}
    fact = to_fact(chat(reply="She lives in \\boxed{ARLEN BAY}", mix_meta=mix_meta), "x")
    assert (fact.answer, fact.reference, fact.meta) == ("Arlen Bay", "She lives in \\boxed{ARLEN BAY}", {"mix_meta": mix_meta})


@pytest.mark.parametrize("reply", ["She lives in \\boxed{Rome}", ""])
def test_a_rejected_target_is_no_reference(reply: str) -> None:
    truth = "The answer is Arlen Bay.\n\n\\boxed{Arlen Bay}"
    fact = to_fact(chat(reply=reply, mix_meta={"correct": False, "ground_truth_assistant": truth}), "x")
    assert (fact.answer, fact.reference) == ("Arlen Bay", truth)
    message = refusal(chat(reply=reply, mix_meta={"correct": False}))
    assert message == "a rejected target (mix_meta.correct is false) is no reference; leave this record out"


USER, REPLY, SYSTEM = ({"role": role, "content": "\\boxed{x}"} for role in ("user", "assistant", "system"))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"messages": "hello"}, "field messages: input should be a valid list"),
        ({"messages": []}, "field messages: expected one user turn, then one assistant turn; found: none"),
        ({"messages": [USER]}, "field messages: expected one user turn, then one assistant turn; found: user"),
        ({"messages": [REPLY, USER]}, "field messages: expected one user turn, then one assistant turn; found: assistant, user"),
        ({"messages": [USER, REPLY, USER, REPLY]}, "field messages: expected one user turn, then one assistant turn; found:"),
        (
            {"messages": [SYSTEM, USER, REPLY]},
            "field messages: a system turn belongs to the run, not to a fact; remove it",
        ),
        ({"messages": [USER, "reply"]}, "field messages, 2: input should be a valid dictionary"),
        ({"messages": [USER, {"role": "assistant"}]}, "field messages, 2, content: field required"),
        ({"messages": [{"content": "q"}, REPLY]}, "field messages, 1, role: field required"),
        ({"messages": [USER, {**REPLY, "tool_calls": []}]}, "field messages, 2, tool_calls: extra inputs are not permitted"),
        (chat([{"type": "text", "text": "q"}]), "field messages, 1, content: input should be a valid string"),
        (chat(reply={"text": "a"}), "field messages, 2, content: input should be a valid string"),
        (chat(" "), "field question: empty"),
        (chat(reply="no box"), "field answer: missing, and the assistant turn has no \\boxed{...}; add answer"),
        (chat(reply="\\boxed{}"), "field answer: missing, and the assistant turn has no \\boxed{...}; add answer"),
        (chat(reply=" ", answer="a"), "field messages: the assistant turn is empty"),
        (chat(answer=7), "field answer: expected text, got a number; put it in quotes"),
        (chat(clear_answer=["s"]), "field clear_answer: input should be a valid string"),
        (chat(question_="q", subject=3), "field subject: expected text, got a number"),
        ({**chat(), "question": "q"}, "field question: the user turn says it already; leave one out"),
        (chat(reference="r"), "field reference: the assistant turn says it already; leave one out"),
        (chat(clear_answer="s", statement="t"), "field statement: clear_answer says it already; leave one out"),
        (chat(meta={"page": 1}, page=2), '"page" is both beside messages and in meta; leave one out'),
        (chat(meta=[1], page=2), "field meta: expected an object, got a list"),
        (chat(mix_meta="m"), "field mix_meta: input should be a valid dictionary"),
        (
            chat(mix_meta={"ground_truth_assistant": [1]}),
            "field mix_meta, ground_truth_assistant: input should be a valid string",
        ),
    ],
)
def test_other_shapes_are_refused(values: dict[str, Any], message: str) -> None:
    assert refusal(values).startswith(message)


def test_a_turn_may_have_the_columns_of_others_without_a_value() -> None:
    """As a table has them: where one row of a Parquet file has tool calls, every row has the column."""
    wide = tuple({**turn, "name": None, "tool_calls": None} for turn in (USER, REPLY))
    assert to_fact({"messages": wide, "tools": None}, "row 1") == to_fact({"messages": [USER, REPLY]}, "row 1")
    with pytest.raises(UserError, match=r"field messages, 2: input should be a valid dictionary$"):
        to_fact({"messages": [USER, "reply"]}, "row 1")


def test_chat_and_plain_records_in_one_file(tmp_path: Path) -> None:
    path = tmp_path / "f.jsonl"
    rows = [chat("q1", "\\boxed{a}"), {"question": "q2", "answer": "b", "messages": None}, chat("q1", "It is \\boxed{a}.")]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    found = load_facts(str(path))
    assert [(fact.question, fact.answer) for fact in found.facts] == [("q1", "a"), ("q2", "b")]
    assert found.duplicates == 1
