"""The functions behind the commands: `inject` and its single stages. Options are the fields of `mixsd.settings.Settings`.

>>> run = mixsd.inject(facts="facts.jsonl", model="Qwen/Qwen3-1.7B", output="runs/acme", lam=0.3)   # doctest: +SKIP
>>> run.report()["scores"]                                                                          # doctest: +SKIP
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mixsd.commands import opening
from mixsd.errors import RequirementMissedError, UserError
from mixsd.evaluation import stage as evaluation_stage
from mixsd.models import loading
from mixsd.plugins import load_function
from mixsd.progress import Watcher
from mixsd.run.folder import Run, go_offline
from mixsd.run.session import Session
from mixsd.settings import Settings, build
from mixsd.storage import Shard, file_digest, read_json, read_jsonl, write_jsonl
from mixsd.targets import stage as targets_stage
from mixsd.training import stage as training_stage


@dataclass(frozen=True)
class RunResult:
    """What a command leaves: the run's folder and the files in it that matter."""

    folder: Path

    @property
    def model(self) -> Path:
        """The tuned model's folder."""
        return Run(self.folder).model

    @property
    def html(self) -> Path:
        """The report page."""
        return Run(self.folder).report_html

    def report(self) -> dict[str, Any]:
        """`report.json`."""
        value: dict[str, Any] = read_json(Run(self.folder).report_json)
        return value


def inject(settings: Settings | None = None, *, watcher: Watcher | None = None, **options: Any) -> RunResult:
    """Teach a model facts: mix, train, evaluate and report, in one resumable run folder.

    Args:
        settings: all settings at once; or give them as keywords (`facts`, `model`, `output`, `lam`, ...).
        watcher: is told about the progress; silent by default.

    Returns the run. `run.model` is the tuned model's folder, `run.report()` holds the scores.

    Raises:
        UserError: bad input or settings, before any work where it can be known.
        RequirementMissedError: a `require` condition does not hold; the run is complete all the same.
    """
    settings = _settings(settings, options)
    _refuse_shard(settings.shard)
    with _opened(settings, watcher) as session:
        targets_stage.mix(session)
        _make_model(session)
        evaluation_stage.evaluate(session)
        _report(session)
    return RunResult(session.run.folder)


def mix(settings: Settings | None = None, *, watcher: Watcher | None = None, **options: Any) -> RunResult:
    """Only make the targets: `targets.jsonl` in the run folder.

    With `shard` ("2/8") only that part of the facts is mixed, into a journal of its own in the run folder; several processes
    may do so at a time, and the same call without `shard` makes the targets of all.
    """
    settings = _settings(settings, options)
    if not settings.spec.needs_targets:
        raise UserError(f"--method {settings.method} trains on no targets that could be made before; use `mixsd inject`")
    with _opened(settings, watcher) as session:
        targets_stage.mix(session)
    return RunResult(session.run.folder)


def train(source: str | Path, *, watcher: Watcher | None = None, **options: Any) -> RunResult:
    """Only train: on a run folder that has targets, or on a file of targets (then `model` and `output` are needed too)."""
    source = Path(source)
    _refuse_shard(options.get("shard"))
    if source.is_dir():
        with _resumed(source, watcher, options) as session:
            if session.settings.spec.needs_targets and not session.run.targets_file.is_file():
                raise UserError(f"{source}: has no targets.jsonl yet; run `mixsd mix` first")
            _make_model(session)
        return RunResult(session.run.folder)
    if not source.is_file():
        raise UserError(f"{source}: no such run folder or file of targets")
    settings = build(options, "train")
    if not settings.spec.needs_targets or settings.spec.distilled:
        raise UserError(f"{source}: --method {settings.method} needs the facts, not only targets; use `mixsd inject`")
    run = Run(Path(settings.output).expanduser())
    with run.locked() if settings.output else nullcontext():
        session = opening.open_targets(settings, watcher or Watcher(), file_digest(source))
        if not run.targets_file.is_file():
            write_jsonl(run.targets_file, read_jsonl(source))
        training_stage.train(session)
    return RunResult(run.folder)


def evaluate(source: str | Path, *, regrade: bool = False, watcher: Watcher | None = None, **options: Any) -> RunResult:
    """Only evaluate: a run folder, or any model; beside its base where `model` names one, else alone.

    Args:
        source: a run folder, a model folder or a model's name.
        regrade: judge the replies that are there once more, and generate nothing.
        options: settings. For a model `output` is the run folder of its evaluation (default: `runs/evaluation-NAME`) and `facts` may
            be left out.
    """
    watcher = watcher or Watcher()
    if regrade:
        _refuse_shard(options.get("shard"))
    if Run(Path(source)).exists():
        with _resumed(Path(source), watcher, options) as session:
            if regrade:
                evaluation_stage.regrade(session)
            else:
                evaluation_stage.evaluate(session, _evaluated_model(session.run))
        return RunResult(session.run.folder)
    if regrade:
        raise UserError(f"{source}: not a run folder; --regrade judges the replies that a run has")
    settings = evaluation_of(str(source), options)
    if settings.offline:
        go_offline()
    if Run(Path(settings.output).expanduser()).model.is_dir():
        raise UserError(
            f"{settings.output}: is the folder of an injection, which is evaluated by its own name "
            f"(mixsd evaluate {settings.output}); choose another --output"
        )
    tuned = None
    if "model" in options:
        tuned = loading.locate(str(source), offline=settings.offline, say=watcher.say).folder
        base = loading.locate(settings.model, revision=settings.revision, offline=settings.offline, say=watcher.say).folder
        if loading.model_hash(tuned) == loading.model_hash(base):
            watcher.say(f"{source} is the base model itself: it is evaluated alone")
            tuned = None
    with _opened(settings, watcher, alone=tuned is None, without_facts=True) as session:
        if tuned:
            session.run.claim_tuned(loading.model_hash(tuned), tuned)
        evaluation_stage.evaluate(session, tuned)
        if not session.settings.shard:
            _report(session)
    return RunResult(session.run.folder)


def _evaluated_model(run: Run) -> Path | None:
    """The tuned model of a run folder that only evaluates one; None for any other run."""
    bound = run.events("tuned")
    if not bound or run.model.is_dir():
        return None
    folder = Path(bound[0]["folder"])
    if not folder.is_dir() or loading.model_hash(folder) != bound[0]["hash"]:
        raise UserError(
            f"{run.folder}: the model that is evaluated there is no longer in {folder}; name it, its base and this folder: "
            f"mixsd evaluate MODEL --base BASE --output {run.folder}"
        )
    return folder


def evaluation_of(source: str, options: Mapping[str, Any]) -> Settings:
    """The settings of the run folder in which a model is evaluated that no run of ours has made."""
    values = {"model": source, **options}
    if not values.get("output"):
        name = re.sub(r"[^\w.-]+", "-", Path(source).name if Path(source).exists() else source).strip("-.")
        values["output"] = str(Path("runs") / f"evaluation-{name or 'model'}")
    return build(values, "evaluate")


def report(source: str | Path, *, watcher: Watcher | None = None, **options: Any) -> RunResult:
    """Only write the report of an evaluated run: `report.json`, `report.html` and the model card."""
    _refuse_shard(options.get("shard"))
    with _resumed(Path(source), watcher, options) as session:
        _report(session)
    return RunResult(session.run.folder)


def _report(session: Session) -> None:
    from mixsd.reports.collect import write_report

    missed = [item.text for item in write_report(session).requirements if not item.passed]
    if missed:
        raise RequirementMissedError(f"{session.run.folder}: required but missed: {', '.join(missed)}")


def _make_model(session: Session) -> None:
    """By training; a method that edits names the function that makes the model in place of an objective."""
    spec = session.settings.spec
    make = load_function(spec.objective, f"method {session.settings.method}") if spec.edits else training_stage.train
    make(session)


def _refuse_shard(shard: Any) -> None:
    """A shard shares the run folder with others; what changes the whole run must have it to itself."""
    if shard:
        raise UserError("--shard is for mix and evaluate; the rest of a run is done as a whole")


def _settings(settings: Settings | None, options: dict[str, Any]) -> Settings:
    if settings and options:
        raise TypeError("give either `settings` or keywords, not both")
    return settings or build(options, "settings")


@contextmanager
def _opened(settings: Settings, watcher: Watcher | None, **about: bool) -> Iterator[Session]:
    """A session on a run folder that this process holds. Bad input is met before the folder is made."""
    from mixsd.reports.collect import check_requirements

    checked = opening.open_checked(settings, watcher or Watcher(), **about)
    checked.run.refuse_strangers()
    check_requirements(checked)
    with checked.run.locked(Shard.of(checked.settings.shard)):
        yield opening.claim(checked)


@contextmanager
def _resumed(folder: Path, watcher: Watcher | None, options: dict[str, Any]) -> Iterator[Session]:
    run = Run(folder)
    run.manifest()
    with run.locked(Shard.of(options.get("shard"))):
        yield opening.resume(run, watcher or Watcher(), options)
