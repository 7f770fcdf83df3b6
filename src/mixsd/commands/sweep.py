"""`mixsd.sweep`: every combination of what the entries of a sweep file list, at every seed, one after the other, and a comparison.

    output: runs/sweep
    seeds: [0, 1, 2]
    settings: {facts: demo, epochs: 20}          # of all runs
    runs:
      - {method: sft}
      - {method: mixsd, lam: [0, 0.3, 0.5]}      # a list crosses: three configurations

A folder is named after the method and what its entry sets, so its name stays when the file is put in another order or grows. Every
configuration comes at the first seed before any comes at the second, so a sweep that was stopped is a comparison already. Everything
is checked before anything runs. A folder that holds the finished run is passed over, the others resume.
"""

import gc
import re
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from itertools import product
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from mixsd.errors import MixsdError, RequirementMissedError, UserError, did_you_mean
from mixsd.facts.corpus import Corpus, facts_of, open_source
from mixsd.facts.fact import to_json
from mixsd.models import loading
from mixsd.progress import Watcher
from mixsd.reports.schema import read_report
from mixsd.run.folder import Run, go_offline
from mixsd.settings import EXECUTION, Settings, build, read_config
from mixsd.storage import digest

State = Literal["done", "begun", "to do"]

# Settings that may differ from those of a finished run without anything in it being another.
_MACHINE = ("offline", "device", "backend", "token_budget", "shard")
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

    def chosen(self, only: Collection[str]) -> list[SweepRun]:
        """The runs that are asked for by name or configuration; all without `only`. A name that no run has is a `UserError`."""
        known = [name for run in self.runs for name in (run.name, run.configuration)]
        for name in only:
            if name not in known:
                raise UserError(f"--only {name}: {self.source} has no such run{did_you_mean(name, known)}")
        return [run for run in self.runs if not only or run.name in only or run.configuration in only]


@dataclass(frozen=True)
class SweepResult:
    """What a sweep came to, by the names of its runs.

    finished: those that have a report. failed: why the others that were tried have none. missed: the `require` conditions that do
    not hold. left: what `only` left out. comparison and page: of all finished runs, if two; `problem`: why they cannot be compared.
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
        output: goes before the file's.
        only: names of runs or configurations; the others are left.
        execution: settings that say how to run (`device`, `offline`, ...); they go before the file's.

    Returns the runs that finished, and those that failed with the reason: a failed run does not stop the others.
    Raises `UserError`: anything in the file or its settings that is wrong, before the first run starts.
    """
    watcher = watcher or Watcher()
    planned = read_sweep(source, output=output, **execution)
    states = survey(planned, only=only, watcher=watcher)
    chosen = planned.chosen(only)
    todo = [(number, run) for number, run in enumerate(chosen, 1) if states[run.name] != "done"]
    if len(todo) < len(chosen):
        skipped = ", ".join(run.name for run in chosen if states[run.name] == "done")
        watcher.say(f"{len(chosen) - len(todo)} of {len(chosen)} runs are done already: {skipped}")
    failed: dict[str, str] = {}
    took: list[float] = []  # seconds of each run that did not fail
    for place, (number, run) in enumerate(todo):
        from mixsd.commands import inject

        started = time.monotonic()
        expected = round(sum(took) / len(took) * (len(todo) - place)) if took else 0
        for_all = f"; about {timedelta(seconds=expected)} (h:mm:ss) left for all" if took else ""
        watcher.say(f"run {number} of {len(chosen)}: {run.name}{for_all}")
        try:
            inject.inject(run.settings, watcher=watcher)
        except RequirementMissedError:
            pass  # the run is complete; its report says what it missed
        except MixsdError as error:
            failed[run.name] = str(error)
            watcher.say(f"{run.name} failed: {error}")
        if run.name in failed:
            gc.collect()  # what broke off leaves its model in the frames of the error
        else:
            states[run.name] = "done"
            took.append(time.monotonic() - started)
    finished = [run for run in planned.runs if states[run.name] == "done"]
    missed = {}
    for run in finished:
        if texts := [item.text for item in read_report(run.run.report_json).requirements if not item.passed]:
            missed[run.name] = texts
    left = [run.name for run in planned.runs if states[run.name] != "done" and run.name not in failed]
    result = SweepResult(planned.folder, [run.name for run in finished], failed, missed, left)
    return _compared(result, [run.run.folder for run in finished])


def _compared(result: SweepResult, folders: Sequence[Path]) -> SweepResult:
    if len(folders) < 2:
        return result
    from mixsd.comparison import compare, page
    from mixsd.comparison.material import material_of

    try:
        found = compare.compare(folders)
        return replace(result, comparison=found, page=page.write(found, result.folder, material_of(folders)))
    except UserError as error:
        return replace(result, problem=str(error))


def survey(planned: Sweep, *, only: Collection[str] = (), watcher: Watcher | None = None) -> dict[str, State]:
    """The state of every run, by name; whatever can be known to be wrong with those to be done is a `UserError` now."""
    chosen = planned.chosen(only)
    there = next(path for path in (planned.folder.absolute(), *planned.folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise UserError(f"{planned.folder}: cannot hold runs ({there} is a file); choose another --output")
    if Run(planned.folder).exists():
        raise UserError(f"{planned.folder}: is the folder of a single run; choose another --output")
    if any(run.settings.offline for run in planned.runs):
        go_offline()
    identities: dict[tuple[Any, ...], tuple[dict[str, Any], Corpus | None]] = {}
    states: dict[str, State] = {}
    for run in planned.runs:
        with _where(run):
            states[run.name] = _state(run, identities)
    checked: set[str] = set()
    for run in chosen:
        if states[run.name] != "done" and run.configuration not in checked:
            from mixsd.commands import opening
            from mixsd.reports.collect import check_requirements

            with _where(run):
                # The first one speaks for all; each will say its own.
                check_requirements(opening.open_checked(run.settings, Watcher() if checked or watcher is None else watcher))
            checked.add(run.configuration)
    return states


@contextmanager
def _where(run: SweepRun) -> Iterator[None]:
    """Put in front of an error where the file asks for the run."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{run.where}: {error}") from error


def _state(planned: SweepRun, identities: dict[tuple[Any, ...], tuple[dict[str, Any], Corpus | None]]) -> State:
    """Whether a folder holds a run, and whether it is finished; without torch, so that a sweep that is done says so at once."""
    run, settings = planned.run, planned.settings
    run.refuse_strangers()
    if not run.exists():
        return "to do"
    key = (settings.facts, settings.corpus_seed, settings.offline, settings.model, settings.revision)
    if key not in identities:
        identities[key] = _identity(settings)
    identity, corpus = identities[key]
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


def _identity(settings: Settings) -> tuple[dict[str, Any], Corpus | None]:
    opened = open_source(settings.facts, seed=settings.corpus_seed, offline=settings.offline)
    found = facts_of(opened, settings.facts)
    corpus = opened if isinstance(opened, Corpus) else None
    located = loading.locate(settings.model, revision=settings.revision, offline=settings.offline)
    identity = {
        "model_hash": loading.model_hash(located.folder),
        "facts_hash": digest([to_json(fact) for fact in found.facts]),
        "duplicates": found.duplicates,
    }
    return identity | ({"corpus": corpus.identity} if corpus else {}), corpus


def read_sweep(source: str | Path | Mapping[str, Any], *, output: str | Path | None = None, **execution: Any) -> Sweep:
    """Expand a sweep file, or its values, into runs; nothing but the file is read.

    Raises `UserError`: bad YAML, an unknown or misplaced key, a bad value, or two configurations that are the same.
    """
    name = "sweep" if isinstance(source, Mapping) else str(Path(source).expanduser())
    values = source if isinstance(source, Mapping) else read_config(Path(name))
    if unknown := [key for key in values if key not in _KEYS]:
        misplaced = " (a setting: put it under settings)" if unknown[0] in Settings.model_fields else ""
        hint = did_you_mean(unknown[0], _KEYS) or misplaced
        raise UserError(f'{name}: unknown key "{unknown[0]}"{hint}; known: {", ".join(_KEYS)}')
    folder = output if output is not None else values.get("output")
    if not isinstance(folder, str | Path) or not str(folder):
        raise UserError(f"{name}: output: expected a folder for the runs, such as runs/sweep")
    seeds = _seeds(values.get("seeds", [0]), name)
    build(execution, "options")
    if fixed := [key for key in execution if key not in EXECUTION or key == "shard"]:
        raise UserError(f"options: {_ELSEWHERE.get(fixed[0], f'{fixed[0]} belongs in the file, under settings')}")
    configurations = _configurations(values, execution, name)
    runs = []
    for seed in seeds:
        for one in configurations:
            run = f"{one.configuration}-s{seed}"
            settings = one.settings.model_copy(update={"seed": seed, "output": str(Path(folder) / run)})
            runs.append(SweepRun(run, one.configuration, settings, f"{one.where} ({run})"))
    return Sweep(name, Path(folder).expanduser(), runs)


def _seeds(values: Any, name: str) -> list[int]:
    if not isinstance(values, list | tuple) or not values:
        raise UserError(f"{name}: seeds: expected a list of whole numbers, such as [0, 1, 2]")
    seeds = [build({"seed": value}, f"{name}: seeds").seed for value in values]
    if repeated := [seed for number, seed in enumerate(seeds) if seed in seeds[:number]]:
        raise UserError(f"{name}: seeds: {repeated[0]} stands there twice; keep one")
    return seeds


def _configurations(values: Mapping[str, Any], execution: Mapping[str, Any], name: str) -> list[SweepRun]:
    """The runs of a file without seed and folder; none twice, and no two with one name."""
    given = values.get("settings")
    shared = _section({} if given is None else given, f"{name}: settings")
    for key, value in shared.items():
        if isinstance(value, list | tuple) and key in Settings.model_fields and not _takes_a_list(key):
            raise UserError(f"{name}: settings: {key}: one value for all runs; a list of them goes into an entry of runs")
    build(shared, f"{name}: settings")
    entries = values.get("runs")
    if not isinstance(entries, list | tuple) or not entries:
        raise UserError(f"{name}: runs: expected a list of settings, such as [{{method: sft}}, {{method: mixsd, lam: [0, 0.3]}}]")
    found: list[SweepRun] = []
    seen: dict[str, SweepRun] = {}
    for number, entry in enumerate(entries, 1):
        where = f"{name}: runs: entry {number}"
        for own in _crossed(_section(entry, where), where):
            settings = build({**shared, **own, **execution}, where)
            if not settings.facts:
                raise UserError(f"{where}: no facts; name a file of facts (or 'demo' for the bundled ones) under settings")
            one = SweepRun("", _name(settings, own), settings, where)
            key = digest(settings.resolved.dump())
            if other := seen.get(key) or seen.get(one.configuration):
                pair = f"{other.where} ({other.configuration}) and entry {number} ({one.configuration})"
                alike = "are the same configuration; keep one" if key in seen else "share a folder's name; give one another"
                raise UserError(f"{pair} {alike}")
            seen[key] = seen[one.configuration] = one
            found.append(one)
    return found


def _section(values: Any, where: str) -> dict[str, Any]:
    if not isinstance(values, Mapping) or not all(isinstance(key, str) for key in values):
        raise UserError(f"{where}: expected settings, such as {{method: mixsd, lam: 0.3}}")
    for key, text in _ELSEWHERE.items():
        if key in values:
            raise UserError(f"{where}: {text}")
    return dict(values)


def _crossed(entry: Mapping[str, Any], where: str) -> Iterator[dict[str, Any]]:
    """Every combination of an entry's lists, the last one changing fastest; a setting that is a list crosses as a list of lists."""
    choices: list[list[Any]] = []
    for name, value in entry.items():
        several = isinstance(value, list | tuple)
        if several and _takes_a_list(name):
            several = any(isinstance(item, list | tuple) for item in value)
        elif several and not value:
            raise UserError(f"{where}: {name}: the list is empty")
        choices.append(list(value) if several else [value])
    for combination in product(*choices):
        yield dict(zip(entry, combination, strict=True))


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
