"""Judges one model-written function by its tests, in two sandboxed processes.

The program runs in one process, its tests in another (see `worker.py`); they talk through two pipes of which this process
keeps no end. The verdict comes on a third that the program's process never has. What happens before the program is let loose is the
sandbox's own failure; after that nothing is, for else a program could choose not to be counted.
"""

import json
import os
import select
import signal
import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from mixsd.sandbox.isolation import DEFAULT, Limits, Sandboxed, StartError, check, start

_START_S = 60.0  # a loaded machine needs a while to start two interpreters
_GRACE_S = 2.0  # how long after the program's end its tests may take to notice
_MOST_VERDICT = 65536  # bytes


@dataclass(frozen=True)
class Judged:
    """How one program did; `reason` says in a few words why not. `ours`: the sandbox itself failed, the code is not to blame."""

    passed: bool
    reason: str | None
    ours: bool


def judge(code: str, *, prompt: str, test: str, entry_point: str, limits: Limits = DEFAULT, allow_weak: bool = False) -> Judged:
    """Run a program's function against its tests.

    `code` is a whole module; `prompt` what the tests may use of the program's beginning; `test` defines `check(candidate)`.
    Several threads may judge at a time.

    Raises `UserError`: if code cannot be isolated here and `allow_weak` is False.
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
        return _Watch(verdict, program, tests, limits).judged()


class _Watch:
    def __init__(self, reader: int, program: Sandboxed, tests: Sandboxed, limits: Limits) -> None:
        self._reader, self._program, self._tests, self._limits = reader, program, tests, limits
        self._data = b""

    def judged(self) -> Judged:
        why, reason = self._line(_START_S) or ("", "")
        if why != "started":
            return Judged(False, reason or self._unstarted(), True)
        why, reason = self._line(self._limits.wall_seconds, self._program) or self._silence()
        if why == "gone":
            reason = f"the program ended early ({self._ending(self._program.status(_GRACE_S))})"
        return Judged(True, None, False) if why == "passed" else Judged(False, reason, False)

    def _line(self, patience: float, program: Sandboxed | None = None) -> tuple[str, str] | None:
        """The next thing that the tests' process says; None when it has ended, or the time or the program is over."""
        deadline = time.monotonic() + patience
        while b"\n" not in self._data:
            left = deadline - time.monotonic()
            if left <= 0 or len(self._data) > _MOST_VERDICT:
                return None
            if select.select([self._reader], [], [], min(left, 0.25))[0]:
                block = os.read(self._reader, 4096)
                if not block:
                    self._tests.status(_GRACE_S)
                    return None
                self._data += block
            elif program is not None and program.status(0.0) is not None:
                # Its tests see the same and say so, unless something of it still holds the pipe.
                deadline, program = min(deadline, time.monotonic() + _GRACE_S), None
        line, _, self._data = self._data.partition(b"\n")
        try:
            why, reason = json.loads(line)
        except (ValueError, TypeError):
            return None
        return why, reason

    def _unstarted(self) -> str:
        for started in (self._program, self._tests):
            if started.status(0.5) not in (None, 0):
                return f"the sandbox did not start: {started.last_error() or 'no reason given'}"
        return "the sandbox did not start in time"

    def _silence(self) -> tuple[str, str]:
        """Why the tests gave no verdict."""
        ended = self._tests.status(0.0)
        if ended is not None:
            return "wrong", f"the tests were ended ({self._ending(ended)})"
        if self._program.status(0.0) is not None:
            return "gone", ""
        return "wrong", f"took longer than {self._limits.wall_seconds:g} s"

    def _ending(self, status: int | None) -> str:
        if status is None:
            return "hung up"
        if status == 128 + signal.SIGXCPU:
            return f"more than {self._limits.cpu_seconds} s of CPU time"
        return {128 + number: number.name for number in signal.Signals}.get(status, f"exit status {status}")
