"""`compare`: runs as configurations over seeds, with what each forgot at equal memorization, and paired differences.

A configuration is every setting that may change what is learnt; runs that differ in their seed only are its repetitions. Numbers
over several seeds are means with Student's t interval over the seeds; with one seed it is the run's own interval over questions.

Two configurations of a comparison, run against run of the same seed.

With several seeds in common: the differences over these seeds. With one: over the questions that both were asked, which says
nothing of other seeds, with McNemar's exact test where the questions are independent.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mixsd import statistics
from mixsd.comparison.measures import (  # fmt: skip
    AT_LEVEL,
    IN_CORE,
    PROBE_AT_LEVEL,
    SECONDS,
    TOKENS,
    Key,
    at_level,
    cell,
    common_level,
    limits,
    measures_of,
    one,
    over_seeds,
    path_of,
    score_of,
)
from mixsd.comparison.runs import ALIKE, Measured, check, read
from mixsd.errors import UserError
from mixsd.evaluation import scores, suites
from mixsd.evaluation.asked import replies_file
from mixsd.evaluation.benchmarks.table import BENCHMARKS, HELD_OUT
from mixsd.run.folder import Run
from mixsd.settings import EXECUTION, METHOD_DEFAULTS, Settings

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
            made = statistics.log_ratio_interval([b for _, b in values], [a for a, _ in values])
            ratio = {**made.to_json(), "over": "seeds"}
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
    before, after = _said(suites.CORE, one, two)
    differences = _differences(suites.CORE, before, after)
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
        `scores` says which score of a report a measure is.

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

    measures = measures_of(runs)
    names, after = list(measures), list(IN_CORE).index("unparseable")
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
    base = {name: cell(score, "questions") for name, key in measures.items() if (score := score_of(runs[0], key, "base"))}
    return {
        "configurations": configurations,
        "measures": [*names[:after], AT_LEVEL, PROBE_AT_LEVEL, *names[after:], TOKENS, SECONDS],
        "scores": {name: dict(zip(("suite", "split", "metric"), key, strict=True)) for name, key in measures.items()},
        "base": {"name": (runs[0].report.get("base") or {}).get("name"), "measures": base},
        "level": {"value": reached, "why": why},
        "baseline": baseline["label"],
        "paired": [
            pair
            for item in configurations
            if item is not baseline
            for pair in paired(baseline["label"], item["label"], told, runs, measures)
        ],
        "runs": told,
        "alike": runs[0].conditions,
        "notes": notes,
    }


def labels_of(runs: Sequence[Measured]) -> list[str]:
    """The name of each run's configuration, as a comparison of these runs would call it; runs that differ in their seed share it."""
    keys = [_configuration(run) for run in runs]
    distinct = list({_canonical(key): key for key in keys}.values())
    labels = _labels(distinct)
    return [labels[distinct.index(key)] for key in keys]


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
        or ((group == "Training" or name == "train_dtype") and method == "memit")
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
    """A name for each: the method, and the settings in which those that have them differ, but for a method that keeps to its default."""
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
            if name in item
            and item["method"] != "evaluated"
            and not (name in _OFF_AT_0 and not item[name])
            and not _by_default(name, item["method"], made)
        ]
        stem = label = " ".join(parts)
        count = 1
        while label in labels:
            count += 1
            label = f"{stem} #{count}"
        labels.append(label)
    return labels


def _by_default(name: str, method: str, configurations: Sequence[dict[str, Any]]) -> bool:
    """Whether all configurations of the method leave the setting at its default for that method."""
    field = Settings.model_fields.get(name)
    if field is None:
        return False
    default = METHOD_DEFAULTS.get(method, {}).get(name, field.default)
    return all(item[name] == default for item in configurations if item["method"] == method and name in item)


def _worded(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    text = f"{value:g}" if isinstance(value, float) else ",".join(map(_worded, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= 40 else text[:37] + "..."


def _told(
    run: Measured, label: str, path: list[dict[str, Any]], level: float | None, measures: Mapping[str, Key]
) -> dict[str, Any]:  # fmt: skip
    """What is told of one run."""
    training, cost = run.report.get("training") or {}, run.report.get("cost") or {}
    seconds = cost.get("seconds") or {}
    work = [value for stage, value in seconds.items() if stage != "evaluate"]
    found = {name: cell(score, "questions") for name, key in measures.items() if (score := score_of(run, key))}
    met = at_level(path, level) if level is not None else None
    base_probe = (score_of(run, IN_CORE["probe"], "base") or {}).get("value")
    if met:
        found[AT_LEVEL] = one(met["forgetting"])
        if met.get("probe") is not None and met["how"] != "final" and base_probe:
            found[PROBE_AT_LEVEL] = one(met["probe"] / base_probe)
    if cost.get("generated_tokens") is not None:
        found[TOKENS] = one(cost["generated_tokens"])
    if work:
        found[SECONDS] = one(sum(work))
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


def _aggregated(label: str, settings: dict[str, Any], runs: list[dict[str, Any]], measures: Mapping[str, Key]) -> dict[str, Any]:
    """One configuration over its seeds."""
    cells = {}
    for name in (*measures, AT_LEVEL, PROBE_AT_LEVEL, TOKENS, SECONDS):
        own = [run["measures"][name] for run in runs if name in run["measures"]]
        if own:
            values = [told["value"] for told in own]
            cells[name] = own[0] if len(runs) == 1 else over_seeds(values, limits(name, measures.get(name)))
        if len(runs) > 1 and own and own[0]["over"] == "questions":
            cells[name]["each"] = min(told["n"] for told in own)
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


def _mark_optimal(configurations: Sequence[dict[str, Any]]) -> None:
    """Pareto-optimal: no other one memorizes at least as much and forgets at most as much, one of the two strictly."""

    def place(item: dict[str, Any]) -> tuple[float, float] | None:
        cells = item["measures"]
        return (cells["trained"]["value"], -cells["forgetting"]["value"]) if {"trained", "forgetting"} <= cells.keys() else None

    places = [place(item) for item in configurations]
    for item, own in zip(configurations, places, strict=True):
        better = (other for other in places if own and other and other != own)
        item["optimal"] = own is not None and not any(a >= own[0] and b >= own[1] for a, b in better)
