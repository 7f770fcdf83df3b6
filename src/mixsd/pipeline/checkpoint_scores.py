"""What each checkpoint is worth, measured as training goes: memorization, validation and forgetting.

Memorization is asked in the trained wording, validation in frames (or a corpus's own split) that nothing reported is measured on, and
forgetting is Eq. 2 on the same reference replies as in the evaluation. The scores are lines of `scores.jsonl` in the
training's folder, each in the form of the report's flat list; the replies lie beside them.
"""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

from mixsd import loading
from mixsd.evaluation import core
from mixsd.evaluation.questions import Question, about, ask
from mixsd.evaluation.replies import Answerer, Reply
from mixsd.evaluation.scores import compare
from mixsd.facts import Fact
from mixsd.pipeline.session import Session
from mixsd.storage import Journal, cache_folder, digest
from mixsd.training.choosing import Scored

VALIDATION = "memorization/validation"
_KEPT = ("accuracy", "forgetting")


class CheckpointScores:
    """The scores of the checkpoints of one training, in `folder`. Made before training: it lets the base model speak first."""

    def __init__(self, session: Session, folder: Path) -> None:
        self.session = session
        self.replies = folder / "scores.replies.jsonl"
        self.journal = Journal(folder / "scores.jsonl")
        self.found: dict[int, list[dict[str, Any]]] = {row["step"]: row["scores"] for _, row in self.journal.read()}
        self.questions = _questions(session)
        self.references, self.base = _forgetting_of_base(session)

    def __call__(self, folder: Path, step: int) -> None:
        """Measure a checkpoint, if it has not been."""
        if step in self.found:
            return
        session = self.session
        answerer = _answerer(session, folder, loading.model_hash(folder), self.replies)
        try:
            rows = ask(self.questions, session.renderer, answerer, session.context)
            forgotten = core.forgetting(answerer, session.renderer, self.references)
        finally:
            answerer.close()
        gc.collect()
        scores = compare(core.SUITE, None, rows) + compare(core.SUITE, self.base, forgotten)
        self.found[step] = [
            {**score, "checkpoint": step} for score in scores if score["model"] == "tuned" and score["metric"] in _KEPT
        ]
        self.journal.append({"step": step, "scores": self.found[step]})

    def scored(self) -> list[Scored]:
        """Training and validation score of each checkpoint so far, in order."""
        return [
            Scored(step, _value(scores, core.TRAINED), _value(scores, VALIDATION)) for step, scores in sorted(self.found.items())
        ]

    def close(self) -> None:
        """Let go of the journal's file."""
        self.journal.close()


def read_scores(folder: Path) -> list[dict[str, Any]]:
    """The scores that a training's folder holds, as in the report's flat list; none where none were taken."""
    return [score for _, row in Journal(folder / "scores.jsonl").read() for score in row["scores"]]


def _value(scores: list[dict[str, Any]], split: str) -> float:
    return next(float(score["value"]) for score in scores if (score["split"], score["metric"]) == (split, "accuracy"))


def _questions(session: Session) -> list[Question]:
    settings, renderer = session.settings, session.renderer
    limit = settings.max_new_tokens or 256

    def asked(split: str, fact: Fact, question: str) -> Question:
        return about(fact, f"{split}/{fact.id}", split, question, renderer, session.verifier, limit)

    facts = _some(session.facts, settings.score_questions)
    own = session.corpus.splits.get("validation") if session.corpus else None
    if own:
        framed = [asked(VALIDATION, fact, fact.question) for fact in _some(list(own()), settings.score_questions)]
    else:
        framed = [asked(VALIDATION, fact, core.framed(fact, settings.seed, "validation")[0]) for fact in facts]
    return [asked(core.TRAINED, fact, fact.question) for fact in facts] + framed


def _some(facts: list[Fact], count: int) -> list[Fact]:
    """At most so many, chosen by their ids alone, in their order."""
    chosen = {fact.id for fact in sorted(facts, key=lambda fact: digest(fact.id))[:count]}
    return [fact for fact in facts if fact.id in chosen]


def _forgetting_of_base(session: Session) -> tuple[dict[str, Reply], list[dict[str, Any]]]:
    """The reference replies and the base model's own loss on them; from the cache where an evaluation has made them."""
    journal = cache_folder() / "replies" / f"{session.base_hash}.jsonl"
    answerer = _answerer(session, session.located.folder, session.base_hash, journal)
    try:
        references = core.sample_references(session.renderer, session.settings, answerer)
        return references, core.forgetting(answerer, session.renderer, references)
    finally:
        answerer.close()


def _answerer(session: Session, folder: Path, hash_of: str, journal: Path) -> Answerer:
    return Answerer(
        lambda: session.load_to_read(folder),
        model_hash=hash_of,
        precision=session.precision,
        stops=session.renderer.stops.ids,
        journal=journal,
        token_budget=session.settings.token_budget,
    )
