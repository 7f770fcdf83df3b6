"""`compare`: runs as configurations over seeds, with what each forgot at equal memorization, and paired differences.

A configuration is every setting that may change what is learnt; runs that differ in their seed only are its repetitions. Numbers over
several seeds are means with Student's t interval over them; with one seed it is the run's own interval over questions. Two
configurations are paired over their common seeds, or with one such seed over the questions that both were asked. Along the checkpoints
forgetting is interpolated where memorization first reaches the level; a run that was above it when it was first scored counts as it
was then, one without scored checkpoints as it ended. Both may have forgotten less at the level itself, so every run says which it was.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from mixsd import statistics
from mixsd.comparison.runs import ALIKE, Measured, check, read, suites_of_all
from mixsd.errors import UserError
from mixsd.evaluation import scores, suites
from mixsd.evaluation.asked import replies_file
from mixsd.evaluation.benchmarks.benchmark import HELD_OUT as HELD_OUT_SUITES
from mixsd.evaluation.benchmarks.benchmark import is_benchmark
from mixsd.evaluation.scores import AVERAGE, HELD_OUT
from mixsd.evaluation.suites import LM_EVAL
from mixsd.formats import distinct
from mixsd.methods import known_method
from mixsd.plugins import is_function_name
from mixsd.reports.rows import Key
from mixsd.reports.schema import Score
from mixsd.run.folder import Run
from mixsd.settings import EXECUTION, Settings
from mixsd.statistics import Estimate

Measures = Mapping[str, Key]  # which score of a report a measure is

# Measures that no report has: forgetting at equal memorization and what of the probe was kept there, tokens, seconds.
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
# Where a metric, or a measure that no report has, can lie: Student's interval knows nothing of it.
_LIMITS = {
    **dict.fromkeys(("accuracy", "unparseable_share", "truncated_share"), (0.0, 1.0)),
    **dict.fromkeys(("accuracy_delta", "drop"), (-1.0, 1.0)),
    **dict.fromkeys(("retained", PROBE_AT_LEVEL, TOKENS, SECONDS), (0.0, math.inf)),
}
_HIGHEST_LEVEL = 0.95
_PAIRED = ("trained", "paraphrase", "probe", "forgetting")
_AVERAGE = "held_out_average"
# What the identity of model and facts says already, or how a run is measured: no part of a configuration.
_NO_PART = {
    *("facts", "corpus_seed", "model", "output", "seed", "dtype", "trust_remote_code", "score_checkpoints", "score_questions"),
    *EXECUTION,
    *ALIKE,
}
_GROUPS = {name: cast(dict[str, Any], field.json_schema_extra)["group"] for name, field in Settings.model_fields.items()}
_OFF_AT_0 = ("gate", "rehearse", "lora")  # which a label then need not say


def compare(folders: Sequence[str | Path], *, level: float | None = None) -> dict[str, Any]:
    """Compare finished runs.

    Args:
        folders: two or more run folders.
        level: the memorization (0 to 1) at which forgetting is compared; by default the highest that every run reaches.

    Returns JSON values: `configurations` with their measures over seeds, `runs`, `paired` differences, the `level`, and `notes`.
    `scores` says which score of a report a measure is.
    Raises `UserError`: a folder is no finished run, two were not measured alike (naming the field), or one stands twice.
    """
    if isinstance(folders, str | Path) or len(folders) < 2:
        raise UserError("compare: name at least two run folders")
    if level is not None and not 0 < level <= 1:
        raise UserError(f"--level {level:g}: must lie above 0 and at most at 1, such as 0.9")
    runs = [read(Path(folder)) for folder in folders]
    notes = check(runs)
    settings, labels = _configured(runs)
    _refuse_repeated(runs, labels)
    methods = dict.fromkeys(str(item["method"]) for item in settings.values() if is_function_name(str(item["method"])))
    notes += [f"{spec.name}: {spec.title} ({method})." for method in methods for spec in [known_method(method)]]
    measures = {**IN_CORE, **_beyond_core(runs)}
    names, after = list(measures), list(IN_CORE).index("unparseable")
    reached, why = _common_level(runs) if level is None else (level, "as asked for")
    if reached is None:
        notes.append(f"Forgetting at equal memorization: {why}.")
    told = [_run(run, label, reached, measures) for run, label in zip(runs, labels, strict=True)]
    by_seed = sorted(told, key=lambda run: int(run["seed"]))
    configurations = [
        _over_seeds(label, own, [run for run in by_seed if run["configuration"] == label], measures)
        for label, own in settings.items()
    ]
    _mark_optimal(configurations)
    # The plainest of several.
    references = sorted((item for item in configurations if item["method"] == "sft"), key=lambda item: len(item["label"]))
    baseline = (references or configurations)[0]["label"]
    base = {name: cell(score) for name, key in measures.items() if (score := runs[0].score(key, "base"))}
    return {
        "configurations": configurations,
        "measures": [*names[:after], AT_LEVEL, PROBE_AT_LEVEL, *names[after:], TOKENS, SECONDS],
        "scores": {name: dict(zip(("suite", "split", "metric"), key, strict=True)) for name, key in measures.items()},
        "base": {"name": runs[0].report.base.name, "measures": base},
        "level": {"value": reached, "why": why},
        "baseline": baseline,
        "paired": [pair for label in settings if label != baseline for pair in _paired(baseline, label, told, runs, measures)],
        "runs": told,
        "alike": runs[0].conditions,
        "notes": notes,
    }


def labels_of(runs: Sequence[Measured]) -> list[str]:
    """The name of each run's configuration, as a comparison of these runs would call it; runs that differ in their seed share it."""
    return _configured(runs)[1]


def cell(found: Score | Estimate, over: str = "questions") -> dict[str, Any]:
    """A number of the table as JSON values; `over` is what its interval is over."""
    return {"value": found.value, "n": found.n, "low": found.low, "high": found.high, "over": over}


def _beyond_core(runs: Sequence[Measured]) -> dict[str, Key]:
    """What every run has of other suites: accuracies as "suite/split", but for splits by kind; metrics of lm-eval with the metric."""
    found: dict[str, Key] = {}
    average: dict[str, Key] = {}
    for suite in suites_of_all(runs)[1:]:
        if suite == HELD_OUT:
            keys = {name: (suite, AVERAGE, metric) for name, metric in _HELD_OUT.items()}
            average = {name: key for name, key in keys.items() if all(run.score(key) for run in runs)}
            continue
        first = [key[1:3] for key in runs[0].scores if (key[0], *key[3:]) == (suite, "tuned", None)]
        for split, metric in first:
            nested = any(split.startswith(f"{other}/") for other, _ in first)
            if nested or not all(run.score((suite, split, metric)) for run in runs):
                continue
            change = metric.endswith("_delta") and (split, metric.removesuffix("_delta")) in first
            if metric == "accuracy":
                found[f"{suite}/{split}"] = (suite, split, metric)
            elif suite.startswith(LM_EVAL) and not change:
                found[f"{suite}/{split}/{metric}"] = (suite, split, metric)
    own = {name: key for name, key in found.items() if not key[0].startswith(LM_EVAL)}
    return {**own, **average, **found}


def _run(run: Measured, label: str, level: float | None, measures: Measures) -> dict[str, Any]:
    training, cost = run.report.training, run.report.cost
    found = {name: cell(score) for name, key in measures.items() if (score := run.score(key))}
    met = at_level(run.path, level) if level is not None else None
    trained = not (run.evaluated or known_method(run.settings["method"]).edits)
    base_probe = run.score(IN_CORE["probe"], "base")
    others: dict[str, float] = {}
    if met:
        others[AT_LEVEL] = met["forgetting"]
        if "probe" in met and met["how"] != "final" and base_probe and base_probe.value:
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
        "measures": found | {name: cell(Estimate(value, n=1), "seeds") for name, value in others.items()},
        "cost": cost.model_dump() if cost else None,
        "at_level": met,
        "path": run.path,
    }


def _over_seeds(label: str, settings: dict[str, Any], runs: list[dict[str, Any]], measures: Measures) -> dict[str, Any]:
    cells = {}
    for name in (*measures, AT_LEVEL, PROBE_AT_LEVEL, TOKENS, SECONDS):
        own = [run["measures"][name] for run in runs if name in run["measures"]]
        if own:
            cells[name] = own[0]
        if own and len(runs) > 1:
            limits = _LIMITS.get(measures[name][2] if name in measures else name, (-math.inf, math.inf))
            cells[name] = cell(statistics.seeds_interval([told["value"] for told in own]).within(*limits), "seeds")
            if own[0]["over"] == "questions":
                cells[name]["each"] = min(told["n"] for told in own)
    rates = {run["lr"] for run in runs if run["lr"] is not None}
    hows = [run["at_level"]["how"] if run["at_level"] else "not reached" for run in runs]
    return {
        "label": label,
        "method": settings["method"],
        "settings": settings,
        "seeds": [run["seed"] for run in runs],
        "lr": {"setting": settings.get("lr"), "used": sorted(rates, key=str)} if rates else None,
        "measures": cells,
        "at_level": {how: hows.count(how) for how in dict.fromkeys(hows)},
    }


def _mark_optimal(configurations: Sequence[dict[str, Any]]) -> None:
    """Pareto-optimal: no other one memorizes at least as much and forgets at most as much, one of the two strictly."""
    places = []
    for cells in (item["measures"] for item in configurations):
        has_both = {"trained", "forgetting"} <= cells.keys()
        places.append((cells["trained"]["value"], -cells["forgetting"]["value"]) if has_both else None)
    for item, own in zip(configurations, places, strict=True):
        better = (other for other in places if own and other and other != own)
        item["optimal"] = own is not None and not any(a >= own[0] and b >= own[1] for a, b in better)


def at_level(path: Sequence[dict[str, Any]], level: float) -> dict[str, Any] | None:
    """The path's values where memorization first reaches `level`, interpolated; None where it never does.

    `how`: "interpolated", "first" (above the level when it was first scored), or "final" (no checkpoint was scored).
    """
    place = next((place for place, point in enumerate(path) if point["memorization"] >= level - 1e-12), None)
    if place is None:
        return None
    after = {name: value for name, value in path[place].items() if value is not None and name != "scored"}
    if place == 0:
        return {**after, "how": "first" if any(point["scored"] for point in path) else "final"}
    before = path[place - 1]
    share = (level - before["memorization"]) / (after["memorization"] - before["memorization"])
    known = [name for name in after if before.get(name) is not None]
    return {**{name: before[name] + share * (after[name] - before[name]) for name in known}, "how": "interpolated"}


def _common_level(runs: Sequence[Measured]) -> tuple[float | None, str]:
    """The highest memorization that every run reaches, as a whole number of facts and at most `_HIGHEST_LEVEL`, and why it is that."""
    highest = [max((point["memorization"] for point in run.path), default=0.0) for run in runs]
    least, name = min(highest), runs[highest.index(min(highest))].name
    trained = runs[0].score(IN_CORE["trained"])
    facts = trained.n if trained else 1
    level = math.floor(min(least, _HIGHEST_LEVEL) * facts + 1e-9) / facts
    if level <= 0:
        return None, f"{name} memorizes nothing, so there is no level that every run reaches; --level sets one"
    if least > _HIGHEST_LEVEL:
        return level, f"every run reaches it; beyond {_HIGHEST_LEVEL:.0%} it would hang on the last few facts"
    return level, f"the highest that every run reaches; {name} goes no further"


def _configured(runs: Sequence[Measured]) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """The settings of each configuration by its label, and the label of each run's."""
    settings = [_configuration(run) for run in runs]
    keys = [_canonical(own) for own in settings]
    different = dict(zip(keys, settings, strict=True))
    labels = dict(zip(different, _labels(list(different.values())), strict=True))
    return {labels[key]: own for key, own in different.items()}, [labels[key] for key in keys]


def _refuse_repeated(runs: Sequence[Measured], labels: Sequence[str]) -> None:
    seen: dict[tuple[str, int], Measured] = {}
    for run, label in zip(runs, labels, strict=True):
        other = seen.setdefault((label, run.seed), run)
        if other is not run and other.folder.resolve() == run.folder.resolve():
            raise UserError(f"{run.folder}: is named twice; name each run once")
        if other is not run:
            raise UserError(f"{run.folder}: is the same configuration with the same seed ({run.seed}) as {other.folder}")


def _configuration(run: Measured) -> dict[str, Any]:
    """Every setting of the run that may change what it learns."""
    if run.evaluated:  # made elsewhere: the settings say nothing about how
        return {"method": "evaluated", "name": run.name, "model": run.evaluated}
    settings = run.settings
    method, rehearses = known_method(settings["method"]), bool(settings["rehearse"])
    # By groups and names of settings.
    used = {
        ("Mixing", "guidance"): method.mixes or method.has_teacher,
        ("lam", "gate", "retries", "retry", "on_fail"): method.mixes,
        ("Distillation",): method.has_teacher or (rehearses and settings["rehearse_loss"] == "kl"),
        ("Training", "train_dtype"): not method.edits,
        ("Editing",): method.edits,
        ("lr_grid", "lr_steps"): settings["lr"] == "auto",
        ("rehearse_tokens", "rehearse_loss"): rehearses,
    }
    idle = _NO_PART.union(*(names for names, holds in used.items() if not holds))
    return {name: value for name, value in settings.items() if name not in idle and _GROUPS.get(name) not in idle}


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _labels(configurations: Sequence[dict[str, Any]]) -> list[str]:
    """A name for each: the method, and the settings in which those that have them differ, but for a method that keeps to its default."""
    made = [item for item in configurations if item["method"] != "evaluated"]
    differing = [
        name
        for name in Settings.model_fields
        if name != "method" and len({_canonical(item[name]) for item in made if name in item}) > 1
    ]
    labels = []
    for item in configurations:
        if item["method"] == "evaluated":
            labels.append(f"{item['name']} (evaluated only)")
            continue
        method = known_method(item["method"])
        parts = [method.name]
        for name in differing:
            default = method.settings.get(name, Settings.model_fields[name].default)
            of_method = [other[name] for other in made if other["method"] == item["method"] and name in other]
            off = name in _OFF_AT_0 and not item.get(name)
            if name in item and not off and any(value != default for value in of_method):
                parts.append(f"{name} {_worded(item[name])}")
        labels.append(" ".join(parts))
    return distinct(labels)


def _worded(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    text = f"{value:g}" if isinstance(value, float) else ",".join(map(_worded, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= 40 else text[:37] + "..."


def _paired(
    first: str, second: str, told: Sequence[dict[str, Any]], runs: Sequence[Measured], measures: Measures
) -> list[dict[str, Any]]:
    """Second minus first, both labels of configurations, and where both are positive second / first; `told` is of each of `runs`."""
    one, two = (
        {run["seed"]: place for place, run in enumerate(told) if run["configuration"] == label} for label in (first, second)
    )
    seeds = sorted(one.keys() & two.keys())
    pair: dict[str, Any] = {"configuration": second, "against": first}
    if len(seeds) == 1:
        found = _over_questions(runs[one[seeds[0]]], runs[two[seeds[0]]], measures)
        pair["seeds"] = seeds
        return [{**pair, "measure": name, "difference": cell(change), "ratio": None, "p": p} for name, change, p in found]
    pairs = []
    for name in (*_PAIRED, AT_LEVEL, *_benchmarks(measures), _AVERAGE):
        cells = {seed: [told[at[seed]]["measures"].get(name) for at in (one, two)] for seed in seeds}
        both = {seed: (a["value"], b["value"]) for seed, (a, b) in cells.items() if a and b}
        values = list(both.values())
        if len(values) < 2:
            continue
        ratio = None
        if name in ("forgetting", AT_LEVEL) and all(a > 0 and b > 0 for a, b in values):
            ratio = cell(statistics.log_ratio_interval([b for _, b in values], [a for a, _ in values]), "seeds")
        difference = cell(statistics.seeds_interval([b - a for a, b in values]), "seeds")
        pairs.append({**pair, "seeds": list(both), "measure": name, "difference": difference, "ratio": ratio, "p": None})
    return pairs


def _benchmarks(measures: Measures) -> dict[str, str]:
    """The benchmarks that every run was asked: suite by the name of the measure."""
    return {name: suite for name, (suite, split, _) in measures.items() if is_benchmark(suite) and split == suite}


def _over_questions(one: Measured, two: Measured, measures: Measures) -> Iterator[tuple[str, Score, float | None]]:
    """Measures in which two runs of one seed differ over the prompts that both were asked, with the change and McNemar's p."""
    before, after = _replies(suites.CORE, one, two)
    differences = _differences(suites.CORE, before, after)
    for name in _PAIRED:
        _, split, metric = IN_CORE[name]
        change = differences.get((split, "forgetting" if metric == "forgetting" else "accuracy_delta"))
        if change is None:
            continue
        right = [[row["outcome"] == "correct" for row in said if row["split"] == split] for said in (before, after)]
        # The wordings of one fact are not independent.
        yield name, change, statistics.mcnemar(*right) if name in ("trained", "probe") else None
    rows: dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]] | None]] = {}
    for name, suite in _benchmarks(measures).items():
        before, after = rows[suite] = _replies(suite, one, two)
        differences = _differences(suite, *([{**row, "labels": []} for row in said] for said in (before, after)))
        tested = differences.get((suite, "mcnemar_p"))
        if change := differences.get((suite, "accuracy_delta")):
            yield name, change, tested.value if tested else None
    if _AVERAGE in measures:
        for score in scores.held_out(rows, HELD_OUT_SUITES):
            if score["metric"] == "accuracy_delta" and score["value"] is not None:
                yield _AVERAGE, Score(**score), None


def _replies(suite: str, one: Measured, two: Measured) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    before, after = (list(run.rows(suite, "tuned")) for run in (one, two))
    asked = [[(row["key"], row["prompt_hash"], row["split"], row["labels"]) for row in said] for said in (before, after)]
    if asked[0] != asked[1]:
        places = " and ".join(str(replies_file(Run(run.folder), suite, "tuned")) for run in (one, two))
        why = "their tuned models were asked otherwise, or in another order, or the rows are labelled otherwise"
        then = f"delete {places}, then `mixsd evaluate --suite {suite}` and `mixsd report` both"
        raise UserError(f"{two.folder}: cannot be compared with {one.folder}: {why}; {then}")
    return before, after


def _differences(suite: str, before: list[dict[str, Any]], after: list[dict[str, Any]]) -> dict[tuple[str, str], Score]:
    """The changes that have a value, by split and metric."""
    found = [Score(**item) for item in scores.compare(suite, before, after) if item["model"] == "tuned"]
    return {(score.split, score.metric): score for score in found if score.value is not None}
