"""From a run folder to its report: gathers what the stages left into a `Report`, checks the requirements, writes the files."""

from __future__ import annotations

import math
import operator
import platform
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixsd.errors import UserError, did_you_mean
from mixsd.evaluation import error_modes, suites, tallies
from mixsd.evaluation.asked import asked_suites, comparable, examination, rows_of
from mixsd.evaluation.benchmarks.benchmark import HELD_OUT as HELD_OUT_SUITES
from mixsd.evaluation.benchmarks.benchmark import get_benchmark, is_benchmark
from mixsd.evaluation.scores import AVERAGE, HELD_OUT, compare, held_out
from mixsd.facts.fact import to_json
from mixsd.models import loading
from mixsd.reports import card, page, pictures, schema, words
from mixsd.run.folder import Run, versions
from mixsd.settings import parse_requirement
from mixsd.storage import Journal, read_jsonl, write_json, write_text
from mixsd.targets.reading import tokens_of
from mixsd.targets.target import Target, TokenLosses, cdf
from mixsd.training.choosing import read_scores

if TYPE_CHECKING:
    from mixsd.run.session import Session

Place = tuple[str, str, str]  # suite, split, metric
_EXAMPLES = 12
_MOST_REASONS = 20


def requirable(session: Session) -> dict[str, Place]:
    """What `--require` may name in a run: what its suites measure, have measured or will."""
    found: dict[str, Place] = {}
    asked = {*examination(session).names, *asked_suites(session.run)}
    if suites.IN_DOMAIN in asked:
        tests = session.corpus.splits if session.corpus else ()
        found |= {split: (suites.IN_DOMAIN, split, "accuracy") for split in suites.asked_splits(tests)}
    if suites.CORE in asked:
        found |= {
            "memorization": (suites.CORE, suites.TRAINED, "accuracy"),
            "paraphrase": (suites.CORE, suites.PARAPHRASE, "accuracy"),
            "probe": (suites.CORE, suites.PROBE, "accuracy"),
            "probe_delta": (suites.CORE, suites.PROBE, "accuracy_delta"),
            "forgetting": (suites.CORE, suites.FORGETTING, "forgetting"),
        }
    for suite in filter(is_benchmark, suites.in_order(asked)):
        name = get_benchmark(suite).name
        found |= {name: (suite, suite, "accuracy"), f"{name}_delta": (suite, suite, "accuracy_delta")}
    if asked.issuperset(HELD_OUT_SUITES):
        metrics = {"held_out_average": "accuracy", "drop": "drop", "retained": "retained"}
        found |= {name: (HELD_OUT, AVERAGE, metric) for name, metric in metrics.items()}
    return found


def check_requirements(session: Session) -> None:
    """Refuse, before any work, a requirement on something that is not measured."""
    known = requirable(session)
    for text in session.settings.require:
        name, _, _ = parse_requirement(text)
        if name not in known:
            near = did_you_mean(name, known)
            raise UserError(f"--require {text!r}: nothing is called {name!r}{near}; known: {', '.join(known)}")


def write_report(session: Session) -> schema.Report:
    """Write `report.json`, `report.html` and the model card; returns what is in `report.json`."""
    run, settings = session.run, session.settings
    check_requirements(session)
    asked = asked_suites(run)
    rows = {suite: rows_of(run, suite) for suite in asked}
    if not session.alone:
        rows = {suite: found for suite, found in rows.items() if found[1] is not None}
    if not rows:
        raise UserError(f"{run.folder}: has not been evaluated yet; run `mixsd evaluate` on it first")
    targets, examples = _targets(session)
    modes = tallies.in_report(tallies.Examined(run, settings, session.facts), rows, session.watcher)
    scores = [
        *(score for suite, found in rows.items() for score in compare(suite, *found, asked[suite].get("results") or {})),
        *held_out(rows, HELD_OUT_SUITES),
        *(score for tally in modes for score in tally.scores()),
        *read_scores(_trained_in(run)),
    ]
    listed = [schema.Score(**score) for score in scores]
    skipped = _last(run, "skipped").get("suites", {})
    report = schema.Report(
        mixsd=versions().get("mixsd"),
        run=run.name,
        created=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        method=settings.spec.name,
        settings=settings.dump(),
        environment=_environment(session),
        base=_base(session),
        facts=_facts(session, targets),
        targets=_summary(run),
        training=_training(session),
        editing=_editing(run),
        cost=costs_of(run),
        scores=listed,
        error_modes=[schema.ErrorModes(**tally.brief()) for tally in modes],
        error_thresholds=asdict(error_modes.THRESHOLDS),
        asked={suite: asked[suite] for suite in rows},
        skipped={name: why for name, why in skipped.items() if name not in rows},
        alone=session.alone,
        elsewhere=bool(run.events("tuned")),
        requirements=_requirements(settings.require, listed, requirable(session)),
        warnings=list(session.renderer.stops.warnings),
        beside=[_beside(Path(other), session) for other in settings.beside],
    )
    replies = {suite: words.chosen(*found) for suite, found in rows.items() if is_benchmark(suite)}
    drawn = page.render(report, _per_fact(session, targets, rows), examples, replies, pictures.fisher_of(run.folder))
    if run.model.is_dir():
        shown = [to_json(fact) for fact in session.facts] if settings.facts_in_card else None
        example = session.renderer.text(session.renderer.question(session.facts[0].question)) if session.facts else ""
        write_text(run.model / "README.md", card.render(report, shown, example))
    write_text(run.report_html, drawn)
    write_json(run.report_json, report.model_dump(mode="json"))
    return report


def _last(run: Run, event: str) -> dict[str, Any]:
    """What the log says last of an event; empty where it says nothing."""
    return (run.events(event) or [{}])[-1]


def _targets(session: Session) -> tuple[dict[str, Target], list[dict[str, Any]]]:
    """One target of each fact without its tokens, an accepted one where there is one, and some accepted ones with them."""
    slim: dict[str, Target] = {}
    examples: list[dict[str, Any]] = []
    questions = {fact.id: fact.question for fact in session.facts}
    for row in read_jsonl(session.run.targets_file) if session.run.targets_file.is_file() else ():
        target = Target.from_json(row)
        if target.accepted and len(examples) < _EXAMPLES:
            tokens = tokens_of(target, session.tokenizer)
            examples.append({"id": target.id, "question": questions.get(target.id, ""), "tokens": tokens})
        if target.id not in slim or (target.accepted and not slim[target.id].accepted):
            slim[target.id] = Target.from_json({**row, "prompt_ids": [], "target_ids": [], "base_logprobs": [], "sources": ""})
    return slim, examples


def _summary(run: Run) -> schema.TargetNumbers:
    """What mixing summed up of the targets and of the references."""
    mixed = _last(run, "mixed")
    names = ("mean_base_nll", "tokens", "share_above_5", "share_above_8")
    reference = {f"reference_{name}": mixed.get("reference", {}).get(name) for name in names}
    cdfs = {"nll_cdf": _nll_cdf(run.targets_file), "reference_nll_cdf": _nll_cdf(run.references_file)}
    return schema.TargetNumbers(**mixed.get("targets", {}), **reference, **cdfs)


def _nll_cdf(file: Path) -> schema.Distribution | None:
    """The distribution of the NLL that was stored of accepted targets, as in Figure 3; None where none was."""
    losses = TokenLosses()
    for row in read_jsonl(file) if file.is_file() else ():
        if row["accepted"] and row["base_logprobs"]:
            losses.add(row["id"], [-value for value in row["base_logprobs"]])
    x, y = cdf(losses)
    return schema.Distribution(x=x, y=y) if x else None


def _facts(session: Session, targets: Mapping[str, Target]) -> schema.Facts:
    counts = Counter(targets[fact.id].status for fact in session.facts if fact.id in targets)
    if session.settings.spec.on_policy:
        # What is answered anew at each step has no targets to accept: every fact that can be asked is trained on.
        counts["unusable"] = len(_not_asked(session))
        counts["accepted"] = len(session.facts) - counts["unusable"]
    ends = {name: counts[name] for name in ("accepted", "rejected", "unusable")}
    return schema.Facts(asked=len(session.facts), **ends, duplicates=session.duplicates)


def _not_asked(session: Session) -> dict[str, str]:
    """Why facts could not be asked in on-policy training, by id."""
    return dict(_last(session.run, "asked").get("unusable", {})) if session.settings.spec.on_policy else {}


def _trained_in(run: Run) -> Path:
    """The folder of the training that the model comes from: the run's own, or that of the chosen learning rate."""
    return run.folder / _last(run, "trained").get("folder", ".")


def _rows(journal: Path) -> list[dict[str, Any]]:
    return [row for _, row in Journal(journal).read()]


def _training(session: Session) -> schema.Training:
    run = session.run
    steps = [row for row in _rows(_trained_in(run) / "log.jsonl") if row.get("event") == "step"]
    told = _last(run, "trained")
    shown = ("step", "loss", "lr", "epoch", "rehearsal_loss")
    return schema.Training(
        steps=steps[-1]["step"] if steps else None,
        epochs=session.settings.epochs if steps else None,
        seconds=round(sum(step["seconds"] for step in steps), 1),
        lr=told.get("lr"),
        chosen=schema.ChosenCheckpoint(step=told["step"], why=told["why"]) if told else None,
        rates=_rows(run.folder / "rates.jsonl"),
        log=[{name: step[name] for name in shown if step.get(name) is not None} for step in steps],
    )


def _editing(run: Run) -> schema.Editing | None:
    """What memit changed, how many facts it left out, and why; None where nothing was edited."""
    event = _last(run, "edited")
    if not event:
        return None
    statuses = Counter(fact["status"] for fact in event["facts"])
    # Without what a reason quotes of its fact: it may be in a model card that is to tell no facts.
    reasons = Counter(re.sub(r' \(".*"\)', "", fact["reason"], flags=re.DOTALL) for fact in event["facts"] if fact["reason"])
    return schema.Editing(
        layers=[int(layer) for layer in event["changes"]],
        **{name: event[name] for name in ("changes", "weight", "moment_tokens")},
        **{status: statuses[status] for status in ("edited", "failed", "unusable")},
        reasons=[{"reason": reason, "facts": count} for reason, count in reasons.most_common(_MOST_REASONS)],
    )


def costs_of(run: Run) -> schema.Cost:
    """Decoded tokens in all and by purpose, and the seconds of each stage over all processes that worked on it.

    What a kill lost and a later process did again counts once in tokens, each time in seconds.
    """
    targets = read_jsonl(run.targets_file) if run.targets_file.is_file() else ()
    # A learning rate that was tried is a training of its own, summed up in its line.
    steps = run.events("step") + _rows(run.folder / "rates.jsonl")
    kept = run.folder / "rehearsal.jsonl"
    rehearsal = sum(len(row["ids"]) for row in _rows(kept))
    parts = {
        "mixing": sum(row.get("decoded_tokens", 0) for row in targets),
        "rollouts": sum(step.get("decoded", 0) for step in steps),
        # Without a journal the replies were made as they were needed.
        "rehearsal": rehearsal if kept.is_file() else sum(step.get("rehearsed", 0) for step in steps),
    }
    seconds: dict[str, float] = defaultdict(float)
    for event in run.events("stage"):
        seconds[event["name"]] = round(seconds[event["name"]] + event["seconds"], 3)
    return schema.Cost(generated_tokens=sum(parts.values()), parts=parts, seconds=seconds)


def _base(session: Session) -> schema.BaseRecord:
    from safetensors import safe_open

    located, parameters, told = session.located, 0, None
    for file in sorted(located.folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            parameters += sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118 - not a dict
    if before := loading.provenance(located.folder):
        origin = f"({before.get('method')}) from {before.get('base', {}).get('name')}"
        told = f"this base was itself tuned by mixsd {origin}; base scores are those of the tuned model"
    return schema.BaseRecord(
        **{name: getattr(located, name) for name in ("name", "revision", "license")},
        hash=session.base_hash,
        parameters=parameters,
        tuned_by_mixsd=told,
    )


def _environment(session: Session) -> dict[str, Any]:
    import torch

    return {
        **versions(),
        "device": str(session.device),
        "dtype": str(session.dtype).removeprefix("torch."),
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
    }


def _requirements(texts: Sequence[str], scores: Sequence[schema.Score], known: Mapping[str, Place]) -> list[schema.Requirement]:
    holds = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt}
    found = {score.key[:3]: score.value for score in scores if score.model == "tuned" and score.final}
    checked = []
    for text in texts:
        name, sign, limit = parse_requirement(text)
        value = found.get(known[name])
        checked.append(schema.Requirement(text=text, value=value, passed=value is not None and holds[sign](value, limit)))
    return checked


def _beside(folder: Path, session: Session) -> schema.Beside:
    """Another run's scores, if they were measured on the same questions, base and decoding as this run's."""
    other = Run(folder)
    report = schema.read_report(other.report_json)
    prompts, asked = [], []
    for run in (session.run, other):
        told = asked_suites(run)
        prompts.append({suite: [(row["key"], row["prompt_hash"]) for row in rows_of(run, suite)[0]] for suite in told})
        asked.append({(suite, name): value for suite in told for name, value in comparable(told[suite]).items()})
    common = prompts[0].keys() & prompts[1].keys()
    if report.base.hash != session.base_hash or not common or any(prompts[0][suite] != prompts[1][suite] for suite in common):
        raise UserError(f"--beside {folder}: was evaluated on another base model or other prompts; the two cannot be compared")
    names = ("max_new_tokens", "verifier", "dtype", "forgetting_tokens", "seed")
    here = {name: getattr(session.settings, name) for name in names} | asked[0]
    there = {name: report.settings.get(name) for name in names} | asked[1]
    for name in here:
        if name in there and here[name] != there[name]:
            what = name if isinstance(name, str) else f"{name[1]} of {name[0]}"
            differs = f"({there[name]!r}, here {here[name]!r})"
            raise UserError(f"--beside {folder}: was evaluated with another {what} {differs}; the two cannot be compared")
    return schema.Beside(name=report.run, method=report.method, scores=report.scores, error_modes=report.error_modes)


def _per_fact(
    session: Session, targets: Mapping[str, Target], rows: Mapping[str, tuple[list[dict[str, Any]], list[dict[str, Any]] | None]]
) -> list[dict[str, Any]]:
    """What became of each fact, and what base and tuned model reply to its own question."""
    shown, own = ("reply", "outcome"), (suites.TRAINED, suites.TRAIN)
    replies = [
        {row["group"]: {name: row[name] for name in shown} for row in said or [] if row["split"] in own}
        for said in rows.get(suites.CORE) or rows.get(suites.IN_DOMAIN) or (None, None)
    ]
    not_asked = _not_asked(session)
    otherwise = "accepted" if session.settings.spec.on_policy else None
    told = []
    for fact in session.facts:
        target, reason = targets.get(fact.id), not_asked.get(fact.id)
        row = {name: getattr(fact, name) for name in ("id", "question", "answer")}
        row |= {"status": "unusable" if reason else otherwise, "reason": reason, "attempt": None}
        if target:
            row |= {name: getattr(target, name) for name in ("status", "reason", "attempt")}
        told.append({**row, "base": replies[0].get(fact.id), "tuned": replies[1].get(fact.id)})
    return told
