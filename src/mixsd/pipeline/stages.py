"""The stages that make the model: mix and train. Each does nothing when its result is there, and goes on where it was killed."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from mixsd import loading
from mixsd.decoding.backends import TRANSFORMERS
from mixsd.decoding.requests import Decoding
from mixsd.decoding.scoring import score
from mixsd.errors import UserError
from mixsd.mixing.mix import Mixer
from mixsd.mixing.targets import Target, TargetSummary
from mixsd.pipeline import apart
from mixsd.pipeline.run import versions
from mixsd.pipeline.session import Session
from mixsd.shards import Shard, left_beside, merge
from mixsd.storage import Journal, atomic_folder, read_jsonl, write_json, write_jsonl


def mix(session: Session) -> None:
    """Make `targets.jsonl`, one line per fact and sample, from the journal `attempts.jsonl`."""
    run, settings, facts = session.run, session.settings, session.part
    if run.targets_file.is_file():
        return
    if not facts:
        session.watcher.say(f"shard {settings.shard} holds none of the {len(session.facts)} facts")
        return
    mixed = settings.method == "mixsd"
    with timed(session, "mix"), session.watcher.task("mixing" if mixed else "targets", len(facts) * settings.samples) as task:

        def on_done(finished: int, tokens: int) -> None:
            task.reach(finished, f"{tokens} tokens")

        if mixed and settings.backend != TRANSFORMERS:
            apart.attempt(session, on_done)
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
            session.load_to_read,
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
    session.run.log("mixed", targets=summary.to_json(), reference=_reference_statistics(session, mixer))


def _reference_statistics(session: Session, mixer: Mixer) -> dict[str, Any]:
    """What training on the references as they are would have cost: their NLL under the base model (Eq. 3), always reported."""
    renderer, summary = session.renderer, TargetSummary()
    asked = [fact for fact in session.facts if not renderer.unusable(fact)]
    for start in range(0, len(asked), 64):
        window = [(renderer.naive(fact.question), renderer.reference(fact)) for fact in asked[start : start + 64]]
        window = [(prompt, ids) for prompt, ids in window if len(prompt) + len(ids) <= session.context]
        for (prompt, ids), logprobs in zip(window, score(mixer.model, window), strict=True):
            summary.add(Target("", 0.0, 0, 0, prompt, ids, "r" * len(ids), logprobs, 0, "", True, None))
    return summary.to_json()


def accepted_targets(session: Session) -> Iterator[Target]:
    """The targets that are trained on, in the order of the facts."""
    for number, row in enumerate(read_jsonl(session.run.targets_file), 1):
        try:
            target = Target.from_json(row)
        except (TypeError, KeyError) as error:
            raise UserError(f"{session.run.targets_file}: line {number}: not a target ({error})") from error
        if target.accepted:
            yield target


def train(session: Session) -> None:
    """Train on the accepted targets and leave `model/`, a plain model folder that was reloaded and checked."""

    from mixsd.training import Example, Step, verify_model_folder, write_model_folder
    from mixsd.training import train as run_training

    run, settings = session.run, session.settings
    if run.model.is_dir():
        return
    with timed(session, "train"):
        examples = [
            Example(f"{target.id}/{target.sample}", tuple(target.prompt_ids), tuple(target.target_ids))
            for target in accepted_targets(session)
        ]
        if not examples:
            raise UserError(f"{run.targets_file}: holds no accepted target to train on")
        steps = settings.epochs * -(-len(examples) // settings.batch_size)
        model = session.load_to_train()
        # The folder must stop where training stopped it: all the stop tokens, in the one place that servers read.
        stops = session.renderer.stops.own
        model.generation_config.eos_token_id = stops if len(stops) > 1 else stops[0]
        with session.watcher.task("training", steps) as task:

            def on_step(step: Step) -> None:
                task.reach(step.step, f"loss {step.loss:.3f}")

            result = run_training(model, session.tokenizer, examples, settings=settings, folder=run.folder, on_step=on_step)
        if result.dropped:
            session.watcher.say(
                f"{len(result.dropped)} targets longer than the context were dropped: {', '.join(result.dropped[:5])}"
            )
            run.log("dropped", keys=list(result.dropped))
        with atomic_folder(run.model) as folder:
            write_model_folder(result.model, session.tokenizer, folder, dtype=_stored_dtype(session))
            verify_model_folder(folder, result.model)
            write_json(folder / loading.PROVENANCE, _provenance(session))
        del model, result
        gc.collect()


def _stored_dtype(session: Session) -> Any:
    """The precision of `model/`: the base folder's own, so that the tuned model loads and serves like the base."""
    import torch

    stated = getattr(session.config, "dtype", None) or getattr(session.config, "torch_dtype", None)
    if isinstance(stated, str):
        stated = getattr(torch, stated, None)
    return stated if isinstance(stated, torch.dtype) else torch.float32


def _provenance(session: Session) -> dict[str, Any]:
    settings = session.settings
    example = next(accepted_targets(session))
    return {
        "mixsd": versions().get("mixsd"),
        "base": {"name": session.located.name, "hash": session.base_hash},
        "method": settings.method,
        "settings": {
            name: getattr(settings, name) for name in ("lam", "gate", "lora", "lr", "epochs", "seed", "answer_format", "thinking")
        },
        # The serving prompt must be the training prompt; this is one, to compare with.
        "prompt_example": session.tokenizer.decode(example.prompt_ids, skip_special_tokens=False),
        "stop_ids": session.renderer.stops.own,
    }


@contextmanager
def timed(session: Session, stage: str) -> Iterator[None]:
    """Log how long a stage took in this process, when it ends well."""
    started = time.perf_counter()
    yield
    session.run.log("stage", name=stage, seconds=round(time.perf_counter() - started, 3))
