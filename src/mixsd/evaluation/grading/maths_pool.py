"""A few worker processes that judge mathematics, each comparison under a time limit that holds.

Workers are started when needed, at most one per CPU, and used by any thread. One that runs late is killed and replaced. They end
with this process however it ends: their input closes, and an alarm of their own ends what no longer listens.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib.util
import json
import os
import selectors
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from typing import Any

from mixsd.errors import UserError

LIMIT_S = 5.0
_START_S = 120.0  # importing sympy takes a second, on a busy machine many
_WORKER = "mixsd.evaluation.grading.maths_worker"


@dataclass(frozen=True)
class Compared:
    """What a worker found: correct, wrong or error, and why where that is not plain."""

    outcome: str
    reason: str | None = None


class _DiedError(Exception):
    """The worker is gone."""


class _LateError(Exception):
    """The worker did not answer in time."""


class _Worker:
    def __init__(self) -> None:
        # -P: a sympy.py in the working directory is not sympy. The worker sees what this process can import.
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        self.process = subprocess.Popen(  # noqa: S603 - our own module
            [sys.executable, "-P", "-m", _WORKER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            env=environment,
            start_new_session=True,  # Ctrl-C is for this process; it then ends its workers
        )
        self._read = b""

    def start(self) -> None:
        message = self.receive(time.monotonic() + _START_S)
        if "failed" in message:
            raise UserError(f"math-verify does not start: {message['failed']}; pip install 'math-verify[antlr4_13_2]'")

    def send(self, job: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        data = memoryview(json.dumps(job).encode() + b"\n")
        try:
            while data:
                data = data[os.write(self.process.stdin.fileno(), data) :]
        except OSError as error:
            raise _DiedError from error

    def receive(self, deadline: float) -> dict[str, Any]:
        """The next message of the worker; raises `_DiedError` or `_LateError`."""
        assert self.process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._read:
                # An answer that is there counts, however late this process comes to look.
                if not selector.select(max(deadline - time.monotonic(), 0)):
                    raise _LateError
                data = os.read(self.process.stdout.fileno(), 65536)
                if not data:
                    raise _DiedError
                self._read += data
        line, _, self._read = self._read.partition(b"\n")
        message: dict[str, Any] = json.loads(line)
        return message

    def end(self) -> None:
        """Kill the worker and take its exit status, so that no zombie stays."""
        with contextlib.suppress(OSError):
            self.process.kill()
        self.let_go()
        with contextlib.suppress(OSError):
            self.process.wait()

    def let_go(self) -> None:
        """Close this process's ends of the pipes."""
        for pipe in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(OSError):
                if pipe is not None:
                    pipe.close()


def _cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Pool:
    """The workers of this process. Thread-safe; a forked child starts with none."""

    def __init__(self) -> None:
        self.size = _cpus()
        self._free = threading.BoundedSemaphore(self.size)
        self._lock = threading.Lock()
        self._idle: list[_Worker] = []
        self._all: set[_Worker] = set()

    def compare(self, golds: list[str], answer: str) -> Compared:
        """Whether the answer equals one of the gold answers, all in LaTeX; waits for a free worker, then at most `LIMIT_S`.

        A comparison that takes longer, or whose worker dies twice, is wrong: the model wrote what cannot be evaluated. Where it was the
        gold answer that was not read by then, it is an error.

        Raises:
            UserError: math-verify is not installed or does not start.
        """
        with self._free:
            for again in (False, True):
                worker = self._take(fresh=again)
                try:
                    return self._ask(worker, golds, answer)
                except _DiedError:
                    continue  # somebody else may have killed it: once more, in a fresh one
                except BaseException:
                    self._drop(worker)
                    raise
            return Compared("wrong", "the process that judged it died")

    def _ask(self, worker: _Worker, golds: list[str], answer: str) -> Compared:
        limit, gold_read = LIMIT_S, False
        deadline = time.monotonic() + limit
        try:
            worker.send({"golds": golds, "answer": answer, "limit": limit})
            while "outcome" not in (message := worker.receive(deadline)):
                gold_read = True
        except _LateError:
            self._drop(worker)
            if gold_read:
                return Compared("wrong", f"not judged within {limit:g} s")
            return Compared("error", f"the gold answer was not read within {limit:g} s")
        except _DiedError:
            self._drop(worker)
            raise
        if message["spent"]:
            self._drop(worker)
        else:
            with self._lock:
                self._idle.append(worker)
        return Compared(message["outcome"], message.get("reason"))

    def _take(self, *, fresh: bool) -> _Worker:
        """An idle worker that lives, else a new one; always a new one if it shall be fresh."""
        with self._lock:
            dead = [worker for worker in self._idle if worker.process.poll() is not None]
            self._idle = [worker for worker in self._idle if worker not in dead]
            if fresh:  # what killed one may have killed the others, even if they do not look dead yet
                dead, self._idle = [*dead, *self._idle], []
            idle = self._idle.pop() if self._idle else None
        for worker in dead:
            self._drop(worker)
        if idle is not None:
            return idle
        _require()
        with self._lock:
            worker = _Worker()
            self._all.add(worker)
        try:
            worker.start()
        except (_DiedError, _LateError) as error:
            self._drop(worker)
            raise UserError("math-verify does not start; try: python -c 'import math_verify'") from error
        except BaseException:
            self._drop(worker)
            raise
        return worker

    def _drop(self, worker: _Worker) -> None:
        worker.end()
        with self._lock:
            self._all.discard(worker)

    def processes(self) -> list[int]:
        """The process ids of the workers there are."""
        with self._lock:
            return [worker.process.pid for worker in self._all]

    def close(self) -> None:
        """End all workers; the next comparison starts new ones."""
        with self._lock:
            workers, self._idle = list(self._all), []
        for worker in workers:
            self._drop(worker)

    def forget(self) -> None:
        """In a forked child: the workers are the parent's, and must not be kept alive by the child's copies of their pipes."""
        for worker in self._all:
            worker.let_go()
            worker.process.returncode = 0  # not ours to wait for
        self.__init__()  # type: ignore[misc]


def _require() -> None:
    if importlib.util.find_spec("math_verify") is None:
        raise UserError("judging mathematics needs math-verify: pip install math-verify[antlr4_13_2]")


POOL = Pool()
atexit.register(POOL.close)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=POOL.forget)
