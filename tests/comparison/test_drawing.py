"""`mixsd figures`: every picture that runs hold as files with stable names, and why there is none of the others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import mixsd
from mixsd.errors import UserError
from tests.finished_runs import make, two_methods


def add(run: Path, **values: Any) -> Path:
    """Put values into a run's report, `targets` beside those that it has."""
    file = run / "report.json"
    report = json.loads(file.read_text())
    report["targets"] = {**(report.get("targets") or {}), **values.pop("targets", {})}
    file.write_text(json.dumps({**report, **values}))
    return run


def modes(model: str, count: int) -> dict[str, Any]:
    return {"benchmark": "gsm8k", "model": model, "asked": 50, "wrong": count, "counts": {"format": count}, "truncated": 0}


def texts(file: Path) -> str:
    return file.read_text(encoding="utf-8")


def test_one_run(tmp_path: Path) -> None:
    run = make(tmp_path / "run", path=[(5, 0.4, 0.1), (10, 0.9, 0.3)])
    cdf = {"tokens": 10, "nll_cdf": {"x": [1.0, 2.0], "y": [0.5, 1.0]}}
    add(run, targets=cdf, error_modes=[modes("base", 3), modes("tuned", 9)], training={"log": [{"step": 1, "loss": 2.0}]})
    (run / "analysis").mkdir()
    point = {"configuration": "mixsd", "alignment": 1.5, "forgetting": {"value": 0.2}}
    (run / "analysis" / "fisher.json").write_text(json.dumps({"checkpoints": [point], "correlations": []}))
    found = mixsd.draw([run], output=tmp_path / "out")
    names = ["loss", "curves", "nll-cdf", "errors", "alignment"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(
        f"{name}.{kind}" for name in names for kind in ("svg", "png")
    )
    assert found["left_out"] == {"pareto": "it compares configurations: name two runs or more"}
    assert found["files"]["nll"] == [str(tmp_path / "out" / f"nll-cdf.{kind}") for kind in ("svg", "png")]
    assert "targets (n 10)" in texts(tmp_path / "out" / "nll-cdf.svg")
    assert "9 of 50" in texts(tmp_path / "out" / "errors.svg")


def test_several_runs_in_one_picture_each(tmp_path: Path) -> None:
    runs = two_methods(tmp_path)
    reference = {"x": [1.0, 9.0], "y": [0.5, 1.0]}
    for number, run in enumerate(runs):
        own = reference if number == 0 else {"x": [0.5 + number], "y": [1.0]}
        targets = {"tokens": 7, "nll_cdf": own, "reference_nll_cdf": reference, "reference_tokens": 20}
        add(run, targets=targets, error_modes=[modes("base", 3), modes("tuned", 10 + number)])
    found = mixsd.draw(runs, output=tmp_path / "out")
    assert list(found["files"]) == ["pareto", "curves", "nll", "errors"]
    assert set(found["left_out"]) == {"loss", "alignment"}
    nll, errors = (texts(tmp_path / "out" / f"{name}.svg") for name in ("nll-cdf", "errors"))
    assert nll.count(">references (n 20)<") == 1
    assert runs[0].name not in nll  # trained on the references themselves
    assert all(f">{run.name} (n 7)<" in nll for run in runs[1:])
    assert errors.count(">base<") == 1
    assert ">12 of 50<" in errors


def test_the_same_runs_give_the_same_bytes(tmp_path: Path) -> None:
    runs = two_methods(tmp_path)
    for name in ("one", "two"):
        mixsd.draw(runs, output=tmp_path / name)
    for file in (tmp_path / "one").iterdir():
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes()


def test_bad_input(tmp_path: Path) -> None:
    run = make(tmp_path / "run")
    with pytest.raises(UserError, match="nothing to draw: pareto: it compares"):
        mixsd.draw(run, output=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="name a run folder"):
        mixsd.draw([], output=tmp_path / "out")
    with pytest.raises(UserError, match="not a run folder"):
        mixsd.draw(tmp_path, output=tmp_path / "out")
    with pytest.raises(UserError, match="named twice"):
        mixsd.draw([run, run], output=tmp_path / "out")
    other = make(tmp_path / "other", identity={"facts_hash": "other"})
    with pytest.raises(UserError, match="facts_hash"):
        mixsd.draw([run, other], output=tmp_path / "out")
    (tmp_path / "taken").write_text("a file")
    add(run, training={"log": [{"step": 1, "loss": 2.0}]})
    with pytest.raises(UserError, match="taken"):
        mixsd.draw(run, output=tmp_path / "taken")
    (run / "report.json").unlink()
    with pytest.raises(UserError, match="has no report"):
        mixsd.draw(run, output=tmp_path / "out")
