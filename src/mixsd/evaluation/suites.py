"""Suites by name: what is asked of base and tuned. A new one is one new file and one line in `SUITES`, or in the benchmarks' table."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from mixsd.errors import UserError, did_you_mean
from mixsd.evaluation.benchmarks.table import BENCHMARKS, get_benchmark, is_benchmark
from mixsd.evaluation.questions import Material, Question
from mixsd.plugins import load_function

# Name -> the function that gives its questions; imported when asked for.
SUITES = {"core": "mixsd.evaluation.core:asked", "in-domain": "mixsd.evaluation.in_domain:questions"}
CORE, IN_DOMAIN = "core", "in-domain"

# What stands for several of them.
QUICK, PAPER = "quick", "paper"
PRESETS = (QUICK, PAPER)

# Begins the name of a task that lm-eval asks and scores.
LM_EVAL = "lm-eval:"


def check_suites(names: list[str]) -> None:
    """Refuse a name that is no suite."""
    known = [*SUITES, *BENCHMARKS, *PRESETS]
    for name in names:
        if name.startswith(LM_EVAL):
            from mixsd.evaluation import lm_eval

            lm_eval.check(name.removeprefix(LM_EVAL))
        elif is_benchmark(name):
            get_benchmark(name)
        elif name not in known:
            raise UserError(
                f"--suite {name!r}: no such suite{did_you_mean(name, known)}; known: {', '.join(known)}, {LM_EVAL}TASK, "
                "package.module:function"
            )


def folder_name(suite: str) -> str:
    """The folder in a run where the replies to a suite are: its name, in characters that any file system takes."""
    return re.sub(r"[^\w.-]+", "-", suite).strip("-.")


def in_order(names: Iterable[str]) -> list[str]:
    """The suites in the order in which they are shown: core, in-domain, the benchmarks, others by name."""
    order = [*SUITES, *BENCHMARKS]
    return sorted(names, key=lambda name: (order.index(name) if name in order else len(order), name))


def questions(name: str, material: Material) -> list[Question]:
    """Everything that a suite asks, in a fixed order; for benchmarks see `mixsd.evaluation.held_out`."""
    function: Callable[[Material], list[Question]] = load_function(SUITES[name], f"suite {name}")
    asked = function(material)
    known: set[str] = set()
    for question in asked:
        if question.key in known:
            raise UserError(f"suite {name}: two questions are called {question.key}; give each its own id")
        known.add(question.key)
    return asked
