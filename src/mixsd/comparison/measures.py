"""What a comparison has a row for: which score of a report each measure is, and the form its numbers have.

A measure of the suite core has a short name, a split of another suite is "suite/split", a task of lm-eval "suite/split/metric".
Besides what every run was asked there are measures that no report has: forgetting at equal memorization, tokens, seconds.

What a run forgot at a given memorization, by interpolation along its checkpoints.

Along the checkpoints, in the order of their steps, forgetting is interpolated linearly between the two around the place where
memorization first reaches the level; what memorization does later has no part in it. A run that was above the level when it was
first scored counts as it was then; one without scored checkpoints counts as it ended. Both may have forgotten less at the level
itself, so every run says which it was. The default level is the highest that every run reaches, at most 95%: beyond, it hangs on
the last few facts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from mixsd import statistics
from mixsd.comparison.runs import Measured, suites_of_all
from mixsd.evaluation import suites
from mixsd.evaluation.scores import AVERAGE, HELD_OUT
from mixsd.evaluation.suites import LM_EVAL

Key = tuple[str, str, str]  # suite, split, metric

AT_LEVEL, PROBE_AT_LEVEL, TOKENS, SECONDS = "forgetting_at_level", "probe_share_at_level", "generated_tokens", "seconds"
IN_CORE: dict[str, Key] = {
    "trained": (suites.CORE, suites.TRAINED, "accuracy"),
    "paraphrase": (suites.CORE, suites.PARAPHRASE, "accuracy"),
    "probe": (suites.CORE, suites.PROBE, "accuracy"),
    "probe_delta": (suites.CORE, suites.PROBE, "accuracy_delta"),
    "forgetting": (suites.CORE, suites.FORGETTING, "forgetting"),
    "unparseable": (suites.CORE, suites.TRAINED, "unparseable_share"),
    "truncated": (suites.CORE, suites.TRAINED, "truncated_share"),
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


HIGHEST_LEVEL = 0.95
_MEMORIZATION, _FORGETTING = (suites.TRAINED, "accuracy"), (suites.FORGETTING, "forgetting")
# Interpolated too where it was scored at the checkpoints.
_ALONG = {"validation": ("memorization/validation", "accuracy"), "probe": (suites.PROBE, "accuracy")}


def path_of(run: Measured) -> list[dict[str, Any]]:
    """Memorization and forgetting along the checkpoints; the final model stands at its own step, unless that one was scored."""
    training = run.report.get("training") or {}
    last = (training.get("chosen") or {}).get("step") or training.get("steps")
    steps = sorted({at for *_, model, at in run.scores if at is not None and model == "tuned"})
    points = []
    for at in [*steps, *([None] if last is None or last not in steps else [])]:
        found = {
            name: run.scores.get((suites.CORE, split, metric, "tuned", at))
            for name, (split, metric) in (("memorization", _MEMORIZATION), ("forgetting", _FORGETTING), *_ALONG.items())
        }
        if found["memorization"] and found["forgetting"]:
            values = {name: score["value"] for name, score in found.items() if score}
            points.append({"step": last if at is None else at, **values, "scored": at is not None})
    return sorted(points, key=lambda point: math.inf if point["step"] is None else point["step"])


def at_level(path: Sequence[dict[str, Any]], level: float) -> dict[str, Any] | None:
    """The path's values where memorization first reaches `level`, interpolated; None where it never does.

    `how`: "interpolated", "first" (above the level when it was first scored), or "final" (no checkpoint was scored).
    """
    before: dict[str, Any] | None = None
    for point in path:
        if point["memorization"] >= level - 1e-12:
            numbers = [name for name, value in point.items() if isinstance(value, int | float) and name != "scored"]
            if before is None:
                how = "first" if any(other["scored"] for other in path) else "final"
                return {**{name: point[name] for name in numbers}, "how": how}
            share = (level - before["memorization"]) / (point["memorization"] - before["memorization"])
            known = [name for name in numbers if before.get(name) is not None]
            return {**{name: before[name] + share * (point[name] - before[name]) for name in known}, "how": "interpolated"}
        before = point
    return None


def common_level(runs: Sequence[Measured], paths: Sequence[Sequence[dict[str, Any]]]) -> tuple[float | None, str]:
    """The highest memorization that every run reaches, as a whole number of facts and at most `HIGHEST_LEVEL`."""
    highest = {
        run.name: max((point["memorization"] for point in path), default=0.0) for run, path in zip(runs, paths, strict=True)
    }
    name, least = min(highest.items(), key=lambda item: item[1])
    facts = (runs[0].scores.get((suites.CORE, *_MEMORIZATION, "tuned", None)) or {}).get("n") or 1
    level = math.floor(min(least, HIGHEST_LEVEL) * facts + 1e-9) / facts
    if level <= 0:
        return None, f"{name} memorizes nothing, so there is no level that every run reaches; --level sets one"
    if least > HIGHEST_LEVEL:
        return level, f"every run reaches it; beyond {HIGHEST_LEVEL:.0%} it would hang on the last few facts"
    return level, f"the highest that every run reaches; {name} goes no further"
