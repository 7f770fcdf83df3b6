"""math-verify under a time limit that holds: each comparison runs in one of a few processes that can be killed."""

import importlib.util
import logging
import sys
from contextlib import suppress
from typing import Any

from mixsd.errors import UserError
from mixsd.facts.answers import Outcome
from mixsd.killable import DiedError, LateError, Processes

LIMIT_S = 5.0
_MEMORY = 2 * 1024**3  # bytes of address space; a fresh process takes about a tenth
_SPENT = 512 * 1024  # kilobytes of memory after which the processes are replaced

_Judged = tuple[Outcome, str | None]


def compare(golds: list[str], answer: str) -> _Judged:
    """Whether the answer equals one of the gold answers, all in LaTeX: correct, wrong or error, and why where that is not plain.

    A comparison that takes longer than `LIMIT_S`, too much memory, or whose process dies each time, is wrong: the model wrote what
    cannot be evaluated. A gold answer that cannot be read, in this time or at all, is an error.
    """
    if importlib.util.find_spec("math_verify") is None:
        raise UserError("judging mathematics needs math-verify: pip install math-verify[antlr4_13_2]")
    try:
        judged, spent = PROCESSES.run(LIMIT_S, _verified, golds, answer)
    except LateError:
        try:
            PROCESSES.run(LIMIT_S, _readable, golds)
        except LateError:
            return "error", f"the gold answer was not read within {LIMIT_S:g} s"
        except DiedError:
            pass
        return "wrong", f"not judged within {LIMIT_S:g} s"
    except DiedError as error:
        if not error.began:
            raise UserError("math-verify does not start; try: python -c 'import math_verify'") from error
        return "wrong", "the process that judged it died"
    if spent:
        PROCESSES.close()
    return judged


def _prepare() -> None:
    """Bound what a process may take, and import what it needs; a failure is kept for the first comparison to raise."""
    global _failure
    # Very long numbers are refused by the time limit, not by an exception somewhere in sympy.
    sys.set_int_max_str_digits(0)
    logging.disable(logging.CRITICAL)
    with suppress(ImportError, ValueError, OSError):  # not every system has such limits; the time limit stays
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    try:
        _same([r"\frac{1}{2}"], "0.5")
    except Exception as error:
        _failure = f"{type(error).__name__}: {' '.join(str(error).split())}"


_failure: str | None = None
PROCESSES = Processes(_prepare)


def _verified(golds: list[str], answer: str) -> tuple[_Judged, bool]:
    """In a process of its own: the verdict, and whether that process has come to hold too much."""
    if _failure:
        raise UserError(f"math-verify does not start: {_failure}; pip install 'math-verify[antlr4_13_2]'")
    try:
        judged = _same(golds, answer)
    except MemoryError:
        return ("wrong", "takes too much memory to judge"), True
    except Exception as error:
        judged = "wrong", f"cannot be judged ({type(error).__name__})"
    return judged, _most_held() > _SPENT


def _same(golds: list[str], answer: str) -> _Judged:
    from math_verify import verify

    read = _read(golds)
    if not read:
        return "error", "math-verify cannot read the gold answer"
    said = _read([answer])
    if not said:
        return "wrong", "math-verify cannot read it"
    same = any(verify(gold, said[0], allow_set_relation_comp=True, timeout_seconds=None) for gold in read)
    return "correct" if same else "wrong", None


def _readable(golds: list[str]) -> None:
    with suppress(Exception):  # as `_verified` has it: not the gold answer's time
        _read(golds)


def _read(texts: list[str]) -> list[list[Any]]:
    from math_verify import LatexExtractionConfig, parse

    config = [LatexExtractionConfig(boxed_match_priority=0)]
    # No timeout: math-verify's own needs signals and does not stop a huge power. No fallback: equal strings are known already.
    options: dict[str, Any] = {"fallback_mode": "no_fallback", "extraction_mode": "first_match", "parsing_timeout": None}
    return [parsed for text in texts if (parsed := parse(f"\\boxed{{{text}}}", config, **options))]


def _most_held() -> int:
    """The most kilobytes that this program ever held, or 0: not getrusage's figure, which on Linux counts the parent's at the start."""
    with suppress(OSError), open("/proc/self/status", encoding="ascii") as status:
        return next((int(line.split()[1]) for line in status if line.startswith("VmHWM:")), 0)
    return 0
