"""Scores of rows of replies: the flat list that everything reads which compares or draws.

A row counts in its split and in each of its labels' parts of it ("retrieval/relation lives_in"), which have their accuracy only. Every
number carries its n and a 95% interval. Rows of benchmarks have a second, lenient outcome; those of lm-eval have its own numbers.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from mixsd import statistics
from mixsd.statistics import Estimate

Row = dict[str, Any]
Results = Mapping[str, Mapping[str, float]]
_OfSums = Callable[[list[np.ndarray]], float | None]

HELD_OUT, AVERAGE = "held-out", "average"  # the suite and the split of the figures over all benchmarks


def compare(suite: str, base: list[Row] | None, tuned: list[Row] | None, results: Results | None = None) -> list[Row]:
    """The flat list of scores of one or both models; with both, also the paired differences (a `ValueError` if they were asked otherwise).

    results: lm-eval's own aggregates by model and metric, or "split/metric" where a task has several parts; they go before a mean.
    """
    scores: list[Row] = []
    for model, rows in (("base", base), ("tuned", tuned)):
        splits = {row["split"] for row in rows or ()}
        for split, own in _by_split(rows or []).items():
            estimates = _estimates(own, whole=split in splits)
            scores += [score_row(suite, split, metric, model, estimate) for metric, estimate in estimates.items()]
    if base and tuned:
        if [(row["key"], row["prompt_hash"]) for row in base] != [(row["key"], row["prompt_hash"]) for row in tuned]:
            raise ValueError("base and tuned were not asked the same prompts; evaluate them again")
        after = _by_split(tuned)
        for split, own in _by_split(base).items():
            changes = _changes(own, after[split])
            scores += [score_row(suite, split, metric, "tuned", estimate) for metric, estimate in changes.items()]
    return _stated(suite, scores, results) if results else scores


def _stated(suite: str, scores: list[Row], results: Results) -> list[Row]:
    """Scores with lm-eval's own values where these are no means of what it says of each sample (a perplexity, a group's aggregate).

    Such a value has no interval of ours, and its change is the difference of two such values.
    """
    places = {(score["split"], score["metric"], score["model"]): score for score in scores}
    sizes: dict[str, int] = {}
    for score in scores:
        sizes[score["split"]] = max(score["n"], sizes.get(score["split"], 0))
    values: dict[tuple[str, str], dict[str, float]] = defaultdict(dict)
    for model, stated in results.items():
        for name, value in stated.items():
            split, _, metric = name.rpartition("/")
            if not metric.partition(",")[0].endswith("_stderr"):
                values[split or next(iter(sizes), suite), metric][model] = value
    for (split, metric), by_model in values.items():
        own = {model: places.get((split, metric, model), {}).get("value") for model in by_model}
        if all(mean is not None and math.isclose(mean, by_model[model], abs_tol=1e-9) for model, mean in own.items()):
            continue
        wanted = [(metric, model, value) for model, value in by_model.items()]
        if {"base", "tuned"} <= by_model.keys():
            wanted.append((f"{metric}_delta", "tuned", by_model["tuned"] - by_model["base"]))
        n = sizes.get(split, 0) or max(sizes.values(), default=0)
        for name, whose, value in wanted:
            made = score_row(suite, split, name, whose, Estimate(value, n=n))
            if known := places.get((split, name, whose)):
                known |= made
            else:
                scores.append(made)
    return scores


def score_row(suite: str, split: str, metric: str, model: str, estimate: Estimate, checkpoint: int | None = None) -> Row:
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


def _estimates(rows: list[Row], *, whole: bool) -> dict[str, Estimate]:
    if "nll" in rows[0]:
        return {"reference_nll": statistics.ratio_of_sums([row["nll"] for row in rows], [row["tokens"] for row in rows])}
    if "metrics" in rows[0]:  # what lm-eval measured of each sample
        names = dict.fromkeys(name for row in rows for name in row["metrics"])
        values = {name: [row["metrics"][name] for row in rows if row["metrics"].get(name) is not None] for name in names}
        return {name: statistics.mean(own) for name, own in values.items()}
    judged = [row for row in rows if row["outcome"] != "error"]
    found = {"accuracy": _share(judged, "outcome", "correct")}
    if not whole:
        return found
    if any("lenient" in row for row in rows):
        taken = [row for row in rows if row.get("lenient", "error") != "error"]
        found |= {"accuracy_lenient": _share(taken, "lenient", "correct"), "wrong_share": _share(judged, "outcome", "wrong")}
    found["unparseable_share"] = _share(judged, "outcome", "unparseable")
    found["error_share"] = _share(rows, "outcome", "error")
    found["truncated_share"] = _share(rows, "truncated", True)
    if edits := [row for row in judged if "old" in row]:
        others = [{**row, "other": row["outcome"] != "correct" and not row["old"]} for row in edits]
        found |= {"old_answer_share": _share(edits, "old", True), "other_answer_share": _share(others, "other", True)}
    return found


def _share(rows: list[Row], name: str, wanted: Any) -> Estimate:
    """The share of rows that have a value; the interval counts groups, since wordings of one fact go together."""
    if not rows:
        return statistics.proportion(0, 0)
    held, n, groups = sum(row[name] == wanted for row in rows), len(rows), len({row["group"] for row in rows})
    return replace(statistics.proportion(held * groups / n, groups), value=held / n, n=n)


def _changes(base: list[Row], tuned: list[Row]) -> dict[str, Estimate]:
    """What changed from base to tuned on the same prompts, by metric."""
    if "nll" in base[0]:
        before, after, counts = [row["nll"] for row in base], [row["nll"] for row in tuned], [row["tokens"] for row in base]
        return {"forgetting": statistics.paired_ratio_difference(before, after, counts)}
    if "metrics" in base[0]:
        found = {}
        for name in dict.fromkeys(name for row in base for name in row["metrics"]):
            both = [(b["metrics"].get(name), a["metrics"].get(name)) for b, a in zip(base, tuned, strict=True)]
            measured = [pair for pair in both if None not in pair]
            found[f"{name}_delta"] = statistics.paired_difference([b for b, _ in measured], [a for _, a in measured])
        return found
    pairs = [(b, a) for b, a in zip(base, tuned, strict=True) if "error" not in (b["outcome"], a["outcome"])]
    old, new = ([pair[side]["outcome"] == "correct" for pair in pairs] for side in (0, 1))
    names, n = [row["group"] for row, _ in pairs], len(pairs)
    groups = len(set(names))
    if any("lenient" in row for row in base):
        found = {"accuracy_delta": statistics.grouped_difference(old, new, names)}
        if groups == n > 0:  # several answers to one question are not independent
            found["mcnemar_p"] = Estimate(statistics.mcnemar(old, new), n=n)
        return found
    if not pairs:
        return {"accuracy_delta": statistics.share_difference(0, 0, 0)}
    right = list(zip(old, new, strict=True))  # here too the interval counts groups
    gained, lost = right.count((False, True)), right.count((True, False))
    by_group = statistics.share_difference(gained * groups / n, lost * groups / n, groups)
    return {"accuracy_delta": replace(by_group, value=(gained - lost) / n, n=n)}


def held_out(rows: Mapping[str, tuple[list[Row], list[Row] | None]], suites: Sequence[str]) -> list[Row]:
    """The paper's figures over its benchmarks: the unweighted mean of their accuracies, its drop, and the share retained.

    rows: what base and tuned (None: not asked) said, by suite. Where one of `suites` was not asked there are no such figures.
    """
    if not all(suite in rows for suite in suites):
        return []
    strata = [_sums_by_group(*rows[suite]) for suite in suites]

    def average(sums: list[np.ndarray], side: int) -> float | None:
        return None if any(s[side + 1] == 0 for s in sums) else float(np.mean([s[side] / s[side + 1] for s in sums]))

    def joined(join: Callable[[float, float], float | None], sums: list[np.ndarray]) -> float | None:
        base, tuned = average(sums, 0), average(sums, 2)
        return None if base is None or tuned is None else join(base, tuned)

    estimates: dict[tuple[str, str], _OfSums] = {("accuracy", "base"): partial(average, side=0)}
    if all(rows[suite][1] is not None for suite in suites):
        estimates |= {
            ("accuracy", "tuned"): partial(average, side=2),
            ("accuracy_delta", "tuned"): partial(joined, lambda base, tuned: tuned - base),
            ("drop", "tuned"): partial(joined, lambda base, tuned: base - tuned),
            ("retained", "tuned"): partial(joined, lambda base, tuned: tuned / base if base else None),
        }
    return [
        score_row(HELD_OUT, AVERAGE, metric, model, statistics.stratified(strata, estimate))
        for (metric, model), estimate in estimates.items()
    ]


def _sums_by_group(base: list[Row], tuned: list[Row] | None) -> np.ndarray:
    """Right answers and answers of base, then of tuned, shape (4, groups); an answer that could not be judged is none."""
    places = {group: place for place, group in enumerate(dict.fromkeys(row["group"] for row in base))}
    sums = np.zeros((4, len(places)))
    for side, rows in ((0, base), (2, tuned or [])):
        for row in rows:
            if row["outcome"] != "error":
                sums[side : side + 2, places[row["group"]]] += row["outcome"] == "correct", 1
    return sums
