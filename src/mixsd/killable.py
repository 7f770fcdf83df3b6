"""Functions that may never come back, in a few processes that can be killed.

A huge power or a pattern that backtracks holds the interpreter: only the end of its process stops it. The processes are pebble's. They
are spawned, for a copy of this one would hold its model, but neither run the user's script again nor hear Ctrl-C. They end with this
process however it ends: their input closes, and an alarm ends what no longer listens.
"""

import os
import re
import signal
import sys
import threading
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.context import SpawnContext, SpawnProcess
from types import ModuleType
from typing import Any, ParamSpec, TypeVar

from pebble import ProcessExpired, ProcessPool

# Names in the environment by which a launcher (torchrun) tells a process that it is one of several; its children are not.
LAUNCHED = re.compile(r"(\w+_)?RANK|(\w+_)?WORLD_SIZE|MASTER_\w+|TORCHELASTIC_\w+")
_MOST_PROCESSES = 4  # each holds libraries of its own, and most calls take milliseconds
_ATTEMPTS = 3
_START_S = 120  # importing sympy takes a second, on a busy machine many
_LOOK_S = 1.0  # between two looks whether the pool still works: one that breaks forgets what was just scheduled

P = ParamSpec("P")
T = TypeVar("T")


class LateError(Exception):
    """The function did not come back in time; its process was killed."""


class DiedError(Exception):
    """The process died each time. `began`: whether one of them had begun with the function."""

    def __init__(self, began: bool) -> None:
        super().__init__("its process died")
        self.began = began


class Processes:
    """A few processes that run functions under a time limit; started when needed, at most one per CPU, used by any thread.

    `prepare`, a function of a module as all that runs there, is called first in each process and has two minutes.
    """

    def __init__(self, prepare: Callable[[], None] | None = None) -> None:
        self._prepare = prepare
        self._lock = threading.Lock()
        self._pool: ProcessPool | None = None
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._forget)

    def run(self, limit: float, function: Callable[P, T], *args: P.args, **named: P.kwargs) -> T:
        """What the function returns or raises. It waits for a free process and then has `limit` seconds; if that dies, it begins again.

        Raises:
            LateError: it takes longer.
            DiedError: its process died three times.
        """
        began = False
        for _ in range(_ATTEMPTS):
            pool = self._current()
            try:
                future = pool.schedule(_bounded, (limit, function, args, named), timeout=limit)
                while not future.done():
                    try:
                        future.exception(_LOOK_S)
                    except TimeoutError:
                        if not pool.active:
                            raise BrokenProcessPool from None
                raised, value = future.result()
            except TimeoutError:
                raise LateError from None
            except ProcessExpired:
                began = True
            except RuntimeError:  # all processes died at once, or another thread closed the pool
                self._end(pool)
            else:
                if raised:
                    raise value
                return value  # type: ignore[no-any-return]
        raise DiedError(began)

    def close(self) -> None:
        """End the processes. What runs in them begins again in new ones, which the next call starts."""
        if self._pool is not None:
            self._end(self._pool)

    def _current(self) -> ProcessPool:
        with self._lock:
            if self._pool is None:
                cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
                workers = min(cpus, _MOST_PROCESSES)
                self._pool = ProcessPool(workers, initializer=_begin, initargs=(self._prepare,), context=_Context())
            return self._pool

    def _end(self, pool: ProcessPool) -> None:
        with self._lock:
            if self._pool is not pool:
                return
            self._pool = None
        pool.stop()
        pool.join()

    def _forget(self) -> None:
        """In a forked child: the processes are the parent's."""
        self._pool, self._lock = None, threading.Lock()


def _begin(prepare: Callable[[], None] | None) -> None:
    _alarm(_START_S)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # pebble's handler would wait for the interpreter
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    if prepare is not None:
        prepare()
    _alarm(0)


def _bounded(limit: float, function: Callable[..., Any], args: Any, named: Any) -> tuple[bool, Any]:
    """Whether the function raised, and what it raised or returned: the exceptions of a future are the pool's alone."""
    _alarm(limit + 1)  # the parent's limit comes first, unless the parent is gone
    try:
        return False, function(*args, **named)
    except Exception as error:
        return True, error
    finally:
        _alarm(0)


def _alarm(seconds: float) -> None:
    """Let the kernel end this process in so many seconds; 0 takes that back."""
    if hasattr(signal, "setitimer"):
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, seconds)


_STARTING = threading.Lock()


class _Process(SpawnProcess):
    def start(self) -> None:
        """Start without the user's script, which may lack `if __name__ == "__main__"`, and deaf to Ctrl-C."""
        self.daemon = True  # the end of this process does not wait for it
        with _STARTING:
            main = sys.modules["__main__"]
            # Multiprocessing names the script by these two. Other threads still find everything else that they look for.
            nameless = ModuleType("__main__")
            vars(nameless).update({name: value for name, value in vars(main).items() if name not in ("__file__", "__spec__")})
            heard = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT}) if hasattr(signal, "pthread_sigmask") else None
            sys.modules["__main__"] = nameless
            try:
                super().start()
            finally:
                sys.modules["__main__"] = main
                if heard is not None:
                    signal.pthread_sigmask(signal.SIG_SETMASK, heard)


class _Context(SpawnContext):
    Process = _Process  # type: ignore[assignment]


def end_with_parent() -> None:
    """In a process that was started with a pipe as its input: end it when the pipe closes, which it does however the parent ends."""

    def wait_for_the_end() -> None:
        while os.read(0, 1):  # nothing is ever written; and a buffered reader would be locked when the process wants to end
            pass
        os._exit(1)

    threading.Thread(target=wait_for_the_end, daemon=True).start()
