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

from mixsd.sandbox.isolation import Sandboxed, StartError, check, start
from mixsd.sandbox.limits import DEFAULT, Limits

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
        # All ends but that on which the verdict is read belong to the two processes.
        theirs = stack.enter_context(ExitStack())
        (asked, ask), (answered, answer), (verdict, tell) = pipes = [os.pipe() for _ in range(3)]
        for end in (end for pipe in pipes for end in pipe):
            (stack if end == verdict else theirs).callback(os.close, end)
        jobs: list[dict[str, Any]] = [
            {"role": "program", "fds": {"read": asked, "write": answer}, "code": code},
            {"role": "tests", "fds": {"read": answered, "write": ask, "verdict": tell}, "prompt": prompt, "test": test},
        ]
        try:
            program, tests = (stack.enter_context(start(kind, {**job, "entry_point": entry_point}, limits)) for job in jobs)
        except StartError as error:
            return Judged(False, f"the sandbox did not start: {error}", True)
        theirs.close()
        return _Watch(verdict, program, tests, limits).verdict()


class _Watch:
    def __init__(self, reader: int, program: Sandboxed, tests: Sandboxed, limits: Limits) -> None:
        self._reader, self._program, self._tests, self._limits = reader, program, tests, limits
        self._data = b""
        self._closed = False

    def verdict(self) -> Judged:
        first = self._line(time.monotonic() + _START_SECONDS)
        if first is None or first[0] != "started":
            return Judged(False, self._unstarted(first), True)
        why, reason = self._line(time.monotonic() + self._limits.wall_seconds, self._program) or self._silence()
        if why == "gone":
            ended = self._program.status(_GRACE)
            reason = f"the program ended early ({'hung up' if ended is None else self._ending(ended)})"
        return Judged(True, None, False) if why == "passed" else Judged(False, reason, False)

    def _line(self, deadline: float, program: Sandboxed | None = None) -> tuple[str, str] | None:
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
            elif program is not None and program.status(0.0) is not None:
                # Its tests see the same and say so, unless something of it still holds the pipe.
                deadline, program = min(deadline, time.monotonic() + _GRACE), None
        line, _, self._data = self._data.partition(b"\n")
        try:
            why, reason = json.loads(line)
        except (ValueError, TypeError):
            return None
        return str(why), str(reason)

    def _unstarted(self, first: tuple[str, str] | None) -> str:
        if first is not None and first[1]:
            return first[1]
        for started in (self._program, self._tests):
            if started.status(0.5) not in (None, 0):
                return f"the sandbox did not start: {started.last_error() or 'no reason given'}"
        return "the sandbox did not start in time"

    def _silence(self) -> tuple[str, str]:
        """Why the tests gave no verdict."""
        ended = self._tests.status(_GRACE if self._closed else 0.0)
        if ended is not None:
            return "wrong", f"the tests were ended ({self._ending(ended)})"
        if self._program.status(0.0) is not None:
            return "gone", ""
        return "wrong", f"took longer than {self._limits.wall_seconds:g} s"

    def _ending(self, status: int) -> str:
        if status <= 128:
            return f"exit status {status}"
        if status - 128 == signal.SIGXCPU:
            return f"more than {self._limits.cpu_seconds} s of CPU time"
        try:
            return signal.Signals(status - 128).name
        except ValueError:
            return f"signal {status - 128}"
