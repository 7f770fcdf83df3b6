"""Which weights: what each checkpoint is worth, which checkpoint is taken, and the search for a learning rate (appendix D).

The paper's rule: "the first checkpoint that achieves the best training performance observed so far while maintaining stable validation
performance, i.e., without a validation performance drop greater than 5% over the following two consecutive checkpoints." Read here
as: among the checkpoints whose validation score does not fall by more than 5% of itself at either of the next two, the one with the
best training score; of several, the first. The last two are judged by as many as follow, so the last is always stable.

`--lr auto` trains at each rate of a grid. The rate with the best validation score at its chosen checkpoint wins, then the one with the
better training score, then the smaller rate, which moves the model less.
"""

from __future__ import annotations

import gc
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixsd.errors import MixsdError, UserError
from mixsd.evaluation import suites
from mixsd.evaluation.questions import Question, about, answering, ask, journal_of_base
from mixsd.evaluation.scores import compare
from mixsd.facts.fact import Fact
from mixsd.models import loading
from mixsd.run.session import Session
from mixsd.storage import Journal, digest

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FALL = 0.05
FOLLOWING = 2
VALIDATION = "memorization/validation"


@dataclass(frozen=True)
class Scored:
    """One checkpoint's scores, shares in [0, 1]; validation comes from wordings that nothing else is measured on."""

    step: int
    train: float
    validation: float


@dataclass(frozen=True)
class Choice:
    """The checkpoint taken, and why, in a sentence for the report."""

    step: int
    why: str


def choose(scored: Sequence[Scored]) -> Choice:
    """Choose among checkpoints in the order of their steps (at least one)."""
    stable = [one for place, one in enumerate(scored) if is_stable(scored, place)]
    best = max(stable, key=lambda one: (one.train, -one.step))
    followed = [one.validation for one in scored if one.step > best.step][:FOLLOWING]
    then = f"then {', '.join(f'{value:.3g}' for value in followed)}" if followed else "the last one"
    why = (
        f"the first with the best training score, {best.train:.3g}, among stable ones (validation {best.validation:.3g}, {then})"
    )
    return Choice(best.step, why)


def is_stable(scored: Sequence[Scored], place: int) -> bool:
    """Whether the validation score holds at the checkpoints that follow the one at `place`, two at most."""
    floor = scored[place].validation * (1 - FALL)
    # Shares of few questions lie on a coarse grid: exactly 5% less is no fall, whatever the rounding says.
    return all(one.validation >= floor - 1e-9 for one in scored[place + 1 : place + 1 + FOLLOWING])


def still_open(scored: Sequence[Scored]) -> set[int]:
    """The steps that `choose` may yet return, whatever checkpoints follow; the others need not be kept."""
    confirmed = [one for place, one in enumerate(scored[:-FOLLOWING]) if is_stable(scored, place)]
    best = max(confirmed, key=lambda one: (one.train, -one.step), default=None)
    waiting = [one for place, one in enumerate(scored) if place >= len(scored) - FOLLOWING and is_stable(scored, place)]
    return {one.step for one in waiting if best is None or one.train > best.train} | ({best.step} if best else set())


@dataclass
class Trained:
    """One training that has ended: its folder, its model as trained (fp32), which checkpoint that is and why."""

    folder: Path
    model: PreTrainedModel
    choice: Choice
    scored: list[Scored]
    dropped: tuple[str, ...]


def search(session: Session, train: Callable[[float, Path, int | None], Trained]) -> tuple[Trained, float]:
    """Train (at a rate, in a folder, so many steps) at every rate of the grid, in `rates/`; return the best one's training, and the rate.

    Training that is finite at none of them is a `UserError`.
    """
    run, settings = session.run, session.settings
    rates = run.folder / "rates"
    tried = {row["lr"]: row for _, row in Journal(run.folder / "rates.jsonl").read()}
    with Journal(run.folder / "rates.jsonl") as journal:
        for rate in settings.lr_grid:
            if rate in tried:
                continue
            folder = rates / f"{rate:g}"
            try:
                # Its model is not held on to, so that one is in memory at a time.
                tried[rate] = {"lr": rate, **_scores(train(rate, folder, settings.lr_steps))}
            except UserError:
                raise
            except MixsdError as error:
                tried[rate] = {"lr": rate, "failed": str(error)}
            # The log may go with the folder; what the training decoded and rehearsed is told.
            steps = [row for _, row in Journal(folder / "log.jsonl").read() if row.get("event") == "step"]
            tried[rate] |= {name: sum(step.get(name, 0) for step in steps) for name in ("decoded", "rehearsed")}
            journal.append(tried[rate])
            best = best_of(list(tried.values()))
            for other in tried:
                if best is None or other != best["lr"]:  # checkpoints are what is large
                    shutil.rmtree(rates / f"{other:g}" / "checkpoints", ignore_errors=True)
    best = best_of(list(tried.values()))
    if best is None:
        raise UserError(f"--lr auto: no learning rate of {', '.join(f'{rate:g}' for rate in tried)} ends in a finite training")
    failed = ", ".join(f"{rate:g}" for rate, row in tried.items() if "failed" in row)
    session.watcher.say(
        f"learning rate {best['lr']:g}: validation {best['validation']:.3g}, training {best['train']:.3g} at step {best['step']}, "
        f"the best of {len(tried)}{f'; not finite at {failed}' if failed else ''}"
    )
    rate = float(best["lr"])
    if settings.lr_steps is not None:
        shutil.rmtree(rates, ignore_errors=True)
        return train(rate, run.folder, None), rate
    # A training that has ended is resumed at its end, which brings its model back.
    return train(rate, rates / f"{rate:g}", None), rate


def best_of(rows: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The best of the rates that were tried; None where all failed."""
    whole = [row for row in rows if "failed" not in row]
    return max(whole, key=lambda row: (row["validation"], row["train"], -row["lr"]), default=None)


def _scores(trained: Trained) -> dict[str, Any]:
    chosen = next(one for one in trained.scored if one.step == trained.choice.step)
    return {**asdict(chosen), "why": trained.choice.why}


class CheckpointScores:
    """The scores of the checkpoints of one training, in `folder`. Made before training: it lets the base model speak first.

    Memorization is asked in the trained wording, validation in frames (or a corpus's own split) that nothing reported is measured on,
    and forgetting is Eq. 2 on the reference replies of the evaluation. `scores.jsonl` holds them as the report's flat list does.
    """

    def __init__(self, session: Session, folder: Path) -> None:
        self.session = session
        self.replies = folder / "scores.replies.jsonl"
        self.journal = Journal(folder / "scores.jsonl")
        self.found: dict[int, list[dict[str, Any]]] = {row["step"]: row["scores"] for _, row in self.journal.read()}
        self.questions = _questions(session)
        base = session.base_hash
        # From the cache, where an evaluation has asked the base model.
        with answering(session, session.located.folder, base, journal_of_base(base)) as answerer:
            self.references = suites.sample_references(session.renderer, session.settings, answerer)
            self.base = suites.forgetting(answerer, session.renderer, self.references)

    def __call__(self, folder: Path, step: int) -> None:
        """Measure a checkpoint, if it has not been."""
        if step in self.found:
            return
        session = self.session
        with answering(session, folder, loading.model_hash(folder), self.replies) as answerer:
            rows = ask(self.questions, session.renderer, answerer, session.context)
            forgotten = suites.forgetting(answerer, session.renderer, self.references)
        gc.collect()
        scores = compare(suites.CORE, None, rows) + compare(suites.CORE, self.base, forgotten)
        kept = [score for score in scores if score["model"] == "tuned" and score["metric"] in ("accuracy", "forgetting")]
        self.found[step] = [{**score, "checkpoint": step} for score in kept]
        self.journal.append({"step": step, "scores": self.found[step]})

    def scored(self) -> list[Scored]:
        """Training and validation score of each checkpoint so far, in order."""
        return [
            Scored(step, _accuracy(scores, suites.TRAINED), _accuracy(scores, VALIDATION))
            for step, scores in sorted(self.found.items())
        ]


def read_scores(folder: Path) -> list[dict[str, Any]]:
    """The scores that a training's folder holds, as in the report's flat list; none where none were taken."""
    return [score for _, row in Journal(folder / "scores.jsonl").read() for score in row["scores"]]


def _accuracy(scores: list[dict[str, Any]], split: str) -> float:
    return next(float(score["value"]) for score in scores if (score["split"], score["metric"]) == (split, "accuracy"))


def _questions(session: Session) -> list[Question]:
    settings, renderer = session.settings, session.renderer
    limit = settings.max_new_tokens or 256

    def asked(split: str, fact: Fact, question: str) -> Question:
        return about(fact, f"{split}/{fact.id}", split, question, renderer, session.verifier, limit)

    def some(facts: list[Fact]) -> list[Fact]:
        """At most so many, chosen by their ids alone, in their order."""
        chosen = {fact.id for fact in sorted(facts, key=lambda fact: digest(fact.id))[: settings.score_questions]}
        return [fact for fact in facts if fact.id in chosen]

    facts = some(session.facts)
    own = session.corpus.splits.get("validation") if session.corpus else None
    if own:
        validation = [asked(VALIDATION, fact, fact.question) for fact in some(list(own()))]
    else:
        validation = [asked(VALIDATION, fact, suites.framed(fact, settings.seed, "validation")[0]) for fact in facts]
    return [asked(suites.TRAINED, fact, fact.question) for fact in facts] + validation
