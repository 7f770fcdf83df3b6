"""What is gathered of methods that have no mixed targets, and what checkpoints must not spoil."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from mixsd.facts.fact import Fact
from mixsd.reports import collect
from mixsd.reports.schema import Score
from mixsd.run.session import Session


def session_of(events: dict[str, list[dict[str, Any]]], *, on_policy: bool = False, facts: int = 0) -> Session:
    run = SimpleNamespace(events=lambda name: events.get(name, []))
    made = [Fact(f"Question {number}?", "A", f"f{number}") for number in range(facts)]
    return cast(
        Session,
        SimpleNamespace(run=run, settings=SimpleNamespace(spec=SimpleNamespace(on_policy=on_policy)), facts=made, duplicates=0),
    )


def edit_of(status: str, reason: str | None = None) -> dict[str, Any]:
    return {"id": "x", "status": status, "reason": reason}


def test_an_edit_is_told_by_reasons_that_name_no_fact() -> None:
    facts = [
        edit_of("edited"),
        edit_of("unusable", 'its subject ("Una (Vell)") does not occur in its question'),
        edit_of("unusable", 'its subject ("Bo") does not occur in its question'),
        edit_of("failed", "no value was found"),
    ]
    event = {"facts": facts, "changes": {"3": 0.1, "4": 0.2}, "weight": 614.4, "moment_tokens": 1000, "prefixes": ["The."]}
    found = collect._editing(session_of({"edited": [event]}).run)
    assert found is not None
    assert found.model_dump() == {
        "layers": [3, 4], "changes": {"3": 0.1, "4": 0.2}, "weight": 614.4, "moment_tokens": 1000,
        "edited": 1, "failed": 1, "unusable": 2,
        "reasons": [{"reason": "its subject does not occur in its question", "facts": 2}, {"reason": "no value was found", "facts": 1}],
    }  # fmt: skip
    assert collect._editing(session_of({}).run) is None


def test_facts_that_are_answered_anew_are_trained_on_or_could_not_be_asked() -> None:
    events = {"asked": [{"facts": 1, "unusable": {"f1": "too long"}}]}
    session = session_of(events, on_policy=True, facts=2)
    told = collect._per_fact(session, {}, {})
    assert [(fact["status"], fact["reason"]) for fact in told] == [("accepted", None), ("unusable", "too long")]
    counts = collect._facts(session, {})
    assert counts.model_dump() == {"asked": 2, "accepted": 1, "rejected": 0, "unusable": 1, "duplicates": 0}
    # A model that was tuned elsewhere has facts of which nothing is known.
    assert [fact["status"] for fact in collect._per_fact(session_of({}, facts=1), {}, {})] == [None]


def test_a_requirement_is_checked_on_the_final_model() -> None:
    score = {
        "suite": "core",
        "split": "memorization/trained",
        "metric": "accuracy",
        "model": "tuned",
        "n": 9,
        "low": 0,
        "high": 1,
    }
    scores = [Score(**score, checkpoint=None, value=0.9), Score(**score, checkpoint=20, value=0.1)]
    known = {"memorization": ("core", "memorization/trained", "accuracy")}
    (checked,) = collect._requirements(["memorization>=0.5"], scores, known)
    assert checked.model_dump() == {"text": "memorization>=0.5", "value": 0.9, "passed": True}
