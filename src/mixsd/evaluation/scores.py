"""Scores of rows of replies: the flat list that everything reads which compares or draws.

A row counts in its split and in each of its labels' parts of it ("retrieval/relation lives_in"); a part has its accuracy only.
Every number carries its n and a 95% interval. A row of a benchmark has a second, lenient outcome and has its own kind of paired
interval, a bootstrap; a row of lm-eval has the numbers that lm-eval gave it.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from mixsd import statistics
from mixsd.statistics import Estimate

Row = dict[str, Any]

HELD_OUT, AVERAGE = "held-out", "average"  # the suite and the split of the figures over all benchmarks


def compare(
    suite: str, base: list[Row] | None, tuned: list[Row] | None, results: Mapping[str, Mapping[str, float]] | None = None
) -> list[dict[str, Any]]:
    """The flat list of scores of one or both models; with both, also the paired differences.

    Args:
        results: what lm-eval itself makes of its samples, by model and metric, or "split/metric" where a task has several parts; it
            goes before their mean.

    Raises:
        ValueError: the two were not asked the same prompts.
    """
    scores: list[dict[str, Any]] = []
    for name, rows in (("base", base), ("tuned", tuned)):
        if rows:
            scores += _scores_of(suite, name, rows)
    if base and tuned:
        if [(row["key"], row["prompt_hash"]) for row in base] != [(row["key"], row["prompt_hash"]) for row in tuned]:
            raise ValueError("base and tuned were not asked the same prompts; evaluate them again")
        scores += _differences(suite, base, tuned)
    return _stated(suite, scores, results) if results else scores


def _stated(suite: str, scores: list[dict[str, Any]], results: Mapping[str, Mapping[str, float]]) -> list[dict[str, Any]]:
    """Scores with lm-eval's own values where these are no means of what it says of each sample (a perplexity, a group's aggregate).

    Such a value has no interval of ours, and its change is the difference of two such values.
    """
    places = {(score["split"], score["metric"], score["model"]): score for score in scores}
    splits = list(dict.fromkeys(score["split"] for score in scores))
    values: dict[tuple[str, str], dict[str, float]] = defaultdict(dict)
    for model, stated in results.items():
        for name, value in stated.items():
            split, _, metric = name.rpartition("/")
            if not metric.partition(",")[0].endswith("_stderr"):
                values[split or (splits[0] if splits else suite), metric][model] = value
    for (split, metric), by_model in values.items():
        n = max((score["n"] for score in scores if score["split"] == split), default=0) or max(
            (s["n"] for s in scores), default=0
        )
        own = [places.get((split, metric, model)) for model in by_model]
        if all(
            score and score["value"] is not None and math.isclose(score["value"], value, abs_tol=1e-9)
            for score, value in zip(own, by_model.values(), strict=True)
        ):
            continue
        wanted = [(metric, model, value) for model, value in by_model.items()]
        if {"base", "tuned"} <= by_model.keys():
            wanted.append((f"{metric}_delta", "tuned", by_model["tuned"] - by_model["base"]))
        for name, whose, value in wanted:
            made = score_row(suite, split, name, whose, Estimate(value, n=n))
            if known := places.get((split, name, whose)):
                known |= made
            else:
                scores.append(made)
    return scores


def score_row(
    suite: str, split: str, metric: str, model: str, estimate: Estimate, checkpoint: int | None = None
) -> dict[str, Any]:
    """A row of the flat list; `checkpoint` is None for the model that a run ended with."""
    place = {"suite": suite, "split": split, "metric": metric, "model": model, "checkpoint": checkpoint}
    return place | estimate.to_json()


def _by_split(rows: list[Row]) -> dict[str, list[Row]]:
    splits: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        splits[row["split"]].append(row)
        for label in row["labels"]:
            splits[f"{row['split']}/{label}"].append(row)
    return splits


def _scores_of(suite: str, model: str, rows: list[Row]) -> list[dict[str, Any]]:
    scores = []
    whole = {row["split"] for row in rows}
    for split, own in _by_split(rows).items():
        if "nll" in own[0]:
            sums, counts = [row["nll"] for row in own], [row["tokens"] for row in own]
            scores.append(score_row(suite, split, "reference_nll", model, statistics.ratio_of_sums(sums, counts)))
            continue
        judged = [row for row in own if row["outcome"] != "error"]
        if "metrics" in own[0]:
            scores += _metrics_of(suite, split, model, own)
            continue
        scores.append(score_row(suite, split, "accuracy", model, _share(judged, _is("correct"))))
        if split not in whole:
            continue
        if "lenient" in own[0] or any("lenient" in row for row in own):
            taken = [row for row in own if row.get("lenient", "error") != "error"]
            scores.append(
                score_row(suite, split, "accuracy_lenient", model, _share(taken, lambda row: row["lenient"] == "correct"))
            )
            scores.append(score_row(suite, split, "wrong_share", model, _share(judged, _is("wrong"))))
        scores.append(score_row(suite, split, "unparseable_share", model, _share(judged, _is("unparseable"))))
        scores.append(score_row(suite, split, "error_share", model, _share(own, _is("error"))))
        scores.append(score_row(suite, split, "truncated_share", model, _share(own, lambda row: row["truncated"])))
        if edits := [row for row in judged if "old" in row]:
            kept = _share(edits, lambda row: row["old"])
            other = _share(edits, lambda row: row["outcome"] != "correct" and not row["old"])
            scores.append(score_row(suite, split, "old_answer_share", model, kept))
            scores.append(score_row(suite, split, "other_answer_share", model, other))
    return scores


def _is(outcome: str) -> Callable[[Row], bool]:
    return lambda row: row["outcome"] == outcome


def _share(rows: list[Row], holds: Callable[[Row], bool]) -> Estimate:
    """The share of rows that something holds for; the interval counts groups, since wordings of one fact go together."""
    if not rows:
        return statistics.proportion(0, 0)
    held, n, groups = sum(map(holds, rows)), len(rows), _groups(rows)
    return replace(statistics.proportion(held * groups / n, groups), value=held / n, n=n)


def _groups(rows: list[Row]) -> int:
    return len({row["group"] for row in rows})


def _differences(suite: str, base: list[Row], tuned: list[Row]) -> list[dict[str, Any]]:
    scores = []
    before, after = _by_split(base), _by_split(tuned)
    for split in before:
        if "nll" in before[split][0]:
            change = statistics.paired_ratio_difference(
                [row["nll"] for row in before[split]],
                [row["nll"] for row in after[split]],
                [row["tokens"] for row in before[split]],
            )
            scores.append(score_row(suite, split, "forgetting", "tuned", change))
            continue
        if "metrics" in before[split][0]:
            scores += _metric_changes(suite, split, before[split], after[split])
            continue
        pairs = _judged_pairs(before[split], after[split])
        if not any("lenient" in row for row in before[split]):
            scores.append(score_row(suite, split, "accuracy_delta", "tuned", _change(pairs)))
            continue
        old, new = ([pair[side]["outcome"] == "correct" for pair in pairs] for side in (0, 1))
        groups = [row["group"] for row, _ in pairs]
        scores.append(score_row(suite, split, "accuracy_delta", "tuned", statistics.grouped_difference(old, new, groups)))
        if len(set(groups)) == len(groups) and pairs:  # several answers to one question are not independent
            p = Estimate(statistics.mcnemar(old, new), n=len(pairs))
            scores.append(score_row(suite, split, "mcnemar_p", "tuned", p))
    return scores


def held_out(rows: Mapping[str, tuple[list[Row], list[Row] | None]], suites: Sequence[str]) -> list[dict[str, Any]]:
    """The paper's figures over its benchmarks: the unweighted mean of their accuracies, its drop, and the share retained.

    Args:
        rows: what base and tuned (None: only one model was asked) said, by suite.
        suites: the benchmarks; where one of them was not asked there are no such figures.
    """
    if not all(suite in rows for suite in suites):
        return []
    strata = [_sums_by_group(*rows[suite]) for suite in suites]

    def average(side: int) -> Callable[[list[np.ndarray]], float | None]:
        return lambda sums: None if any(s[side + 1] == 0 for s in sums) else float(np.mean([s[side] / s[side + 1] for s in sums]))

    def both(join: Callable[[float, float], float | None]) -> Callable[[list[np.ndarray]], float | None]:
        def joined(sums: list[np.ndarray]) -> float | None:
            base, tuned = average(0)(sums), average(2)(sums)
            return None if base is None or tuned is None else join(base, tuned)

        return joined

    names: dict[tuple[str, str], Callable[[list[np.ndarray]], float | None]] = {("accuracy", "base"): average(0)}
    if all(rows[suite][1] is not None for suite in suites):
        names |= {
            ("accuracy", "tuned"): average(2),
            ("accuracy_delta", "tuned"): both(lambda base, tuned: tuned - base),
            ("drop", "tuned"): both(lambda base, tuned: base - tuned),
            ("retained", "tuned"): both(lambda base, tuned: tuned / base if base else None),
        }
    return [
        score_row(HELD_OUT, AVERAGE, metric, model, statistics.stratified(strata, estimate))
        for (metric, model), estimate in names.items()
    ]


def _sums_by_group(base: list[Row], tuned: list[Row] | None) -> np.ndarray:
    """Right answers and answers of base, then of tuned, shape (4, groups); an answer that could not be judged is none."""
    places = {group: place for place, group in enumerate(dict.fromkeys(row["group"] for row in base))}
    sums = np.zeros((4, len(places)))
    for side, rows in ((0, base), (2, tuned or [])):
        for row in rows:
            if row["outcome"] != "error":
                sums[side, places[row["group"]]] += row["outcome"] == "correct"
                sums[side + 1, places[row["group"]]] += 1
    return sums


def _metrics_of(suite: str, split: str, model: str, rows: list[Row]) -> list[dict[str, Any]]:
    """The means of what lm-eval measured of each sample."""
    names = dict.fromkeys(name for row in rows for name in row["metrics"])
    found = []
    for name in names:
        values = [row["metrics"][name] for row in rows if row["metrics"].get(name) is not None]
        found.append(score_row(suite, split, name, model, statistics.mean(values)))
    return found


def _metric_changes(suite: str, split: str, base: list[Row], tuned: list[Row]) -> list[dict[str, Any]]:
    names = dict.fromkeys(name for row in base for name in row["metrics"])
    found = []
    for name in names:
        pairs = [
            (b["metrics"][name], a["metrics"][name])
            for b, a in zip(base, tuned, strict=True)
            if b["metrics"].get(name) is not None and a["metrics"].get(name) is not None
        ]
        before, after = ([pair[side] for pair in pairs] for side in (0, 1))
        found.append(score_row(suite, split, f"{name}_delta", "tuned", statistics.paired_difference(before, after)))
    return found


def _judged_pairs(before: list[Row], after: list[Row]) -> list[tuple[Row, Row]]:
    return [(b, a) for b, a in zip(before, after, strict=True) if "error" not in (b["outcome"], a["outcome"])]


def _change(pairs: list[tuple[Row, Row]]) -> Estimate:
    """How much more of the same questions is right; here too the interval counts groups."""
    if not pairs:
        return statistics.share_difference(0, 0, 0)
    right = [(b["outcome"] == "correct", a["outcome"] == "correct") for b, a in pairs]
    gained, lost, n, groups = right.count((False, True)), right.count((True, False)), len(pairs), _groups([b for b, _ in pairs])
    by_group = statistics.share_difference(gained * groups / n, lost * groups / n, groups)
    return replace(by_group, value=(gained - lost) / n, n=n)
