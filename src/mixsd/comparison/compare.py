"""`compare`: runs as configurations over seeds, with what each forgot at equal memorization, and paired differences.

A configuration is every setting that may change what is learnt; runs that differ in their seed only are its repetitions. Numbers
over several seeds are means with Student's t interval over the seeds; with one seed it is the run's own interval over questions.

Two configurations are paired run against run of the same seed. With several seeds in common: the differences over these seeds. With
one: over the questions that both were asked, which says nothing of other seeds, with McNemar's exact test where the questions are
independent.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mixsd import statistics
from mixsd.comparison.measures import (
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
    over_seeds,
    path_of,
    score_of,
)
from mixsd.comparison.runs import ALIKE, Measured, check, read
from mixsd.errors import UserError
from mixsd.evaluation import scores, suites
from mixsd.evaluation.asked import replies_file
from mixsd.evaluation.benchmarks.benchmark import HELD_OUT, is_benchmark
from mixsd.formats import distinct
from mixsd.methods import known_method
from mixsd.plugins import is_function_name
from mixsd.reports.schema import Score
from mixsd.run.folder import Run
from mixsd.settings import EXECUTION, Settings
from mixsd.statistics import Estimate

_PAIRED = ("trained", "paraphrase", "probe", "forgetting")
_AVERAGE = "held_out_average"
# What the identity of model and facts says already, or how a run is measured: no part of a configuration.
_NO_PART = {
    *("facts", "corpus_seed", "model", "output", "seed", "dtype", "trust_remote_code", "score_checkpoints", "score_questions"),
    *EXECUTION,
    *ALIKE,
}
_ORDER = {name: place for place, name in enumerate(Settings.model_fields)}
# At 0 these are not used, and a label need not say so.
_OFF_AT_0 = ("gate", "rehearse", "lora")
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
    _refuse_repeated(runs, keys)
    different = _distinct(keys)
    labels = _labels(different)
    methods = dict.fromkeys(str(item["method"]) for item in different if is_function_name(str(item["method"])))
    notes += [f"{spec.name}: {spec.title} ({method})." for method in methods for spec in [known_method(method)]]
    measures = measures_of(runs)
    names, after = list(measures), list(IN_CORE).index("unparseable")
    paths = [path_of(run) for run in runs]
    reached, why = common_level(runs, paths) if level is None else (level, "as asked for")
    told = [
        _told(run, labels[different.index(key)], path, reached, measures)
        for run, key, path in zip(runs, keys, paths, strict=True)
    ]
    configurations = [
        _aggregated(label, settings, sorted((run for run in told if run["configuration"] == label), key=_seed), measures)
        for label, settings in zip(labels, different, strict=True)
    ]
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
        "base": {"name": runs[0].report.base.name, "measures": base},
        "level": {"value": reached, "why": why},
        "baseline": baseline["label"],
        "paired": [
            pair
            for item in configurations
            if item is not baseline
            for pair in _paired(baseline["label"], item["label"], told, runs, measures)
        ],
        "runs": told,
        "alike": runs[0].conditions,
        "notes": notes,
    }


def _told(
    run: Measured, label: str, path: list[dict[str, Any]], level: float | None, measures: Mapping[str, Key]
) -> dict[str, Any]:  # fmt: skip
    """What is told of one run."""
    training, cost = run.report.training, run.report.cost
    found = {name: cell(score, "questions") for name, key in measures.items() if (score := score_of(run, key))}
    met = at_level(path, level) if level is not None else None
    trained = not (run.evaluated or known_method(run.settings["method"]).edits)
    base_probe = score_of(run, IN_CORE["probe"], "base")
    others: dict[str, float] = {}
    if met:
        others[AT_LEVEL] = met["forgetting"]
        if met.get("probe") is not None and met["how"] != "final" and base_probe and base_probe.value:
            others[PROBE_AT_LEVEL] = met["probe"] / base_probe.value
    if cost:
        others[TOKENS] = cost.generated_tokens
        if work := [value for stage, value in cost.seconds.items() if stage != "evaluate"]:
            others[SECONDS] = sum(work)
    return {
        "folder": str(run.folder),
        "name": run.name,
        "configuration": label,
        "seed": run.seed,
        "lr": training.lr or run.settings.get("lr") if trained else None,
        "steps": training.steps,
        "chosen": training.chosen.model_dump() if training.chosen else None,
        "measures": found | {name: cell(Estimate(value, n=1)) for name, value in others.items()},
        "cost": cost.model_dump() if cost else None,
        "at_level": met,
        "path": path,
    }


def _aggregated(label: str, settings: dict[str, Any], runs: list[dict[str, Any]], measures: Mapping[str, Key]) -> dict[str, Any]:
    """One configuration over its seeds."""
    cells = {}
    for name in (*measures, AT_LEVEL, PROBE_AT_LEVEL, TOKENS, SECONDS):
        own = [run["measures"][name] for run in runs if name in run["measures"]]
        if own:
            cells[name] = own[0]
        if own and len(runs) > 1:
            cells[name] = over_seeds([told["value"] for told in own], limits(name, measures.get(name)))
            if own[0]["over"] == "questions":
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


def labels_of(runs: Sequence[Measured]) -> list[str]:
    """The name of each run's configuration, as a comparison of these runs would call it; runs that differ in their seed share it."""
    keys = [_configuration(run) for run in runs]
    different = _distinct(keys)
    labels = _labels(different)
    return [labels[different.index(key)] for key in keys]


def _distinct(keys: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return list({_canonical(key): key for key in keys}.values())


def _seed(told: Mapping[str, Any]) -> int:
    return int(told["seed"])


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
    method, field = known_method(settings["method"]), Settings.model_fields.get(name)
    extra = field.json_schema_extra if field else None
    group = extra["group"] if isinstance(extra, dict) else None
    mixes, distils, rehearses = method.mixes, method.has_teacher, bool(settings.get("rehearse"))
    idle = (
        name in _NO_PART
        or (group == "Mixing" and not (mixes or distils))
        or (name in _ONLY_MIXED and not mixes)
        or (name == "guidance" and not (mixes or distils))
        or (group == "Distillation" and not (distils or (rehearses and settings.get("rehearse_loss") == "kl")))
        or ((group == "Training" or name == "train_dtype") and method.edits)
        or (group == "Editing" and not method.edits)
        or (name in ("lr_grid", "lr_steps") and settings.get("lr") != "auto")
        or (name in ("rehearse_tokens", "rehearse_loss") and not rehearses)
    )
    return not idle


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


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
        made_here = item["method"] != "evaluated"
        parts = [known_method(item["method"]).name if made_here else f"{item['name']} (evaluated only)"]
        parts += [
            f"{name} {_worded(item[name])}"
            for name in differing
            if name in item
            and made_here
            and not (name in _OFF_AT_0 and not item[name])
            and not _by_default(name, item["method"], made)
        ]
        labels.append(" ".join(parts))
    return distinct(labels)


def _by_default(name: str, method: str, configurations: Sequence[dict[str, Any]]) -> bool:
    """Whether all configurations of the method leave the setting at its default for that method."""
    field = Settings.model_fields.get(name)
    if field is None:
        return False
    default = known_method(method).settings.get(name, field.default)
    return all(item[name] == default for item in configurations if item["method"] == method and name in item)


def _worded(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    text = f"{value:g}" if isinstance(value, float) else ",".join(map(_worded, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= 40 else text[:37] + "..."


def _paired(
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
    empty = {
        "configuration": second,
        "against": first,
        "seeds": seeds,
        "measure": "",
        "difference": None,
        "ratio": None,
        "p": None,
    }
    if len(seeds) == 1:
        found = _over_questions(runs[one[seeds[0]]], runs[two[seeds[0]]], measures)
        return [{**empty, "measure": name, "difference": cell(change, "questions"), "p": p} for name, change, p in found]
    pairs = []
    for name in (*_PAIRED, AT_LEVEL, *_benchmarks(measures), *([_AVERAGE] if _AVERAGE in measures else [])):
        cells = {seed: [told[at[seed]]["measures"].get(name) for at in (one, two)] for seed in seeds}
        both = {seed: (a["value"], b["value"]) for seed, (a, b) in cells.items() if a and b}
        values = list(both.values())
        if len(values) < 2:
            continue
        ratio = None
        if name in ("forgetting", AT_LEVEL) and all(a > 0 and b > 0 for a, b in values):
            ratio = cell(statistics.log_ratio_interval([b for _, b in values], [a for a, _ in values]))
        difference = over_seeds([b - a for a, b in values])
        pairs.append({**empty, "seeds": list(both), "measure": name, "difference": difference, "ratio": ratio})
    return pairs


def _benchmarks(measures: Mapping[str, Key]) -> dict[str, str]:
    """The benchmarks that every run was asked: suite by the name of the measure."""
    return {name: suite for name, (suite, split, _) in measures.items() if is_benchmark(suite) and split == suite}


def _over_questions(one: Measured, two: Measured, measures: Mapping[str, Key]) -> Iterator[tuple[str, Score, float | None]]:
    """Measures in which two runs of one seed differ over the prompts that both were asked, with the change and McNemar's p."""
    before, after = _said(suites.CORE, one, two)
    differences = _differences(suites.CORE, before, after)
    for name in _PAIRED:
        _, split, metric = IN_CORE[name]
        change = differences.get((split, "forgetting" if metric == "forgetting" else "accuracy_delta"))
        p = None
        if change and name in ("trained", "probe"):  # the wordings of one fact are not independent
            p = statistics.mcnemar(
                *([row["outcome"] == "correct" for row in said if row["split"] == split] for said in (before, after))
            )
        if change:
            yield name, change, p
    rows: dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]] | None]] = {}
    for name, suite in _benchmarks(measures).items():
        before, after = rows[suite] = _said(suite, one, two)
        differences = _differences(suite, *([{**row, "labels": []} for row in said] for said in (before, after)))
        tested = differences.get((suite, "mcnemar_p"))
        if change := differences.get((suite, "accuracy_delta")):
            yield name, change, tested.value if tested else None
    if _AVERAGE in measures:
        for score in scores.held_out(rows, HELD_OUT):
            if score["metric"] == "accuracy_delta" and score["value"] is not None:
                yield _AVERAGE, Score(**score), None


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


def _differences(suite: str, before: list[dict[str, Any]], after: list[dict[str, Any]]) -> dict[tuple[str, str], Score]:
    """The changes that have a value, by split and metric."""
    found = [Score(**item) for item in scores.compare(suite, before, after) if item["model"] == "tuned"]
    return {(score.split, score.metric): score for score in found if score.value is not None}
