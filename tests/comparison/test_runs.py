"""What `compare` refuses, with the differing field and both runs in one line, and what it only notes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import mixsd
from mixsd.errors import UserError
from tests.finished_runs import FORGETTING, PROBE, TRAINED, cost, make, rows, score, two_methods

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "model": ({"identity": {"model_hash": "other"}}, "model_hash differs (another base model): 'other' here, 'model' there"),
    "facts": ({"identity": {"facts_hash": "other"}}, "facts_hash differs"),
    "prompts": ({"identity": {"prompts": "other"}}, "prompts differs"),
    "verifier": ({"settings": {"verifier": "exact"}}, "verifier differs: 'exact' here, 'contains' there"),
    "length": ({"settings": {"max_new_tokens": 64}}, "max_new_tokens differs: 64 here, 256 there"),
    "format": ({"settings": {"answer_format": "boxed"}}, "answer_format differs"),
    "thinking": ({"settings": {"thinking": True}}, "thinking differs"),
    "system": ({"settings": {"system": "Be brief."}}, "system differs"),
    "paraphrases": ({"settings": {"paraphrases": 1}}, "paraphrases differs"),
    "probe": ({"settings": {"probe_questions": 9}}, "probe_questions differs"),
    "general": ({"settings": {"forgetting_prompts": 9}}, "forgetting_prompts differs"),
    "reference": ({"settings": {"forgetting_tokens": 9}}, "forgetting_tokens differs"),
    "dtype": ({"environment": {"dtype": "bfloat16"}}, "dtype differs: 'bfloat16' here, 'float32' there"),
    "device": ({"environment": {"device": "cuda:0"}}, "device differs: 'cuda' here, 'cpu' there"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_runs_that_were_measured_otherwise_are_refused(case: str, tmp_path: Path) -> None:
    options, said = REFUSED[case]
    one = make(tmp_path / "one", {"method": "sft"})
    two = make(tmp_path / "two", **options)
    with pytest.raises(UserError) as refused:
        mixsd.compare([one, two])
    text = str(refused.value)
    assert said in text
    assert str(one) in text
    assert str(two) in text
    assert "\n" not in text


def test_other_tests_beside_the_same_facts_are_refused(tmp_path: Path) -> None:
    plain = make(tmp_path / "plain")
    one, two = (make(tmp_path / name, {"method": "sft"}, identity={"corpus": name}, seed=seed) for seed, name in enumerate("ab"))
    assert mixsd.compare([plain, one])  # the same facts from a file bring no tests
    with pytest.raises(UserError, match="corpus differs"):
        mixsd.compare([one, two])


def change(seed: int, alter: Callable[[dict[str, Any]], None]) -> list[dict[str, Any]]:
    found = rows(seed)
    for item in found:
        alter(item)
    return found


def test_other_prompts_are_refused_with_the_split(tmp_path: Path) -> None:
    one = make(tmp_path / "one", {"method": "sft"})
    other = change(0, lambda item: item.update(prompt_hash="new") if item["key"] == "q2" else None)
    two = make(tmp_path / "two", base_rows=other, tuned_rows=other)
    with pytest.raises(UserError, match=r"prompts of core retention/probe \(q2\) differs: 'new' here, 'p-q2' there"):
        mixsd.compare([one, two])
    fewer = [item for item in rows(0) if item["key"] != "t3"]
    with pytest.raises(UserError, match=r"core memorization/trained \(t3 was asked in one only\) differs: '3 asked' here"):
        mixsd.compare([one, make(tmp_path / "three", base_rows=fewer)])


def test_framed_paraphrases_differ_by_seed_and_only_by_seed(tmp_path: Path) -> None:
    one = make(tmp_path / "one", {"method": "sft"})
    assert mixsd.compare([one, make(tmp_path / "two", seed=1)])
    drawn = change(0, lambda item: item.update(prompt_hash="frame-9") if item["key"] == "p0" else None)
    with pytest.raises(UserError, match="memorization/paraphrase"):
        mixsd.compare([one, make(tmp_path / "three", base_rows=drawn)])


def test_reference_replies_are_shared_by_runs_of_one_seed(tmp_path: Path) -> None:
    others = [make(tmp_path / "one", {"method": "sft"}), make(tmp_path / "two", {"method": "sft"}, seed=1)]
    sampled = change(1, lambda item: item.update(reply_ids=[5]) if item["split"] == FORGETTING else None)
    with pytest.raises(UserError, match=r"three: cannot be compared with .*two: the reference replies of g0 differ"):
        mixsd.compare([*others, make(tmp_path / "three", seed=1, base_rows=sampled)])


def test_another_verdict_on_the_same_reply_is_another_scorer(tmp_path: Path) -> None:
    judged = change(0, lambda item: item.update(outcome="correct") if item["key"] == "t1" else None)
    with pytest.raises(UserError, match=r"scorer .* to t1\) differs: 'correct' here, 'wrong' there"):
        mixsd.compare([make(tmp_path / "one", {"method": "sft"}), make(tmp_path / "two", base_rows=judged)])


def test_another_reply_of_the_base_is_noted(tmp_path: Path) -> None:
    said = change(0, lambda item: item.update(reply="else", outcome="correct") if item["key"] == "q1" else None)
    result = mixsd.compare([make(tmp_path / "one", {"method": "sft"}), make(tmp_path / "two", base_rows=said)])
    assert any("replied otherwise in two than in one to 1 of 10 equal prompts" in note for note in result["notes"])


def test_other_questions_at_the_checkpoints_are_refused(tmp_path: Path) -> None:
    one = make(tmp_path / "one", {"method": "sft"}, extra=[score(TRAINED, "accuracy", 0.5, 10, checkpoint=5)])
    two = make(tmp_path / "two", extra=[score(TRAINED, "accuracy", 0.5, 20, checkpoint=5)])
    with pytest.raises(UserError, match=r"score_questions .* differs: 20 here, 10 there"):
        mixsd.compare([one, two])


def test_one_configuration_and_seed_twice_is_refused(tmp_path: Path) -> None:
    one, two = make(tmp_path / "one"), make(tmp_path / "two", {"micro_batch": 8})
    with pytest.raises(UserError, match=r"two: is the same configuration with the same seed \(0\) as .*one"):
        mixsd.compare([one, two])
    with pytest.raises(UserError, match="named twice"):
        mixsd.compare([one, tmp_path / "two" / ".." / "one"])


def test_unfinished_and_foreign_folders_are_refused(tmp_path: Path) -> None:
    one, two = make(tmp_path / "one"), make(tmp_path / "two", seed=1)
    with pytest.raises(UserError, match="not a run folder"):
        mixsd.compare([one, tmp_path])
    with pytest.raises(UserError, match="at least two"):
        mixsd.compare([one])
    with pytest.raises(UserError, match="--level 90: must lie above 0"):
        mixsd.compare([one, two], level=90)
    (two / "evaluation" / "core" / "base.jsonl").unlink()
    with pytest.raises(UserError, match=r"base\.jsonl"):
        mixsd.compare([one, two])
    (two / "report.json").write_text("[]")
    with pytest.raises(UserError, match="should be a valid dictionary"):
        mixsd.compare([one, two])
    (two / "report.json").write_text('{"schema_version": 7}')
    with pytest.raises(
        UserError, match=r"two/report\.json: schema_version: Input should be 1; `mixsd report .*two` writes it anew"
    ):
        mixsd.compare([one, two])
    (two / "report.json").unlink()
    with pytest.raises(UserError, match=r"two: has no report\.json; finish that run first"):
        mixsd.compare([one, two])


def test_a_run_without_the_suite_core_is_refused(tmp_path: Path) -> None:
    one, two = make(tmp_path / "one"), make(tmp_path / "two", seed=1)
    report = json.loads((two / "report.json").read_text())
    report["scores"] = [{**item, "suite": "in-domain"} for item in report["scores"]]
    (two / "report.json").write_text(json.dumps(report))
    with pytest.raises(UserError, match="no scores of the suite core"):
        mixsd.compare([one, two])


@pytest.mark.parametrize("model", ["base", "tuned"])
@pytest.mark.parametrize(
    ("key", "alter", "said"),
    [
        ("t0", lambda row: row.pop("labels"), "line 1: has no labels;"),  # as an older version wrote rows
        ("t1", lambda row: row.pop("prompt_hash"), "line 2: has no prompt_hash;"),
        ("q0", lambda row: row.pop("split"), "line 5: has no split;"),
        ("q0", lambda row: row.update(split=["a"]), "line 5: split cannot be ['a'];"),
        ("q0", lambda row: row.update(labels=None), "line 5: labels cannot be None;"),
        ("g0", lambda row: row.pop("nll"), "line 11: has no nll;"),
        ("g1", lambda row: row.update(nll="low"), "line 12: nll cannot be 'low';"),
        ("g1", lambda row: row.update(tokens=0), "line 12: an NLL of 11.0 over 0 tokens is not a measurement;"),
    ],
)
def test_rows_that_cannot_be_read_are_named_with_the_way_out(
    model: str, key: str, alter: Callable[[dict[str, Any]], Any], said: str, tmp_path: Path
) -> None:
    altered: Any = change(0, lambda row: alter(row) if row["key"] == key else None)
    one, two = make(tmp_path / "one", {"method": "sft"}), make(tmp_path / "two", **{f"{model}_rows": altered})
    with pytest.raises(UserError) as refused:
        mixsd.compare([one, two])
    text = str(refused.value)
    assert text.startswith(f"{two}/evaluation/core/{model}.jsonl: ")
    assert said in text
    assert f"delete this file, then `mixsd evaluate {two} --suite core` and `mixsd report {two}`" in text
    assert "\n" not in text


@pytest.mark.parametrize("field", ["labels", "split"])
def test_rows_that_are_sorted_otherwise_cannot_be_paired(field: str, tmp_path: Path) -> None:
    value = {"labels": ["colours"], "split": "retention/other"}[field]
    other = change(0, lambda row: row.update({field: value}) if row["split"] == PROBE else None)
    one, two = make(tmp_path / "one", {"method": "sft"}), make(tmp_path / "two", tuned_rows=other)
    with pytest.raises(UserError, match=r"two: cannot be compared with .*one: .* or the rows are labelled otherwise; delete"):
        mixsd.compare([one, two])


def test_different_machines_are_noted(tmp_path: Path) -> None:
    runs = [
        make(tmp_path / "one", cost=cost(1, train=1.0)),
        make(tmp_path / "two", {"method": "sft"}, environment={"threads": 8}),
    ]
    assert any("seconds do not compare" in note for note in mixsd.compare(runs)["notes"])


def test_rows_of_a_run_are_not_changed_by_reading(tmp_path: Path) -> None:
    runs = two_methods(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    mixsd.compare(runs)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
