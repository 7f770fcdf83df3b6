"""The benchmarks by name; a new one is one new file and one line here."""

from __future__ import annotations

from mixsd.errors import UserError, did_you_mean
from mixsd.evaluation.benchmarks.benchmark import Benchmark
from mixsd.plugins import is_function_name, load_function

# Name -> the function that makes it, imported when asked for. The order is the paper's.
BENCHMARKS = {
    "aime24": "mixsd.evaluation.benchmarks.aime24:aime24",
    "math500": "mixsd.evaluation.benchmarks.math500:math500",
    "gsm8k": "mixsd.evaluation.benchmarks.gsm8k:gsm8k",
    "humaneval": "mixsd.evaluation.benchmarks.humaneval:humaneval",
    "mmlu": "mixsd.evaluation.benchmarks.mmlu:mmlu",
}

# Those whose unweighted mean is the paper's held-out average.
HELD_OUT = ("aime24", "math500", "gsm8k", "humaneval", "mmlu")


def is_benchmark(name: str) -> bool:
    """Whether a suite of this name is a benchmark: one of ours, or the user's `package.module:function` that makes one."""
    return name in BENCHMARKS or is_function_name(name)


def get_benchmark(name: str) -> Benchmark:
    """The benchmark of a name: one of ours, or what the user's `package.module:function` returns.

    Raises:
        UserError: there is none of it.
    """
    if not is_benchmark(name):
        known = [*BENCHMARKS, "package.module:function"]
        raise UserError(f"{name!r}: no such benchmark{did_you_mean(name, known)}; known: {', '.join(known)}")
    made = load_function(BENCHMARKS.get(name, name), f"benchmark {name}")()
    if not isinstance(made, Benchmark):
        raise UserError(f"benchmark {name}: returned {type(made).__name__}, expected a Benchmark")
    return made
