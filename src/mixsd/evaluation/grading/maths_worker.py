"""The process that runs math-verify: one comparison per JSON line in, one verdict per JSON line out.

It is started by `maths_pool` and may be killed at any moment. It ends by itself when its input ends, and, since a huge power holds
the interpreter for hours and hears nothing, by an alarm that the kernel delivers.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from typing import Any

_MEMORY = 2 * 1024**3  # bytes of address space; a fresh worker takes about a tenth
_SPENT = 512 * 1024  # kilobytes of resident memory after which a worker is replaced
_START_S = 120.0


def main() -> None:
    """Serve comparisons until the input ends."""
    # What a library prints must not look like an answer.
    out = os.dup(1)
    os.dup2(2, 1)
    _bound_memory()
    _alarm(_START_S)
    try:
        import sympy  # noqa: F401

        compare({"golds": [r"\frac{1}{2}"], "answer": "0.5"})
        _write(out, {"ready": True})
    except Exception as error:
        _write(out, {"failed": f"{type(error).__name__}: {' '.join(str(error).split())}"})
        return
    _alarm(0)
    for line in sys.stdin.buffer:
        job = json.loads(line)
        _alarm(float(job["limit"]) + 1)  # the parent's limit comes first, unless the parent is gone
        try:
            verdict = compare(job, lambda: _write(out, {"gold_read": True}))
        except MemoryError:
            verdict = {"outcome": "wrong", "reason": "takes too much memory to judge", "spent": True}
        except Exception as error:
            verdict = {"outcome": "wrong", "reason": f"cannot be judged ({type(error).__name__})"}
        _alarm(0)
        _write(out, verdict | {"spent": verdict.get("spent", False) or _resident() > _SPENT})


def compare(job: dict[str, Any], gold_read: Any = None) -> dict[str, Any]:
    """Whether `answer` equals one of the `golds`, all in LaTeX: math-verify's verdict.

    No gold that can be parsed is outcome error; an answer that cannot be parsed is wrong. `gold_read` is called between the two.
    """
    from math_verify import LatexExtractionConfig, parse, verify

    config = [LatexExtractionConfig(boxed_match_priority=0)]

    def read(text: str) -> list[Any]:
        # No timeout: math-verify's own needs signals and does not stop a huge power. No fallback: equal strings are known already.
        parsed: list[Any] = parse(
            f"\\boxed{{{text}}}", config, fallback_mode="no_fallback", extraction_mode="first_match", parsing_timeout=None
        )
        return parsed

    golds = [parsed for gold in job["golds"] if (parsed := read(gold))]
    if not golds:
        return {"outcome": "error", "reason": "math-verify cannot read the gold answer"}
    if gold_read is not None:
        gold_read()
    answer = read(job["answer"])
    if not answer:
        return {"outcome": "wrong", "reason": "math-verify cannot read it"}
    same = any(verify(gold, answer, allow_set_relation_comp=True, timeout_seconds=None) for gold in golds)
    return {"outcome": "correct" if same else "wrong"}


def _write(out: int, message: dict[str, Any]) -> None:
    data = json.dumps(message).encode() + b"\n"
    while data:
        data = data[os.write(out, data) :]


def _alarm(seconds: float) -> None:
    """Let the kernel end this process in so many seconds; 0 takes that back."""
    if hasattr(signal, "setitimer"):
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, seconds)


def _bound_memory() -> None:
    # Very long numbers are refused by the time limit, not by an exception somewhere in sympy.
    sys.set_int_max_str_digits(0)
    logging.disable(logging.CRITICAL)
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    except (ImportError, ValueError, OSError):
        pass  # not every system has such limits; the time limit stays


def _resident() -> int:
    """The most kilobytes that this program ever held, or 0 where that is not known.

    Not getrusage's figure: on Linux that one counts what the parent held when it started this process.
    """
    try:
        with open("/proc/self/status", encoding="ascii") as status:
            return next(int(line.split()[1]) for line in status if line.startswith("VmHWM:"))
    except (OSError, StopIteration, ValueError):
        return 0


if __name__ == "__main__":
    main()
