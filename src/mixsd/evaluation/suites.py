"""Suites by name: what is asked of base and tuned. A new one is one new file and one line in `SUITES`."""

from __future__ import annotations

from collections.abc import Callable

from mixsd.errors import UserError, did_you_mean
from mixsd.evaluation.questions import Material, Question
from mixsd.plugins import load_function

# Name -> the function that gives its questions; imported when asked for.
SUITES = {"core": "mixsd.evaluation.core:asked", "in-domain": "mixsd.evaluation.in_domain:questions"}
CORE, IN_DOMAIN = "core", "in-domain"


def check_suites(names: list[str]) -> None:
    """Refuse a name that is no suite."""
    for name in names:
        if name not in SUITES:
            raise UserError(f"--suite {name!r}: no such suite{did_you_mean(name, SUITES)}; known: {', '.join(SUITES)}")


def questions(name: str, material: Material) -> list[Question]:
    """Everything that a suite asks, in a fixed order."""
    function: Callable[[Material], list[Question]] = load_function(SUITES[name], f"suite {name}")
    asked = function(material)
    known: set[str] = set()
    for question in asked:
        if question.key in known:
            raise UserError(f"suite {name}: two questions are called {question.key}; give each its own id")
        known.add(question.key)
    return asked
