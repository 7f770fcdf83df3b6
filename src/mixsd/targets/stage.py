"""The stage that makes the targets. It does nothing when they are there, and goes on where it was killed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from mixsd.decoding.engine import score
from mixsd.decoding.requests import REFERENCE, Decoding
from mixsd.errors import UserError
from mixsd.run import engines
from mixsd.run.engines import TRANSFORMERS
from mixsd.run.session import Session, timed
from mixsd.storage import Journal, Shard, left_beside, merge, write_jsonl
from mixsd.targets.mix import DIGITS, Mixer
from mixsd.targets.target import Target, TargetSummary

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_SCORED_AT_ONCE = 64


def mix(session: Session) -> None:
    """Make `targets.jsonl`, one line per fact and sample, from the journal `attempts.jsonl`."""
    run, settings, facts = session.run, session.settings, session.part
    if run.targets_file.is_file():
        return
    if not facts:
        session.watcher.say(f"shard {settings.shard} holds none of the {len(session.facts)} facts")
        return
    if not settings.has_targets:
        return
    mixed = settings.mixes
    with timed(session, "mix"), session.watcher.task("mixing" if mixed else "targets", len(facts) * settings.samples) as task:

        def on_done(finished: int, tokens: int) -> None:
            task.reach(finished, f"{tokens} tokens")

        if mixed and settings.backend != TRANSFORMERS:
            engines.attempt(session, on_done)
        with mixing(session, on_done) as mixer:
            if settings.shard:
                mixer.attempt(facts)
                return
            write_jsonl(run.targets_file, _counted(session, mixer))


@contextmanager
def mixing(
    session: Session, on_done: Callable[[int, int], None], decode: Callable[..., Iterator[Decoding]] | None = None
) -> Iterator[Mixer]:
    """A mixer on the session's journal of attempts, which holds what shards have left."""
    file = session.run.attempts_file
    shard = Shard.of(session.settings.shard)
    if not shard:
        merge(left_beside(file), file, lambda row: (row["id"], row["sample"], row["attempt"]))
    with Journal(shard.beside(file) if shard else file) as journal:
        yield Mixer(
            session.load_to_decode,
            session.renderer,
            session.settings,
            session.verifier,
            session.context,
            journal,
            say=session.watcher.say,
            on_done=on_done,
            decode=decode,
        )


def _counted(session: Session, mixer: Mixer) -> Iterator[dict[str, Any]]:
    """The lines of `targets.jsonl`; behind the last one the log tells what they are like."""
    summary = TargetSummary()
    for target in mixer.run(session.facts):
        summary.add(target)
        yield target.to_json()
    if not summary.statuses["accepted"]:
        raise UserError(
            f"none of {len(session.facts)} facts was accepted; see the reasons in {session.run.attempts_file}, and try "
            "--gate 0.1, --lam 0, another --verifier or --on-fail canonical"
        )
    session.run.log("mixed", targets=summary.to_json(), reference=reference_statistics(session, mixer.model))


def reference_statistics(session: Session, model: PreTrainedModel) -> dict[str, Any]:
    """What training on the references as they are would have cost: their NLL under the base model (Eq. 3), always reported.

    Token by token it is in `references.jsonl`, in lines like those of `targets.jsonl`.
    """
    summary = TargetSummary()

    def rows() -> Iterator[dict[str, Any]]:
        for target in measured_references(session, model):
            summary.add(target)
            yield target.to_json()

    write_jsonl(session.run.references_file, rows())
    return summary.to_json()


def measured_references(session: Session, model: PreTrainedModel) -> Iterator[Target]:
    """The reference of every fact that can be asked, as a target, with its log-probabilities under the base model."""
    renderer = session.renderer
    asked = [fact for fact in session.facts if not renderer.unusable(fact)]
    for start in range(0, len(asked), _SCORED_AT_ONCE):
        window = [
            (fact.id, renderer.naive(fact.question), renderer.reference(fact)) for fact in asked[start : start + _SCORED_AT_ONCE]
        ]
        window = [(key, prompt, ids) for key, prompt, ids in window if len(prompt) + len(ids) <= session.context]
        scored = score(model, [(prompt, ids) for _, prompt, ids in window])
        for (key, prompt, ids), logprobs in zip(window, scored, strict=True):
            rounded = [round(value, DIGITS) for value in logprobs]
            text, canonical = renderer.reply_text(ids), renderer.is_canonical(ids)
            yield Target(key, 0.0, 0, 0, prompt, ids, REFERENCE * len(ids), rounded, 0, text, True, None, canonical)
