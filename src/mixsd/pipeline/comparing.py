"""`compare`: runs as configurations over seeds, with what each forgot at equal memorization, and paired differences.

A configuration is every setting that may change what is learnt; runs that differ in their seed only are its repetitions. Numbers
over several seeds are means with Student's t interval over the seeds; with one seed it is the run's own interval over questions.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mixsd import statistics
from mixsd.errors import UserError
from mixsd.evaluation import core, scores
from mixsd.pipeline.comparable import ALIKE, Measured, check, read, suites_of_all
from mixsd.pipeline.equal_memorization import at_level, common_level, path_of
from mixsd.settings import EXECUTION, Settings

AT_LEVEL, PROBE_AT_LEVEL, TOKENS, SECONDS = "forgetting_at_level", "probe_share_at_level", "generated_tokens", "seconds"
# The measures of the table, by name: (split of core, metric).
MEASURES = {
    "trained": (core.TRAINED, "accuracy"),
    "paraphrase": (core.PARAPHRASE, "accuracy"),
    "probe": (core.PROBE, "accuracy"),
    "probe_delta": (core.PROBE, "accuracy_delta"),
    "forgetting": (core.FORGETTING, "forgetting"),
    "unparseable": (core.TRAINED, "unparseable_share"),
    "truncated": (core.TRAINED, "truncated_share"),
}
_PAIRED = ("trained", "paraphrase", "probe", "forgetting", AT_LEVEL)
_LIMITS = {"accuracy": (0.0, 1.0), "accuracy_delta": (-1.0, 1.0), "forgetting": (-math.inf, math.inf)}

# What the identity of model and facts says already, or how a run is measured: no part of a configuration.
_NO_PART = {
    *("facts", "corpus_seed", "model", "output", "seed", "dtype", "trust_remote_code", "score_checkpoints", "score_questions"),
    *EXECUTION,
    *ALIKE,
}
_ORDER = {name: place for place, name in enumerate(Settings.model_fields)}
_MIXED = ("mixsd", "mixsd-kl")
_DISTILLED = ("opsd", "opsd-nll", "mixsd-kl")
_ONLY_MIXED = ("lam", "gate", "retries", "retry", "on_fail")


def compare(folders: Sequence[str | Path], *, level: float | None = None) -> dict[str, Any]:
    """Compare finished runs.

    Args:
        folders: two or more run folders.
        level: the memorization (0 to 1) at which forgetting is compared; by default the highest that every run reaches.

    Returns:
        JSON values: `configurations` with their measures over seeds, `runs`, `paired` differences, the `level`, and `notes`.

    Raises:
        UserError: a folder is no finished run, two were not measured alike (naming the field), or one stands twice.
    """
    if isinstance(folders, str | Path) or len(folders) < 2:
        raise UserError("compare: name at least two run folders")
    if level is not None and not 0 < level <= 1:
        raise UserError(f"--level {level:g}: must lie above 0 and at most at 1, such as 0.9")
    runs = [read(Path(folder)) for folder in folders]
    _refuse_twice(runs)
    notes = check(runs)
    keys = [_configuration(run) for run in runs]
    distinct = list({_canonical(key): key for key in keys}.values())
    labels = _labels(distinct)
    _refuse_repeated(runs, keys)

    measures = [*MEASURES, *_others(runs)]
    paths = [path_of(run) for run in runs]
    reached, why = common_level(runs, paths) if level is None else (level, "as asked for")
    told = [
        _told(run, labels[distinct.index(key)], path, reached, measures) for run, key, path in zip(runs, keys, paths, strict=True)
    ]
    configurations = []
    for label, settings in zip(labels, distinct, strict=True):
        own = sorted((run for run in told if run["configuration"] == label), key=lambda run: run["seed"])
        configurations.append(_aggregated(label, settings, own, measures))
    _mark_optimal(configurations)
    # The plainest of several.
    references = sorted((item for item in configurations if item["method"] == "sft"), key=lambda item: len(item["label"]))
    baseline = references[0] if references else configurations[0]
    if reached is None:
        notes.append(f"Forgetting at equal memorization: {why}.")
    base = {name: _cell(run_score, "questions") for name in measures if (run_score := _of(runs[0], name, "base"))}
    return {
        "configurations": configurations,
        "measures": [*measures[:5], AT_LEVEL, PROBE_AT_LEVEL, *measures[5:], TOKENS, SECONDS],
        "base": {"name": (runs[0].report.get("base") or {}).get("name"), "measures": base},
        "level": {"value": reached, "why": why},
        "baseline": baseline["label"],
        "paired": [
            pair
            for item in configurations
            if item is not baseline
            for pair in _paired(baseline["label"], item["label"], told, runs)
        ],
        "runs": told,
        "alike": runs[0].conditions,
        "notes": notes,
    }


def _refuse_twice(runs: Sequence[Measured]) -> None:
    seen: dict[Path, Path] = {}
    for run in runs:
        place = run.folder.resolve()
        if place in seen:
            raise UserError(f"{run.folder}: is named twice; name each run once")
        seen[place] = run.folder


def _refuse_repeated(runs: Sequence[Measured], keys: Sequence[dict[str, Any]]) -> None:
    seen: dict[tuple[str, int], Measured] = {}
    for run, key in zip(runs, keys, strict=True):
        other = seen.setdefault((_canonical(key), run.seed), run)
        if other is not run:
            raise UserError(
                f"{run.folder}: is the same configuration with the same seed ({run.seed}) as {other.folder}; name one of them"
            )


def _configuration(run: Measured) -> dict[str, Any]:
    """Every setting of the run that may change what it learns."""
    if run.evaluated:  # made elsewhere: the settings say nothing about how
        return {"method": "evaluated", "name": run.name, "model": run.evaluated}
    return {name: value for name, value in run.settings.items() if _has_part(name, run.settings)}


def _has_part(name: str, settings: dict[str, Any]) -> bool:
    method, field = settings["method"], Settings.model_fields.get(name)
    extra = field.json_schema_extra if field else None
    group = extra["group"] if isinstance(extra, dict) else None
    mixes, distils, rehearses = method in _MIXED, method in _DISTILLED, bool(settings.get("rehearse"))
    idle = (
        name in _NO_PART
        or (group == "Mixing" and not (mixes or distils))
        or (name in _ONLY_MIXED and not mixes)
        or (name == "guidance" and not (mixes or distils))
        or (group == "Distillation" and not (distils or (rehearses and settings.get("rehearse_loss") == "kl")))
        or (group == "Training" and method == "memit")
        or (group == "Editing" and method != "memit")
        or (name in ("lr_grid", "lr_steps") and settings.get("lr") != "auto")
        or (name in ("rehearse_tokens", "rehearse_loss") and not rehearses)
    )
    return not idle


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


# At 0 these are not used, and a label need not say so.
_OFF_AT_0 = ("gate", "rehearse", "lora")


def _labels(configurations: Sequence[dict[str, Any]]) -> list[str]:
    """A name for each: the method, and the settings in which those that have them differ."""
    present = {name for item in configurations for name in item}
    names = sorted(present, key=lambda name: _ORDER.get(name, len(_ORDER)))
    made = [item for item in configurations if item["method"] != "evaluated"]
    differing = [
        name
        for name in names
        if name != "method" and len({_canonical(item[name]) for item in made if name in item}) > 1
    ]  # fmt: skip
    labels: list[str] = []
    for item in configurations:
        parts = [str(item["name"]) + " (evaluated only)"] if item["method"] == "evaluated" else [str(item["method"])]
        parts += [
            f"{name} {_worded(item[name])}"
            for name in differing
            if name in item and item["method"] != "evaluated" and not (name in _OFF_AT_0 and not item[name])
        ]
        stem = label = " ".join(parts)
        count = 1
        while label in labels:
            count += 1
            label = f"{stem} #{count}"
        labels.append(label)
    return labels


def _worded(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    text = f"{value:g}" if isinstance(value, float) else ",".join(map(_worded, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= 40 else text[:37] + "..."


def _others(runs: Sequence[Measured]) -> list[str]:
    """The splits of other suites that every run was asked, as "suite/split"; splits by kind are left to the reports."""
    found: list[str] = []
    for suite in suites_of_all(runs)[1:]:
        of_run = [
            [
                split
                for its, split, metric, model, at in run.scores
                if (its, metric, model, at) == (suite, "accuracy", "tuned", None)
            ]
            for run in runs
        ]
        for split in of_run[0]:
            nested = any(split.startswith(f"{other}/") for other in of_run[0])
            if not nested and all(split in splits for splits in of_run):
                found.append(f"{suite}/{split}")
    return found


def _of(run: Measured, measure: str, model: str = "tuned") -> dict[str, Any] | None:
    if measure in MEASURES:
        return run.scores.get((core.SUITE, *MEASURES[measure], model, None))
    suite, _, split = measure.partition("/")
    return run.scores.get((suite, split, "accuracy", model, None))


def _told(
    run: Measured, label: str, path: list[dict[str, Any]], level: float | None, measures: Sequence[str]
) -> dict[str, Any]:  # fmt: skip
    """What is told of one run."""
    training, cost = run.report.get("training") or {}, run.report.get("cost") or {}
    seconds = cost.get("seconds") or {}
    work = [value for stage, value in seconds.items() if stage != "evaluate"]
    found = {name: _cell(score, "questions") for name in measures if (score := _of(run, name))}
    met = at_level(path, level) if level is not None else None
    base_probe = (_of(run, "probe", "base") or {}).get("value")
    if met:
        found[AT_LEVEL] = _one(met["forgetting"])
        if met.get("probe") is not None and met["how"] != "final" and base_probe:
            found[PROBE_AT_LEVEL] = _one(met["probe"] / base_probe)
    if cost.get("generated_tokens") is not None:
        found[TOKENS] = _one(cost["generated_tokens"])
    if work:
        found[SECONDS] = _one(sum(work))
    return {
        "folder": str(run.folder),
        "name": run.name,
        "configuration": label,
        "seed": run.seed,
        "lr": None if run.evaluated or run.settings["method"] == "memit" else training.get("lr") or run.settings.get("lr"),
        "steps": training.get("steps"),
        "chosen": training.get("chosen"),
        "measures": found,
        "cost": cost or None,
        "at_level": met,
        "path": path,
    }


def _aggregated(label: str, settings: dict[str, Any], runs: list[dict[str, Any]], measures: Sequence[str]) -> dict[str, Any]:
    """One configuration over its seeds."""
    cells = {}
    for name in (*measures, AT_LEVEL, PROBE_AT_LEVEL, TOKENS, SECONDS):
        own = [run["measures"][name] for run in runs if name in run["measures"]]
        if own:
            cells[name] = own[0] if len(runs) == 1 else _over_seeds([cell["value"] for cell in own], _limits(name))
        if len(runs) > 1 and own and own[0]["over"] == "questions":
            cells[name]["each"] = min(cell["n"] for cell in own)
    rates = [run["lr"] for run in runs if run["lr"] is not None]
    hows = [run["at_level"]["how"] if run["at_level"] else "not reached" for run in runs]
    return {
        "label": label,
        "method": settings["method"],
        "settings": settings,
        "seeds": [run["seed"] for run in runs],
        "lr": {"setting": settings.get("lr"), "used": sorted(set(rates), key=str)} if rates else None,
        "measures": cells,
        "at_level": {how: hows.count(how) for how in dict.fromkeys(hows)},
    }


def _limits(name: str) -> tuple[float, float]:
    """Where a measure can lie: Student's interval knows nothing of it."""
    if name in (TOKENS, SECONDS, PROBE_AT_LEVEL):
        return 0.0, math.inf
    if name == AT_LEVEL:
        return _LIMITS["forgetting"]
    return _LIMITS.get(MEASURES[name][1] if name in MEASURES else "accuracy", (0.0, 1.0))


def _mark_optimal(configurations: Sequence[dict[str, Any]]) -> None:
    """Pareto-optimal: no other one memorizes at least as much and forgets at most as much, one of the two strictly."""

    def place(item: dict[str, Any]) -> tuple[float, float] | None:
        cells = item["measures"]
        return (cells["trained"]["value"], -cells["forgetting"]["value"]) if {"trained", "forgetting"} <= cells.keys() else None

    places = [place(item) for item in configurations]
    for item, own in zip(configurations, places, strict=True):
        better = (other for other in places if own and other and other != own)
        item["optimal"] = own is not None and not any(a >= own[0] and b >= own[1] for a, b in better)


def _paired(first: str, second: str, told: Sequence[dict[str, Any]], runs: Sequence[Measured]) -> list[dict[str, Any]]:
    """Second minus first, and where both are positive second / first: over the seeds of both, or over the questions of one seed."""
    one, two = (
        {run["seed"]: place for place, run in enumerate(told) if run["configuration"] == label} for label in (first, second)
    )
    seeds = sorted(one.keys() & two.keys())
    if len(seeds) == 1:
        return _over_questions(first, second, runs[one[seeds[0]]], runs[two[seeds[0]]])
    found = []
    for name in _PAIRED:
        cells = {seed: [told[at[seed]]["measures"].get(name) for at in (one, two)] for seed in seeds}
        both = {seed: (a["value"], b["value"]) for seed, (a, b) in cells.items() if a and b}
        values = list(both.values())
        if len(values) < 2:
            continue
        ratio = None
        if name in ("forgetting", AT_LEVEL) and all(a > 0 and b > 0 for a, b in values):
            ratio = _seeds_cell(statistics.log_ratio_interval([b for _, b in values], [a for a, _ in values]))
        difference = _over_seeds([b - a for a, b in values], (-math.inf, math.inf))
        found.append(_pair(first, second, list(both), name, difference, ratio))
    return found


def _over_questions(first: str, second: str, one: Measured, two: Measured) -> list[dict[str, Any]]:
    """What two runs of one seed said to the same prompts; intervals and McNemar's p over these prompts."""
    rows = [list(run.rows(core.SUITE, "tuned")) for run in (one, two)]
    asked = [[(row["key"], row["prompt_hash"], row["split"], row["labels"]) for row in said] for said in rows]
    if asked[0] != asked[1]:
        raise UserError(
            f"{two.folder}: cannot be compared with {one.folder}: their tuned models were not asked the same in the same order, or the "
            f"rows are labelled otherwise; delete evaluation/{core.SUITE}/tuned.jsonl in both, then `mixsd evaluate` and `mixsd report`"
        )
    differences = {
        (item["split"], item["metric"]): item for item in scores.compare(core.SUITE, rows[0], rows[1]) if item["model"] == "tuned"
    }
    found = []
    for name in _PAIRED[:-1]:
        split, metric = MEASURES[name]
        change = differences.get((split, "forgetting" if metric == "forgetting" else "accuracy_delta"))
        if not change or change["value"] is None:
            continue
        p = None
        if name in ("trained", "probe"):  # the wordings of one fact are not independent
            before, after = ([row["outcome"] == "correct" for row in said if row["split"] == split] for said in rows)
            p = statistics.mcnemar(before, after)
        found.append({**_pair(first, second, [one.seed], name, _cell(change, "questions"), None), "p": p})
    return found


def _pair(
    first: str, second: str, seeds: list[int], measure: str, difference: dict[str, Any], ratio: dict[str, Any] | None
) -> dict[str, Any]:
    compared = {"configuration": second, "against": first, "seeds": seeds, "measure": measure}
    return {**compared, "difference": difference, "ratio": ratio, "p": None}


def _cell(score: dict[str, Any], over: str) -> dict[str, Any]:
    return {**{name: score.get(name) for name in ("value", "n", "low", "high")}, "over": over}


def _one(value: float) -> dict[str, Any]:
    """A number of one run that has no interval of its own."""
    return {"value": value, "n": 1, "low": None, "high": None, "over": "seeds"}


def _over_seeds(values: Sequence[float], limits: tuple[float, float]) -> dict[str, Any]:
    return _seeds_cell(statistics.seeds_interval(list(values)), limits)


def _seeds_cell(interval: statistics.Interval, limits: tuple[float, float] = (-math.inf, math.inf)) -> dict[str, Any]:
    low, high = (None if end is None else min(max(end, limits[0]), limits[1]) for end in (interval.low, interval.high))
    return {"value": interval.value, "n": interval.n, "low": low, "high": high, "over": "seeds"}
