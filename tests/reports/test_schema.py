"""`report.json` as a model: what is written is what is read, and what is no report is told apart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mixsd.errors import UserError
from mixsd.reports.rows import measure_of
from mixsd.reports.schema import Report, read_report
from mixsd.statistics import Estimate
from tests.reports import benchmarked, sample

REPORTS = {
    "mixsd": sample.report,
    "opsd": lambda: sample.of_method("opsd"),
    "memit": lambda: sample.of_method("memit"),
    "choices": lambda: sample.with_choices(sample.of_method("mixsd-kl")),
    "benchmarks": benchmarked.report,
    "alone": benchmarked.alone,
}


def _holds(made: Any, given: Any) -> bool:
    """Whether everything given is in what was made; a field of the model may be added, none may be lost or changed."""
    if isinstance(given, dict):
        return all(name in made and _holds(made[name], value) for name, value in given.items())
    if isinstance(given, list):
        return len(made) == len(given) and all(map(_holds, made, given))
    return bool(made == given)


@pytest.mark.parametrize("name", REPORTS)
def test_a_report_comes_back_as_it_was(name: str, tmp_path: Path) -> None:
    given = REPORTS[name]()
    made = Report.model_validate(given)
    assert _holds(made.model_dump(mode="json"), given)
    file = tmp_path / "report.json"
    file.write_text(made.model_dump_json())
    assert read_report(file) == made
    assert made.schema_version == 1


def test_a_score_is_an_estimate_at_a_place() -> None:
    made = Report.model_validate(sample.with_choices(sample.of_method("mixsd")))
    score = next(item for item in made.scores if (item.metric, item.model) == ("accuracy", "tuned"))
    assert score.key == ("core", "memorization/trained", "accuracy", "tuned", None)
    assert measure_of("accuracy").estimate(score) == Estimate(23 / 24, 0.798, 0.993, 24, "share", over="")
    assert len({item.key for item in made.scores}) == len(made.scores) > sum(item.final for item in made.scores)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"schema_version": 2}, "schema_version: Input should be 1"),
        ({"schema_version": None}, "schema_version: Input should be 1"),
        ({"scores": [{"suite": "core"}]}, r"scores\.0\.split"),
        ({"unheard_of": 1}, "unheard_of"),
    ],
)
def test_what_another_version_wrote_is_refused(change: dict[str, Any], told: str, tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    with pytest.raises(UserError, match=r"has no report\.json"):
        read_report(file)
    file.write_text(json.dumps({**sample.report(), **change}))
    with pytest.raises(UserError, match=f"{told}.*writes it anew"):
        read_report(file)
