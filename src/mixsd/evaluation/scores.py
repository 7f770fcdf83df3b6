"""Scores of rows of replies: the flat list that everything reads which compares or draws.

A row counts in its split and in each of its labels' parts of it ("retrieval/relation lives_in"); a part has its accuracy only.
Every number carries its n and a 95% interval.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

from mixsd import statistics


def compare(suite: str, base: list[dict[str, Any]] | None, tuned: list[dict[str, Any]] | None) -> list[dict[str, Any]]:
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


def _by_split(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    splits: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        splits[row["split"]].append(row)
        for label in row["labels"]:
            splits[f"{row['split']}/{label}"].append(row)
    return splits


def _scores_of(suite: str, model: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    scores = []
    whole = {row["split"] for row in rows}
    for split, own in _by_split(rows).items():
        if "nll" in own[0]:
            sums, counts = [row["nll"] for row in own], [row["tokens"] for row in own]
            scores.append(_score(suite, split, "reference_nll", model, statistics.ratio_of_sums(sums, counts)))
            continue
        outcomes = Counter(row["outcome"] for row in own)
        judged = len(own) - outcomes["error"]
        scores.append(_score(suite, split, "accuracy", model, _accuracy(own)))
        if split not in whole:
            continue
        for outcome in ("unparseable", "error"):
            of = len(own) if outcome == "error" else judged
            scores.append(_score(suite, split, f"{outcome}_share", model, statistics.proportion(outcomes[outcome], of)))
        truncated = sum(row["truncated"] for row in own)
        scores.append(_score(suite, split, "truncated_share", model, statistics.proportion(truncated, len(own))))
        edits = [row for row in own if "old" in row and row["outcome"] != "error"]
        if edits:
            kept = sum(row["old"] for row in edits)
            scores.append(_score(suite, split, "old_answer_share", model, statistics.proportion(kept, len(edits))))
            other = sum(row["outcome"] != "correct" for row in edits) - kept
            scores.append(_score(suite, split, "other_answer_share", model, statistics.proportion(other, len(edits))))
    return scores


def _accuracy(rows: list[dict[str, Any]]) -> statistics.Interval:
    """Correct over all that are not errors of ours; the interval counts groups, since wordings of one fact go together."""
    judged = [row for row in rows if row["outcome"] != "error"]
    correct = sum(row["outcome"] == "correct" for row in judged)
    groups = len({row["group"] for row in judged})
    if groups == len(judged):
        return statistics.proportion(correct, len(judged))
    by_group = statistics.proportion(correct * groups / len(judged), groups)
    return statistics.Interval(correct / len(judged), len(judged), by_group.low, by_group.high)


def _differences(suite: str, base: list[dict[str, Any]], tuned: list[dict[str, Any]]) -> list[dict[str, Any]]:
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
        pairs = [
            (float(b["outcome"] == "correct"), float(a["outcome"] == "correct"))
            for b, a in zip(before[split], after[split], strict=True)
            if "error" not in (b["outcome"], a["outcome"])
        ]
        difference = statistics.paired_difference([b for b, _ in pairs], [a for _, a in pairs])
        scores.append(_score(suite, split, "accuracy_delta", "tuned", difference))
    return scores
