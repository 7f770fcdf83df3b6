"""`mixsd sweep`: the list of runs, the exit codes, one line for what is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mixsd.commands import sweep
from mixsd.commands.sweep import SweepResult
from tests.tiny import save_tiny

FILE = """
output: runs
seeds: [0, 1]
settings: {facts: demo, model: tiny}
runs: [{method: sft}, {lam: [0, 0.5]}]
"""
NAMES = ["sft-s0", "mixsd-lam0-s0", "mixsd-lam0.5-s0", "sft-s1", "mixsd-lam0-s1", "mixsd-lam0.5-s1"]


@pytest.fixture(autouse=True)
def _file(tmp_path: Path) -> None:
    (tmp_path / "sweep.yaml").write_text(FILE)


def test_dry_run_lists_the_runs(mixsd: Any) -> None:
    save_tiny(Path("tiny"))
    outcome = mixsd("sweep", "sweep.yaml", "--dry-run")
    assert outcome.code == 0
    lines = outcome.out.splitlines()
    assert [line.partition(":")[0] for line in lines[:-2]] == [f"to do  {name}" for name in NAMES]
    assert all(" GB of memory, " in line and line.endswith(" trained") for line in lines[:-2])
    assert lines[-2].startswith("in all: ")
    assert lines[-2].endswith(" trained")
    assert lines[-1] == "6 runs in runs: 0 done, 0 begun, 6 to do; nothing was done"
    assert not Path("runs").exists()


def test_bad_input_is_one_line(fails: Any) -> None:
    assert "nowhere.yaml: no such config file" in fails("sweep", "nowhere.yaml")
    assert "--only nothing: sweep.yaml has no such run" in fails("sweep", "sweep.yaml", "--only", "nothing")
    assert "entry 1 (sft-s0): --model tiny: no such folder" in fails("sweep", "sweep.yaml", "--dry-run")
    assert "--token-budget: input should be greater" in fails("sweep", "sweep.yaml", "--token-budget", "0")
    assert 'did you mean "--dry-run"' in fails("sweep", "sweep.yaml", "--dryrun")
    Path("sweep.yaml").write_text(FILE.replace("lam:", "lamm:"))
    assert 'sweep.yaml: runs: entry 2: unknown key "lamm" (did you mean "lam"?)' in fails("sweep", "sweep.yaml")


def ending(monkeypatch: pytest.MonkeyPatch, **values: Any) -> list[dict[str, Any]]:
    """Let the sweep end so; returns how it was called, and what was rendered."""
    seen: list[dict[str, Any]] = []
    result = SweepResult(**{"folder": Path("runs"), "finished": ["a"], "failed": {}, "missed": {}, "left": [], **values})

    def fake(source: Path, *, watcher: Any, **options: Any) -> SweepResult:
        seen.append({"source": source, **options})
        return result

    monkeypatch.setattr(sweep, "sweep", fake)
    return seen


def test_what_was_typed_gets_there(mixsd: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = ending(monkeypatch, left=["b"])
    outcome = mixsd("sweep", "sweep.yaml", "--output", "x", "--only", "sft", "--only", "b", "--device", "cpu", "--offline")
    assert (outcome.code, outcome.out) == (0, "finished: 1 runs in runs, 1 left\n")
    wanted = {"source": Path("sweep.yaml"), "output": Path("x"), "only": ["sft", "b"], "device": "cpu", "offline": True}
    assert seen == [wanted]


def test_the_comparison_is_shown(mixsd: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mixsd.cli.show.comparison", lambda comparison: print(f"table of {comparison}\na line"))
    ending(monkeypatch, comparison={"x": 1}, page=Path("runs/compare.html"))
    outcome = mixsd("sweep", "sweep.yaml")
    assert outcome.out.splitlines()[:3] == ["table of {'x': 1}", "a line", "comparison: runs/compare.html"]


@pytest.mark.parametrize(
    ("values", "code", "error", "out"),
    [
        (
            {"failed": {"b": "no facts\x1b[2J", "c": "too\nlong"}, "problem": "no", "missed": {"a": ["x>=1"]}},
            1,
            "error: 2 runs failed, the same command tries them again: b: no facts␛[2J; c: too long\n",
            "finished: 1 runs in runs\nnot compared: no\nrequired but missed: a: x>=1\n",
        ),
        (
            {"problem": "other prompts", "missed": {"a": ["x>=1"]}},
            2,
            "error: the runs are complete but cannot be compared: other prompts\n",
            "finished: 1 runs in runs\nrequired but missed: a: x>=1\n",
        ),
        ({"missed": {"a": ["x>=1", "y<=2"]}}, 3, "error: required but missed: a: x>=1, y<=2\n", "finished: 1 runs in runs\n"),
    ],
)
def test_exit_codes(values: Any, code: int, error: str, out: str, mixsd: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ending(monkeypatch, **values)
    outcome = mixsd("sweep", "sweep.yaml")
    assert (outcome.code, outcome.err, outcome.out) == (code, error, out)


def test_interrupted_it_says_how_to_go_on(mixsd: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    save_tiny(Path("tiny"))

    def interrupted(settings: Any, watcher: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mixsd.commands.inject.inject", interrupted)
    outcome = mixsd("sweep", "sweep.yaml")
    assert outcome.code == 130
    assert outcome.err.endswith("run 1 of 6: sft-s0\ninterrupted; the same command goes on from here\n")
