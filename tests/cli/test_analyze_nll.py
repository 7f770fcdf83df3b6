"""`mixsd analyze nll`, typed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mixsd.analyse import nll
from tests.analyse.test_nll import MIXED, REFERENCES, make_run, write_lines


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nll, "_draw", lambda rows, levels, stem: None)


def test_the_tables(mixsd, tmp_path):
    runs = [make_run(tmp_path / "runs" / "sft", REFERENCES, method="sft"), make_run(tmp_path / "runs" / "mixed", MIXED)]
    outcome = mixsd("analyze", "nll", *runs, "--output", "out")
    assert outcome.code == 0, outcome.err
    assert "All accepted targets of each source (3 facts)" in outcome.out
    assert "Facts accepted in every source (2 facts)" in outcome.out
    assert "3 (50.0%)" in outcome.out
    assert "MixSD lambda 0.3: 1 rejected; not counted above." in outcome.out
    assert outcome.out.endswith("analysis: out\n")
    assert {file.name for file in Path("out").iterdir()} == {"nll.json", "nll.md"}


def test_json_is_the_file_and_thresholds_repeat(mixsd, tmp_path):
    run = make_run(tmp_path / "run", MIXED)
    outcome = mixsd("analyze", "nll", run, "--json", "--threshold", "0.5", "--threshold", "10", "--facts", "all")
    assert outcome.code == 0, outcome.err
    found = json.loads(outcome.out)
    assert found == json.loads((run / "analysis" / "nll.json").read_text())
    assert found["thresholds"] == [0.5, 10.0]
    assert list(found["blocks"]) == ["all"]


def test_what_a_file_says_does_not_steer_the_terminal(mixsd, tmp_path):
    file = write_lines(tmp_path / "\x1b[31mred.jsonl", MIXED)
    outcome = mixsd("analyze", "nll", file, "--output", "out")
    assert outcome.code == 0, outcome.err
    assert "\x1b" not in outcome.out
    assert "\x1b" not in Path("out/nll.md").read_text()


def test_refusals(fails, tmp_path):
    file = write_lines(tmp_path / "mine.jsonl", MIXED)
    assert "--output" in fails("analyze", "nll", file)
    assert "no such run folder" in fails("analyze", "nll", tmp_path / "gone")
    assert "--model" in fails("analyze", "nll", file, "--output", "out", "--check")
    assert "--facts" in fails("analyze", "nll", file, "--output", "out", "--facts", "some")
    assert "--threshold -1" in fails("analyze", "nll", file, "--output", "out", "--threshold", "-1")
    assert "missing argument" in fails("analyze", "nll").lower()
    assert not Path("out").exists()
