"""`mixsd compare`: a table on stdout, files where asked for, one line for what is refused."""

from __future__ import annotations

import json
from pathlib import Path

from tests.finished_runs import make, two_methods


def test_the_table(mixsd, tmp_path):
    runs = two_methods(tmp_path / "runs")
    outcome = mixsd("compare", *runs)
    assert (outcome.code, outcome.err) == (0, "")
    assert "\x1b" not in outcome.out
    lines = [" ".join(line.split()) for line in outcome.out.splitlines()]
    assert any(line.startswith("Forgetting at 90.0%") and line.endswith("lower is better") for line in lines)
    assert "mixsd +0.213 -0.264 to +0.689 2 seeds" in lines
    assert "mixsd 1,200 0 to 3,741 2 seeds" in lines
    assert any(line.startswith("against sft measure") for line in lines)
    assert any(line.startswith("mixsd Forgetting at 90.0%") and "-0.397" in line and "0.347" in line for line in lines)
    assert not Path("compare").exists()  # nothing is written unasked
    assert max(map(len, outcome.out.splitlines()[:-2])) <= 100


def test_output_and_level(mixsd, tmp_path):
    outcome = mixsd("compare", *two_methods(tmp_path / "runs"), "--level", "0.8", "--output", "out")
    assert outcome.code == 0
    assert "comparison: out/compare.html" in outcome.out
    assert json.loads(Path("out/compare.json").read_text())["level"] == {"value": 0.8, "why": "as asked for"}
    assert "<svg" in Path("out/pareto.svg").read_text()[:100]
    assert Path("out/pareto.png").stat().st_size > 10_000
    assert Path("out/compare.md").read_text().startswith("| measure |")


def test_json(mixsd, tmp_path):
    found = json.loads(mixsd("compare", *two_methods(tmp_path / "runs"), "--json", "--output", "out").out)
    assert [item["label"] for item in found["configurations"]] == ["sft", "mixsd"]
    assert found == json.loads(Path("out/compare.json").read_text())


def test_refusals_are_one_line(fails, tmp_path):
    one, two = make(tmp_path / "one"), make(tmp_path / "two", seed=1, identity={"facts_hash": "other"})
    assert "facts_hash differs (other facts): 'other' here, 'facts' there" in fails("compare", one, two)
    assert "at least two run folders" in fails("compare", one)
    assert "not a run folder" in fails("compare", one, tmp_path)
    assert "must lie above 0" in fails("compare", one, two, "--level", "90")
    assert "RUN" in fails("compare")
    (two / "report.json").write_text("{")
    assert "not valid JSON" in fails("compare", one, two)


def test_an_output_that_cannot_be_written(mixsd, tmp_path):
    Path("taken").write_text("a file")
    outcome = mixsd("compare", *two_methods(tmp_path / "runs"), "--output", "taken")
    assert outcome.code == 2
    assert "taken" in outcome.err
