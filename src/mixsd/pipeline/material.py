"""What a run's training is made of: the objective of its method, and the rehearsal beside it.

Everything that can be made once, by the base model alone, is made here and kept in the run folder (the teacher's distributions,
the replies to rehearse), so that training holds one model. What depends on the student is made as it trains.
"""

from __future__ import annotations

import gc
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, partial

from mixsd import bundled
from mixsd.decoding.engine import decode_all
from mixsd.decoding.requests import Decoding, Request, Sampling
from mixsd.errors import UserError
from mixsd.mixing.limits import reply_limit
from mixsd.mixing.targets import Target
from mixsd.pipeline.session import Session
from mixsd.pipeline.stages import accepted_targets
from mixsd.settings import Settings
from mixsd.storage import Journal
from mixsd.training.batches import plan_epoch
from mixsd.training.distilled_targets import Distilled, DistilledTargets, remember
from mixsd.training.divergence import Divergence
from mixsd.training.examples import Example
from mixsd.training.objectives import Objective, Targets, target_nll
from mixsd.training.on_policy import Asked, OnPolicy, RolloutSettings
from mixsd.training.rehearsal import Rehearsal
from mixsd.training.teacher import FrozenBase, teacher_divergence


@dataclass
class Material:
    """What is trained on."""

    objective: Objective
    rehearsal: Rehearsal | None


def prepare(session: Session) -> Material:
    """Make what the session's method trains on.

    Raises:
        UserError: nothing to train on, or settings that contradict each other.
    """
    settings = session.settings
    teacher = FrozenBase(session.load_to_read)
    if settings.on_policy:
        objective: Objective = _on_policy(session, teacher)
    elif settings.method == "mixsd-kl":
        objective = _distilled(session, teacher)
    else:
        examples = [_example(target) for target in accepted_targets(session)]
        if not examples:
            raise UserError(f"{session.run.targets_file}: holds no accepted target to train on")
        objective = Targets(examples, session.context, settings.drop_overlong)
    rehearsal = _rehearsal(session, objective, teacher) if settings.rehearse else None
    gc.collect()
    return Material(objective, rehearsal)


def expert_prompts(session: Session) -> tuple[list[Asked], dict[str, str]]:
    """The facts that on-policy training asks; and why the others cannot be asked, by id."""
    asked, reasons = [], {}
    for fact in session.facts:
        limit, reason = reply_limit(fact, session.renderer, session.settings, session.context)
        if reason:
            reasons[fact.id] = reason
        else:
            naive, expert = session.renderer.naive(fact.question), session.renderer.expert(fact)
            asked.append(Asked(fact.id, tuple(naive), tuple(expert), limit))
    return asked, reasons


def _example(target: Target) -> Example:
    return Example(f"{target.id}/{target.sample}", tuple(target.prompt_ids), tuple(target.target_ids))


def _on_policy(session: Session, teacher: FrozenBase) -> OnPolicy:
    settings = session.settings
    asked, reasons = expert_prompts(session)
    if not asked:
        first, reason = next(iter(reasons.items()))
        raise UserError(f"no usable fact among {len(reasons)}; the first one, {first}: {reason}")
    session.run.log("asked", facts=len(asked), unusable=reasons)
    return OnPolicy(
        asked,
        teacher,
        RolloutSettings(
            samples=settings.samples,
            temperature=settings.temperature,
            seed=settings.seed,
            stops=session.renderer.stops.ids,
            token_budget=settings.token_budget,
            loss=Divergence.of(settings) if settings.method == "opsd" else settings.nll_token,
        ),
    )


def _distilled(session: Session, teacher: FrozenBase) -> DistilledTargets:
    settings = session.settings
    facts = {fact.id: fact for fact in session.facts}
    targets = [
        Distilled(_example(target), tuple(session.renderer.expert(facts[target.id])), target.sources)
        for target in accepted_targets(session)
        if target.id in facts
    ]
    if not targets:
        raise UserError(f"{session.run.targets_file}: holds no accepted target of the run's facts to train on")
    divergence = Divergence.of(settings)
    kept = session.run.folder / "teacher" if divergence.support == "teacher" else None
    objective = DistilledTargets(
        targets, divergence, settings.kl_teacher == "picked", kept or teacher, session.context, settings.drop_overlong
    )
    if kept:
        with session.watcher.task("reading the teacher", len(objective.targets)) as task:
            remember(kept, objective.targets, divergence.k, objective.picked, session.load_to_read, task.advance)
    return objective


def _rehearsal(session: Session, objective: Objective, teacher: FrozenBase) -> Rehearsal:
    settings = session.settings
    prompts = {item["id"]: session.renderer.ids(item["prompt"]) for item in bundled.records("rehearsal_prompts.jsonl")}
    sampling = Sampling(session.renderer.stops.ids, temperature=1.0)
    rehearsal = Rehearsal(
        prompts,
        ratio=settings.rehearse,
        limit=settings.rehearse_tokens,
        seed=settings.seed,
        journal=Journal(session.run.folder / "rehearsal.jsonl") if objective.lengths else None,
        # How much is rehearsed may depend on what the student says; the teacher, at hand then, makes it as it is needed.
        decode=None if objective.lengths else partial(teacher.decode, sampling=sampling, token_budget=settings.token_budget),
        loss=target_nll if settings.rehearse_loss == "nll" else teacher_divergence(teacher, Divergence.of(settings)),
    )
    if objective.lengths:
        tokens = _tokens_of_steps(objective, settings)
        with session.watcher.task("rehearsal", round(settings.rehearse * sum(tokens.values()))) as task:
            base = cache(session.load_to_read)

            def decode(requests: list[Request]) -> Iterable[Decoding]:
                return decode_all(base(), requests, sampling, token_budget=settings.token_budget)

            rehearsal.prepare(tokens, decode, task.advance)
    return rehearsal


def _tokens_of_steps(objective: Objective, settings: Settings) -> dict[int, int]:
    """The supervised tokens of each step (from 1) of a training on fixed targets."""
    lengths = objective.lengths
    assert lengths is not None
    plan = (
        step for epoch in range(settings.epochs) for step in plan_epoch(settings.seed, epoch, objective.keys, settings.batch_size)
    )
    return {number: sum(lengths[item] for item in items) for number, items in enumerate(plan, 1)}
