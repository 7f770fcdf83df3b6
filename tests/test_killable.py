"""Processes that can be killed: limits, deaths, ends, and the scripts that start them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mixsd.killable import DiedError, LateError, Processes


@pytest.fixture
def processes() -> Iterator[Processes]:
    made = Processes()
    yield made
    made.close()


def test_what_a_function_returns_or_raises(processes: Processes) -> None:
    assert processes.run(5, divmod, 7, 2) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        processes.run(5, divmod, 7, 0)
    with pytest.raises(TimeoutError, match="its own"):
        processes.run(5, _raise, TimeoutError("its own"))
    with pytest.raises(RuntimeError, match="its own"):
        processes.run(5, _raise, RuntimeError("its own"))


def _raise(error: Exception) -> None:
    raise error


def test_what_comes_late_is_killed_and_the_next_is_not(processes: Processes) -> None:
    processes.run(5, abs, -1)
    for _ in range(2):
        began = time.monotonic()
        with pytest.raises(LateError):
            processes.run(0.3, pow, 9, 9**9**2)  # holds the interpreter, so that no signal's handler runs
        assert time.monotonic() - began < 20
        assert processes.run(5, abs, -1) == 1


def test_a_function_that_ends_its_process(processes: Processes) -> None:
    with pytest.raises(DiedError) as caught:
        processes.run(5, os._exit, 3)
    assert caught.value.began
    assert processes.run(5, abs, -1) == 1


def _end() -> None:
    os._exit(3)


def test_processes_that_do_not_start() -> None:
    broken = Processes(_end)
    with pytest.raises(DiedError) as caught:
        broken.run(5, abs, -1)
    assert not caught.value.began
    broken.close()


# Neither has `if __name__ == "__main__"`: a spawned process would run it all again.
SCRIPT = """
import os, signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background begins with it ignored
print("begins", flush=True)
from mixsd.killable import Processes
processes = Processes()
print(processes.run(5, abs, -1), flush=True)
{then}
"""


def _script(tmp_path: Path, then: str) -> subprocess.Popen[str]:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(then=then))
    # A session of its own, so that a signal to its group is what Ctrl-C is on a terminal.
    return subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


@pytest.mark.parametrize("then", ["", "processes.close()", "processes.run(5, abs, -1); sys.exit()"])
def test_a_script_is_not_run_again_and_ends_quietly(then: str, tmp_path: Path) -> None:
    out, errors = _script(tmp_path, then).communicate(timeout=60)
    assert (out, errors) == ("begins\n1\n", "")


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="needs process groups")
@pytest.mark.parametrize("work", ["time.sleep(60)", "processes.run(60, pow, 9, 9**9**2)"])
def test_ctrl_c_ends_all(work: str, tmp_path: Path) -> None:
    script = _script(tmp_path, work)
    assert script.stdout is not None
    assert [script.stdout.readline(), script.stdout.readline()] == ["begins\n", "1\n"]
    time.sleep(0.5)
    os.killpg(script.pid, signal.SIGINT)
    began = time.monotonic()
    _, errors = script.communicate(timeout=30)  # all that hold its output have ended, too
    assert time.monotonic() - began < 10
    assert errors.count("Traceback") == 1
    assert errors.rstrip().endswith("KeyboardInterrupt")


def test_a_script_from_standard_input() -> None:
    done = subprocess.run(
        [sys.executable, "-"], input=SCRIPT.format(then=""), check=False, capture_output=True, text=True, timeout=60
    )
    assert (done.stdout, done.stderr) == ("begins\n1\n", "")


def test_this_process_keeps_its_main_module(processes: Processes) -> None:
    main = sys.modules["__main__"]
    processes.run(5, abs, -1)
    assert sys.modules["__main__"] is main
    assert all(child.daemon for child in multiprocessing.active_children())
