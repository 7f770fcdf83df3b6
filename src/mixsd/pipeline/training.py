"""The stage that trains: leaves `model/`, a plain model folder that was reloaded and checked.

The checkpoint that becomes the model is the last one, or the one that the paper's rule chooses. With `--lr auto` each learning
rate is a training of its own in `rates/`, and the best one's model is taken, or trained on where the search was cut short.
"""

from __future__ import annotations

import gc
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixsd import loading
from mixsd.pipeline import rates
from mixsd.pipeline.checkpoint_scores import CheckpointScores
from mixsd.pipeline.material import Material, prepare
from mixsd.pipeline.run import versions
from mixsd.pipeline.session import Session
from mixsd.pipeline.stages import timed
from mixsd.settings import Settings
from mixsd.storage import atomic_folder, write_json
from mixsd.training import Step, verify_model_folder, write_model_folder
from mixsd.training import train as run_training
from mixsd.training.batches import steps_per_epoch
from mixsd.training.checkpoints import checkpoint_folder, tidy
from mixsd.training.choosing import Choice, Scored, choose, still_open
from mixsd.training.model_folder import load_model_folder

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass
class Trained:
    """One training that has ended: its folder, its model as trained (fp32), which checkpoint that is and why."""

    folder: Path
    model: PreTrainedModel
    choice: Choice
    scored: list[Scored]
    dropped: tuple[str, ...]


def train(session: Session) -> None:
    """Train by the session's method and leave `model/`."""
    run, settings = session.run, session.settings
    if run.model.is_dir():
        return
    with timed(session, "train"):
        material = prepare(session)
        if settings.lr == "auto":
            trained, rate = rates.search(session, partial(once, session, material))
        else:
            assert isinstance(settings.lr, float)
            trained, rate = once(session, material, settings.lr, run.folder), settings.lr
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


def once(session: Session, material: Material, rate: float, folder: Path, steps: int | None = None) -> Trained:
    """One training at one learning rate, in `folder`; `steps` ends it early."""
    settings = session.settings.model_copy(update={"lr": rate})
    total = settings.epochs * steps_per_epoch(len(material.objective.keys), settings.batch_size)
    scores = CheckpointScores(session, folder) if settings.score_checkpoints else None
    model = session.load_to_train()
    # The folder must stop where training stopped it: all the stop tokens, in the one place that servers read.
    stops = session.renderer.stops.own
    model.generation_config.eos_token_id = stops if len(stops) > 1 else stops[0]
    chooses = settings.choose == "paper"
    with session.watcher.task(_name(session, rate), min(total, steps or total)) as task:

        def on_step(step: Step) -> None:
            task.reach(step.step, f"loss {step.loss:.3f}")

        result = run_training(
            model,
            session.tokenizer,
            material.objective,
            settings=settings,
            folder=folder,
            steps=steps,
            rehearsal=material.rehearsal,
            pinned=lambda: still_open(scores.scored()) if scores and chooses else (),
            on_step=on_step,
            on_checkpoint=scores,
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


def write_tuned(session: Session, model: PreTrainedModel, folder: Path, prompt_ids: Any, rate: float | None) -> None:
    """Write a tuned model as the run's model folder, checked, with what says where it comes from."""
    write_model_folder(model, session.tokenizer, folder, dtype=_stored_dtype(session))
    verify_model_folder(folder, model)
    write_json(folder / loading.PROVENANCE, _provenance(session, list(prompt_ids), rate))


def _name(session: Session, rate: float) -> str:
    return f"training at {rate:g}" if session.settings.lr == "auto" else "training"


def _stored_dtype(session: Session) -> Any:
    """The precision of `model/`: the base folder's own, so that the tuned model loads and serves like the base."""
    import torch

    stated = getattr(session.config, "dtype", None) or getattr(session.config, "torch_dtype", None)
    if isinstance(stated, str):
        stated = getattr(torch, stated, None)
    return stated if isinstance(stated, torch.dtype) else torch.float32


def _provenance(session: Session, prompt_ids: list[int], rate: float | None) -> dict[str, Any]:
    settings: Settings = session.settings
    names = ("lam", "gate", "lora", "epochs", "seed", "answer_format", "thinking")
    return {
        "mixsd": versions().get("mixsd"),
        "base": {"name": session.located.name, "hash": session.base_hash},
        "method": settings.method,
        "settings": {**{name: getattr(settings, name) for name in names}, "lr": rate},
        # The serving prompt must be the training prompt; this is one, to compare with.
        "prompt_example": session.tokenizer.decode(prompt_ids, skip_special_tokens=False),
        "stop_ids": session.renderer.stops.own,
    }
