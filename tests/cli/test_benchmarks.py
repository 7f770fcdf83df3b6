"""`mixsd benchmarks`: the list, and the check with its exit codes."""

import json

import pytest

from mixsd import sandbox
from mixsd.evaluation.grading import letters
from mixsd.facts.answers import Verdict
from tests.evaluation.benchmarks import small


@pytest.fixture(autouse=True)
def _nothing_of_the_users(tmp_path, monkeypatch):
    monkeypatch.delenv("MIXSD_DATA", raising=False)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "hub-cache"))
    small.write_all(tmp_path / "data")


def test_list(mixsd, no_network, tmp_path):
    outcome = mixsd("benchmarks", "--data", "data")
    assert (outcome.code, outcome.err) == (0, "")
    assert (
        f"gsm8k      GSM8K        1,319 published   3 in {tmp_path}/data/gsm8k; not all, so only with --limit 3 or less\n"
        in outcome.out
    )
    assert "needs --allow-code-execution: " in outcome.out
    assert f"needs sandbox {sandbox.isolation().kind}: " in outcome.out
    assert "needs math-verify: installed" in outcome.out
    assert "hub: cais/mmlu (would be downloaded)" in mixsd("benchmarks").out
    assert "not found: cais/mmlu is not in the hub's cache, and the network is forbidden" in mixsd("benchmarks", "--offline").out
    assert no_network == []


def test_list_as_json(mixsd):
    outcome = mixsd("benchmarks", "--data", "data", "--json")
    assert outcome.code == 0
    assert [entry["name"] for entry in json.loads(outcome.out)] == ["aime24", "math500", "gsm8k", "humaneval", "mmlu"]


def test_a_file_that_cannot_be_read_is_told(mixsd, tmp_path):
    (tmp_path / "data" / "mmlu" / "test.jsonl").write_text("\x1b[2J")
    outcome = mixsd("benchmarks", "--data", "data")
    assert outcome.code == 0
    assert "mmlu       MMLU        14,042 published   cannot be read: " in outcome.out
    assert "\x1b" not in outcome.out


def test_check(mixsd, tmp_path):
    outcome = mixsd("benchmarks", "check", "gsm8k", "--data", "data", "--offline")
    assert outcome.code == 0
    lines = outcome.out.splitlines()
    assert lines[0] == f"GSM8K: 3 items (1,319 are published), {tmp_path}/data/gsm8k"
    assert lines[1] == "strict:  references right 3 of 3, twins judged wrong 3 of 3, errors 0"
    assert lines[2] == "lenient: references right 3 of 3, twins judged wrong 3 of 3, errors 0"
    assert lines[3].startswith("holds: judged in ")
    assert "checking gsm8k: 3 to do" in outcome.err
    found = json.loads(mixsd("benchmarks", "check", "gsm8k", "--data", "data", "--json").out)
    assert (found["passed"], found["n"]) == (True, 3)


@pytest.mark.parametrize(("outcome", "what"), [("correct", "twin"), ("wrong", "reference")])
def test_a_check_that_fails(mixsd, monkeypatch, outcome, what):
    monkeypatch.setattr(letters, "strict", lambda reply, expected: Verdict(outcome, "\x1b[31mB"))
    done = mixsd("benchmarks", "check", "mmlu", "--data", "data")
    assert done.code == 1
    assert done.err.splitlines()[-1].startswith("error: MMLU: strict: 5 of 5 ")
    assert "FALLS SHORT: " in done.out
    assert done.out.count(f"  strict {what} of ") == 5
    assert "\x1b" not in done.out
    as_json = mixsd("benchmarks", "check", "mmlu", "--data", "data", "--json")
    assert as_json.code == 1
    assert json.loads(as_json.out)["passed"] is False


def test_many_exceptions_are_cut(mixsd, monkeypatch, tmp_path):
    small.write(tmp_path / "data" / "mmlu" / "test.jsonl", small.mmlu("anatomy", 50, "test"))
    monkeypatch.setattr(letters, "lenient", lambda reply, expected: Verdict("wrong"))
    out = mixsd("benchmarks", "check", "mmlu", "--data", "data").out
    assert out.count("  lenient reference of ") == 20
    assert "  30 more of lenient; --json has all" in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["check", "gsmk"], "'gsmk': no such benchmark (did you mean \"gsm8k\"?); known: aime24, "),
        (["check", "gsm8k", "--data", "gone"], "GSM8K: no test (.jsonl, .parquet, ...) in "),
        (["check", "gsm8k", "--offline"], "GSM8K: openai/gsm8k is not in the hub's cache, and the network is forbidden"),
        (["check", "humaneval", "--data", "data"], "allow it with --allow-code-execution"),
        (["check"], "missing argument 'NAME'"),
        (["gsm8k"], "no such command 'gsm8k'"),
        (["check", "gsm8k", "--dta", "x"], 'no such option: --dta (did you mean "--data"?)'),
        (["--data", "data", "check", "gsm8k"], "options of check stand behind it"),
        (["--json", "check", "gsm8k"], "options of check stand behind it"),
    ],
)
def test_refusals(fails, arguments, said):
    assert said in fails("benchmarks", *arguments)


def test_a_record_that_is_none_is_one_line(mixsd, tmp_path):
    (tmp_path / "data" / "gsm8k" / "test.jsonl").write_text('{"question": "q", "answer": "4"}\n')
    outcome = mixsd("benchmarks", "check", "gsm8k", "--data", "data")
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.startswith(f"error: {tmp_path}/data/gsm8k/test.jsonl: line 1: field answer has no number behind ####")


def test_check_of_humaneval(mixsd):
    if sandbox.isolation().kind == "none":
        pytest.skip("no sandbox here")
    outcome = mixsd("benchmarks", "check", "humaneval", "--data", "data", "--allow-code-execution", "--offline")
    assert outcome.code == 0
    assert f" in the sandbox {sandbox.isolation().kind}" in outcome.out


def test_help(mixsd):
    assert "Nothing is downloaded." in " ".join(mixsd("benchmarks", "--help").out.split())
    assert "--allow-weak-sandbox" in mixsd("benchmarks", "check", "--help").out
