"""`mixsd figures` on the command line: which files, and in one line each what could not be drawn."""

from __future__ import annotations

import json
from pathlib import Path

from tests.finished_runs import two_methods


def test_figures(mixsd, fails, tmp_path):
    runs = two_methods(tmp_path / "runs")
    outcome = mixsd("figures", *runs, "--output", "out")
    assert outcome.code == 0
    assert "pareto: out/pareto.svg, out/pareto.png" in outcome.out
    assert "not drawn: alignment: analysis/fisher.json was not found" in outcome.err
    assert Path("out/curves.png").is_file()
    found = json.loads(mixsd("figures", *runs, "--output", "again", "--json").out)
    assert list(found["files"]) == ["pareto", "curves"]
    assert "--output" in fails("figures", runs[0])
    assert "not a run folder" in fails("figures", "nowhere", "--output", "out")
