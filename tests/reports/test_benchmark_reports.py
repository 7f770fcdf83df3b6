"""What a run with benchmarks ends in: its page, its terminal table, and a comparison of two such runs."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

import mixsd
from mixsd.cli import show
from mixsd.commands import inject
from mixsd.storage import read_json
from tests.evaluation.test_benchmarks import beside, data, models  # noqa: F401 - fixtures

CODE = {"allow_code_execution": True, "allow_weak_sandbox": True}


def test_all_of_them_beside_the_base(
    models: Path,  # noqa: F811
    tmp_path: Path,
    data: Path,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    options: dict[str, Any] = {**CODE, "suite": ["core", "aime24", "math500", "gsm8k", "humaneval", "mmlu"], "aime_samples": 2}
    one = beside(models, tmp_path, data, **options, facts="demo")
    report = read_json(one / "report.json")
    assert (report["alone"], report["elsewhere"]) == (False, True)
    page = (one / "report.html").read_text(encoding="utf-8")
    for text in ("Held-out average", "GSM8K", "base beside tuned", "How the replies ended", "scorer"):
        assert text in page
    show.report(one)
    said = capsys.readouterr().out
    assert "asked: AIME-2024: " in said
    assert "Held-out" in said
    assert "unparseable" in said

    other = tmp_path / "other"
    shutil.copytree(one, other)
    (other / "log.jsonl").write_text((one / "log.jsonl").read_text().replace('"tuned", "hash": "', '"tuned", "hash": "0'))
    result = mixsd.compare([one, other])
    pairs = {pair["measure"]: pair["difference"] for pair in result["paired"]}
    assert pairs["mmlu/mmlu"]["value"] == pairs["held_out_average"]["value"] == 0.0
    assert pairs["mmlu/mmlu"]["low"] < 0 < pairs["mmlu/mmlu"]["high"]
    assert "held_out_drop" in result["measures"]


def test_one_model_alone(
    models: Path,  # noqa: F811
    tmp_path: Path,
    data: Path,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "alone"
    inject.evaluate(models / "tuned", suite=["gsm8k"], output=str(folder), data=str(data), offline=True, benchmark_tokens=12)
    show.report(folder)
    said = capsys.readouterr().out
    assert "evaluated only: tuned, alone" in said
    assert "change" not in said
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "The model replied" in page
    assert "Tuned replied" not in page
    assert "optimizer steps" not in page
