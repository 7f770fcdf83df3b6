"""Tables 5 to 9 from what analyses wrote into runs: which number is in which cell, seeds averaged, and what is missing named."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from mixsd.comparison import paper
from mixsd.errors import UserError
from mixsd.statistics import seeds_interval
from mixsd.storage import write_json
from tests.finished_runs import make

QWEN = "Qwen/Qwen3-1.7B"


def share(value: float) -> dict[str, Any]:
    return {"value": value, "n": 7, "low": value - 0.05, "high": value + 0.05}


def nll_row(label: str, five: tuple[int, float], eight: tuple[int, float], overlap: float | None = None) -> dict[str, Any]:
    above = [{"threshold": level, "count": count, "share": share(own)} for level, (count, own) in ((5.0, five), (8.0, eight))]
    return {
        "label": label, "tokens": 1000, "above": above, "overlap": None if overlap is None else {"mean": share(overlap)}
    }  # fmt: skip


def checkpoint(source: Path, displacement: float, alignment: float, forgetting: float | None, **other: Any) -> dict[str, Any]:
    return {
        "source": str(source), "displacement": displacement, "alignment": alignment, "count": 135, "final": False, "drop": None,
        "forgetting": None if forgetting is None else {"value": forgetting}, **other,
    }  # fmt: skip


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """SFT of one seed and MixSD of two, as the paper's rows, with their analyses."""
    made = []
    for name, seed, settings, displaced in (
        ("sft", 0, {"method": "sft"}, 80.0),
        ("a", 0, {"method": "mixsd", "lam": 0.3}, 200.0),
        ("b", 1, {"method": "mixsd", "lam": 0.3}, 220.0),
    ):
        run = make(tmp_path / name, {"model": QWEN, "facts": "kgfact:small", **settings}, seed=seed)
        rows = [nll_row("reference", (900, 0.37), (800, 0.33))]
        if name != "sft":
            rows.append(nll_row("mixed", (1100 + seed, 0.10 + seed / 100), (850 + seed, 0.08), 0.95))
        write_json(run / "analysis" / "nll.json", {"blocks": {"all": {"rows": rows}}})
        points = [
            checkpoint(run, displaced / 2, 0.5, 0.1 * seed + 0.2),
            checkpoint(run, displaced, 0.7 + seed / 10, 0.4, final=True, drop=share(0.42)),
            checkpoint(run, displaced * 2, 0.9, None),
        ]
        write_json(run / "analysis" / "fisher.json", {"checkpoints": points})
        made.append(run)
    return made


def row(found: dict[str, Any], method: str, lam: float | None = None) -> dict[str, Any]:
    (own,) = [item for item in found["rows"] if item["runs"] and (item["method"], item["lambda"]) == (method, lam)]
    return own


@pytest.mark.parametrize("number", [5, 6, 7, 8, 9])
def test_without_runs_it_is_the_published_table(number: int) -> None:
    found = paper.table(number)
    assert [item["published"] for item in found["rows"]] == [item.values for item in paper.published_table(number)]
    assert not any(item["ours"] for item in found["rows"])


@pytest.mark.parametrize(("number", "count", "percent"), [(7, 900, 37.0), (8, 800, 33.0)])
def test_counts_and_shares_above_a_threshold(runs: list[Path], number: int, count: int, percent: float) -> None:
    found = paper.table(number, runs)
    sft = row(found, "sft")
    assert sft["corpus"] == "kgfact:small"
    assert sft["ours"]["count"]["value"] == count
    assert sft["ours"]["share"] == {
        "value": pytest.approx(percent), "n": 7, "low": pytest.approx(percent - 5), "high": pytest.approx(percent + 5), "over": "facts"
    }  # fmt: skip
    assert sft["verdict"] == {"count": "no interval", "share": "match"}  # 37.1% and 33.2% are published
    mixed = row(found, "mixsd", 0.3)
    assert len(mixed["runs"]) == 2
    if number == 7:
        interval = seeds_interval([10.0, 11.0])
        assert mixed["ours"]["share"]["value"] == pytest.approx(10.5)
        assert mixed["ours"]["share"]["high"] == pytest.approx(interval.high)
        assert mixed["ours"]["count"]["value"] == 1100.5
    assert sum(bool(item["runs"]) for item in found["rows"]) == 2


def test_what_targets_keep_of_the_references(runs: list[Path]) -> None:
    mixed = row(paper.table(9, runs[1:]), "mixsd", 0.3)
    assert mixed["ours"]["overlap"]["value"] == pytest.approx(95.0)
    assert mixed["published"] == {"overlap": 96.0}


def test_displacement_alignment_and_drop_of_the_final_model(runs: list[Path]) -> None:
    found = paper.table(5, runs)
    sft, mixed = row(found, "sft"), row(found, "mixsd", 0.3)
    assert {name: cell["value"] for name, cell in sft["ours"].items()} == {
        "displacement": 80.0, "alignment": 0.7, "drop": pytest.approx(42.0)
    }  # fmt: skip
    assert sft["verdict"]["drop"] == "match"
    assert mixed["ours"]["displacement"]["value"] == 210.0
    assert mixed["ours"]["alignment"]["value"] == pytest.approx(0.75)


def test_correlations_are_over_all_checkpoints_of_a_model(runs: list[Path]) -> None:
    found = paper.table(6, runs)
    own = found["rows"][0]
    assert (own["model"], len(own["runs"]), own["ours"]["checkpoints"]["value"]) == (QWEN, 3, 6)
    pairs = [(40, 0.2), (80, 0.4), (100, 0.2), (200, 0.4), (110, 0.3), (220, 0.4)]
    mean = [sum(values) / 6 for values in zip(*pairs, strict=True)]
    over = sum((x - mean[0]) * (y - mean[1]) for x, y in pairs)
    under = math.sqrt(sum((x - mean[0]) ** 2 for x, _ in pairs) * sum((y - mean[1]) ** 2 for _, y in pairs))
    assert own["ours"]["r_displacement"]["value"] == pytest.approx(over / under)
    assert not found["rows"][1]["ours"]


def test_what_was_not_analyzed_names_the_command(runs: list[Path]) -> None:
    (runs[0] / "analysis" / "nll.json").unlink()
    with pytest.raises(UserError, match=r"nll.json: is not there; `mixsd analyze nll .*sft` writes it"):
        paper.table(7, runs)
    write_json(runs[0] / "analysis" / "nll.json", {"blocks": {"all": {"rows": []}}})
    with pytest.raises(UserError, match="holds no targets of a sft run"):
        paper.table(8, runs)
    write_json(runs[0] / "analysis" / "fisher.json", {"checkpoints": []})
    with pytest.raises(UserError, match="holds no final model"):
        paper.table(5, runs)
    other = [nll_row("reference", (1, 0.1), (1, 0.1))]
    other[0]["above"][0]["threshold"] = 4.0
    write_json(runs[0] / "analysis" / "nll.json", {"blocks": {"all": {"rows": other}}})
    with pytest.raises(UserError, match="has no threshold 5"):
        paper.table(7, runs)
