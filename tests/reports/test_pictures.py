"""What a report holds for its pictures, and the page that shows them."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from typing import Any

from mixsd.reports import page as report_page
from mixsd.reports import pictures
from mixsd.reports.schema import TargetNumbers
from tests.reports import sample
from tests.reports.sample import typed

EVIL = "<script>alert(1)</script>$x_1$"


def modes(model: str, count: int, benchmark: str = "gsm8k", **other: int) -> dict[str, Any]:
    counts = {"format": count, "genuine": 2, **other}
    return {"benchmark": benchmark, "model": model, "asked": 50, "wrong": sum(counts.values()), "counts": counts}


def full() -> dict[str, Any]:
    """A report with everything that is drawn."""
    made = sample.with_choices(sample.of_method("mixsd"))
    made["targets"] |= {"tokens": 400, "reference_tokens": 900, "nll_cdf": {"x": [0.5, 3.0], "y": [0.5, 1.0]}}
    made["targets"]["reference_nll_cdf"] = {"x": [1.0, 9.0], "y": [0.2, 1.0]}
    made["error_modes"] = [modes("base", 5), modes("tuned", 9), modes("tuned", 3, "mmlu"), modes("base", 1, "mmlu")]
    return made


def test_points_along_checkpoints() -> None:
    scores = typed(sample.with_choices(sample.of_method("sft"))).scores
    points = pictures.along(scores[::-1])
    assert [point["step"] for point in points] == [6, 12, 18, 24, 30, 36]
    assert points[4] == {
        "step": 30,
        **{"memorization": 0.958, "memorization_low": 0.958 - 0.02, "memorization_high": 0.958 + 0.02},
        **{"validation": 0.75, "validation_low": 0.75 - 0.02, "validation_high": 0.75 + 0.02},
        **{"forgetting": 0.071, "forgetting_low": 0.071 - 0.02, "forgetting_high": 0.071 + 0.02},
    }
    assert pictures.along([item for item in scores if item.final]) == []
    assert pictures.along([item.model_copy(update={"value": None}) for item in scores]) == []
    assert pictures.along([item.model_copy(update={"model": "base"}) for item in scores]) == []


def test_references_are_a_line_of_their_own_only_where_they_differ() -> None:
    report = full()
    found = pictures.nll_curves(typed(report).targets)
    assert [(item["label"], item["n"], item["x"]) for item in found] == [
        ("references", 900, [1.0, 9.0]), ("targets", 400, [0.5, 3.0]),
    ]  # fmt: skip
    report["targets"]["nll_cdf"] = report["targets"]["reference_nll_cdf"]  # plain fine-tuning trains on the references
    assert [item["label"] for item in pictures.nll_curves(typed(report).targets)] == ["references"]
    assert pictures.nll_curves(TargetNumbers()) == []


def test_bars_of_the_base_the_runs_beside_and_this_run() -> None:
    report = full()
    report["beside"][0]["error_modes"] = [modes("base", 5), modes("tuned", 7), modes("tuned", 7, "humaneval")]
    rows = pictures.error_rows(typed(report))
    # Benchmark by benchmark, those that this run was asked.
    assert [(row["benchmark"], row["counts"]["format"]) for row in rows] == [
        ("GSM8K", 5), ("GSM8K", 7), ("GSM8K", 9), ("MMLU", 1), ("MMLU", 3),
    ]  # fmt: skip
    assert [row["label"] for row in rows[:3]] == ["base", "sft", "acme (mixsd)"]
    assert pictures.error_rows(typed({})) == []
    alone = {"alone": True, "base": {"name": "some-model", "hash": "0"}, "error_modes": [modes("base", 4)]}
    assert [(row["label"], row["counts"]["format"]) for row in pictures.error_rows(typed(alone))] == [("some-model", 4)]


def test_modes_stand_in_one_order() -> None:
    rows = [{"counts": {"genuine": 1, "new": 2}}, {"counts": {"cross-entity": 0, "format": 1}}]
    assert pictures.modes_of(rows) == ["format", "cross-entity", "genuine", "new"]


def test_alignment_is_what_the_analysis_found() -> None:
    fisher = {
        "checkpoints": [
            {"configuration": "a", "alignment": 2.0, "forgetting": {"value": 0.3}},
            {"configuration": "b", "alignment": 1.0, "forgetting": None},
        ],
        "correlations": [
            {"metric": "relative", "with": "forgetting", "r": 0.1, "n": 9},
            {"metric": "alignment", "with": "forgetting", "r": 0.9, "n": 8, "low": 0.5, "high": 1.0},
        ],
    }
    points, correlation = pictures.aligned(fisher)
    assert points == [{"label": "a", "x": 2.0, "y": 0.3}, {"label": "b", "x": 1.0, "y": None}]
    assert correlation == fisher["correlations"][1]
    assert pictures.aligned({}) == ([], None)
    page = report_page.render(typed(full()), [], [], fisher=fisher)
    assert 'aria-label="forgetting, nats per token against Fisher alignment ratio' in page


def test_the_page_shows_each_picture_for_wide_and_narrow_windows() -> None:
    page = report_page.render(typed(full()), [], [])
    labels = re.findall(r'<figure class="drawn (\w+)"><svg[^>]*aria-label="([^".]+)', page)
    titles = [
        "Wrong replies by what they are like",
        "Share of tokens at or below a base NLL",
        "Training loss over optimizer steps",
    ]
    titles.append("Memorization and forgetting along the checkpoints")
    assert labels == [(kind, title) for title in titles for kind in ("wide", "narrow")]
    assert "the one that became the model" in page
    names = re.findall(r'\bid="([^"]+)"', page)
    assert len(names) == len(set(names))


def test_what_was_not_measured_is_not_drawn() -> None:
    page = report_page.render(typed({}), [], [])
    assert '<figure class="drawn' not in page
    assert "No loss was logged." in page
    one = report_page.render(typed({"training": {"log": [{"step": 1, "loss": 2.0}]}}), [], [])
    assert one.count('<figure class="drawn') == 2


def test_long_logs_are_averaged_and_it_is_said() -> None:
    log = [{"step": step, "loss": 1.0} for step in range(1, 902)]
    assert "Each point is the mean of 4 steps." in report_page.render(typed({"training": {"log": log}}), [], [])
    assert "Each point" not in report_page.render(typed({"training": {"log": log[:300]}}), [], [])


def test_foreign_names_are_escaped() -> None:
    report = full()
    report["run"] = report["beside"][0]["name"] = EVIL
    report["beside"][0]["error_modes"] = [modes("tuned", 7)]
    report["error_modes"].append(modes("tuned", 2, EVIL))
    page = report_page.render(typed(report), [], [])
    assert "<script" not in page
    svgs = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert len(svgs) == 8
    texts = [
        "".join(node.itertext()) for source in svgs for node in ET.fromstring(source).iter("{http://www.w3.org/2000/svg}text")
    ]
    assert EVIL in texts
