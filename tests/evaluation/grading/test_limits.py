"""Limits that hold: time, memory, threads, processes, and workers that somebody kills."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mixsd.errors import UserError
from mixsd.evaluation.grading import code, letters, maths, maths_process
from mixsd.evaluation.grading.maths import stated_answer
from mixsd.facts.answers import Expected, Verdict
from tests.evaluation.grading.conftest import workers

TOWER = "9^{9^{9^9}}"
ENDLESS = {
    "tower": TOWER,
    "factorial": "(10^9)!",
    "sum": r"\sum_{k=1}^{10^9} \frac{1}{k^2}",
    "product": r"\prod_{k=1}^{10^8} k",
    "binomial": r"\binom{10^9}{5\cdot 10^8}",
    "integral": r"\int_0^{\infty} e^{-x^{\sin x}} x^{\cos x} dx",
    "polynomial": "(x+y+z+w+a+b)^{60}",
    "braces": "{" * 900 + "5" + "}" * 900,
    "brackets": "(" * 900 + "1" + ")" * 900,
    "sine": r"\sin(10^{10^{10}})",
}

MOST = min(len(os.sched_getaffinity(0)), 4)  # workers

SLOW = {"product", "binomial", "integral", "brackets", "sine"}  # no other idea than the rest


@pytest.fixture
def second(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A limit of half a second, and workers that are there already, so that a test takes no longer."""
    for _ in range(2):
        assert judge("0.5", r"\frac{1}{2}").outcome == "correct"
    monkeypatch.setattr(maths_process, "LIMIT_S", 0.5)
    yield
    monkeypatch.undo()
    assert judge("0.5", r"\frac{1}{2}").outcome == "correct"  # goes on working


def judge(answer: str, gold: str = "42") -> Verdict:
    return maths.strict(f"\\boxed{{{answer}}}", Expected(gold))


@pytest.mark.usefixtures("second")
@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in ENDLESS])
def test_what_cannot_be_evaluated_is_wrong_in_time(name: str) -> None:
    began = time.monotonic()
    assert judge(ENDLESS[name]) == Verdict(
        "wrong", ENDLESS[name][:200] + "…" * (len(ENDLESS[name]) > 200), "not judged within 0.5 s"
    )
    assert time.monotonic() - began < 20  # half a second, and on a busy machine the start of a worker


def test_the_limit_itself() -> None:
    judge("0.5", r"\frac{1}{2}")
    began = time.monotonic()
    assert judge(TOWER).reason == "not judged within 5 s"
    assert 5 <= time.monotonic() - began < 12  # and on a busy machine the start of a worker, that reads the gold answer


@pytest.mark.parametrize(
    "answer", ["9" * 100_000, "1+" * 50_000 + "1", "{" * 50_000 + "}" * 50_000, "\\frac{1}{" * 20_000, "$" * 100_000]
)
def test_very_long_replies(answer: str) -> None:
    began = time.monotonic()
    assert judge(answer).outcome in ("wrong", "unparseable")
    assert maths.lenient(answer, Expected("42")).outcome in ("wrong", "unparseable")
    assert time.monotonic() - began < 6


@pytest.mark.usefixtures("second")
@pytest.mark.parametrize("answer", ["9" * 1900, "1." + "3" * 1900, r"\frac{1}{" * 120 + "2" + "}" * 120, r"2^{10^7} + 1"])
def test_long_numbers_do_no_harm(answer: str) -> None:
    assert judge(answer, r"\frac{1}{7}").outcome == "wrong"


@pytest.mark.usefixtures("second")
def test_limits_hold_in_threads() -> None:
    answers = [TOWER, "(10^9)!", TOWER, "0.5"]
    began = time.monotonic()
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda answer: judge(answer, r"\frac{1}{2}"), answers))
    assert [verdict.outcome for verdict in found] == ["wrong", "wrong", "wrong", "correct"]
    assert [verdict.reason for verdict in found[:3]] == ["not judged within 0.5 s"] * 3
    assert time.monotonic() - began < 20
    assert len(workers()) <= MOST


def test_many_threads_and_few_workers() -> None:
    pairs = [(f"{n}/{2 * n}", r"\frac{1}{2}") if n % 2 else (f"{n}/{n + 1}", r"\frac{1}{2}") for n in range(2, 62)]
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda pair: judge(*pair).outcome, pairs))
    assert found == ["correct" if n % 2 else "wrong" for n in range(2, 62)]
    assert 1 <= len(workers()) <= MOST


def _in_child(results: multiprocessing.SimpleQueue[object]) -> None:
    maths_process.LIMIT_S = 1.0
    results.put((judge("0.5", r"\frac{1}{2}").outcome, judge(TOWER).reason, workers()))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_limits_hold_in_child_processes(method: str) -> None:
    judge("0.5", r"\frac{1}{2}")
    ours = workers()
    context = multiprocessing.get_context(method)
    results = context.SimpleQueue()
    child = context.Process(target=_in_child, args=(results,))
    child.start()
    outcome, reason, theirs = results.get()
    child.join(60)
    assert (outcome, reason, child.exitcode) == ("correct", "not judged within 1 s", 0)
    assert theirs
    assert not set(ours) & set(theirs)
    assert judge("0.25", r"\frac{1}{4}").outcome == "correct"
    assert sorted(workers()) == sorted(ours)


@pytest.mark.parametrize("wait_s", [0, 0.5])
def test_killing_all_workers_at_once_is_survived(wait_s: float) -> None:
    judge("0.5", r"\frac{1}{2}")
    for pid in workers():
        os.kill(pid, signal.SIGKILL)
    time.sleep(wait_s)
    assert judge("0.25", r"\frac{1}{4}") == Verdict("correct", "0.25")


def test_killing_a_worker_at_work_is_survived(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maths_process, "LIMIT_S", 2.0)
    judge("0.5", r"\frac{1}{2}")
    with ThreadPoolExecutor(1) as threads:
        late = threads.submit(judge, TOWER)
        time.sleep(1)
        killed = workers()
        for pid in killed:
            os.kill(pid, signal.SIGKILL)
        assert late.result(30).outcome == "wrong"
    assert judge("0.25", r"\frac{1}{4}") == Verdict("correct", "0.25")
    assert not set(killed) & set(workers())
    assert all(_gone(pid) for pid in killed)  # taken leave of: no zombie


def _gone(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return True
    # Where nobody takes in orphans, as in some containers, a dead one stays a zombie of the first process.
    return state == "Z" and int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]) != os.getpid()


PARENT = r"""
import json, multiprocessing, sys, threading, time
from mixsd.facts.answers import Expected
from mixsd.evaluation.grading import maths, maths_process
assert not {"sympy", "math_verify"} & set(sys.modules)
maths_process.LIMIT_S = float(sys.argv[2])
maths.strict("\\boxed{0.5}", Expected("\\frac{1}{2}"))
if sys.argv[1] == "busy":
    threading.Thread(target=maths.strict, args=("\\boxed{9^{9^{9^9}}}", Expected("42")), daemon=True).start()
    time.sleep(0.5)
print(json.dumps([child.pid for child in multiprocessing.active_children()]), flush=True)
if sys.argv[3] == "stay":
    time.sleep(60)
"""


@pytest.mark.skipif(not Path("/proc/self/limits").exists(), reason="looks at limits in /proc")
def test_the_memory_of_a_worker_is_bounded() -> None:
    judge("0.5", r"\frac{1}{2}")
    until = time.monotonic() + 60
    while not all(_bounded(pid) for pid in workers()):  # the others of them still start
        assert time.monotonic() < until
        time.sleep(0.05)


def _bounded(pid: int) -> bool:
    limits = Path(f"/proc/{pid}/limits").read_text()
    return all(re.search(wanted, limits) for wanted in ("Max address space +2147483648 ", "Max core file size +0 "))


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes in /proc")
@pytest.mark.parametrize(("work", "end"), [("idle", "exit"), ("busy", "exit"), ("idle", "kill"), ("busy", "kill")])
def test_no_worker_outlives_its_parent(work: str, end: str) -> None:
    command = [sys.executable, "-c", PARENT, work, "1.5", "stay" if end == "kill" else "leave"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        workers = json.loads(parent.stdout.readline())
        assert workers
        if end == "kill":
            parent.kill()
        parent.wait(30)
    until = time.monotonic() + 10
    while not all(_gone(pid) for pid in workers):
        assert time.monotonic() < until
        time.sleep(0.05)


def test_a_gold_answer_that_cannot_be_read_is_our_error(monkeypatch: pytest.MonkeyPatch) -> None:
    assert judge("5", r"\frac{}{}{").outcome == "error"
    assert judge("5", " ").outcome == "error"
    judge("0.5", r"\frac{1}{2}")
    monkeypatch.setattr(maths_process, "LIMIT_S", 1.0)
    assert judge("5", "(" * 900 + "1" + ")" * 900) == Verdict("error", "5", "the gold answer was not read within 1 s")


def test_without_math_verify_only_the_spelling_judges(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert judge("0.5", "0.50").outcome == "correct"
    with pytest.raises(UserError, match=r"pip install math-verify"):
        judge("0.5", r"\frac{1}{2}")


BROKEN = """
import sys
from mixsd.facts.answers import Expected
from mixsd.evaluation.grading import maths
sys.path.insert(0, sys.argv[1])
maths.strict("\\\\boxed{0.5}", Expected("\\\\frac{1}{2}"))
"""


@pytest.mark.parametrize(
    ("code", "said"), [("raise ImportError('no antlr')", "math-verify does not start: ImportError: no antlr; pip install"),
                       ("import os; os._exit(3)", "math-verify does not start; try: python -c 'import math_verify'")]
)  # fmt: skip
def test_a_math_verify_that_does_not_start(code: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "math_verify.py").write_text(code)
    done = subprocess.run([sys.executable, "-c", BROKEN, str(tmp_path)], check=False, capture_output=True, text=True, timeout=120)
    assert f"UserError: {said}" in done.stderr


@pytest.mark.parametrize(
    ("error", "reason"), [(MemoryError(), "takes too much memory to judge"), (KeyError("x"), "cannot be judged (KeyError)")]
)
def test_what_goes_wrong_in_a_worker_is_said(error: Exception, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker's own function, in this process: what it answers when math-verify raises, and whether it shall be replaced."""

    def fail(*_: object, **__: object) -> bool:
        raise error

    monkeypatch.setattr("math_verify.verify", fail)
    judged, spent = maths_process._verified(["1"], "2")
    assert judged == ("wrong", reason)
    assert spent or not isinstance(error, MemoryError)


@pytest.mark.parametrize(
    "piece", [*" a9$*`_([{^√\n", "$a", r"\(", "answer ", "**A.", "A ", "A.\n", "def f(x):\n", "import a\n", r"\text{"]
)
def test_extraction_is_quick_on_any_long_reply(piece: str) -> None:
    reply = (piece * 50_000)[:50_000]
    began = time.monotonic()
    letters.lenient(reply, Expected("A"))
    letters.strict(f"\\boxed{{{reply}}}", Expected("A"))
    code.lenient_program(reply, "def f(x):\n", "f")
    code.program(f"```\n{reply}", "def f(x):\n", "f")
    stated_answer(reply)
    assert time.monotonic() - began < 5


LARGE = """
import json, multiprocessing
from mixsd.facts.answers import Expected
from mixsd.evaluation.grading import maths
held = bytearray(700_000_000)
held[::4096] = b"x" * len(held[::4096])
seen = []
for answer in ("x^2 - 1", "(x - 1)^2 + 2x - 2", "x^2 + 1"):
    maths.strict("\\\\boxed{" + answer + "}", Expected("(x - 1)(x + 1)"))
    seen.append(sorted(child.pid for child in multiprocessing.active_children()))
print(json.dumps(seen))
"""


def test_a_large_parent_keeps_its_worker() -> None:
    """A model in memory is the parent's: Linux counts it as the child's own in getrusage, and each comparison had a new worker."""
    done = subprocess.run([sys.executable, "-c", LARGE], check=True, capture_output=True, text=True, timeout=120)
    seen = json.loads(done.stdout)
    assert seen[0]
    assert seen[0] == seen[1] == seen[2]
