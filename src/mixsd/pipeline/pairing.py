"""Two configurations of a comparison, run against run of the same seed.

With several seeds in common: the differences over these seeds. With one: over the questions that both were asked, which says
nothing of other seeds, with McNemar's exact test where the questions are independent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mixsd import statistics
from mixsd.errors import UserError
from mixsd.evaluation import core, scores
from mixsd.evaluation.benchmarks.benchmark import BENCHMARKS, HELD_OUT
from mixsd.pipeline.comparable import Measured
from mixsd.pipeline.compared import AT_LEVEL, IN_CORE, Key, cell, over_seeds, seeds_cell
from mixsd.pipeline.evaluated import replies_file
from mixsd.pipeline.run import Run

_IN_CORE = ("trained", "paraphrase", "probe", "forgetting")
_AVERAGE = "held_out_average"


def paired(
    first: str, second: str, told: Sequence[dict[str, Any]], runs: Sequence[Measured], measures: Mapping[str, Key]
) -> list[dict[str, Any]]:
    """Second minus first, and where both are positive second / first.

    Args:
        first: the label of the configuration that the other is held against.
        told: what is told of each of `runs`.
        measures: what every run was asked.
    """
    one, two = (
        {run["seed"]: place for place, run in enumerate(told) if run["configuration"] == label} for label in (first, second)
    )
    seeds = sorted(one.keys() & two.keys())
    if len(seeds) == 1:
        return _over_questions(first, second, runs[one[seeds[0]]], runs[two[seeds[0]]], measures)
    found = []
    for name in (*_IN_CORE, AT_LEVEL, *_benchmarks(measures), *([_AVERAGE] if _AVERAGE in measures else [])):
        cells = {seed: [told[at[seed]]["measures"].get(name) for at in (one, two)] for seed in seeds}
        both = {seed: (a["value"], b["value"]) for seed, (a, b) in cells.items() if a and b}
        values = list(both.values())
        if len(values) < 2:
            continue
        ratio = None
        if name in ("forgetting", AT_LEVEL) and all(a > 0 and b > 0 for a, b in values):
            ratio = seeds_cell(statistics.log_ratio_interval([b for _, b in values], [a for a, _ in values]))
        difference = over_seeds([b - a for a, b in values])
        found.append(_pair(first, second, list(both), name, difference, ratio))
    return found


def _benchmarks(measures: Mapping[str, Key]) -> dict[str, str]:
    """The benchmarks that every run was asked: suite by the name of the measure."""
    return {name: suite for name, (suite, split, _) in measures.items() if suite in BENCHMARKS and split == suite}


def _over_questions(
    first: str, second: str, one: Measured, two: Measured, measures: Mapping[str, Key]
) -> list[dict[str, Any]]:  # fmt: skip
    """What two runs of one seed said to the same prompts; intervals and McNemar's p over these prompts."""
    before, after = _said(core.SUITE, one, two)
    differences = _differences(core.SUITE, before, after)
    found = []
    for name in _IN_CORE:
        _, split, metric = IN_CORE[name]
        change = differences.get((split, "forgetting" if metric == "forgetting" else "accuracy_delta"))
        if not change or change["value"] is None:
            continue
        p = None
        if name in ("trained", "probe"):  # the wordings of one fact are not independent
            right = [[row["outcome"] == "correct" for row in said if row["split"] == split] for said in (before, after)]
            p = statistics.mcnemar(*right)
        found.append({**_pair(first, second, [one.seed], name, cell(change, "questions"), None), "p": p})
    return found + _over_benchmarks(first, second, one, two, measures)


def _over_benchmarks(
    first: str, second: str, one: Measured, two: Measured, measures: Mapping[str, Key]
) -> list[dict[str, Any]]:  # fmt: skip
    """The same over the questions of each benchmark, and of all that the average is of."""
    found = []
    rows: dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]] | None]] = {}
    for name, suite in _benchmarks(measures).items():
        before, after = _said(suite, one, two)
        rows[suite] = before, after
        differences = _differences(suite, *([{**row, "labels": []} for row in said] for said in (before, after)))
        change, tested = (differences.get((suite, metric)) for metric in ("accuracy_delta", "mcnemar_p"))
        if change and change["value"] is not None:
            p = tested["value"] if tested else None
            found.append({**_pair(first, second, [one.seed], name, cell(change, "questions"), None), "p": p})
    if _AVERAGE in measures:
        figures = {score["metric"]: score for score in scores.held_out(rows, HELD_OUT)}
        change = figures.get("accuracy_delta")
        if change and change["value"] is not None:
            found.append(_pair(first, second, [one.seed], _AVERAGE, cell(change, "questions"), None))
    return found


def _said(suite: str, one: Measured, two: Measured) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """What two tuned models replied to the same prompts, in one order."""
    before, after = (list(run.rows(suite, "tuned")) for run in (one, two))
    asked = [[(row["key"], row["prompt_hash"], row["split"], row["labels"]) for row in said] for said in (before, after)]
    if asked[0] != asked[1]:
        places = " and ".join(str(replies_file(Run(run.folder), suite, "tuned")) for run in (one, two))
        raise UserError(
            f"{two.folder}: cannot be compared with {one.folder}: their tuned models were not asked the same in the same order, or the "
            f"rows are labelled otherwise; delete {places}, then `mixsd evaluate --suite {suite}` and `mixsd report` both"
        )
    return before, after


def _differences(suite: str, before: list[dict[str, Any]], after: list[dict[str, Any]]) -> dict[tuple[str, str], dict[str, Any]]:
    return {(item["split"], item["metric"]): item for item in scores.compare(suite, before, after) if item["model"] == "tuned"}


def _pair(
    first: str, second: str, seeds: list[int], measure: str, difference: dict[str, Any], ratio: dict[str, Any] | None
) -> dict[str, Any]:
    compared = {"configuration": second, "against": first, "seeds": seeds, "measure": measure}
    return {**compared, "difference": difference, "ratio": ratio, "p": None}
