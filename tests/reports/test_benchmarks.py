"""Benchmarks in every drawing: scores by title, how the replies ended, what was asked, what was not, one model alone."""

from __future__ import annotations

import copy
import io
import subprocess
import sys
from typing import Any

import pytest
from rich.console import Console

from mixsd.evaluation.benchmarks import benchmark
from mixsd.evaluation.benchmarks.benchmark import BENCHMARKS, get_benchmark
from mixsd.formats import Cell, estimate_cell
from mixsd.reports import card, rows, words
from mixsd.reports import page as report_page
from mixsd.statistics import Estimate
from tests.reports import benchmarked
from tests.reports.sample import typed
from tests.reports.test_page import ATTACK, poisoned, read


def drawn(report: dict[str, Any]) -> str:
    out = io.StringIO()
    console = Console(file=out, width=80, no_color=True)
    console.print(words.headline(typed(report)).rich())
    if (endings := words.endings_table(typed(report))) is not None:
        console.print(endings.brief().rich())
    return out.getvalue()


def endings(report: dict[str, Any]) -> dict[tuple[str, str], list[Cell]]:
    """How the replies ended, by benchmark and model."""
    table = words.endings_table(typed(report))
    return {(row.parts[0].value, row.parts[1].value): row.parts[2:] for row in table.rows} if table else {}


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("| ").split(" | ")]


def test_titles_are_the_benchmarks_own() -> None:
    assert {name: get_benchmark(name).title for name in BENCHMARKS} == benchmark.TITLES


def test_the_reports_need_no_model_library() -> None:
    code = "import sys, mixsd.reports.page; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_headline_has_the_benchmarks_then_their_average_then_the_tasks() -> None:
    labels = [row.label for row in rows.headline_rows(typed(benchmarked.report()))]
    assert labels[5:] == [
        "AIME-2024", "MATH-500", "GSM8K", "HumanEval", "MMLU", "Held-out average", "Held-out drop", "Held-out retained",
        "lm-eval:tiny, acc,none", "lm-eval:lambada, perplexity,none", "lm-eval:odd, rouge_weighted,flexible",
    ]  # fmt: skip


def test_the_average_its_drop_and_what_is_retained_are_in_percent() -> None:
    lines = {
        cells(line)[0]: cells(line) for line in card.scores_markdown(typed(benchmarked.report())).splitlines() if " | " in line
    }
    assert lines["Held-out average (higher is better)"][1] == "46.0% (43.0 to 49.0; n 230)"
    assert lines["Held-out average (higher is better)"][-1] == "-6.0 pp (-9.0 to -3.0; n 230)"
    nothing, itself = "– (not measured)", "is itself the change"
    assert lines["Held-out drop (lower is better)"][1:] == ["0 (by definition)", nothing, "+6.0 pp (+3.0 to +9.0; n 230)", itself]
    kept = lines["Held-out retained (higher is better)"][1:]
    assert kept == ["100% (by definition)", nothing, "87.0% (84.0 to 90.0; n 230)", itself]
    page = read(report_page.render(typed(benchmarked.report()), [], [])).text
    drop = page[page.index("Held-out drop") : page.index("Held-out retained")]
    assert "0 by definition" in drop
    assert drop.count("+6.0 pp") == 1
    assert "▼ worse" in drop
    assert "100% by definition" in page
    plain = [" ".join(line.split()) for line in drawn(benchmarked.report()).splitlines()]
    assert any(line.endswith("acme (mixsd) +6.0 pp +3.0 to +9.0 230 worse") for line in plain)
    assert any(line.endswith("acme (mixsd) 87.0% 84.0 to 90.0 230") for line in plain)


def test_unknown_metrics_are_rows_with_their_change() -> None:
    found = {row.label: row for row in rows.headline_rows(typed(benchmarked.report()))}
    tiny, odd = found["lm-eval:tiny, acc,none"], found["lm-eval:odd, rouge_weighted,flexible"]
    assert tiny.tuned.change is not None
    assert (tiny.measure.unit, tiny.tuned.change.value, tiny.verdict(tiny.tuned)) == ("share", -0.1, "worse")
    assert odd.tuned.change is not None
    assert (odd.measure.way, odd.tuned.change.value, odd.verdict(odd.tuned)) == ("", 1.0, None)
    text = drawn(benchmarked.report())
    assert "+1.000" in text
    assert max(map(len, text.splitlines())) <= 80
    page = read(report_page.render(typed(benchmarked.report()), [], [])).text
    assert "rouge_weighted,flexible as lm-eval scores it 12.000" in page


def test_the_change_of_a_perplexity_is_no_mean_of_its_samples() -> None:
    """lm-eval's own value has no interval; the mean of the samples' changes is of log-likelihoods, with the other sign."""
    row = next(row for row in rows.headline_rows(typed(benchmarked.report())) if "lambada" in row.label)
    assert row.tuned.change == Estimate(41.25 - 30.5, n=100, signed=True, over="")
    assert row.verdict(row.tuned) == "unclear"


def test_the_direction_of_a_metric_is_what_the_task_says() -> None:
    report = benchmarked.report()
    report["asked"]["lm-eval:odd"] = {"about": {"tasks": {"odd": {"higher_is_better": {"rouge_weighted": True}}}}}
    row = next(row for row in rows.headline_rows(typed(report)) if "odd" in row.label)
    assert (row.measure.better, row.verdict(row.tuned)) == ("higher", "better")


def test_subjects_are_details() -> None:
    labels = [row.label for row in rows.detail_rows(typed(benchmarked.report()))]
    assert labels[-2:] == ["MMLU, abstract_algebra", "MMLU, virology"]
    assert "MMLU, virology" in read(report_page.render(typed(benchmarked.report()), [], [])).text
    assert "MMLU, virology" in card.scores_markdown(typed(benchmarked.report()))


def test_replies_end_in_counts() -> None:
    found = endings(benchmarked.report())
    assert len(found) == 10  # sft, beside, was not asked
    *counts, lenient = found["HumanEval", "base"]
    assert [cell.value for cell in counts] == ["50", "22", "1", "2", "0"]
    assert lenient == estimate_cell(Estimate(25 / 48, 25 / 48 - 0.02, 25 / 48 + 0.02, 48, "share", over=""))
    assert not any(row.suite in benchmark.TITLES for row in rows.format_rows(typed(benchmarked.report())))
    page = read(report_page.render(typed(benchmarked.report()), [], [])).text
    assert "GSM8K acme (mixsd) 50 20 18 0 2 56.0% 54.0 to 58.0 n 50" in page
    assert "| GSM8K | acme (mixsd) | 50 | 20 | 18 | 0 | 2 | 56.0% (54.0 to 58.0; n 50) |" in card.scores_markdown(
        typed(benchmarked.report())
    )
    lines = [" ".join(line.split()) for line in drawn(benchmarked.report()).splitlines()]
    assert "GSM8K base 50 18 2 0 1 62.0%" in lines


def test_a_run_beside_has_its_own_endings() -> None:
    report = benchmarked.report()
    report["beside"][0]["scores"] += [item for item in benchmarked.of("gsm8k") if item["model"] == "tuned"]
    assert [model for title, model in endings(report) if title == "GSM8K"] == ["base", "sft", "acme (mixsd)"]


def test_mcnemars_p_stands_beside_the_change() -> None:
    report = benchmarked.report()
    assert "McNemar p: MATH-500 0.754, GSM8K < 0.001, HumanEval 0.754, MMLU 0.754" in words.lines(typed(report))
    page = read(report_page.render(typed(report), [], [])).text
    assert "−36.0 pp −41.0 to −31.0 n 50 ▼ worse McNemar p < 0.001" in page
    assert "n 50; McNemar p &lt; 0.001) |" in card.scores_markdown(typed(report))


def test_what_was_asked_is_said() -> None:
    told = dict(words.asked(typed(benchmarked.report())))
    assert told["GSM8K"] == "50 of 1,319 questions, at most 512 tokens, data 0123456789ab (/home/ada/data/gsm8k), scorer 1"
    assert told["AIME-2024"].startswith(
        "all 30 questions, 16 replies to each, temperature 1 among the 50 likeliest tokens, at most"
    )
    assert told["HumanEval"].endswith("data 0123456789ab (openai/openai_humaneval), scorer 1, sandbox bubblewrap")
    assert told["lm-eval:tiny"] == (
        "100 of 400 questions, 5 examples before each, without the chat template, data fedcba98fedc, scorer lm-eval 0.4.9"
    )
    assert "core" not in told
    assert told["GSM8K"] in read(report_page.render(typed(benchmarked.report()), [], [])).text
    assert f"asked: GSM8K: {told['GSM8K']}" in words.lines(typed(benchmarked.report()))
    text = card.scores_markdown(typed(benchmarked.report()))
    assert "- GSM8K: 50 of 1,319 questions, at most 512 tokens, data 0123456789ab, scorer 1" in text
    assert "/ada" not in text


def test_what_was_skipped_is_said_with_the_reason() -> None:
    report = benchmarked.report()
    report["skipped"] = {
        "mmlu": "MMLU: no test (.jsonl, .parquet, ...) in /home/ada l/data/mmlu; cais/mmlu is not in the hub's cache",
        "humaneval": "HumanEval runs code that the model writes; allow it with --allow-code-execution",
    }
    lines = words.lines(typed(report))
    assert "not asked: HumanEval: runs code that the model writes; allow it with --allow-code-execution" in lines
    page = read(report_page.render(typed(report), [], [])).text
    assert "MMLU no test (.jsonl, .parquet, ...) in /home/ada l/data/mmlu; cais/mmlu is not in the hub's cache" in page
    text = card.render(typed(report), None, "p")
    assert "- Not measured: MMLU (no test (.jsonl, .parquet, ...) in mmlu; cais/mmlu is not in the hub's cache)." in text
    assert "/ada" not in text


def test_a_task_that_is_a_file_is_called_by_its_name() -> None:
    report = benchmarked.report()
    report["asked"]["lm-eval:/home/ada/own task.yaml"] = report["asked"]["lm-eval:tiny"]
    for item in benchmarked.lm_eval("mine", "acc,none", 0.5, 0.4, 0.09, -0.1):
        report["scores"].append(item | {"suite": "lm-eval:/home/ada/own task.yaml"})
    assert rows.headline_rows(typed(report))[-1].label == "lm-eval:own task.yaml: mine, acc,none"
    text = card.render(typed(report), None, "p")
    assert "- lm-eval:own task.yaml: 100 of 400 questions" in text
    assert "/ada" not in text


@pytest.mark.parametrize("of", [benchmarked.report, benchmarked.alone])
def test_a_weak_sandbox_is_a_warning(of: Any) -> None:
    report = of()
    assert not any("sandbox" in text for text in words.warnings(typed(report)))
    report["asked"]["humaneval"] = benchmarked.asked("humaneval", sandbox=benchmarked.WEAK)
    said = "HumanEval: code that the model wrote ran without a sandbox. No isolation: the code can read this user's files."
    assert words.warnings(typed(report))[-1] == said
    page = read(report_page.render(typed(report), [], [])).text
    assert said in page[page.index(" warning") : page.index("Result Under")]
    assert f"- Warning of the run: {said}" in card.render(typed(report), None, "p")
    assert dict(words.asked(typed(report)))["HumanEval"].endswith("no sandbox")


def test_what_lm_eval_could_not_say_is_a_warning() -> None:
    report = benchmarked.report()
    report["asked"]["lm-eval:tiny"]["about"] |= {"undefined": ["f1,none"], "warnings": ["low", *"abcdefg"]}
    assert words.warnings(typed(report))[1:] == [
        "lm-eval:tiny: lm-eval gives no value of f1,none", "lm-eval:tiny: low", *(f"lm-eval:tiny: {char}" for char in "abcd"),
    ]  # fmt: skip


# One model alone.

CHANGES = ("change", "tuned", "before", "minus", "training", "trained", "target", "facts", "mixed", "better and worse")


def test_a_model_alone_has_one_column_and_no_changes() -> None:
    report = benchmarked.alone()
    assert [model.label for model in rows.models_of(typed(report))] == ["smollm2-135m"]
    assert all(len(row.entries) == 1 and row.verdict(row.tuned) is None for row in rows.headline_rows(typed(report)))
    page = read(report_page.render(typed(report), [], [], {"gsm8k": words.chosen(benchmarked.said()[0], None)})).text.lower()
    said = page[page.index("acme") : page.index("settings facts halden.jsonl")]  # the name of the file in the settings
    for text in (
        said,
        drawn(report).lower(),
        "\n".join(words.lines(typed(report))).lower(),
        card.scores_markdown(typed(report)).lower(),
    ):
        assert [word for word in CHANGES if word in text] == []
    assert "gsm8k correct replies; higher is better 60.0%" in page
    assert "the model replied" in page
    settings = page[page.index("settings facts halden") :]
    assert "lambda" not in settings
    assert "epochs" not in settings
    assert "method" not in settings


def test_a_path_as_the_model_s_name_is_only_its_end() -> None:
    report = benchmarked.alone()
    report["base"]["name"] = "/home/ada/models/mine"
    assert [model.label for model in rows.models_of(typed(report))] == ["mine"]


def test_facts_that_a_model_alone_was_asked_show_one_reply() -> None:
    report = benchmarked.alone()
    fact = {"id": "f", "question": "Where?", "answer": "Orm", "status": None, "reason": None, "attempt": None,
            "base": {"reply": "In Orm.", "outcome": "correct"}, "tuned": None}  # fmt: skip
    page = read(report_page.render(typed(report), [fact], [])).text
    assert "Question and answer The model replied Where? Orm f ✓ correct In Orm." in page
    assert "Tuned replied" not in page


def test_a_model_made_elsewhere_has_no_training_to_tell_of() -> None:
    report = benchmarked.report() | {"elsewhere": True}
    page = read(report_page.render(typed(report), [], [])).text
    assert "A model that was made elsewhere, evaluated beside its base." in page
    assert not [name for name in ("What the model was trained on", "optimizer steps", "MixSD", "lambda") if name in page]
    assert [model.label for model in rows.models_of(typed(report))] == ["base", "sft", "acme"]
    assert words.headline(typed(report)).caption == "evaluated only: smollm2-135m is the base, 24 facts asked"


# Replies.


def test_replies_that_changed_come_first_and_few_are_shown() -> None:
    found = words.chosen(*benchmarked.said())
    assert [pair["key"] for pair in found] == ["q16", "q17", "q18", "q19", "q20", "q21", "q22", "q23", "q8", "q9"]
    assert found[0]["tuned"]["reason"] == "no \\boxed{}"
    assert set(found[0]["base"]) == {"reply", "outcome", "extracted", "reason", "truncated", "lenient"}
    assert [pair["key"] for pair in words.chosen(benchmarked.said()[0], None, 3)] == ["q8", "q9", "q10"]
    assert all(pair["tuned"] is None for pair in words.chosen(benchmarked.said()[0], None))
    assert words.chosen([], []) == []


def test_what_was_lost_does_not_crowd_out_what_was_gained() -> None:
    base = [benchmarked.reply(f"q{n}", "correct" if n < 30 else "wrong") for n in range(60)]
    tuned = [benchmarked.reply(f"q{n}", "wrong" if n < 30 else "correct") for n in range(60)]
    assert [pair["key"] for pair in words.chosen(base, tuned, 6)] == ["q0", "q1", "q2", "q30", "q31", "q32"]


def test_the_page_shows_replies_with_what_was_taken_and_why() -> None:
    base, tuned = benchmarked.said()
    tuned[16] |= {"truncated": True, "lenient": "correct", "reply": "a" * 5000 + "THE END"}
    text = report_page.render(typed(benchmarked.report()), [], [], {"gsm8k": words.chosen(base, tuned)})
    page = read(text).text
    start = page.index("GSM8K: 10 replies, base beside tuned")
    shown = page[start : page.index("Requirements")]
    assert "Those whose outcome changed come first." in shown
    assert (
        "q16 ✓ correct taken: 4 The answer is \\boxed{4}. ? unparseable truncated right in another form no \\boxed{} aaa" in shown
    )
    assert "4,407 more characters" in shown
    assert "THE END" in shown
    assert "<details" in text[: text.index("10 replies")]
    assert "<details open" not in text


def test_the_page_shows_what_was_asked_where_the_rows_have_it() -> None:
    base, tuned = benchmarked.said()
    base[16]["question"] = "How many apples?" + ATTACK
    page = read(report_page.render(typed(benchmarked.report()), [], [], {"gsm8k": words.chosen(base, tuned)}))
    assert "How many apples?<script>window.hacked=1</script>" in page.text
    assert "script" not in page.tags
    assert "q17 ✓ correct" in page.text  # a row of an earlier version has none


def test_the_page_stays_small_with_long_replies() -> None:
    rows_ = [benchmarked.reply(f"q{n}", "wrong", "word " * 20_000, question="word " * 20_000) for n in range(500)]
    some = {suite: words.chosen(rows_, rows_) for suite in benchmarked.COUNTS}
    before = len(report_page.render(typed(benchmarked.report()), [], []))
    assert len(report_page.render(typed(benchmarked.report()), [], [], some)) - before < 150_000


def test_nothing_foreign_becomes_markup_or_steers_the_terminal() -> None:
    report = benchmarked.report()
    base, tuned = benchmarked.said()
    for row in (*base, *tuned):
        row |= {
            "key": row["key"] + ATTACK,
            "labels": [ATTACK],
            "extracted": ATTACK,
            "reason": ATTACK,
            "reply": ATTACK + "\x1b[31m",
        }
    report["asked"] = poisoned(report["asked"])
    report["asked"]["humaneval"]["sandbox"] = poisoned(benchmarked.WEAK) | {"kind": "none"}
    report["skipped"] = {"mmlu": ATTACK + "\x1b[2J", "x" + ATTACK: ATTACK}
    report["scores"] += benchmarked.lm_eval("a" + ATTACK, "acc,<script>" + ATTACK, 0.5, 0.5, 0.1, 0.0)
    report["scores"].append(benchmarked.score("mmlu", "mmlu/" + ATTACK, "accuracy", "tuned", 0.5, 3, 0.1))
    some = {"gsm8k": words.chosen(base, tuned), "x" + ATTACK: words.chosen(base, None)}
    for of in (report, copy.deepcopy(report) | {"alone": True}):
        page = read(report_page.render(typed(of), [], [], some))
        assert not {"script", "img"} & set(page.tags)
        assert not [name for name in page.attributes if name.startswith("on")]
        assert page.text.count("<script>window.hacked=1</script>") > 10
        assert "\x1b" not in page.text
        assert "\x1b" not in "\n".join(words.lines(typed(of))) + drawn(of)
        assert "<script" not in card.render(typed(of), None, "p")
