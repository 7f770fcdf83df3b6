"""The stage that evaluates: base and tuned answer every suite; leaves `evaluation/SUITE/{base,tuned}.jsonl`.

Replies lie in journals, the base's in the cache where all runs share them, the tuned model's in the run folder; so a further suite, or
a better verifier, generates only what is new.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mixsd import bundled, loading
from mixsd.errors import MixsdError, UserError
from mixsd.evaluation import core, suites
from mixsd.evaluation.questions import Question, ask, generate
from mixsd.evaluation.replies import Answerer, Reply
from mixsd.pipeline.session import Session
from mixsd.pipeline.stages import timed
from mixsd.shards import Shard, left_beside, merge
from mixsd.storage import cache_folder, write_jsonl

MODELS = ("base", "tuned")


@dataclass(frozen=True)
class _Model:
    name: str
    folder: Path
    hash: str


def evaluate(session: Session, tuned: Path | None = None) -> None:
    """Ask base and tuned the session's suites, those that have not been asked.

    `tuned`: the tuned model's folder; None takes the run's own.
    """
    tuned = tuned or session.run.model
    if not tuned.is_dir():
        raise UserError(f"{session.run.folder}: has no model/ yet; run `mixsd train` on it first")
    missing = [name for name in session.suites if not all(_replies(session, name, model).is_file() for model in MODELS)]
    if not missing:
        return
    if session.corpus is None and session.run.manifest().get("identity", {}).get("corpus"):
        raise UserError(f"{session.run.splits}: the corpus's tests are gone; the command that made the run writes them anew")
    models = [
        _Model("base", session.located.folder, session.base_hash),
        _Model("tuned", tuned, loading.model_hash(tuned)),
    ]
    asked = {name: suites.questions(name, session.material) for name in missing}
    with timed(session, "evaluate"):
        if shard := Shard.of(session.settings.shard):
            _generate_part(session, asked, models, shard)
        else:
            _evaluate_all(session, asked, models)


def count(session: Session, asked: dict[str, list[Question]]) -> int:
    """How many replies and scores one model makes, for a progress bar and a plan."""
    return sum(map(len, asked.values())) + (_references(session) if suites.CORE in asked else 0)


def _references(session: Session) -> int:
    return len(bundled.records("general_prompts.jsonl")[: session.settings.forgetting_prompts])


def _evaluate_all(session: Session, asked: dict[str, list[Question]], models: list[_Model]) -> None:
    references: dict[str, Reply] | None = None
    for model in models:
        journal = _journal(session, model)
        merge(left_beside(_parts(session, model)), journal, lambda row: row.get("at"))
        with _answering(session, asked, model, journal) as answerer:
            if references is None:
                references = _sampled(session, asked, answerer)
            for name, questions in asked.items():
                rows = ask(questions, session.renderer, answerer, session.context)
                if name == suites.CORE:
                    rows += core.forgetting(answerer, session.renderer, references)
                _write(session, name, model, rows)
        gc.collect()
    for part in session.run.evaluation.glob("*.partial*.jsonl"):
        part.unlink()


def _write(session: Session, suite: str, model: _Model, rows: list[dict[str, Any]]) -> None:
    replied = [row for row in rows if row["reply_ids"]]
    failed = sum(row["outcome"] == "error" for row in replied)
    if failed * 10 > len(replied):
        raise MixsdError(f"the verifier failed on {failed} of {len(replied)} replies of {model.name}; nothing was scored")
    if (unasked := len(rows) - len(replied)) and model.name == "base":
        session.watcher.say(
            f"{suite}: {unasked} of {len(rows)} questions leave no room for a reply in the context of {session.context}; "
            "they count as errors"
        )
    write_jsonl(_replies(session, suite, model.name), rows)


def _generate_part(session: Session, asked: dict[str, list[Question]], models: list[_Model], shard: Shard) -> None:
    """What `_evaluate_all` needs of a shard's keys, in journals of its own: another machine may have another cache."""
    references: dict[str, Reply] | None = None
    for model in models:
        journal = shard.beside(_parts(session, model))
        if model.name == "base":
            merge([_journal(session, model)], journal, lambda row: row.get("at"))
        with _answering(session, asked, model, journal, parts=shard.count) as answerer:
            if references is None:
                references = _sampled(session, asked, answerer, shard)
            for questions in asked.values():
                generate(questions, session.renderer, answerer, shard.holds, session.context)
            if suites.CORE in asked:
                core.forgetting(answerer, session.renderer, references)
        gc.collect()


def _sampled(session: Session, asked: dict[str, list[Question]], base: Answerer, shard: Shard | None = None) -> dict[str, Reply]:
    """The reference replies, which come from the base model; none where no suite needs them."""
    if suites.CORE not in asked:
        return {}
    holds = shard.holds if shard else lambda key: True
    return core.sample_references(session.renderer, session.settings, base, holds)


@contextmanager
def _answering(
    session: Session, asked: dict[str, list[Question]], model: _Model, journal: Path, *, parts: int = 1
) -> Iterator[Answerer]:
    """One model that answers, with its progress; the reference replies too come from the base."""
    items = count(session, asked)
    if model.name == "base" and suites.CORE in asked:
        items += _references(session)
    with session.watcher.task(f"evaluating {model.name}", -(-items // parts)) as task:
        answerer = Answerer(
            lambda: session.load_to_read(model.folder),
            model_hash=model.hash,
            precision=session.precision,
            stops=session.renderer.stops.ids,
            journal=journal,
            token_budget=session.settings.token_budget,
            on_done=task.advance,
        )
        try:
            yield answerer
        finally:
            answerer.close()


def _replies(session: Session, suite: str, model: str) -> Path:
    return session.run.evaluation / suite / f"{model}.jsonl"


def _journal(session: Session, model: _Model) -> Path:
    """Where the replies of a model are kept: the base's are shared by all runs, the tuned model's are this run's own."""
    if model.name == "base":
        return cache_folder() / "replies" / f"{model.hash}.jsonl"
    return session.run.evaluation / "tuned.replies.jsonl"


def _parts(session: Session, model: _Model) -> Path:
    return session.run.evaluation / f"{model.name}.partial.jsonl"
