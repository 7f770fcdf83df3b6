"""The stage that trains: from the targets, or the facts, to `model/`, a plain model folder that was reloaded and checked.

Everything that the base model alone can make is made first and kept in the run folder (the teacher's distributions, the replies to
rehearse), so that training holds one model. The checkpoint that becomes the model is the last one, or the one that the paper's rule
chooses. With `--lr auto` each learning rate is a training of its own in `rates/`.
"""

from __future__ import annotations

import gc
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mixsd.decoding.engine import decode_all
from mixsd.decoding.engine import path as decoding_path
from mixsd.decoding.requests import Decoding, Request, Sampling
from mixsd.facts.records import bundled_records
from mixsd.models import loading
from mixsd.models.compat import stated_dtype
from mixsd.models.folder import load_model_folder
from mixsd.plugins import load_function
from mixsd.progress import Watcher
from mixsd.run.folder import Run, versions
from mixsd.run.session import Session, reopen, timed
from mixsd.settings import Settings, build
from mixsd.storage import Journal, atomic_folder, write_json
from mixsd.training import TrainResult, choosing, ranks, verify_model_folder, write_model_folder
from mixsd.training import train as run_training
from mixsd.training.checkpoints import checkpoint_folder, tidy
from mixsd.training.choosing import CheckpointScores, Choice, Trained, choose, still_open
from mixsd.training.examples import plan_epoch, steps_per_epoch
from mixsd.training.losses import Divergence
from mixsd.training.objectives import Objective, target_nll
from mixsd.training.teacher import FrozenBase, Rehearsal, teacher_divergence

if TYPE_CHECKING:
    from transformers import PreTrainedModel


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
    teacher = FrozenBase(session.load_to_decode)
    objective: Objective = load_function(settings.spec.objective, f"method {settings.method}")(session, teacher)
    rehearsal = _rehearsal(session, objective, teacher) if settings.rehearse else None
    gc.collect()
    return Material(objective, rehearsal)


def _rehearsal(session: Session, objective: Objective, teacher: FrozenBase) -> Rehearsal:
    settings = session.settings
    prompts = {item["id"]: session.renderer.ids(item["prompt"]) for item in bundled_records("rehearsal_prompts.jsonl")}
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
            base = cache(session.load_to_decode)

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


def train(session: Session) -> None:
    """Train by the session's method and leave `model/`."""
    run, settings = session.run, session.settings
    if run.model.is_dir():
        return
    with timed(session, "train"):
        material = prepare(session)
        if settings.lr == "auto":
            trained, rate = choosing.search(session, partial(train_at, session, material))
        else:
            assert isinstance(settings.lr, float)
            trained, rate = train_at(session, material, settings.lr, run.folder), settings.lr
        if trained.dropped:
            session.watcher.say(
                f"{len(trained.dropped)} targets longer than the context were dropped: {', '.join(trained.dropped[:5])}"
            )
            run.log("dropped", keys=list(trained.dropped))
        run.log("trained", folder=str(trained.folder.relative_to(run.folder)), lr=rate, **asdict(trained.choice))
        with atomic_folder(run.model) as folder:
            write_tuned(session, trained.model, folder, material.objective.probe.prompt_ids, rate)
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
        _trained(session, material, settings, Path(work["folder"]), work["steps"])


def train_at(session: Session, material: Material, rate: float, folder: Path, steps: int | None = None) -> Trained:
    """One training at one learning rate, in `folder`; `steps` ends it early."""
    settings = session.settings.model_copy(update={"lr": rate})
    total = settings.epochs * steps_per_epoch(len(material.objective.keys), settings.batch_size)
    scores = CheckpointScores(session, folder) if settings.score_checkpoints else None
    chooses = settings.choose == "paper"
    ranks.order(run=str(session.run.folder), settings=session.settings.dump(), lr=rate, folder=str(folder), steps=steps)
    with session.watcher.task(_name(session, rate), min(total, steps or total)) as task:
        result = _trained(
            session,
            material,
            settings,
            folder,
            steps,
            pinned=lambda: still_open(scores.scored()) if scores and chooses else (),
            on_step=lambda step: task.reach(step.step, f"loss {step.loss:.3f}"),
            on_checkpoint=scores,
            on_path=session.note_path,
        )
    scored = scores.scored() if scores else []
    choice = Choice(result.steps, "the last checkpoint")
    if chooses:
        choice = choose(scored)
        if choice.step != result.steps:
            chosen = checkpoint_folder(folder / "checkpoints", choice.step)
            result.model.load_state_dict(load_model_folder(chosen, like=result.model, dtype=result.model.dtype).state_dict())
    if scores:
        scores.close()
    tidy(folder / "checkpoints", settings.keep_checkpoints, {choice.step})
    return Trained(folder, result.model, choice, scored, result.dropped)


def _trained(
    session: Session, material: Material, settings: Settings, folder: Path, steps: int | None, **told: Any
) -> TrainResult:
    """What every process of a training does; only the first is `told` of its steps and checkpoints."""
    gc.collect()  # the model of an earlier training
    model = session.load_to_train()
    # The folder must stop where training stopped it: all the stop tokens, in the one place that servers read.
    stops = session.renderer.stops.own
    model.generation_config.eos_token_id = stops if len(stops) > 1 else stops[0]
    if settings.on_policy and told:
        session.note_path("rollouts", decoding_path(model))
    return run_training(
        model,
        session.tokenizer,
        material.objective,
        settings=settings,
        folder=folder,
        steps=steps,
        rehearsal=material.rehearsal,
        **told,
    )


def write_tuned(session: Session, model: PreTrainedModel, folder: Path, prompt_ids: Any, rate: float | None) -> None:
    """Write a tuned model as the run's model folder, checked, with what says where it comes from."""
    # In the base folder's own precision, so that the tuned model loads and serves like the base.
    write_model_folder(model, session.tokenizer, folder, dtype=stated_dtype(session.config) or torch.float32)
    verify_model_folder(folder, model)
    write_json(folder / loading.PROVENANCE, _provenance(session, list(prompt_ids), rate))


def _name(session: Session, rate: float) -> str:
    return f"training at {rate:g}" if session.settings.lr == "auto" else "training"


def _provenance(session: Session, prompt_ids: list[int], rate: float | None) -> dict[str, Any]:
    settings: Settings = session.settings
    names = ("lam", "gate", "lora", "epochs", "seed", "answer_format", "thinking")
    return {
        "mixsd": versions().get("mixsd"),
        "base": {"name": session.located.name, "hash": session.base_hash},
        "method": settings.spec.name,
        "settings": {**{name: getattr(settings, name) for name in names}, "lr": rate},
        # The serving prompt must be the training prompt; this is one, to compare with.
        "prompt_example": session.tokenizer.decode(prompt_ids, skip_special_tokens=False),
        "stop_ids": session.renderer.stops.own,
    }
