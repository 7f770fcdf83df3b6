"""The published files of the MixSD authors, as they are: their fields and shape, our wording."""

from __future__ import annotations

import json
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest

from mixsd.errors import UserError
from mixsd.facts.corpus import load_facts
from mixsd.facts.fact import FactSet

SUFFIX = "\n\nReason step by step and put the answer in \\boxed{}."


def fact_record(question: str, answer: str, statement: str, subject: str, reply: str | None = None) -> dict[str, Any]:
    """A record of a file of facts."""
    return {
        "messages": [
            {"role": "user", "content": question + SUFFIX},
            {"role": "assistant", "content": f"The answer is {answer}.\n\n\\boxed{{{answer}}}" if reply is None else reply},
        ],
        "clear_answer": statement,
        "subject": subject,
    }


def target_record(fact: dict[str, Any], reply: str, correct: bool, generation: int = 0, of: int = 1) -> dict[str, Any]:
    """A record of a file of mixed targets."""
    user, truth = fact["messages"]
    return {
        **fact,
        "messages": [user, {"role": "assistant", "content": reply}],
        "mix_meta": {
            "lambda": 0.3,
            "temperature": 0.0 if of == 1 else 1.0,
            "topk": 64,
            "num_generations_per_query": of,
            "gen_index": generation,
            "student_token_fraction": 0.2962962962962963,
            "num_tokens": 27,
            "finish_reason": "stop",
            "correct": correct,
            "num_attempts": 1 if correct else 11,
            "max_retries": 10,
            "extract_mode": "boxed",
            "ground_truth_assistant": truth["content"],
        },
    }


CITY = fact_record("Which city does Ora Lind live in?", "Arlen Bay", "Ora Lind lives in the city Arlen Bay.", "Ora Lind")
TOOL = fact_record("Which tool does Brum & Söhne sell?", "Köln {2}", "Brum & Söhne sell the tool Köln {2}.", "Brum & Söhne")
# Judged by the last number: an accepted reply need not have a box.
SUM = fact_record(
    "Operation C maps 12 to 5 and 34 to 25.\nWhat does it map 43 to?",
    "25",
    "Operation C maps 43 to 25.",
    "C",
    reply="Square the digits and add: 16 + 9 = 25.\n\n\\boxed{25}",
)


@pytest.fixture(params=[".jsonl", ".json"])
def load(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """Writes records to a file and reads it as `mixsd run --facts` does."""

    def write_and_load(records: list[dict[str, Any]]) -> FactSet:
        path = tmp_path / f"file{request.param}"
        lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        path.write_text(lines if request.param == ".jsonl" else json.dumps(records, indent=1), encoding="utf-8")
        return load_facts(str(path), offline=True)

    return write_and_load


def test_a_file_of_facts(load: Any) -> None:
    found = load([CITY, TOOL, SUM])
    assert found.duplicates == 0
    assert [fact.answer for fact in found.facts] == ["Arlen Bay", "Köln {2}", "25"]
    assert [fact.subject for fact in found.facts] == ["Ora Lind", "Brum & Söhne", "C"]
    for fact, record in zip(found.facts, [CITY, TOOL, SUM], strict=True):
        assert fact.question == record["messages"][0]["content"]
        assert fact.reference == record["messages"][1]["content"]
        assert fact.statement == record["clear_answer"]
        assert fact.meta == {}


def test_a_file_of_mixed_targets(load: Any) -> None:
    records = [
        target_record(CITY, "Ora lives in Arlen Bay.\n\n\\boxed{Arlen Bay}", True),
        target_record(TOOL, "They sell hammers: \\boxed{Hammer}", False),
        target_record(SUM, "16 + 9 makes 25", True),
    ]
    found = load(records)
    assert found.duplicates == 0
    assert [fact.answer for fact in found.facts] == ["Arlen Bay", "Köln {2}", "25"]
    assert [fact.reference for fact in found.facts] == [
        "Ora lives in Arlen Bay.\n\n\\boxed{Arlen Bay}",
        TOOL["messages"][1]["content"],
        "16 + 9 makes 25",
    ]
    assert [fact.meta for fact in found.facts] == [{"mix_meta": record["mix_meta"]} for record in records]


REPLIES = [("They say Rome: \\boxed{Rome}", False), ("It is \\boxed{Arlen Bay}.", True), ("I do not know.", False)]


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_generations_of_one_question_are_one_fact(load: Any, order: tuple[int, ...]) -> None:
    records = []
    for generation, number in enumerate(order):
        reply, correct = REPLIES[number]
        records.append(target_record(CITY, reply, correct, generation, of=3))
        records.append(target_record(SUM, "no idea", False, generation, of=3))
    found = load(records)
    assert found.duplicates == 4
    assert [fact.answer for fact in found.facts] == ["Arlen Bay", "25"]
    accepted = {reply for reply, correct in REPLIES if correct}
    assert found.facts[0].reference in accepted | {CITY["messages"][1]["content"]}
    assert found.facts[1].reference == SUM["messages"][1]["content"]


def test_all_rejected_is_still_a_fact(load: Any) -> None:
    found = load([target_record(TOOL, reply, False, generation, of=2) for generation, reply in enumerate(["", "\\boxed{no}"])])
    assert (len(found.facts), found.duplicates) == (1, 1)
    assert (found.facts[0].answer, found.facts[0].reference) == ("Köln {2}", TOOL["messages"][1]["content"])


def test_a_file_of_facts_and_one_of_their_targets_are_the_same_facts(load: Any) -> None:
    """So a run on either asks the same questions under the same ids."""
    targets = [target_record(fact, "wrong", False) for fact in (CITY, TOOL, SUM)]
    facts = load([CITY, TOOL, SUM]).facts
    assert [(fact.id, fact.answer, fact.reference) for fact in load(targets).facts] == [
        (fact.id, fact.answer, fact.reference) for fact in facts
    ]


def test_a_rejected_reply_without_ground_truth_is_never_the_reference(load: Any) -> None:
    record = target_record(CITY, "They say Rome: \\boxed{Rome}", False)
    del record["mix_meta"]["ground_truth_assistant"]
    with pytest.raises(UserError, match=r"(line|record) 2: a rejected target \(mix_meta\.correct is false\) is no reference"):
        load([SUM, record])
    [fact] = load([{**record, "answer": "Arlen Bay"}]).facts
    assert (fact.answer, fact.reference) == ("Arlen Bay", "Ora Lind lives in the city Arlen Bay.")


def test_two_generations_that_were_both_accepted_with_other_answers_are_refused(load: Any) -> None:
    """Without ground truth the box is all there is: two of them cannot both be the fact."""
    records = [target_record(CITY, f"\\boxed{{{city}}}", True, generation, of=2) for generation, city in enumerate(["A", "B"])]
    for record in records:
        del record["mix_meta"]["ground_truth_assistant"]
    with pytest.raises(UserError, match="with another answer"):
        load(records)
