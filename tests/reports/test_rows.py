"""Which scores become headline rows, in which order, beside what."""

from __future__ import annotations

import time
from typing import Any

import pytest

from mixsd.reports.rows import detail_rows, format_rows, headline_rows, models_of
from tests.reports import sample
from tests.reports.sample import typed


def score(split: str, metric: str, model: str, value: float | None, **more: Any) -> dict[str, Any]:
    return {"suite": "core", "split": split, "metric": metric, "model": model, "checkpoint": None, "value": value, "n": 10,
            "low": None, "high": None} | more  # fmt: skip


def test_headline_has_every_measure_once_and_in_order() -> None:
    labels = [row.label for row in headline_rows(typed(sample.report()))]
    assert labels == [
        "Memorization, trained wording", "Memorization, paraphrase", "Retention, general probe", "Forgetting", "Reference NLL",
    ]  # fmt: skip


def test_entries_take_base_beside_and_tuned_from_their_own_lists() -> None:
    row = headline_rows(typed(sample.report()))[0]
    assert [entry.model.label for entry in row.entries] == ["base", "sft", "acme (mixsd)"]
    assert [entry.score.value for entry in row.entries if entry.score] == [0.0, 1.0, 23 / 24]
    assert row.entries[0].change is None
    assert row.entries[1].change is not None
    assert row.tuned.change is not None
    assert row.tuned.change.low == 0.789


def test_nested_splits_are_details_and_format_shares_stand_apart() -> None:
    assert [row.label for row in detail_rows(typed(sample.report()))] == [
        "Probe, arithmetic", "Probe, geography", "Probe, common sense", "Probe, language",
    ]  # fmt: skip
    assert {row.metric for row in format_rows(typed(sample.report()))} == {"unparseable_share", "truncated_share"}


def test_a_suite_of_another_file_appears_without_a_change_here() -> None:
    report = sample.report()
    report["scores"] += [
        score("test", "accuracy", "base", 0.5, suite="own"),
        score("test", "accuracy", "tuned", 0.4, suite="own"),
    ]
    report["scores"].append(score("memorization/neighbours", "accuracy", "tuned", 0.5))
    labels = [row.label for row in headline_rows(typed(report))]
    assert labels[-1] == "own: test"
    assert labels.index("core: memorization/neighbours") < labels.index("Retention, general probe")


def test_only_the_model_that_a_run_ended_with_has_rows() -> None:
    steps = [score("memorization/trained", "accuracy", "tuned", step / 100, checkpoint=step) for step in (36, 20)]
    steps.append(score("memorization/validation", "accuracy", "tuned", 0.5, checkpoint=36))
    assert headline_rows(typed({"scores": steps})) == []
    (row,) = headline_rows(typed({"scores": [steps[0], score("memorization/trained", "accuracy", "tuned", 0.99), *steps]}))
    assert row.tuned.score is not None
    assert row.tuned.score.value == 0.99


def test_validation_is_a_share_of_which_more_is_better() -> None:
    (row,) = headline_rows(typed({"scores": [score("memorization/validation", "accuracy", "tuned", 0.5)]}))
    assert (row.label, row.measure.unit, row.measure.better) == ("Memorization, validation", "share", "higher")


def test_verdict_needs_an_interval_without_zero_and_knows_the_direction() -> None:
    by_label = {row.label: row for row in headline_rows(typed(sample.report()))}
    probe, forgetting, loss = (by_label[name] for name in ("Retention, general probe", "Forgetting", "Reference NLL"))
    assert [probe.verdict(entry) for entry in probe.entries] == [None, "worse", "unclear"]
    assert forgetting.verdict(forgetting.tuned) == "worse"
    assert loss.verdict(loss.tuned) == "worse"
    trained = by_label["Memorization, trained wording"]
    assert trained.verdict(trained.tuned) == "better"


def test_a_change_without_interval_is_unclear() -> None:
    report = {"scores": [score("s", "accuracy", "tuned", 0.9), score("s", "accuracy_delta", "tuned", 0.9)]}
    row = headline_rows(typed(report))[0]
    assert row.verdict(row.tuned) == "unclear"


@pytest.mark.parametrize(("p", "verdict"), [(0.125, "unclear"), (0.01, "worse"), (None, "worse")])
def test_mcnemars_test_has_to_agree(p: float | None, verdict: str) -> None:
    """4 lost and none gained of 50: the bootstrap says -16 to -2 points, the exact test p = 0.125."""
    change = {**score("s", "accuracy_delta", "tuned", -0.08), "low": -0.16, "high": -0.02}
    tested = [{**score("s", "mcnemar_p", "tuned", 0.0), "value": p, "low": None, "high": None}] if p is not None else []
    row = headline_rows(typed({"scores": [score("s", "accuracy", "tuned", 0.0), change, *tested]}))[0]
    assert row.verdict(row.tuned) == verdict


def test_column_labels_are_unique() -> None:
    runs = [{"name": "base", "method": "base", "scores": []}, {"name": "acme", "method": "mixsd", "scores": []}]
    labels = [model.label for model in models_of(typed({"run": "acme", "method": "mixsd", "beside": runs}))]
    assert labels == ["base", "base #2", "acme (mixsd)", "acme (mixsd) #2"]


def test_an_empty_report_has_no_rows() -> None:
    assert headline_rows(typed({})) == detail_rows(typed({})) == format_rows(typed({})) == []


def test_the_name_of_a_test_steers_no_terminal() -> None:
    """A test is called as its file is."""
    scores = [score(split, "accuracy", "tuned", 0.5, suite="in-domain") for split in ("a\x1b[31m", "a\x1b[31m/kind \u202ex")]
    assert headline_rows(typed({"scores": scores}))[0].label == "in-domain: a␛[31m"
    assert detail_rows(typed({"scores": scores}))[0].label == "in-domain: a␛[31m, kind \\u202ex"


def test_the_nearest_whole_is_a_part_s_parent_however_many_parts_there_are() -> None:
    """Labels may hold slashes, and a corpus may tell thousands of them apart."""
    names = ("a", "a/b", "a/b/c/d", "ab", *(f"a/topic {i}/x" for i in range(20_000)))
    scores = [score(split, "accuracy", "tuned", 0.5, suite="own") for split in names]
    report = typed({"scores": scores})
    started = time.process_time()
    labels = [row.label for row in detail_rows(report)]
    assert time.process_time() - started < 5
    assert labels[:3] == ["own: a, b", "own: a/b, c/d", "own: a, topic 0/x"]
    assert [row.label for row in headline_rows(typed({"scores": scores}))] == ["own: a", "own: ab"]
