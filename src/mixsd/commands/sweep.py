"""`mixsd.sweep`: one file that names methods, settings and seeds; a run folder for every combination, and a comparison at the end.

The file is expanded and checked whole before anything runs. Every configuration comes at the first seed before any comes at the
second, so a sweep that was stopped is a comparison already. The run folders are all that is remembered: one that holds the
finished run is passed over, the others resume, and a folder that holds anything else is refused.

What a sweep would take: the dry run of each run that is not done, and their sum. Runs that differ in their seed cost the same.

A sweep file, expanded into runs: every combination of what its entries list, at every seed, each with a folder of its own.

    output: runs/sweep
    seeds: [0, 1, 2]
    settings: {facts: demo, epochs: 20}          # of all runs
    runs:
      - {method: sft}
      - {method: mixsd, lam: [0, 0.3, 0.5]}      # a list crosses: three configurations

A folder is named after the method and what its entry sets, so its name stays when the file is put in another order or grows.
"""

from __future__ import annotations

import gc
import re
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import product
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from mixsd.commands.dry_run import plan
from mixsd.errors import MixsdError, RequirementMissedError, UserError, did_you_mean
from mixsd.facts.fact import to_json
from mixsd.facts.sources import Corpus, facts_of, open_source
from mixsd.models import loading
from mixsd.progress import Watcher
from mixsd.reports.schema import read_report
from mixsd.run.folder import Run, go_offline
from mixsd.settings import EXECUTION, Settings, build, read_config
from mixsd.storage import digest

_KEYS = ("output", "seeds", "settings", "runs")
_ELSEWHERE = {
    "output": "output stands at the top of the file; each run gets a folder in it",
    "seed": 'seed: the seeds stand at the top of the file, as "seeds: [0, 1]"',
    "shard": "shard: the runs of a sweep are done whole",
}
_LONGEST_TEXT, _LONGEST_NAME = 40, 150  # characters, in a folder's name


@dataclass(frozen=True)
class SweepRun:
    """One run of a sweep: its folder's name, its configuration's (the same without the seed), and where the file asks for it."""

    name: str
    configuration: str
    settings: Settings
    where: str

    @property
    def run(self) -> Run:
        """The run's folder."""
        return Run(Path(self.settings.output).expanduser())


@dataclass(frozen=True)
class Sweep:
    """A sweep's folder and its runs in the order in which they are done."""

    source: str
    folder: Path
    runs: list[SweepRun]


def read_sweep(source: str | Path | Mapping[str, Any], *, output: str | Path | None = None, **execution: Any) -> Sweep:
    """Expand a sweep file, or its values, into runs; nothing but the file is read.

    Raises:
        UserError: bad YAML, an unknown or misplaced key, a bad value, or two configurations that are the same.
    """
    name, values = _read(source)
    if unknown := [key for key in values if key not in _KEYS]:
        hint = did_you_mean(unknown[0], _KEYS) or (" (a setting: put it under settings)" if unknown[0] in _settings() else "")
        raise UserError(f'{name}: unknown key "{unknown[0]}"{hint}; known: {", ".join(_KEYS)}')
    folder = output if output is not None else values.get("output")
    if not isinstance(folder, str | Path) or not str(folder):
        raise UserError(f"{name}: output: expected a folder for the runs, such as runs/sweep")
    seeds = _seeds(values.get("seeds", [0]), name)
    return Sweep(name, Path(folder).expanduser(), list(_expanded(values, seeds, Path(folder), _checked(execution), name)))


def _read(source: str | Path | Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    if isinstance(source, Mapping):
        return "sweep", dict(source)
    path = Path(source).expanduser()
    return str(path), read_config(path)


def _seeds(values: Any, name: str) -> list[int]:
    if not isinstance(values, list | tuple) or not values:
        raise UserError(f"{name}: seeds: expected a list of whole numbers, such as [0, 1, 2]")
    seeds = [build({"seed": value}, f"{name}: seeds").seed for value in values]
    if repeated := [seed for number, seed in enumerate(seeds) if seed in seeds[:number]]:
        raise UserError(f"{name}: seeds: {repeated[0]} stands there twice; keep one")
    return seeds


def _checked(execution: Mapping[str, Any]) -> dict[str, Any]:
    """Settings given beside the file."""
    build(execution, "options")
    if fixed := [name for name in execution if name not in EXECUTION or name == "shard"]:
        raise UserError(f"options: {_ELSEWHERE.get(fixed[0], f'{fixed[0]} belongs in the file, under settings')}")
    return dict(execution)


def _expanded(
    values: Mapping[str, Any], seeds: Sequence[int], folder: Path, execution: Mapping[str, Any], name: str
) -> Iterator[SweepRun]:
    given = values.get("settings")
    shared = _section({} if given is None else given, f"{name}: settings")
    for key, value in shared.items():
        if isinstance(value, list | tuple) and key in _settings() and not _takes_a_list(key):
            raise UserError(f"{name}: settings: {key}: one value for all runs; a list of them goes into an entry of runs")
    build(shared, f"{name}: settings")
    entries = values.get("runs")
    if not isinstance(entries, list | tuple) or not entries:
        raise UserError(f"{name}: runs: expected a list of settings, such as [{{method: sft}}, {{method: mixsd, lam: [0, 0.3]}}]")
    found: list[SweepRun] = []
    for number, entry in enumerate(entries, 1):
        where = f"{name}: runs: entry {number}"
        for own in _crossed(_section(entry, where), where):
            settings = build({**shared, **own, **execution}, where)
            if not settings.facts:
                raise UserError(f"{where}: no facts; name a file of facts (or 'demo' for the bundled ones) under settings")
            found.append(SweepRun("", _name(settings, own), settings, where))
    _refuse_equals(found)
    for seed in seeds:
        for one in found:
            run = f"{one.configuration}-s{seed}"
            settings = one.settings.model_copy(update={"seed": seed, "output": str(folder / run)})
            yield SweepRun(run, one.configuration, settings, f"{one.where} ({run})")


def _section(values: Any, where: str) -> dict[str, Any]:
    if not isinstance(values, Mapping) or not all(isinstance(key, str) for key in values):
        raise UserError(f"{where}: expected settings, such as {{method: mixsd, lam: 0.3}}")
    for key, text in _ELSEWHERE.items():
        if key in values:
            raise UserError(f"{where}: {text}")
    return dict(values)


def _crossed(entry: Mapping[str, Any], where: str) -> Iterator[dict[str, Any]]:
    """Every combination of an entry's lists, the last one changing fastest; a setting that is a list crosses as a list of lists."""
    choices: list[list[tuple[str, Any]]] = []
    for name, value in entry.items():
        several = isinstance(value, list | tuple)
        if several and _takes_a_list(name):
            several = any(isinstance(item, list | tuple) for item in value)
        elif several and not value:
            raise UserError(f"{where}: {name}: the list is empty")
        choices.append([(name, item) for item in (value if several else [value])])
    for combination in product(*choices):
        yield dict(combination)


def _settings() -> Mapping[str, Any]:
    return Settings.model_fields


def _takes_a_list(name: str) -> bool:
    annotation = Settings.model_fields[name].annotation if name in Settings.model_fields else None
    return any(get_origin(kind) is list for kind in (annotation, *get_args(annotation)))


def _name(settings: Settings, own: Mapping[str, Any]) -> str:
    """The method and the entry's other settings in the order of `Settings`, so that the file may be put in another order."""
    parts: list[str] = [re.sub(r"[^\w.+-]+", "_", settings.spec.name)]
    for name in Settings.model_fields:
        if name in own and name != "method":
            value = getattr(settings, name)
            seam = "" if isinstance(value, int | float) and not isinstance(value, bool) else "-"
            parts.append(f"{name}{seam}{_shown(name, value)}")
    whole = "-".join(parts)
    return whole if len(whole) <= _LONGEST_NAME else f"{whole[:_LONGEST_NAME]}-{digest(whole)[:6]}"


def _shown(name: str, value: Any) -> str:
    """A value as part of a folder's name; a text that cannot stand there as it is brings a hash of itself."""
    if isinstance(value, float):
        return repr(int(value) if value.is_integer() else value)
    if value is None or isinstance(value, bool | int):
        return str(value).lower()
    text = value if isinstance(value, str) else "+".join(map(str, value))
    if get_origin(Settings.model_fields[name].annotation) is Literal:
        return text
    slug = re.sub(r"[^A-Za-z0-9_.+]+", "_", text)[:_LONGEST_TEXT]
    return slug if slug == text else f"{slug}-{digest(value)[:6]}"


def _refuse_equals(found: Sequence[SweepRun]) -> None:
    seen: dict[str, SweepRun] = {}
    for one in found:
        key = digest(one.settings.resolved.dump())
        for other, said in (
            (seen.get(key), "are the same configuration"),
            (seen.get(one.configuration), "share a folder's name"),
        ):
            if other is not None:
                entry = one.where.rpartition(": ")[2]
                raise UserError(f"{other.where} ({other.configuration}) and {entry} ({one.configuration}) {said}; keep one")
        seen[key] = seen[one.configuration] = one


State = Literal["done", "begun", "to do"]

# Settings that may differ from those of a finished run without anything in it being another.
_MACHINE = ("offline", "device", "backend", "token_budget", "shard")


@dataclass(frozen=True)
class SweepResult:
    """What a sweep came to; runs are given by name, in their order.

    finished: those whose report is there, from before or now. failed: why the others that were tried have none. missed: the
    `require` conditions that a finished run does not hold. left: what `only` left out and is not finished. comparison and page:
    of all finished runs, None with fewer than two; `problem` says why they cannot be compared.
    """

    folder: Path
    finished: list[str]
    failed: dict[str, str]
    missed: dict[str, list[str]]
    left: list[str]
    comparison: dict[str, Any] | None = None
    page: Path | None = None
    problem: str | None = None


def sweep(
    source: str | Path | Mapping[str, Any],
    *,
    output: str | Path | None = None,
    only: Collection[str] = (),
    watcher: Watcher | None = None,
    **execution: Any,
) -> SweepResult:
    """Do every run of a sweep that is not done, and compare all that are.

    >>> mixsd.sweep("sweep.yaml").finished                                                 # doctest: +SKIP
    >>> mixsd.sweep({"output": "runs/sweep", "settings": {"facts": "demo"},
    ...              "runs": [{"method": "sft"}, {"method": "mixsd", "lam": [0, 0.3]}]})   # doctest: +SKIP

    Args:
        source: a YAML file, or its values: `output`, `seeds`, `settings` (of all runs) and `runs`.
        output: a folder to use in place of the file's.
        only: names of runs or configurations; the others are left.
        watcher: is told about the progress; silent by default.
        execution: settings that say how to run (`device`, `offline`, ...); they go before the file's.

    Returns:
        The runs that finished, and those that failed with the reason: a failed run does not stop the others.

    Raises:
        UserError: anything in the file or its settings that is wrong, before the first run starts.
    """
    watcher = watcher or Watcher()
    planned = read_sweep(source, output=output, **execution)
    states = survey(planned, only=only, watcher=watcher)
    chosen = chosen_runs(planned, only)
    if skipped := [run.name for run in chosen if states[run.name] == "done"]:
        watcher.say(f"{len(skipped)} of {len(chosen)} runs are done already: {', '.join(skipped)}")
    failed: dict[str, str] = {}
    for run, reason in _do(chosen, states, watcher):
        if reason is None:
            states[run.name] = "done"
        else:
            failed[run.name] = reason
            watcher.say(f"{run.name} failed: {reason}")
    finished = [run for run in planned.runs if states[run.name] == "done"]
    result = SweepResult(
        planned.folder,
        finished=[run.name for run in finished],
        failed=failed,
        missed={run.name: missed for run in finished if (missed := _missed(run.run))},
        left=[run.name for run in planned.runs if states[run.name] != "done" and run.name not in failed],
    )
    return _compared(result, [run.run.folder for run in finished])


def _do(runs: Sequence[SweepRun], states: Mapping[str, State], watcher: Watcher) -> Iterator[tuple[SweepRun, str | None]]:
    """Do the runs that are left; yields each with the reason why it failed, or None."""
    todo = [(number, run) for number, run in enumerate(runs, 1) if states[run.name] != "done"]
    if not todo:
        return
    from mixsd.commands import inject

    seconds: list[float] = []
    for position, (number, run) in enumerate(todo):
        left = ""
        if seconds:
            expected = timedelta(seconds=round(sum(seconds) / len(seconds) * (len(todo) - position)))
            left = f"; about {expected} (h:mm:ss) left for all"
        watcher.say(f"run {number} of {len(runs)}: {run.name}{left}")
        started, reason = time.monotonic(), None
        try:
            inject.inject(run.settings, watcher=watcher)
        except RequirementMissedError:
            pass  # the run is complete; its report says what it missed
        except MixsdError as error:
            reason = str(error)
        if reason is None:
            seconds.append(time.monotonic() - started)
        else:
            gc.collect()  # what broke off leaves its model in the frames of the error
        yield run, reason


def _compared(result: SweepResult, folders: Sequence[Path]) -> SweepResult:
    if len(folders) < 2:
        return result
    from mixsd.comparison import compare
    from mixsd.comparison import page as compare_page
    from mixsd.comparison.material import material_of

    values = dict(result.__dict__)
    try:
        values["comparison"] = compare.compare(folders)
        values["page"] = compare_page.write(values["comparison"], result.folder, material_of(folders))
    except UserError as error:
        values["problem"] = str(error)
    return SweepResult(**values)


def _missed(run: Run) -> list[str]:
    return [item.text for item in read_report(run.report_json).requirements if not item.passed]


def survey(planned: Sweep, *, only: Collection[str] = (), watcher: Watcher | None = None) -> dict[str, State]:
    """The state of every run, by name; whatever can be known to be wrong with those that are to be done is an error now.

    Raises:
        UserError: a name in `only` that no run has, a folder that holds another configuration or something else, facts or a model
            that cannot be read, an unknown verifier, suite or device, ...
    """
    chosen = {run.name for run in chosen_runs(planned, only)}
    _check_place(planned.folder)
    if any(run.settings.offline for run in planned.runs):
        go_offline()
    judge = _Judge()
    states: dict[str, State] = {}
    for run in planned.runs:
        with _told(run):
            states[run.name] = judge.state(run)
    once = _Once(watcher or Watcher())
    checked: set[str] = set()
    for run in planned.runs:
        if run.name in chosen and states[run.name] != "done" and run.configuration not in checked:
            checked.add(run.configuration)
            with _told(run):
                _preview(run.settings, once)
    return states


def _preview(settings: Settings, watcher: Watcher) -> None:
    """What `inject` finds out before it begins."""
    from mixsd.commands import opening
    from mixsd.reports.collect import check_requirements

    check_requirements(opening.preview(settings, watcher))


def chosen_runs(planned: Sweep, only: Collection[str]) -> list[SweepRun]:
    """The runs that are asked for by name or configuration; all without `only`."""
    known = [name for run in planned.runs for name in (run.name, run.configuration)]
    for name in only:
        if name not in known:
            raise UserError(f"--only {name}: {planned.source} has no such run{did_you_mean(name, known)}")
    return [run for run in planned.runs if not only or run.name in only or run.configuration in only]


def _check_place(folder: Path) -> None:
    """Refuse, before each run would, a folder that cannot be made, and one that is a run's own."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise UserError(f"{folder}: cannot hold runs ({there} is a file); choose another --output")
    if Run(folder).exists():
        raise UserError(f"{folder}: is the folder of a single run; choose another --output")


@contextmanager
def _told(run: SweepRun) -> Iterator[None]:
    """Put in front of an error where the file asks for the run."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{run.where}: {error}") from error


@dataclass
class _Judge:
    """Tells whether a folder holds a run, and whether it is finished; without torch, so that a sweep that is done says so at once."""

    identities: dict[tuple[Any, ...], tuple[dict[str, Any], Corpus | None]] = field(default_factory=dict)

    def state(self, planned: SweepRun) -> State:
        run, settings = planned.run, planned.settings
        run.refuse_strangers()
        if not run.exists():
            return "to do"
        identity, corpus = self._identity(settings)
        if corpus is not None:
            from mixsd.commands.opening import fitted

            settings = fitted(settings, corpus)
        # Of a folder that is a run's already this compares only. What is not known here, the prompts' form, follows from the rest.
        run.claim(settings.resolved, {**run.manifest().get("identity", {}), **identity})
        try:
            stored = read_report(run.report_json).settings
        except UserError:  # none, or one of another version
            return "begun"
        same = all(stored.get(name) == getattr(settings, name) for name in EXECUTION if name not in _MACHINE)
        return "done" if same else "begun"

    def _identity(self, settings: Settings) -> tuple[dict[str, Any], Corpus | None]:
        key = (settings.facts, settings.corpus_seed, settings.offline, settings.model)
        if key not in self.identities:
            opened = open_source(settings.facts, seed=settings.corpus_seed, offline=settings.offline)
            found = facts_of(opened, settings.facts)
            corpus = opened if isinstance(opened, Corpus) else None
            identity = {
                "model_hash": loading.model_hash(loading.locate(settings.model, offline=settings.offline).folder),
                "facts_hash": digest([to_json(fact) for fact in found.facts]),
                "duplicates": found.duplicates,
                **({"corpus": corpus.identity} if corpus else {}),
            }
            self.identities[key] = (identity, corpus)
        return self.identities[key]


class _Once(Watcher):
    """Passes on what is said, the same thing only once."""

    def __init__(self, inner: Watcher) -> None:
        self.inner = inner
        self.said: set[str] = set()

    def say(self, text: str) -> None:
        if text not in self.said:
            self.said.add(text)
            self.inner.say(text)


# What a run is said to take, from its plan.
_NAMES = ("seconds", "memory", "disk", "disk_at_peak", "decoded_tokens", "trained_tokens")


def price(
    planned: Sweep, states: dict[str, State], *, only: Collection[str] = (), watcher: Watcher | None = None
) -> dict[str, Any]:
    """Estimate what is left of a sweep, as `mixsd inject --dry-run` does for one run.

    Returns:
        `runs`, by name: `seconds`, `memory` (bytes at the peak), `disk` (bytes in the end) and `disk_at_peak`, `decoded_tokens` to train
        on and `trained_tokens`; `total` of them: memory and `disk_at_peak` of one run at a time beside those that are there; `accuracy`
        of the time; `available` and `free`, the bytes of memory and disk that are there; `warnings`.

    Raises:
        UserError: as `mixsd inject` would for a run.
    """
    watcher = watcher or Watcher()
    todo = [run for run in chosen_runs(planned, only) if states[run.name] != "done"]
    plans: dict[str, dict[str, Any]] = {}
    runs: dict[str, dict[str, Any]] = {}
    found: dict[str, Any] = {}
    with watcher.task("estimating", len({run.configuration for run in todo})) as task:
        for run in todo:
            if run.configuration not in plans:
                found = plan(run.settings, watcher)
                plans[run.configuration] = found
                task.advance()
            runs[run.name] = _of(plans[run.configuration])
    total: dict[str, float] = dict.fromkeys(_NAMES, 0.0)
    before = 0.0
    for cost in runs.values():
        for name in ("seconds", "disk", "decoded_tokens", "trained_tokens"):
            total[name] += cost[name]
        total["memory"] = max(total["memory"], cost["memory"])
        total["disk_at_peak"] = max(total["disk_at_peak"], before + cost["disk_at_peak"])
        before += cost["disk"]
    if not found:
        return {"runs": runs, "total": total, "accuracy": "", "available": None, "free": None, "warnings": []}
    available, free = found["memory"]["available"], found["disk"]["free"]
    return {
        "runs": runs,
        "total": total,
        "accuracy": found["seconds"]["accuracy"],
        "available": available,
        "free": free,
        "warnings": list(_warnings(runs, total, available, free)),
    }


def _warnings(
    runs: Mapping[str, Mapping[str, float]], total: Mapping[str, float], available: float, free: float
) -> Iterator[str]:
    if large := [name for name, cost in runs.items() if cost["memory"] > available]:
        yield (
            f"{len(large)} of {len(runs)} runs may need more than the {available / 1e9:.1f} GB of memory that are free, the largest "
            f"{total['memory'] / 1e9:.1f}: {', '.join(large[:3])}{', ...' if len(large) > 3 else ''}; `mixsd inject --dry-run` with one run's "
            "settings says in which stage, and what to lower"
        )
    if total["disk_at_peak"] > free:
        yield (
            f"the sweep needs {total['disk_at_peak'] / 1e9:.1f} GB of disk, {free / 1e9:.1f} are free: choose another --output, or lower "
            "keep_checkpoints"
        )


def _of(found: dict[str, Any]) -> dict[str, float]:
    return {
        "seconds": found["seconds"]["total"],
        "memory": found["memory"]["peak"],
        "disk": found["disk"]["total"],
        "disk_at_peak": found["disk"]["peak"],
        "decoded_tokens": found["tokens"]["decoded"],
        "trained_tokens": found["training"]["tokens"],
    }
