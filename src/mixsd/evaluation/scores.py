"""Scores of rows of replies: the flat list that everything reads which compares or draws.

A row counts in its split and in each of its labels' parts of it ("retrieval/relation lives_in"); a part has its accuracy only.
Every number carries its n and a 95% interval.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

from mixsd import statistics

Row = dict[str, Any]


def compare(suite: str, base: list[Row] | None, tuned: list[Row] | None) -> list[dict[str, Any]]:
    """The flat list of scores of one or both models; with both, also the paired differences.

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
    return scores


def _score(suite: str, split: str, metric: str, model: str, interval: statistics.Interval) -> dict[str, Any]:
    values = {"value": interval.value, "n": interval.n, "low": interval.low, "high": interval.high}
    return {"suite": suite, "split": split, "metric": metric, "model": model, "checkpoint": None, **values}


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
            scores.append(_score(suite, split, "reference_nll", model, statistics.ratio_of_sums(sums, counts)))
            continue
        judged = [row for row in own if row["outcome"] != "error"]
        scores.append(_score(suite, split, "accuracy", model, _share(judged, _is("correct"))))
        if split not in whole:
            continue
        scores.append(_score(suite, split, "unparseable_share", model, _share(judged, _is("unparseable"))))
        scores.append(_score(suite, split, "error_share", model, _share(own, _is("error"))))
        scores.append(_score(suite, split, "truncated_share", model, _share(own, lambda row: row["truncated"])))
        if edits := [row for row in judged if "old" in row]:
            kept = _share(edits, lambda row: row["old"])
            other = _share(edits, lambda row: row["outcome"] != "correct" and not row["old"])
            scores.append(_score(suite, split, "old_answer_share", model, kept))
            scores.append(_score(suite, split, "other_answer_share", model, other))
    return scores


def _is(outcome: str) -> Callable[[Row], bool]:
    return lambda row: row["outcome"] == outcome


def _share(rows: list[Row], holds: Callable[[Row], bool]) -> statistics.Interval:
    """The share of rows that something holds for; the interval counts groups, since wordings of one fact go together."""
    if not rows:
        return statistics.proportion(0, 0)
    held, n, groups = sum(map(holds, rows)), len(rows), _groups(rows)
    by_group = statistics.proportion(held * groups / n, groups)
    return statistics.Interval(held / n, n, by_group.low, by_group.high)


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
            scores.append(_score(suite, split, "forgetting", "tuned", change))
            continue
        scores.append(_score(suite, split, "accuracy_delta", "tuned", _change(before[split], after[split])))
    return scores


def _change(before: list[Row], after: list[Row]) -> statistics.Interval:
    """How much more of the same questions is right; here too the interval counts groups."""
    pairs = [(b, a) for b, a in zip(before, after, strict=True) if "error" not in (b["outcome"], a["outcome"])]
    if not pairs:
        return statistics.share_difference(0, 0, 0)
    right = [(b["outcome"] == "correct", a["outcome"] == "correct") for b, a in pairs]
    gained, lost, n, groups = right.count((False, True)), right.count((True, False)), len(pairs), _groups([b for b, _ in pairs])
    by_group = statistics.share_difference(gained * groups / n, lost * groups / n, groups)
    return statistics.Interval((gained - lost) / n, n, by_group.low, by_group.high)
