"""Runs with benchmarks in one table: what must have been asked alike, their rows, and differences over the same questions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import mixsd
from mixsd import statistics
from mixsd.comparison import page as compare_page
from mixsd.errors import UserError
from mixsd.evaluation.benchmarks.benchmark import HELD_OUT
from tests.finished_runs import make, row, score

ASKED = {
    "suite": "gsm8k", "scorer": "1", "data": "d1", "where": "/here", "items": 1319, "limit": 8, "tokens": 512, "samples": 1,
    "temperature": 0.0, "top_k": None, "sandbox": None, "chat_template": None,
}  # fmt: skip
ABOUT = {
    "lm_eval": "0.4.9", "config_hash": "c1", "data_hash": "h1", "n": 4, "batch_size": 8,
    "tasks": {"tiny": {"num_fewshot": 0, "n": 4, "of": 9}},
}  # fmt: skip


def replies(suite: str, right: int, n: int = 8, samples: int = 1) -> list[dict[str, Any]]:
    """Replies to `n` questions, the first `right` of which are correct."""
    found = []
    for place in range(n):
        for sample in range(samples):
            outcome = "correct" if place < right else "wrong"
            key = f"{place}/{sample}" if samples > 1 else str(place)
            found.append(row(key, suite, group=str(place), labels=["all of it"], outcome=outcome, reply=outcome, lenient=outcome))
    return found


def task_rows(values: list[float]) -> list[dict[str, Any]]:
    return [
        row(f"tiny/{place}", "tiny", metrics={"acc,none": value, "odd,none": value * 3}, outcome="correct" if value else "wrong")
        for place, value in enumerate(values)
    ]


def two(tmp_path: Path, here: dict[str, Any], there: dict[str, Any], suite: str = "gsm8k") -> list[Path]:
    said = {suite: (task_rows([1, 0]), task_rows([0, 0])) if suite != "gsm8k" else (replies(suite, 4), replies(suite, 2))}
    return [
        make(tmp_path / "one", {"method": "sft"}, said=said, asked={suite: here}),
        make(tmp_path / "two", said=said, asked={suite: there}),
    ]


@pytest.mark.parametrize(
    ("field", "value"),
    [("data", "d2"), ("scorer", "2"), ("limit", None), ("tokens", 64), ("samples", 2), ("temperature", 0.7), ("top_k", 20),
     ("chat_template", True)],
)  # fmt: skip
def test_a_suite_that_was_asked_otherwise_is_refused(field: str, value: Any, tmp_path: Path) -> None:
    one, other = two(tmp_path, ASKED, {**ASKED, field: value})
    with pytest.raises(UserError) as refused:
        mixsd.compare([one, other])
    text = str(refused.value)
    assert text.startswith(f"{other}: cannot be compared with {one}: {field} of gsm8k differs")
    assert text.endswith(f": {value!r} here, {ASKED[field]!r} there")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"config_hash": "c2"}, "task of lm-eval:tiny differs (the hash of what is asked): 'c2' here, 'c1' there"),
        ({"data_hash": "h2"}, "data of lm-eval:tiny differs (the hash of the questions): 'h2' here, 'h1' there"),
        ({"tasks": {"tiny": {"num_fewshot": 5}}},
         "num_fewshot (tiny) of lm-eval:tiny differs: 5 here, 0 there"),
    ],
)  # fmt: skip
def test_a_task_of_lm_eval_that_was_asked_otherwise_is_refused(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    asked = {**ASKED, "suite": "lm-eval:tiny", "scorer": "lm-eval", "data": None, "results": {"base": {}}, "about": ABOUT}
    one, other = two(tmp_path, asked, {**asked, "results": {}, "about": {**ABOUT, **change}}, "lm-eval:tiny")
    with pytest.raises(UserError) as refused:
        mixsd.compare([one, other])
    assert said in str(refused.value)


def test_what_does_not_decide_the_scores_may_differ(tmp_path: Path) -> None:
    other = {**ASKED, "where": "/there", "items": 9, "sandbox": {"kind": "none"}}
    assert mixsd.compare(two(tmp_path / "a", ASKED, other))["notes"] == []
    asked = {**ASKED, "suite": "lm-eval:tiny", "data": None, "about": ABOUT}
    later = {**asked, "about": {**ABOUT, "lm_eval": "0.5.0", "batch_size": 1}}
    notes = mixsd.compare(two(tmp_path / "b", asked, later, "lm-eval:tiny"))["notes"]
    assert notes == ["lm-eval:tiny was scored by different versions of lm-eval: 0.4.9, 0.5.0."]


def test_runs_of_a_version_that_wrote_nothing_down_are_compared_as_before(tmp_path: Path) -> None:
    said = {"gsm8k": (replies("gsm8k", 4), replies("gsm8k", 2))}
    old, new = make(tmp_path / "old", {"method": "sft"}, said=said), make(tmp_path / "new", said=said, asked={"gsm8k": ASKED})
    assert "gsm8k/gsm8k" in mixsd.compare([old, new])["measures"]
    other = make(tmp_path / "other", said={"gsm8k": (replies("gsm8k", 3), replies("gsm8k", 2))})
    (other / "evaluation" / "gsm8k" / "base.jsonl").write_text(
        "".join(json.dumps({**item, "outcome": "wrong"}) + "\n" for item in replies("gsm8k", 4))
    )
    with pytest.raises(UserError, match=r"scorer \(the same reply"):
        mixsd.compare([old, other])


def test_a_suite_of_one_run_only_is_left_out(tmp_path: Path) -> None:
    one = make(
        tmp_path / "one", {"method": "sft"}, said={"gsm8k": (replies("gsm8k", 4), replies("gsm8k", 2))}, asked={"gsm8k": ASKED}
    )
    assert not any("/" in name for name in mixsd.compare([one, make(tmp_path / "two")])["measures"])


def test_a_report_from_before_the_last_evaluation_is_refused(tmp_path: Path) -> None:
    one, other = two(tmp_path, ASKED, ASKED)
    (other / "evaluation" / "gsm8k" / "asked.json").write_text(json.dumps({**ASKED, "limit": 100}))
    with pytest.raises(UserError, match=r"two: gsm8k was asked anew after the report was written; `mixsd report .*two`"):
        mixsd.compare([one, other])


def test_a_model_evaluated_alone_is_refused(tmp_path: Path) -> None:
    one, other = two(tmp_path, ASKED, ASKED)
    report = json.loads((other / "report.json").read_text())
    (other / "report.json").write_text(json.dumps({**report, "alone": True}))
    with pytest.raises(UserError, match="two: one model evaluated alone; a comparison needs runs with a tuned model"):
        mixsd.compare([one, other])


def test_replies_sampled_with_another_seed_are_no_sign_of_another_machine(tmp_path: Path) -> None:
    asked = {**ASKED, "suite": "aime24", "temperature": 1.0, "samples": 2}
    made = []
    for seed in (0, 1):
        base = [{**item, "reply": f"{seed} {item['key']}"} for item in replies("aime24", seed + 1, 4, 2)]
        made.append(
            make(tmp_path / f"{seed}", said={"aime24": (base, replies("aime24", 1, 4, 2))}, asked={"aime24": asked}, seed=seed)
        )
    assert mixsd.compare(made)["notes"] == []


# The table, and the differences.


def benchmarked(folder: Path, right: int, *, seed: int = 0, **settings: Any) -> Path:
    said = {suite: (replies(suite, 6), replies(suite, right)) for suite in HELD_OUT}
    return make(folder, settings, seed=seed, said=said, asked={suite: {**ASKED, "suite": suite} for suite in HELD_OUT})


def test_the_table_has_each_benchmark_and_the_average(tmp_path: Path) -> None:
    result = mixsd.compare([benchmarked(tmp_path / "a", 3, method="sft"), benchmarked(tmp_path / "b", 6)])
    others = [name for name in result["measures"] if "/" in name or name.startswith("held")]
    assert others == [*(f"{suite}/{suite}" for suite in HELD_OUT), "held_out_average", "held_out_drop", "held_out_retained"]
    sft, mix = ({name: cell["value"] for name, cell in item["measures"].items()} for item in result["configurations"])
    assert (sft["gsm8k/gsm8k"], sft["held_out_average"], sft["held_out_drop"], sft["held_out_retained"]) == (
        0.375,
        0.375,
        0.375,
        0.5,
    )
    assert (mix["held_out_drop"], mix["held_out_retained"]) == (0.0, 1.0)
    assert result["base"]["measures"]["held_out_average"]["value"] == 0.75
    grid = {measure.label: [cell.value for cell in cells] for measure, cells in compare_page.grid(result)}
    assert grid["GSM8K"] == ["75.0%", "37.5%", "75.0%"]
    assert grid["Held-out average"] == ["75.0%", "37.5%", "75.0%"]
    assert grid["Held-out drop"] == ["0", "+37.5 pp", "0.0 pp"]
    assert grid["Held-out retained"] == ["100%", "50.0%", "100.0%"]
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    page = compare_page.html(result)
    assert "MATH-500" in page
    assert "McNemar p 0.250" in page
    assert "| Held-out drop (lower is better) | 0 (by definition) | +37.5 pp" in compare_page.markdown(result)


def test_without_one_benchmark_there_is_no_average(tmp_path: Path) -> None:
    said = {suite: (replies(suite, 6), replies(suite, 3)) for suite in HELD_OUT[1:]}
    runs = [benchmarked(tmp_path / "a", 3, method="sft"), make(tmp_path / "b", said=said)]
    assert not any(name.startswith("held") or name.startswith("aime24") for name in mixsd.compare(runs)["measures"])


def test_one_seed_is_paired_over_the_same_questions(tmp_path: Path) -> None:
    result = mixsd.compare([benchmarked(tmp_path / "a", 2, method="sft"), benchmarked(tmp_path / "b", 7)])
    pairs = {pair["measure"]: pair for pair in result["paired"]}
    assert list(pairs)[-6:] == [*(f"{suite}/{suite}" for suite in HELD_OUT), "held_out_average"]
    before, after = [True] * 2 + [False] * 6, [True] * 7 + [False]
    expected = statistics.grouped_difference(before, after, [str(place) for place in range(8)])
    pair = pairs["gsm8k/gsm8k"]
    assert pair["difference"] == {"value": 0.625, "n": 8, "low": expected.low, "high": expected.high, "over": "questions"}
    assert pair["p"] == statistics.mcnemar(before, after) == 2 * 0.5**5
    average = pairs["held_out_average"]["difference"]
    assert (average["value"], average["n"], average["over"]) == (pytest.approx(0.625), 40, "questions")
    assert average["low"] > 0
    paired = compare_page.paired_table(result)
    assert paired is not None
    assert any(row.cells[1] == "MMLU" and row.parts[2].value == "+62.5 pp" for row in paired.rows)


def test_several_answers_to_a_question_have_no_mcnemar(tmp_path: Path) -> None:
    asked = {"aime24": {**ASKED, "suite": "aime24", "samples": 2}}
    runs = [
        make(
            tmp_path / name,
            {"method": method},
            said={"aime24": (replies("aime24", 2, 8, 2), replies("aime24", right, 8, 2))},
            asked=asked,
        )
        for name, method, right in (("a", "sft", 1), ("b", "mixsd", 5))
    ]
    pair = {pair["measure"]: pair for pair in mixsd.compare(runs)["paired"]}["aime24/aime24"]
    assert (pair["difference"]["value"], pair["difference"]["n"], pair["p"]) == (0.5, 16, None)


def test_several_seeds_are_paired_over_the_seeds(tmp_path: Path) -> None:
    runs = [benchmarked(tmp_path / f"s{seed}", 2 + seed, seed=seed, method="sft") for seed in (0, 1)]
    runs += [benchmarked(tmp_path / f"m{seed}", 6, seed=seed) for seed in (0, 1)]
    result = mixsd.compare(runs)
    pairs = {pair["measure"]: pair for pair in result["paired"]}
    assert pairs["gsm8k/gsm8k"]["difference"]["value"] == pytest.approx((0.5 + 0.375) / 2)
    assert pairs["held_out_average"]["difference"]["over"] == "seeds"
    sft = next(item for item in result["configurations"] if item["method"] == "sft")["measures"]
    assert sft["held_out_retained"]["value"] == pytest.approx((2 / 6 + 3 / 6) / 2)
    assert sft["held_out_retained"]["low"] == 0.0  # Student's interval is cut to where a share of the base's can lie
    assert sft["held_out_drop"]["high"] == 1.0


def test_metrics_of_lm_eval_are_rows(tmp_path: Path) -> None:
    asked = {**ASKED, "suite": "lm-eval:tiny", "data": None, "about": ABOUT}
    result = mixsd.compare(two(tmp_path, asked, asked, "lm-eval:tiny"))
    others = [name for name in result["measures"] if "/" in name]
    assert others == ["lm-eval:tiny/tiny/acc,none", "lm-eval:tiny/tiny/odd,none"]
    grid = {
        measure.label: (measure.measure.better, [cell.value for cell in cells]) for measure, cells in compare_page.grid(result)
    }
    assert grid["lm-eval:tiny, acc,none"] == ("higher", ["50.0%", "0.0%", "0.0%"])
    assert grid["lm-eval:tiny, odd,none"] == ("", ["1.500", "0.000", "0.000"])
    compare_page.html(result)
    assert len(compare_page.tables(result)[0].rows) > len(grid)


def test_other_labels_of_a_benchmark_cannot_be_paired(tmp_path: Path) -> None:
    one = benchmarked(tmp_path / "a", 2, method="sft")
    plain = {suite: [[{**item, "labels": []} for item in replies(suite, right)] for right in (6, 3)] for suite in HELD_OUT}
    other = make(tmp_path / "b", said={suite: (base, tuned) for suite, (base, tuned) in plain.items()})
    with pytest.raises(
        UserError, match=r"delete .*a/evaluation/aime24/tuned\.jsonl and .*b/evaluation/aime24/tuned\.jsonl, then"
    ):
        mixsd.compare([one, other])


def test_a_report_without_scores_of_the_average_is_no_fault(tmp_path: Path) -> None:
    one, other = (benchmarked(tmp_path / name, 3, method=method) for name, method in (("a", "sft"), ("b", "mixsd")))
    report = json.loads((other / "report.json").read_text())
    report["scores"] = [item for item in report["scores"] if item["metric"] != "retained"]
    report["scores"].append(score("average", "retained", None, suite="held-out"))
    (other / "report.json").write_text(json.dumps(report))
    assert [name for name in mixsd.compare([one, other])["measures"] if name.startswith("held")] == [
        "held_out_average", "held_out_drop",
    ]  # fmt: skip
