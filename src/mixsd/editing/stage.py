"""The stage that edits facts in instead of training on them: the counterpart of `training.train` for the method memit.

Each fact's target is the answer to its chat-rendered question, so `targets.jsonl` counts every fact as for the other methods:
accepted is what the edited model says, rejected what it does not, unusable what could not be edited. Values, which are what
takes time, are kept in the run folder's `values.jsonl`; second moments in the cache, for every run on that model and text.
Everything else is made again after a kill, so that a resumed edit gives the weights of an undisturbed one.
"""

from __future__ import annotations

import gc
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mixsd.decoding.engine import path as decoding_path
from mixsd.decoding.engine import score
from mixsd.editing import memit
from mixsd.editing.edits import EditPrompt, MemitConfig, UnusableError, edit_prompts, layers_of, of_settings
from mixsd.editing.memit import EditResult
from mixsd.editing.parts import Moments, paragraphs, second_moments
from mixsd.errors import UserError
from mixsd.facts.fact import Fact
from mixsd.models.folder import check_savable
from mixsd.run.session import Session, timed
from mixsd.settings import Settings
from mixsd.storage import Journal, atomic_folder, cache_folder, write_jsonl
from mixsd.targets import stage
from mixsd.targets.target import Target, TargetSummary
from mixsd.training.stage import load_base, write_tuned

if TYPE_CHECKING:
    from transformers import PreTrainedModel

VALUES = "values.jsonl"
_SCORED_AT_A_TIME = 64
_REASONS_SHOWN = 3


class _EditableFact(NamedTuple):
    """A fact with its edit's prompt and target, or the reason why it has none."""

    fact: Fact
    prompt: EditPrompt | None
    reason: str | None = None


def check(settings: Settings) -> MemitConfig:
    """MEMIT's own settings; no text for the second moments and layers that cannot be read are `UserError`s."""
    config = of_settings(settings)
    if not settings.edit_text:
        raise UserError(
            "memit needs ordinary text to measure how the weights are used: name a local text file, such as WikiText's training "
            "part, with --edit-text"
        )
    if not Path(settings.edit_text).expanduser().is_file():
        raise UserError(f"--edit-text {settings.edit_text}: no such file")
    return config


def edit(session: Session) -> None:
    """Edit the facts in and leave `targets.jsonl` and `model/`, a plain model folder that was reloaded and checked.

    Raises:
        UserError: as `check`; no fact can be edited; MEMIT does not know how the model is built.
        MixsdError: the edited model is not finite, or not what its folder holds.
    """
    run = session.run
    if run.model.is_dir():
        return
    config = check(session.settings)
    asked = _asked(session, config)
    with timed(session, "edit"):
        model = load_base(session)
        check_savable(model)
        session.note_path("decoding", decoding_path(model))
        # Before the edit: Eq. 3 is about the base model.
        pairs = [(item.prompt.ids, item.prompt.target) for item in asked if item.prompt]
        starts = range(0, len(pairs), _SCORED_AT_A_TIME)
        logprobs = [own for start in starts for own in score(model, pairs[start : start + _SCORED_AT_A_TIME])]
        reference = stage.reference_statistics(session, model)
        moments, result = _edited(session, model, config)
        # A fact can still turn out too long behind a prefix.
        _refuse_none(session, [(fact.id, fact.reason) for fact in result.facts if fact.status == "unusable"])
        summary = TargetSummary()
        targets = _targets(session, asked, result, logprobs)
        for target in targets:
            summary.add(target)
        write_jsonl(run.targets_file, (target.to_json() for target in targets))
        run.log("mixed", targets=summary.to_json(), reference=reference)
        run.log("edited", **asdict(result), text=moments.text)
        counts = ", ".join(f"{result.count(status)} {status}" for status in ("edited", "failed", "unusable"))
        missed = _reasons((fact.id, fact.reason) for fact in result.facts if fact.status != "edited")
        session.watcher.say(f"memit: of {len(result.facts)} facts {counts}{'; ' if missed else ''}{missed}")
        with atomic_folder(run.model) as folder:
            prompt_ids = next(item.prompt.ids for item in asked if item.prompt)
            write_tuned(session, model, folder, prompt_ids, _decided(session.settings, result))
        del model
        gc.collect()


def _asked(session: Session, config: MemitConfig) -> list[_EditableFact]:
    """What each fact is edited at, before anything is loaded."""
    asked = []
    for fact in session.facts:
        try:
            asked.append(_EditableFact(fact, edit_prompts(fact, session.renderer, config, (), session.context)[0]))
        except UnusableError as error:
            asked.append(_EditableFact(fact, None, str(error)))
    _refuse_none(session, [(item.fact.id, item.reason) for item in asked if item.prompt is None])
    return asked


def _refuse_none(session: Session, unusable: list[tuple[str, str | None]]) -> None:
    if len(unusable) == len(session.facts):
        raise UserError(
            f"memit: none of {len(unusable)} facts can be edited in ({_reasons(unusable)}); a fact needs a subject that its "
            "question names"
        )


def _edited(session: Session, model: PreTrainedModel, config: MemitConfig) -> tuple[Moments, EditResult]:
    settings, watcher = session.settings, session.watcher
    with watcher.task("second moments", settings.edit_tokens) as task:
        moments = second_moments(
            model,
            session.tokenizer,
            paragraphs(Path(str(settings.edit_text)).expanduser()),
            layers_of(config, model.config),
            model_hash=session.base_hash,
            numerics=session.numerics,
            cache=cache_folder() / "moments",
            tokens=settings.edit_tokens,
            on_done=task.advance,
        )
    with Journal(session.run.folder / VALUES) as journal, watcher.task("editing", len(session.facts)) as task:
        own: dict[str, Any] = {"seed": settings.seed, "journal": journal, "on_done": task.advance}
        return moments, memit.edit(model, session.renderer, session.facts, moments, config, **own)


def _targets(session: Session, asked: Sequence[_EditableFact], result: EditResult, logprobs: list[list[float]]) -> list[Target]:
    """One target for each fact, in their order; `logprobs` are those of the facts that have a prompt."""
    scored, renderer = iter(logprobs), session.renderer
    targets = []
    for item, edited in zip(asked, result.facts, strict=True):
        prompt = item.prompt or EditPrompt([], 0, [])
        target = Target(
            id=edited.id,
            lam=0.0,
            sample=0,
            attempt=0,
            prompt_ids=prompt.ids,
            target_ids=prompt.target,
            sources="r" * len(prompt.target),
            base_logprobs=next(scored) if item.prompt else [],
            decoded_tokens=0,
            text=renderer.reply_text(prompt.target) if item.prompt else "",
            accepted=edited.status == "edited",
            reason=edited.reason,
            canonical=not item.prompt or renderer.is_canonical(prompt.target),
            usable=edited.status != "unusable",
        )
        targets.append(target)
    return targets


def _reasons(missed: Iterable[tuple[str, str | None]]) -> str:
    """The first reasons, each with its first fact and how many more it is true of."""
    by_reason: dict[str, list[str]] = {}
    for id_, reason in missed:
        by_reason.setdefault(reason or "", []).append(id_)
    told = [
        f"{ids[0]}{f' and {len(ids) - 1} more' if len(ids) > 1 else ''}: {reason}"
        for reason, ids in list(by_reason.items())[:_REASONS_SHOWN]
    ]
    return "; ".join(told) + ("; and others" if len(by_reason) > _REASONS_SHOWN else "")


def _decided(settings: Settings, result: EditResult) -> dict[str, Any]:
    """What decided the edit, as the model folder tells it."""
    names = ("edit_tokens", "edit_steps", "edit_lr", "edit_decay", "edit_kl", "edit_clamp", "seed", "answer_format", "thinking")
    own = {name: getattr(settings, name) for name in names}
    return {"edit_layers": list(result.changes), "edit_weight": result.weight, **own}
