"""`mixsd.sweep`: the runs of a sweep file, one after the other, and a comparison at the end; `sweep_file` expands the file.

Everything is checked before anything runs. The run folders are all that is remembered: one that holds the finished run is passed
over, the others resume, and a folder that holds anything else is refused. `price` says what is left of a sweep takes: the dry run
of each run that is not done, and their sum.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

from mixsd.commands.sweep_file import Sweep, SweepRun, read_sweep
from mixsd.errors import MixsdError, RequirementMissedError, UserError
from mixsd.facts.corpus import Corpus, facts_of, open_source
from mixsd.facts.fact import to_json
from mixsd.models import loading
from mixsd.progress import Watcher
from mixsd.reports.schema import read_report
from mixsd.run.folder import Run, go_offline
from mixsd.settings import EXECUTION, Settings
from mixsd.storage import digest

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
    chosen = planned.chosen(only)
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
    from mixsd.comparison import compare, page
    from mixsd.comparison.material import material_of

    try:
        found = compare.compare(folders)
        return replace(result, comparison=found, page=page.write(found, result.folder, material_of(folders)))
    except UserError as error:
        return replace(result, problem=str(error))


def _missed(run: Run) -> list[str]:
    return [item.text for item in read_report(run.report_json).requirements if not item.passed]


def survey(planned: Sweep, *, only: Collection[str] = (), watcher: Watcher | None = None) -> dict[str, State]:
    """The state of every run, by name; whatever can be known to be wrong with those that are to be done is an error now.

    Raises:
        UserError: a name in `only` that no run has, a folder that holds another configuration or something else, facts or a model
            that cannot be read, an unknown verifier, suite or device, ...
    """
    chosen = {run.name for run in planned.chosen(only)}
    _check_place(planned.folder)
    if any(run.settings.offline for run in planned.runs):
        go_offline()
    found = _Folders()
    states: dict[str, State] = {}
    for run in planned.runs:
        with _where(run):
            states[run.name] = found.state(run)
    once = _Once(watcher or Watcher())
    checked: set[str] = set()
    for run in planned.runs:
        if run.name in chosen and states[run.name] != "done" and run.configuration not in checked:
            from mixsd.commands import opening
            from mixsd.reports.collect import check_requirements

            checked.add(run.configuration)
            with _where(run):
                check_requirements(opening.preview(run.settings, once))
    return states


def _check_place(folder: Path) -> None:
    """Refuse, before each run would, a folder that cannot be made, and one that is a run's own."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise UserError(f"{folder}: cannot hold runs ({there} is a file); choose another --output")
    if Run(folder).exists():
        raise UserError(f"{folder}: is the folder of a single run; choose another --output")


@contextmanager
def _where(run: SweepRun) -> Iterator[None]:
    """Put in front of an error where the file asks for the run."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{run.where}: {error}") from error


@dataclass
class _Folders:
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
        key = (settings.facts, settings.corpus_seed, settings.offline, settings.model, settings.revision)
        if key not in self.identities:
            opened = open_source(settings.facts, seed=settings.corpus_seed, offline=settings.offline)
            found = facts_of(opened, settings.facts)
            corpus = opened if isinstance(opened, Corpus) else None
            located = loading.locate(settings.model, revision=settings.revision, offline=settings.offline)
            identity = {
                "model_hash": loading.model_hash(located.folder),
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


_SUMMED = ("disk", "decoded_tokens", "trained_tokens")


def price(
    planned: Sweep, states: dict[str, State], *, only: Collection[str] = (), watcher: Watcher | None = None
) -> dict[str, Any]:
    """Say what is left of a sweep takes, as `mixsd inject --dry-run` does for one run. Runs that differ in their seed take the same.

    Returns:
        `runs`, by name: `memory` (bytes at the peak), `disk` (bytes in the end) and `disk_at_peak`, `decoded_tokens` to train on and
        `trained_tokens`; `total` of them: memory and `disk_at_peak` of one run at a time beside those that are there; `warnings`.

    Raises:
        UserError: as `mixsd inject` would for a run.
    """
    from mixsd.commands.dry_run import plan

    watcher = watcher or Watcher()
    todo = [run for run in planned.chosen(only) if states[run.name] != "done"]
    plans: dict[str, dict[str, Any]] = {}
    with watcher.task("estimating", len({run.configuration for run in todo})) as task:
        for run in todo:
            if run.configuration not in plans:
                plans[run.configuration] = plan(run.settings, watcher)
                task.advance()
    runs = {run.name: _price_of(plans[run.configuration]) for run in todo}
    total = {name: sum(cost[name] for cost in runs.values()) for name in _SUMMED}
    total["memory"] = max((cost["memory"] for cost in runs.values()), default=0)
    before = total["disk_at_peak"] = 0
    for cost in runs.values():
        total["disk_at_peak"] = max(total["disk_at_peak"], before + cost["disk_at_peak"])
        before += cost["disk"]
    warnings = list(_warnings(runs, total, next(iter(plans.values())))) if plans else []
    return {"runs": runs, "total": total, "warnings": warnings}


def _price_of(found: Mapping[str, Any]) -> dict[str, int]:
    return {
        "memory": found["memory"]["peak"],
        "disk": found["disk"]["total"],
        "disk_at_peak": found["disk"]["peak"],
        "decoded_tokens": found["tokens"]["decoded"],
        "trained_tokens": found["training"]["tokens"],
    }


def _warnings(runs: Mapping[str, Mapping[str, int]], total: Mapping[str, int], machine: Mapping[str, Any]) -> Iterator[str]:
    """`machine`: any run's plan, for the memory and disk that are there."""
    available, free = machine["memory"]["available"], machine["disk"]["free"]
    if available is not None and (large := [name for name, cost in runs.items() if cost["memory"] > available]):
        names = f"{', '.join(large[:3])}{', ...' if len(large) > 3 else ''}"
        yield (
            f"{len(large)} of {len(runs)} runs may need more than the {available / 1e9:.1f} GB of memory that are free, the largest "
            f"{total['memory'] / 1e9:.1f}: {names}; `mixsd inject --dry-run` with one run's settings says in which stage, and what to "
            "lower"
        )
    if total["disk_at_peak"] > free:
        yield (
            f"the sweep needs {total['disk_at_peak'] / 1e9:.1f} GB of disk, {free / 1e9:.1f} are free: choose another --output, or lower "
            "keep_checkpoints"
        )
