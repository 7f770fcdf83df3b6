"""What an evaluation leaves in a run folder, per suite: `base.jsonl`, `tuned.jsonl` and `asked.json`, which says how it was asked.

`asked.json` is written last, and goes first when a suite is asked anew: so it vouches for the replies beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mixsd.evaluation import suites
from mixsd.evaluation.held_out import INCIDENTAL, Asked
from mixsd.pipeline.run import Run
from mixsd.pipeline.session import Session
from mixsd.storage import read_json, read_jsonl, write_json, write_jsonl

MODELS = ("base", "tuned")


def replies_file(run: Run, suite: str, model: str) -> Path:
    """The file of a model's replies to a suite."""
    return run.evaluation / suites.folder_name(suite) / f"{model}.jsonl"


def asked_file(run: Run, suite: str) -> Path:
    """The file that says how a suite was asked."""
    return run.evaluation / suites.folder_name(suite) / "asked.json"


def is_done(session: Session, suite: str) -> bool:
    """Whether a suite has been asked of every model of the run, in the way in which the session asks it."""
    run = session.run
    if not all(replies_file(run, suite, model).is_file() for model in (MODELS[:1] if session.alone else MODELS)):
        return False
    file = asked_file(run, suite)
    if not file.is_file():
        return suite in suites.SUITES  # made by a version that wrote none
    return comparable(read_json(file)) == comparable(session.asked(suite).to_json())


def is_half_done(session: Session, suite: str) -> bool:
    """Whether the base has been asked by lm-eval, in the way in which the session asks, and the tuned model has not."""
    file = asked_file(session.run, suite)
    if not (replies_file(session.run, suite, MODELS[0]).is_file() and file.is_file()):
        return False
    return comparable(read_json(file)) == comparable(session.asked(suite).to_json())


def comparable(asked: Mapping[str, Any]) -> dict[str, Any]:
    """How a suite was asked, as far as it decides the scores."""
    left_out = (*INCIDENTAL, "items", "results", "about")
    return {name: value for name, value in asked.items() if name not in left_out}


def write_suite(
    run: Run,
    asked: Asked,
    model: str,
    rows: list[dict[str, Any]],
    *,
    whole: bool,
    results: Mapping[str, float] | None = None,
    about: Mapping[str, Any] | None = None,
) -> None:
    """Write a model's replies to a suite, and how it was asked once they are `whole`, those of every model.

    `results` and `about` are what lm-eval says of them.
    """
    file = asked_file(run, asked.suite)
    told: dict[str, Any] = {}
    if model == MODELS[0]:
        file.unlink(missing_ok=True)
        replies_file(run, asked.suite, MODELS[1]).unlink(missing_ok=True)
    elif results is not None and file.is_file():
        told = read_json(file).get("results", {})
    write_jsonl(replies_file(run, asked.suite, model), rows)
    if results is not None:
        write_json(file, {**asked.to_json(), "results": {**told, model: dict(results)}, "about": dict(about or {})})
    elif whole:
        write_json(file, asked.to_json())


def asked_suites(run: Run) -> dict[str, dict[str, Any]]:
    """How each suite was asked that a run has replies to, in the order in which suites are shown."""
    found: dict[str, dict[str, Any]] = {}
    for folder in sorted(run.evaluation.glob("*/")):
        if not (folder / "base.jsonl").is_file():
            continue
        file = folder / "asked.json"
        values = read_json(file) if file.is_file() else {"suite": folder.name}
        found[values["suite"]] = values
    return {name: found[name] for name in suites.in_order(found)}


def rows_of(run: Run, suite: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]] | None]:
    """What base and tuned said in a suite, without the ids, which are most of it; None for a tuned model that was not asked."""
    base, tuned = (replies_file(run, suite, model) for model in MODELS)
    return _rows(base), _rows(tuned) if tuned.is_file() else None


def _rows(file: Path) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name != "reply_ids"} for row in read_jsonl(file)]
