"""A judge is proved by references and their corrupted twins; a broken one is found out."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from mixsd import sandbox
from mixsd.errors import UserError
from mixsd.evaluation.benchmarks import benchmark, checking, data
from mixsd.evaluation.benchmarks.benchmark import BENCHMARKS
from mixsd.evaluation.benchmarks.checking import check, survey
from mixsd.evaluation.grading import letters, maths
from mixsd.facts.answers import Expected, Verdict
from mixsd.progress import Task, Watcher
from mixsd.sandbox.judging import Judged

from . import small


@pytest.fixture
def folder(tmp_path: Path) -> str:
    return str(small.write_all(tmp_path / "data"))


class Seen(Watcher):
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.tasks: list[tuple[str, int, list[int]]] = []

    @contextmanager
    def task(self, name: str, total: int) -> Any:
        done: list[int] = []
        self.tasks.append((name, total, done))

        class Counting(Task):
            def advance(self, count: int = 1, note: str = "") -> None:
                done.append(count)

        yield Counting()


def judged(outcome: Any, reason: str | None = None) -> Callable[[str, Expected], Verdict]:
    return lambda reply, expected: Verdict(outcome, "x", reason)


@pytest.mark.parametrize("name", ["aime24", "math500", "gsm8k", "mmlu"])
def test_the_judges_hold(name: str, folder: str) -> None:
    watcher = Seen()
    found = check(name, folder, offline=True, watcher=watcher)
    assert (found["passed"], found["problems"]) == (True, [])
    for form in ("strict", "lenient"):
        assert found[form] == {"right": found["n"], "refused": found["n"], "errors": 0, "exceptions": []}
    assert watcher.tasks == [(f"checking {name}", found["n"], [1] * found["n"])]
    assert json.loads(json.dumps(found)) == found
    assert (found["where"], found["sandbox"]) == (str(Path(folder) / name), None)
    assert found["seconds"] >= 0


def test_humaneval_in_the_real_sandbox(folder: str) -> None:
    if sandbox.isolation().kind == "none":
        pytest.skip("no sandbox here")
    found = check("humaneval", folder, offline=True, allow_code_execution=True)
    assert found["passed"], found
    assert found["sandbox"] == sandbox.isolation().kind


@pytest.mark.parametrize("form", ["strict", "lenient"])
@pytest.mark.parametrize(
    ("outcome", "problems"),
    [
        ("correct", ["3 of 3 corrupted replies are not judged wrong, expected 97% to be"]),
        ("wrong", ["3 of 3 references are not judged right, at most 0 may be"]),
        (
            "unparseable",
            [
                "3 of 3 references are not judged right, at most 0 may be",
                "3 of 3 corrupted replies are not judged wrong, expected 97% to be",
            ],
        ),
        (
            "error",
            [
                "3 of 3 references are not judged right, at most 0 may be",
                "3 of 3 corrupted replies are not judged wrong, expected 97% to be",
                "6 errors of the judge",
            ],
        ),
    ],
)
def test_a_broken_judge(form: str, outcome: str, problems: list[str], folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maths, form, judged(outcome, "why"))
    found = check("gsm8k", folder, offline=True)
    assert found["passed"] is False
    assert found["problems"] == [f"{form}: {text}" for text in problems]
    kinds = {"correct": ["twin"] * 3, "wrong": ["reference"] * 3}.get(outcome, ["reference", "twin"] * 3)
    assert [item["kind"] for item in found[form]["exceptions"]] == kinds
    assert found[form]["exceptions"][0].items() >= {"outcome": outcome, "extracted": "x", "reason": "why"}.items()
    other = "lenient" if form == "strict" else "strict"
    assert found[other]["exceptions"] == []


def test_one_wrong_in_mmlu_is_too_many(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = letters.strict
    replies: list[str] = []

    def forgetful(reply: str, expected: Expected) -> Verdict:
        replies.append(reply)
        return Verdict("wrong", "?") if len(replies) == 1 else honest(reply, expected)

    monkeypatch.setattr(letters, "strict", forgetful)
    found = check("mmlu", folder, offline=True)
    assert found["problems"] == ["strict: 1 of 5 references are not judged right, at most 0 may be"]
    assert found["strict"]["right"] == 4


def test_what_the_data_excuses_passes(folder: str, tmp_path: Path) -> None:
    """MATH-500 may miss three; whatever is missed is told all the same."""
    records = [{**record, "unique_id": f"{place}-{record['unique_id']}", "problem": str(place)}
               for place in range(20) for record in small.MATH500]  # fmt: skip
    for missed, passed in ((3, True), (4, False)):
        changed = [{**record, "solution": "\\boxed{77}"} if place < missed else record for place, record in enumerate(records)]
        small.write(tmp_path / "own" / "math500" / "test.jsonl", changed)
        found = check("math500", str(tmp_path / "own"), offline=True)
        assert found["strict"]["right"] == 40 - missed
        told = [item["id"] for item in found["strict"]["exceptions"] if item["kind"] == "reference"]
        assert told == [record["unique_id"] for record in changed[:missed]]
        assert found["passed"] is passed


def test_judges_that_wait_do_so_side_by_side(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checking.os, "cpu_count", lambda: 3)
    together = threading.Barrier(3, timeout=20)
    honest = maths.strict
    seen: set[str] = set()

    def meeting(reply: str, expected: Expected) -> Verdict:
        # Each of the three items begins with its own reference.
        if reply not in seen:
            seen.add(reply)
            together.wait()
        return honest(reply, expected)

    monkeypatch.setattr(maths, "strict", meeting)
    assert check("gsm8k", folder, offline=True)["passed"]


def test_an_error_stops_the_rest(folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def refusing(reply: str, expected: Expected) -> Verdict:
        calls.append(reply)
        time.sleep(0.01)
        raise UserError("math-verify does not start")

    monkeypatch.setattr(maths, "strict", refusing)
    records = [{"question": str(place), "answer": f"#### {place}"} for place in range(300)]
    small.write(tmp_path / "own" / "gsm8k" / "test.jsonl", [{**r, "answer": "x " + r["answer"]} for r in records])
    with pytest.raises(UserError, match="does not start"):
        check("gsm8k", str(tmp_path / "own"), offline=True)
    assert len(calls) < 300


# Model-written code


def test_code_runs_only_where_it_is_allowed(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("nothing may run")

    monkeypatch.setattr(sandbox, "judge", never)
    monkeypatch.setattr(sandbox, "check", never)
    with pytest.raises(UserError, match="HumanEval runs code that the model writes; allow it with --allow-code-execution"):
        check("humaneval", folder, offline=True)


@pytest.mark.parametrize("weak", [False, True])
def test_the_weak_sandbox_is_handed_on(weak: bool, folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    isolation = sandbox.isolation()

    def allowed(allow_weak: bool) -> Any:
        asked.append(allow_weak)
        return isolation

    def judge(program: str, *, allow_weak: bool, **_: Any) -> Judged:
        asked.append(allow_weak)
        return Judged("return None" not in program, "assertion failed", False)

    monkeypatch.setattr(sandbox, "check", allowed)
    monkeypatch.setattr(sandbox, "judge", judge)
    found = check("humaneval", folder, offline=True, allow_code_execution=True, allow_weak_sandbox=weak)
    assert found["passed"]
    assert set(asked) == {weak}


def test_a_sandbox_that_fails_is_an_error_of_ours(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "check", lambda allow_weak: sandbox.isolation())
    monkeypatch.setattr(sandbox, "judge", lambda *_, **__: Judged(False, "the sandbox did not start", True))
    found = check("humaneval", folder, offline=True, allow_code_execution=True)
    assert "strict: 4 errors of the judge" in found["problems"]
    assert found["strict"]["exceptions"][0]["reason"] == "the sandbox did not start"


def test_what_is_missing_is_named(folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"^AIME-2024: no test "):
        check("aime24", str(tmp_path / "gone"))
    monkeypatch.setattr(benchmark, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"GSM8K needs math-verify: pip install 'math-verify\[antlr4_13_2\]'"):
        check("gsm8k", folder)
    assert check("mmlu", folder)["passed"]


# The list


def test_survey(folder: str, monkeypatch: pytest.MonkeyPatch, no_network: list[Any]) -> None:
    found = survey(folder)
    assert [entry["name"] for entry in found] == list(BENCHMARKS)
    assert [(entry["items"], entry["size"]) for entry in found] == [(2, 30), (2, 500), (3, 1319), (2, 164), (5, 14042)]
    assert {entry["source"] for entry in found} == {"folder"}
    assert [entry["where"] for entry in found] == [str(Path(folder) / name) for name in BENCHMARKS]
    assert [[need["what"] for need in entry["needs"]] for entry in found] == [
        *[["math-verify"]] * 3,
        [f"sandbox {sandbox.isolation().kind}", "--allow-code-execution"],
        [],
    ]
    assert json.loads(json.dumps(found)) == found
    monkeypatch.setenv("MIXSD_DATA", folder)
    assert survey() == found
    assert no_network == []


def test_survey_of_an_empty_machine(
    tmp_path: Path, hub_cache: Path, monkeypatch: pytest.MonkeyPatch, no_network: list[Any]
) -> None:
    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("nothing may be downloaded")

    monkeypatch.setattr(data, "read_hub", never)
    small.write_cache(hub_cache, "openai/gsm8k", "main", {"test": small.GSM8K})
    online = {entry["name"]: (entry["source"], entry["where"], entry["items"]) for entry in survey()}
    assert online["gsm8k"] == ("cache", "hub: openai/gsm8k, in the cache", None)
    assert online["mmlu"] == ("hub", "hub: cais/mmlu (would be downloaded)", None)
    offline = {entry["name"]: (entry["source"], entry["where"]) for entry in survey(offline=True)}
    assert offline["gsm8k"] == online["gsm8k"][:2]
    assert offline["mmlu"][0] == "none"
    assert offline["mmlu"][1].startswith("not found: cais/mmlu is not in the hub's cache, and the network is forbidden")
    given = survey(str(tmp_path))
    assert {entry["source"] for entry in given} == {"none"}
    assert given[0]["where"] == f"not found: no test (.jsonl, .parquet, ...) in {tmp_path}/aime24"
    assert no_network == []


def test_survey_tells_of_data_that_cannot_be_read(folder: str) -> None:
    (Path(folder) / "gsm8k" / "test.jsonl").write_text("{")
    entry = next(entry for entry in survey(folder) if entry["name"] == "gsm8k")
    assert (entry["source"], entry["items"]) == ("folder", None)
    assert "test.jsonl: line 1: not valid JSON" in entry["problem"]


def test_survey_tells_what_is_missing(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checking, "find_spec", lambda name: None)
    monkeypatch.setattr(sandbox, "isolation", lambda: sandbox.Isolation("none", False, False, "No isolation."))
    found = {entry["name"]: entry["needs"] for entry in survey(folder)}
    assert found["gsm8k"] == [{"what": "math-verify", "met": False, "note": "pip install 'math-verify[antlr4_13_2]'"}]
    assert found["humaneval"][0] == {"what": "sandbox none", "met": False, "note": "No isolation."}
    assert found["humaneval"][1]["met"] is None
