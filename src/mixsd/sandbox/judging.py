"""Judges one model-written function by its tests, in two sandboxed processes.

The program runs in one process, its tests in another (see `worker.py`); they talk through two pipes of which this process
keeps no end. The verdict comes on a third that the program's process never has, and this process only reads it, waits for
it so long, and ends both. What happens before the program is let loose is the sandbox's own failure; after that nothing is,
for else a program could choose not to be counted.
"""

from __future__ import annotations

import json
import os
import select
import signal
import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from mixsd.sandbox.isolation import check
from mixsd.sandbox.limits import DEFAULT, Limits
from mixsd.sandbox.starting import Started, StartError, start

# A loaded machine needs a while to start two interpreters; the clock of the program does not run yet.
_START_SECONDS = 60.0
# How long after the program's end its tests may take to notice.
_GRACE = 2.0
_MOST_VERDICT = 65536


@dataclass(frozen=True)
class Judged:
    """How one program did."""

    passed: bool
    reason: str | None
    """why not, in a few words"""
    ours: bool
    """the sandbox itself failed; the code is not to blame"""


def judge(code: str, *, prompt: str, test: str, entry_point: str, limits: Limits = DEFAULT, allow_weak: bool = False) -> Judged:
    """Run a program's function against its tests.

    `code` is a whole module; `prompt` what the tests may use of the program's beginning; `test` defines `check(candidate)`.
    Several threads may judge at a time.

    Raises:
        UserError: if code cannot be isolated here and `allow_weak` is False.
    """
    return judge_in(check(allow_weak).kind, code, prompt=prompt, test=test, entry_point=entry_point, limits=limits)


def judge_in(kind: str, code: str, *, prompt: str, test: str, entry_point: str, limits: Limits = DEFAULT) -> Judged:
    """`judge` in a sandbox of this kind."""
    with ExitStack() as stack:
        pipes = _Pipes(stack)
        try:
            job: dict[str, Any] = {"role": "program", "fds": pipes.program(), "code": code, "entry_point": entry_point}
            program = start(kind, job, limits)
            stack.callback(program.end)
            job = {"role": "tests", "fds": pipes.tests(), "prompt": prompt, "test": test, "entry_point": entry_point}
            tests = start(kind, job, limits)
            stack.callback(tests.end)
        except StartError as error:
            return Judged(False, f"the sandbox did not start: {error}", True)
        pipes.close_theirs()
        return _Watch(pipes.verdict, program, tests, limits).verdict()


class _Pipes:
    """The pipes of one judgement; this process keeps the reading end of the verdict only."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack.enter_context(ExitStack())
        self._calls, self._replies = self._pipe(), self._pipe()
        reader, self._telling = os.pipe()
        self.verdict = reader
        stack.callback(os.close, reader)
        self._stack.callback(os.close, self._telling)

    def _pipe(self) -> tuple[int, int]:
        ends = os.pipe()
        for end in ends:
            self._stack.callback(os.close, end)
        return ends

    def program(self) -> dict[str, int]:
        return {"read": self._calls[0], "write": self._replies[1]}

    def tests(self) -> dict[str, int]:
        return {"read": self._replies[0], "write": self._calls[1], "verdict": self._telling}

    def close_theirs(self) -> None:
        self._stack.close()


class _Watch:
    def __init__(self, reader: int, program: Started, tests: Started, limits: Limits) -> None:
        self._reader, self._program, self._tests, self._limits = reader, program, tests, limits
        self._data = b""
        self._closed = False

    def verdict(self) -> Judged:
        first = self._line(time.monotonic() + _START_SECONDS)
        if first is None or first[0] != "started":
            return Judged(False, self._unstarted(first), True)
        last = self._line(time.monotonic() + self._limits.wall_seconds, self._program)
        if last is None:
            return Judged(False, self._silence(), False)
        why, reason = last
        if why == "passed":
            return Judged(True, None, False)
        return Judged(False, self._words(why, reason), False)

    def _line(self, deadline: float, program: Started | None = None) -> tuple[str, str] | None:
        """The next thing that the tests' process says; None when it has ended, or the time or the program is over."""
        while b"\n" not in self._data:
            left = deadline - time.monotonic()
            if left <= 0 or len(self._data) > _MOST_VERDICT:
                return None
            ready, _, _ = select.select([self._reader], [], [], min(left, 0.25))
            if ready:
                block = os.read(self._reader, 4096)
                if not block:
                    self._closed = True
                    return None
                self._data += block
            elif program is not None and program.process.poll() is not None:
                # Its tests see the same and say so, unless something of it still holds the pipe.
                deadline, program = min(deadline, time.monotonic() + _GRACE), None
        line, _, self._data = self._data.partition(b"\n")
        try:
            why, reason = json.loads(line)
        except (ValueError, TypeError):
            return None
        return str(why), str(reason)

    def _unstarted(self, first: tuple[str, str] | None) -> str:
        if first is not None and first[0] == "unusable":
            return f"the tests cannot be loaded: {first[1]}"
        for started in (self._program, self._tests):
            if started.status(0.5) not in (None, 0):
                return f"the sandbox did not start: {started.said() or 'no reason given'}"
        return "the sandbox did not start in time"

    def _silence(self) -> str:
        """Why the tests gave no verdict."""
        ended = self._tests.status(_GRACE if self._closed else 0.0)
        if ended is not None:
            return f"the tests were ended ({self._ending(ended)})"
        if self._program.status(0.0) is not None:
            return self._words("gone", "")
        return f"took longer than {self._limits.wall_seconds:g} s"

    def _words(self, why: str, reason: str) -> str:
        if why == "gone":
            ended = self._program.status(_GRACE)
            return f"the program ended early ({'hung up' if ended is None else self._ending(ended)})"
        words = {
            "assertion": "assertion failed",
            "entry": "the code does not define the function",
            "garbage": "answered with something that is no result",
            "unfit": f"a result is {reason}",
        }
        return words.get(why) or reason or why

    def _ending(self, status: int) -> str:
        if status <= 128:
            return f"exit status {status}"
        if status - 128 == signal.SIGXCPU:
            return f"more than {self._limits.cpu_seconds} s of CPU time"
        try:
            return signal.Signals(status - 128).name
        except ValueError:
            return f"signal {status - 128}"
