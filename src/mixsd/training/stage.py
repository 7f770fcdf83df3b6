"""The stage that trains: from the targets, or the facts, to `model/`, a plain model folder that was reloaded and checked.

Everything that the base model alone can make is made first and kept in the run folder (the teacher's distributions, the replies to
rehearse), so that training holds one model. The checkpoint that becomes the model is the last one, or the one that the paper's rule
chooses. With `--lr auto` each learning rate is a training of its own in `rates/`.
"""

from __future__ import annotations

import gc
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from mixsd.decoding.engine import decode_all
from mixsd.decoding.engine import path as decoding_path
from mixsd.decoding.requests import Decoding, Request, Sampling
from mixsd.facts.records import bundled_records
from mixsd.models import loading
from mixsd.models.compat import stated_dtype
from mixsd.plugins import load_function
from mixsd.progress import Watcher
from mixsd.run.folder import Run, versions
from mixsd.run.session import Session, reopen, timed
from mixsd.settings import Settings, build
from mixsd.storage import Journal, atomic_folder, write_json
from mixsd.training import TrainResult, choosing, loop, ranks, verify_model_folder, write_model_folder
from mixsd.training.checkpoints import checkpoint_folder, load_weights, tidy
from mixsd.training.choosing import CheckpointScores, Choice, Trained
from mixsd.training.examples import plan_epoch, steps_per_epoch
from mixsd.training.losses import Divergence
from mixsd.training.objectives import Objective, target_nll
from mixsd.training.teacher import FrozenBase, Rehearsal, teacher_divergence

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class TrainingMaterial(NamedTuple):
    """What is trained on."""

    objective: Objective
    rehearsal: Rehearsal | None


def prepare(session: Session) -> TrainingMaterial:
    """Make what the session's method trains on; nothing, or settings that contradict each other, is a `UserError`."""
    settings = session.settings
    teacher = FrozenBase(session.load_to_decode)  # loaded when a loss first asks it
    objective: Objective = load_function(settings.spec.objective, f"method {settings.method}")(session, teacher)
    rehearsal = _rehearsal(session, objective, teacher) if settings.rehearse else None
    gc.collect()
    return TrainingMaterial(objective, rehearsal)


def _rehearsal(session: Session, objective: Objective, teacher: FrozenBase) -> Rehearsal:
    settings, lengths = session.settings, objective.lengths
    sampling = Sampling(session.renderer.stops.ids, temperature=1.0)
    rehearsal = Rehearsal(
        {item["id"]: session.renderer.ids(item["prompt"]) for item in bundled_records("rehearsal_prompts.jsonl")},
        ratio=settings.rehearse,
        limit=settings.rehearse_tokens,
        seed=settings.seed,
        journal=Journal(session.run.folder / "rehearsal.jsonl") if lengths else None,
        # How much is rehearsed may depend on what the student says; the teacher, at hand then, makes it as it is needed.
        decode=None if lengths else partial(teacher.decode, sampling=sampling, token_budget=settings.token_budget),
        loss=target_nll if settings.rehearse_loss == "nll" else teacher_divergence(teacher, Divergence.of(settings)),
    )
    if lengths:
        epochs = (plan_epoch(settings.seed, epoch, objective.keys, settings.batch_size) for epoch in range(settings.epochs))
        steps = (items for plan in epochs for items in plan)
        tokens = {number: sum(lengths[item] for item in items) for number, items in enumerate(steps, 1)}
        with session.watcher.task("rehearsal", round(settings.rehearse * sum(tokens.values()))) as task:
            base = cache(session.load_to_decode)

            def decode(requests: list[Request]) -> Iterable[Decoding]:
                return decode_all(base(), requests, sampling, token_budget=settings.token_budget)

            rehearsal.prepare(tokens, decode, task.advance)
    return rehearsal


def train(session: Session) -> None:
    """Train by the session's method and leave `model/`."""
    run, settings = session.run, session.settings
    if run.model.is_dir():
        return
    with timed(session, "train"):
        material = prepare(session)
        if settings.lr == "auto":
            trained, rate = choosing.search(session, partial(_train_at, session, material))
        else:
            assert isinstance(settings.lr, float)
            trained, rate = _train_at(session, material, settings.lr, run.folder), settings.lr
        if dropped := trained.dropped:
            session.watcher.say(f"{len(dropped)} targets longer than the context were dropped: {', '.join(dropped[:5])}")
            run.log("dropped", keys=list(dropped))
        run.log("trained", folder=str(trained.folder.relative_to(run.folder)), lr=rate, **asdict(trained.choice))
        names = ("lam", "gate", "lora", "epochs", "seed", "answer_format", "thinking")
        decided = {**{name: getattr(settings, name) for name in names}, "lr": rate}
        with atomic_folder(run.model) as folder:
            write_tuned(session, trained.model, folder, material.objective.probe.prompt_ids, decided)
        del trained
        gc.collect()


def follow() -> None:
    """As another process than the first, take part in every training that it orders, until its command ends."""
    session: Session | None = None
    for work in ranks.orders():
        if session is None or str(session.run.folder) != work["run"]:
            settings = build(work["settings"], work["run"])
            if loading.resolve_device(settings.device).type == "cuda":
                settings = settings.model_copy(update={"device": f"cuda:{ranks.local_rank()}"})
            session = reopen(Run(Path(work["run"])), settings, Watcher())
            material = prepare(session)
        ranks.ready()
        settings = session.settings.model_copy(update={"lr": work["lr"]})
        _load_and_run(session, material, settings, Path(work["folder"]), work["steps"])


def _train_at(session: Session, material: TrainingMaterial, rate: float, folder: Path, steps: int | None = None) -> Trained:
    """One training at one learning rate, in `folder`; `steps` ends it early."""
    settings = session.settings.model_copy(update={"lr": rate})
    total = settings.epochs * steps_per_epoch(len(material.objective.keys), settings.batch_size)
    scores = CheckpointScores(session, folder) if settings.score_checkpoints else None
    chooses = settings.choose == "paper"
    ranks.order(run=str(session.run.folder), settings=session.settings.dump(), lr=rate, folder=str(folder), steps=steps)
    name = f"training at {rate:g}" if session.settings.lr == "auto" else "training"
    with session.watcher.task(name, min(total, steps or total)) as task:
        result = _load_and_run(
            session,
            material,
            settings,
            folder,
            steps,
            pinned=lambda: choosing.still_open(scores.scored()) if scores and chooses else (),
            on_step=lambda step: task.reach(step.step, f"loss {step.loss:.3f}"),
            on_checkpoint=scores,
            on_path=session.note_path,
        )
    scored = scores.scored() if scores else []
    choice = choosing.choose(scored) if chooses else Choice(result.steps, "the last checkpoint")
    if choice.step != result.steps:
        load_weights(result.model, checkpoint_folder(folder / "checkpoints", choice.step))
    if scores:
        scores.journal.close()
    tidy(folder / "checkpoints", settings.keep_checkpoints, {choice.step})
    return Trained(folder, result.model, choice, scored, result.dropped)


def _load_and_run(
    session: Session, material: TrainingMaterial, settings: Settings, folder: Path, steps: int | None, **told: Any
) -> TrainResult:
    """What every process of a training does; only the first is `told` of its steps and checkpoints."""
    gc.collect()  # the model of an earlier training
    model = load_base(session)
    if settings.spec.on_policy and told:
        session.note_path("rollouts", decoding_path(model))
    return loop.train(
        model,
        session.tokenizer,
        material.objective,
        settings=settings,
        folder=folder,
        steps=steps,
        rehearsal=material.rehearsal,
        **told,
    )


def load_base(session: Session) -> PreTrainedModel:
    """Load the base model to be changed. Its generation config gets all stop tokens, so that a server stops where training did."""
    model = session.load_to_train()
    stops = session.renderer.stops.own
    model.generation_config.eos_token_id = stops if len(stops) > 1 else stops[0]
    return model


def write_tuned(
    session: Session, model: PreTrainedModel, folder: Path, prompt_ids: Sequence[int], decided: dict[str, Any]
) -> None:
    """Write a tuned model as the run's model folder, checked, with what says where it comes from and what `decided` it."""
    # In the base folder's own precision, so that the tuned model loads and serves like the base.
    write_model_folder(model, session.tokenizer, folder, dtype=stated_dtype(session.config) or torch.float32)
    verify_model_folder(folder, model)
    provenance = {
        "mixsd": versions().get("mixsd"),
        "base": {"name": session.located.name, "hash": session.base_hash},
        "method": session.settings.spec.name,
        "settings": decided,
        # The serving prompt must be the training prompt; this is one, to compare with.
        "prompt_example": session.tokenizer.decode(list(prompt_ids), skip_special_tokens=False),
        "stop_ids": session.renderer.stops.own,
    }
    write_json(folder / loading.PROVENANCE, provenance)
