"""What a comparison has a row for: which score of a report each measure is, and the form its numbers have.

A measure of the suite core has a short name, a split of another suite is "suite/split", a task of lm-eval "suite/split/metric".
Besides what every run was asked there are measures that no report has: forgetting at equal memorization, tokens, seconds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from mixsd import statistics
from mixsd.evaluation import core
from mixsd.evaluation.scores import AVERAGE, HELD_OUT
from mixsd.evaluation.suites import LM_EVAL
from mixsd.pipeline.comparable import Measured, suites_of_all

Key = tuple[str, str, str]  # suite, split, metric

AT_LEVEL, PROBE_AT_LEVEL, TOKENS, SECONDS = "forgetting_at_level", "probe_share_at_level", "generated_tokens", "seconds"
IN_CORE: dict[str, Key] = {
    "trained": (core.SUITE, core.TRAINED, "accuracy"),
    "paraphrase": (core.SUITE, core.PARAPHRASE, "accuracy"),
    "probe": (core.SUITE, core.PROBE, "accuracy"),
    "probe_delta": (core.SUITE, core.PROBE, "accuracy_delta"),
    "forgetting": (core.SUITE, core.FORGETTING, "forgetting"),
    "unparseable": (core.SUITE, core.TRAINED, "unparseable_share"),
    "truncated": (core.SUITE, core.TRAINED, "truncated_share"),
}
_HELD_OUT = {"held_out_average": "accuracy", "held_out_drop": "drop", "held_out_retained": "retained"}
_LIMITS = {
    "accuracy": (0.0, 1.0), "unparseable_share": (0.0, 1.0), "truncated_share": (0.0, 1.0),
    "accuracy_delta": (-1.0, 1.0), "drop": (-1.0, 1.0), "retained": (0.0, math.inf),
}  # fmt: skip


def measures_of(runs: Sequence[Measured]) -> dict[str, Key]:
    """What is compared: the measures of core, and of other suites what every run has."""
    return {**IN_CORE, **_others(runs)}


def _others(runs: Sequence[Measured]) -> dict[str, Key]:
    """Other suites' accuracies, splits by kind left to the reports; the figures over all benchmarks after what they are of."""
    found: dict[str, Key] = {}
    average: dict[str, Key] = {}
    for suite in suites_of_all(runs)[1:]:
        if suite == HELD_OUT:
            average = {name: (suite, AVERAGE, metric) for name, metric in _HELD_OUT.items()}
            continue
        of_run = [[(split, metric) for its, split, metric, model, at in run.scores if (its, model, at) == (suite, "tuned", None)]
                  for run in runs]  # fmt: skip
        splits = {split for split, _ in of_run[0]}
        for split, metric in of_run[0]:
            nested = any(split.startswith(f"{other}/") for other in splits)
            if nested or not all((split, metric) in told for told in of_run):
                continue
            if metric == "accuracy":
                found[f"{suite}/{split}"] = (suite, split, metric)
            elif suite.startswith(LM_EVAL) and not _is_change(split, metric, of_run[0]):
                found[f"{suite}/{split}/{metric}"] = (suite, split, metric)
    own = {name: key for name, key in found.items() if not key[0].startswith(LM_EVAL)}
    return {**own, **{name: key for name, key in average.items() if all(score_of(run, key) for run in runs)}, **found}


def _is_change(split: str, metric: str, told: Sequence[tuple[str, str]]) -> bool:
    return metric.endswith("_delta") and (split, metric.removesuffix("_delta")) in told


def score_of(run: Measured, key: Key, model: str = "tuned") -> dict[str, Any] | None:
    """A score of a run's final model, or of its base."""
    return run.scores.get((*key, model, None))


def limits(name: str, key: Key | None) -> tuple[float, float]:
    """Where a measure can lie: Student's interval knows nothing of it."""
    if name in (TOKENS, SECONDS, PROBE_AT_LEVEL):
        return 0.0, math.inf
    return _LIMITS.get(key[2] if key else "", (-math.inf, math.inf))


def cell(score: dict[str, Any], over: str) -> dict[str, Any]:
    """A score as a number of the table; `over` is what its interval is over."""
    return {**{name: score.get(name) for name in ("value", "n", "low", "high")}, "over": over}


def one(value: float) -> dict[str, Any]:
    """A number of one run that has no interval of its own."""
    return {"value": value, "n": 1, "low": None, "high": None, "over": "seeds"}


def over_seeds(values: Sequence[float], within: tuple[float, float] = (-math.inf, math.inf)) -> dict[str, Any]:
    """The mean over seeds, its interval cut to where the number can lie."""
    return {**statistics.seeds_interval(list(values)).within(*within).to_json(), "over": "seeds"}
