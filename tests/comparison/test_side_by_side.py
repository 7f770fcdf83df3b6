"""What a comparison's page shows of its runs: their targets with what the tuned model says, error modes over seeds, and how much of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import mixsd
from mixsd.comparison import material
from mixsd.storage import read_json, read_jsonl, write_json
from tests.finished_runs import make


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, options: dict[str, Any]) -> list[Path]:
    folder = tmp_path_factory.mktemp("side")
    small = {**options, "probe_questions": 4, "forgetting_prompts": 3, "forgetting_tokens": 6}
    made = [folder / "mixsd-1", folder / "mixsd-0", folder / "sft-0"]
    for place in made:
        method, _, seed = place.name.partition("-")
        mixsd.inject(**small, method=method, seed=int(seed), output=str(place))
    return made


def test_targets_and_replies_of_the_first_seed(runs: list[Path]) -> None:
    found = material.material_of(runs)
    facts = {row["id"]: row for row in read_jsonl(runs[0] / "facts.jsonl")}
    assert [fact["id"] for fact in found["facts"]] == list(facts)
    assert found["facts_left"] == 0
    assert found["notes"] == []
    for place, name in enumerate(("mixsd-0", "sft-0")):
        run = next(run for run in runs if run.name == name)
        said = {
            row["group"]: row for row in read_jsonl(run / "evaluation/core/tuned.jsonl") if row["split"] == "memorization/trained"
        }
        targets = {row["id"]: row for row in read_jsonl(run / "targets.jsonl")}
        for fact in found["facts"]:
            told = fact["told"][place]
            assert (told["run"], told["label"]) == (name, name.partition("-")[0])
            assert (told["reply"], told["outcome"]) == (said[fact["id"]]["reply"], said[fact["id"]]["outcome"])
            target = targets[fact["id"]]
            assert [token["id"] for token in told["tokens"]] == target["target_ids"]
            assert "".join(token["source"] for token in told["tokens"]) == target["sources"]
            assert [token["base_nll"] for token in told["tokens"]] == [-value for value in target["base_logprobs"]]


def test_a_page_holds_so_many_tokens(runs: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    whole = material.material_of(runs)["facts"]
    count = sum(len(told["tokens"]) for fact in whole[:2] for told in fact["told"])
    monkeypatch.setattr(material, "MOST_TOKENS", count)
    found = material.material_of(runs)
    assert (found["facts"], found["facts_left"]) == (whole[:2], len(whole) - 2)
    monkeypatch.setattr(material, "MOST_TOKENS", 1)  # one fact always
    assert len(material.material_of(runs)["facts"]) == 1
    monkeypatch.undo()
    monkeypatch.setattr(material, "MOST_FACTS", 1)
    found = material.material_of(runs)
    assert (found["facts"], found["facts_left"]) == (whole[:1], len(whole) - 1)


def test_a_model_that_is_gone_is_said(runs: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*_: Any, **__: Any) -> None:
        raise mixsd.UserError("no such model")

    monkeypatch.setattr(material.loading, "load_tokenizer", gone)
    found = material.material_of(runs)
    assert found["notes"] == ["Targets are not shown: no such model"]
    assert all(not told["tokens"] and told["reply"] is not None for fact in found["facts"] for told in fact["told"])


def test_error_modes_are_summed_over_seeds_and_the_base_is_not(tmp_path: Path) -> None:
    folders = [make(tmp_path / f"sft-{seed}", {"method": "sft"}, seed=seed) for seed in (0, 1)]
    for folder, format_errors in zip(folders, (3, 4), strict=True):
        report = read_json(folder / "report.json")
        report["error_modes"] = [
            {"benchmark": "gsm8k", "model": model, "asked": 10, "wrong": count + 1, "counts": {"format": count, "genuine": 1}}
            for model, count in (("base", 5), ("tuned", format_errors))
        ]
        write_json(folder / "report.json", report)
    found = material.material_of(folders)
    assert found["errors"] == [
        {"benchmark": "GSM8K", "label": "base", "asked": 10, "wrong": 6, "counts": {"format": 5, "genuine": 1}},
        {"benchmark": "GSM8K", "label": "sft", "asked": 20, "wrong": 9, "counts": {"format": 7, "genuine": 2}},
    ]
    assert found["facts"] == []
