"""The published problems: every reference solution passes, and none does whose function answers nothing."""

from __future__ import annotations

import gzip
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from mixsd.sandbox import Judged, isolation
from mixsd.sandbox.judging import judge_in
from tests.sandbox.conftest import skip_unless_possible

DATA = Path(os.environ.get("MIXSD_DATA") or Path(__file__).parents[3] / "shared" / "data") / "humaneval" / "HumanEval.jsonl.gz"
pytestmark = pytest.mark.skipif(not DATA.exists(), reason=f"{DATA} is not here; set MIXSD_DATA")


def _judged(kind: str, ending: str, every: int = 1) -> dict[str, Judged]:
    with gzip.open(DATA, "rt", encoding="utf-8") as file:
        problems: list[dict[str, Any]] = [json.loads(line) for line in file]
    assert len(problems) == 164
    problems = problems[::every]

    def one(problem: dict[str, Any]) -> Judged:
        code = problem["prompt"] + problem["canonical_solution"] + ending.format(name=problem["entry_point"])
        return judge_in(kind, code, **{name: problem[name] for name in ("prompt", "test", "entry_point")})

    with ThreadPoolExecutor(2) as pool:
        return dict(zip((problem["task_id"] for problem in problems), pool.map(one, problems), strict=True))


def _check(kind: str, twin_of_every: int = 1) -> None:
    assert {name: found for name, found in _judged(kind, "").items() if not found.passed} == {}
    twins = _judged(kind, "\n\ndef {name}(*args, **kwargs):\n    return None\n", twin_of_every)
    assert {name: found for name, found in twins.items() if found.passed or found.ours} == {}


def test_all_problems() -> None:
    _check(isolation().kind, twin_of_every=4)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bubblewrap", "none"])
def test_all_problems_in_every_kind(kind: str) -> None:
    skip_unless_possible(kind)
    _check(kind)
