"""Right programs pass with what tests may ask of them, at several at a time, and an interrupt leaves nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mixsd.sandbox import Judged, Limits
from mixsd.sandbox.judging import judge_in
from tests.sandbox.conftest import PROMPT, Trial, gone, marked

GOOD = Judged(True, None, False)


def test_values_of_all_kinds(kind: str, trial: Trial) -> None:
    code = "def f(*args, **kwargs): return kwargs.get('key', args)"
    test = """
from fractions import Fraction
from decimal import Decimal
def check(candidate):
    values = (None, True, 1, 10**5000, -1.5, float("inf"), 1j, "a\\u00e9\\U0001f600\\ud83d", b"\\0", [1, [2]], (1,), {1, 2},
        frozenset({3}), {"a": 1, (1, 2): [3], None: {}}, Fraction(1, 3), Decimal("1.10"))
    assert candidate(*values) == values
    assert [type(value) for value in candidate(*values)] == [type(value) for value in values]
    nan = candidate(float("nan"))[0]
    assert nan != nan
    assert candidate(key=values[9]) == [1, [2]]
    assert candidate(True) == (True,) and candidate(key=True) is True
"""
    assert trial(kind, code, test=test) == GOOD


def test_subclasses_and_iterators(kind: str, trial: Trial) -> None:
    code = """
from collections import Counter, namedtuple
from enum import IntEnum
def f(x):
    return {0: Counter("aab"), 1: namedtuple("P", "x y")(1, 2), 2: IntEnum("E", "one").one, 3: map(str, [1, 2]), 4: object()}[x]
"""
    test = """
def check(candidate):
    assert candidate(0) == {"a": 2, "b": 1}
    assert candidate(1) == (1, 2)
    assert candidate(2) == 1
    assert tuple(candidate(3)) == ("1", "2")
    assert candidate(3) != ["1", "2"]
    assert candidate(4) != 1 and not candidate(4) == 1
"""
    assert trial(kind, code, test=test) == GOOD


def test_the_tests_use_the_prompt_and_the_function_by_name(kind: str, trial: Trial) -> None:
    prompt = 'import math\ndef helper(x):\n    return x + 1\n\ndef f(x):\n    """Add one."""\n'
    test = "def check(candidate):\n    assert candidate(1) == helper(1) == f(1) == math.floor(2.5)\n"
    assert trial(kind, prompt + "    return helper(x)", prompt=prompt, test=test) == GOOD


def test_expected_exceptions(kind: str, trial: Trial) -> None:
    test = """
def check(candidate):
    try: candidate(-1)
    except ValueError as error: assert str(error) == "negative"
    else: assert False
"""
    assert trial(kind, "def f(x): raise ValueError('negative')", test=test) == GOOD
    assert trial(kind, "def f(x): raise KeyError('negative')", test=test).reason == "KeyError: 'negative'"


def test_state_and_ordinary_modules(kind: str, trial: Trial) -> None:
    code = """
import bisect, collections, dataclasses, datetime, functools, hashlib, heapq, itertools, math, re, statistics, string, typing
import os, tempfile, time
calls = []
@dataclasses.dataclass
class One:
    x: typing.List[int]
@functools.lru_cache
def fib(n): return n if n < 2 else fib(n - 1) + fib(n - 2)
def f(x):
    calls.append(x)
    with tempfile.TemporaryFile() as file: file.write(b"1")
    open("own", "w").write(hashlib.md5(b"").hexdigest())
    return len(calls), fib(200), One([1]).x
if __name__ == "__main__":
    raise SystemExit
"""
    test = "def check(candidate):\n    assert [candidate(0)[0], candidate(0)[0]] == [1, 2]\n    assert candidate(0)[1] > 10**40\n"
    assert trial(kind, code, test=test) == GOOD


def test_the_same_verdict_every_time(kind: str, trial: Trial) -> None:
    code = "import random\ndef f(x): return [list({'a', 'b', 'c', 'd'}), random.random()]"
    test = (
        "import random\ndef check(candidate):\n    assert (candidate(1), random.random()) == 0, (candidate(2), random.random())\n"
    )
    shown = "def check(candidate):\n    raise ValueError(candidate(1), random.random())\n"
    assert trial(kind, code, test=test).reason == "assertion failed"
    reasons = {trial(kind, code, test="import random\n" + shown).reason for _ in range(3)}
    assert len(reasons) == 1


def test_several_threads(kind: str, marker: str) -> None:
    def one(number: int) -> Judged:
        code = f"def f(x): return x * {number}"
        test = f"def check(candidate):\n    assert candidate(3) == {3 * number + number % 2}\n"
        return judge_in(kind, code, prompt=PROMPT, test=test, entry_point="f")

    with ThreadPoolExecutor(8) as pool:
        judged = list(pool.map(one, range(24)))
    assert [found.passed for found in judged] == [number % 2 == 0 for number in range(24)]
    assert not any(found.ours for found in judged)
    assert gone(marker)


def test_time_of_the_tests_counts(kind: str, trial: Trial) -> None:
    judged = trial(
        kind, "def f(x): return 1", test="def check(candidate):\n    while True: pass\n", limits=Limits(wall_seconds=1)
    )
    assert judged == Judged(False, "took longer than 1 s", False)


# A job in a shell's background has Ctrl-C ignored, and passes that on.
SCRIPT = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from mixsd.sandbox import Limits
from mixsd.sandbox.judging import judge_in
kind, marker = sys.argv[1:]
sys.modules["mixsd.sandbox.isolation"]._BOOT += "# " + marker + "\\n"
code = "import signal\\nfor n in (2, 15): signal.signal(n, signal.SIG_IGN)\\nimport os\\nos.fork()\\nos.fork()\\nwhile True: pass"
print(judge_in(kind, code, prompt="def f(x): 1", test="def check(c): pass", entry_point="f", limits=Limits(wall_seconds=100)))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_interrupted(kind: str, number: int, tmp_path: Path) -> None:
    marker = f"mixsd-interrupted-{os.getpid()}-{number}"
    folder = tmp_path / "temporary"
    folder.mkdir()
    command = [sys.executable, "-c", SCRIPT, kind, marker]
    with subprocess.Popen(command, env={**os.environ, "TMPDIR": str(folder)}, stderr=subprocess.DEVNULL) as process:
        try:
            deadline = time.monotonic() + 30
            # The process itself, two workers, the guard of each (two at least of bubblewrap) and three forks.
            least = 8 if kind == "none" else 10
            while (standing := len(marked(marker))) < least and time.monotonic() < deadline:
                time.sleep(0.05)
            assert standing >= least
            process.send_signal(number)
            assert process.wait(20) != 0
        finally:
            process.kill()
    assert gone(marker, patience=10)
    if number == signal.SIGINT or kind != "none":
        assert list(folder.iterdir()) == []
