"""The stages of a run: mix, train, evaluate. Each one does nothing when its result is there, and goes on where it was killed."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mixsd import loading
from mixsd.decoding.backends import TRANSFORMERS
from mixsd.decoding.requests import Decoding
from mixsd.decoding.scoring import score
from mixsd.errors import MixsdError, UserError
from mixsd.evaluation import core
from mixsd.evaluation.replies import Answerer
from mixsd.mixing.mix import Mixer
from mixsd.mixing.targets import Target, TargetSummary
from mixsd.pipeline import apart
from mixsd.pipeline.run import versions
from mixsd.pipeline.session import Session
from mixsd.shards import Shard, left_beside, merge
from mixsd.storage import Journal, atomic_folder, cache_folder, read_jsonl, write_json, write_jsonl


def mix(session: Session) -> None:
    """Make `targets.jsonl`, one line per fact and sample, from the journal `attempts.jsonl`."""
    run, settings, facts = session.run, session.settings, session.part
    if run.targets_file.is_file():
        return
    if not facts:
        session.watcher.say(f"shard {settings.shard} holds none of the {len(session.facts)} facts")
        return
    mixed = settings.method == "mixsd"
    with _timed(session, "mix"), session.watcher.task("mixing" if mixed else "targets", len(facts) * settings.samples) as task:

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
    with _timed(session, "train"):
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


def evaluate(session: Session, tuned: Path | None = None) -> None:
    """Ask base and tuned the suite `core`; leaves `evaluation/core/{base,tuned}.jsonl`.

    `tuned`: the tuned model's folder; None takes the run's own.
    """
    folder = session.run.evaluation / core.SUITE
    tuned = tuned or session.run.model
    if not tuned.is_dir():
        raise UserError(f"{session.run.folder}: has no model/ yet; run `mixsd train` on it first")
    if all((folder / f"{name}.jsonl").is_file() for name in ("base", "tuned")):
        return
    models = {
        "base": (session.located.folder, session.base_hash),
        "tuned": (tuned, loading.model_hash(tuned)),
    }
    with _timed(session, "evaluate"):
        if shard := Shard.of(session.settings.shard):
            _generate_part(session, folder, models, shard)
        else:
            _evaluate_all(session, folder, models)


def _evaluate_all(session: Session, folder: Path, models: dict[str, tuple[Path, str]]) -> None:
    # The base's replies are shared by all runs; the tuned model's are this run's own.
    journals = {"base": _shared_replies(session), "tuned": folder / "tuned.partial.jsonl"}
    references = None
    for name, model in models.items():
        merge(left_beside(folder / f"{name}.partial.jsonl"), journals[name], lambda row: row.get("at"))
        with _answering(session, name, model, journals[name], sampling=references is None) as answerer:
            if references is None:
                references = core.sample_references(session.renderer, session.settings, answerer)
            rows = core.evaluate(session.facts, session.renderer, session.settings, session.verifier, answerer, references)
        failed = sum(row["outcome"] == "error" for row in rows)
        if failed * 10 > len(rows):
            raise MixsdError(f"the verifier failed on {failed} of {len(rows)} replies of {name}; nothing was scored")
        write_jsonl(folder / f"{name}.jsonl", rows)
        gc.collect()
    for partial in folder.glob("*.partial*.jsonl"):
        partial.unlink()


def _generate_part(session: Session, folder: Path, models: dict[str, tuple[Path, str]], shard: Shard) -> None:
    """What `_evaluate_all` needs of a shard's keys, in journals of its own: another machine may have another cache."""
    references = None
    for name, model in models.items():
        journal = shard.beside(folder / f"{name}.partial.jsonl")
        if name == "base":
            merge([_shared_replies(session)], journal, lambda row: row.get("at"))
        with _answering(session, name, model, journal, sampling=references is None, parts=shard.count) as answerer:
            if references is None:
                references = core.sample_references(session.renderer, session.settings, answerer, shard.holds)
            core.generate(session.facts, session.renderer, session.settings, session.verifier, answerer, references, shard.holds)
        gc.collect()


@contextmanager
def _answering(
    session: Session, name: str, model: tuple[Path, str], journal: Path, *, sampling: bool, parts: int = 1
) -> Iterator[Answerer]:
    """One model that answers, with its progress; `sampling`: the reference replies too are to come from it."""
    settings, (folder, model_hash) = session.settings, model
    general = len(core.bundled("general_prompts.jsonl")[: settings.forgetting_prompts]) if sampling else 0
    items = core.count_items(session.facts, settings) + general
    with session.watcher.task(f"evaluating {name}", -(-items // parts)) as task:
        answerer = Answerer(
            lambda: session.load_to_read(folder),
            model_hash=model_hash,
            precision=session.precision,
            stops=session.renderer.stops.ids,
            journal=journal,
            token_budget=settings.token_budget,
            on_done=task.advance,
        )
        try:
            yield answerer
        finally:
            answerer.close()


def _shared_replies(session: Session) -> Path:
    return cache_folder() / "replies" / f"{session.base_hash}.jsonl"


@contextmanager
def _timed(session: Session, stage: str) -> Iterator[None]:
    """Log how long a stage took in this process, when it ends well."""
    started = time.perf_counter()
    yield
    session.run.log("stage", name=stage, seconds=round(time.perf_counter() - started, 3))
