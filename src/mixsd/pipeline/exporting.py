"""`mixsd.export`: a run's accepted targets in the forms that other trainers read.

`ids` is the truth: what was decoded and is trained on, for tools that take token ids (TRL, the Trainer of transformers). `chat` is
text, for tools that take nothing else (axolotl, NeMo-RL); they render and encode it themselves. How many targets come out as
other ids that way is measured for every export, since what they then train on is no longer the run's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixsd import loading
from mixsd.errors import UserError, did_you_mean
from mixsd.mixing.targets import Target
from mixsd.pipeline.run import Run
from mixsd.pipeline.session import Session
from mixsd.pipeline.stages import accepted_targets
from mixsd.progress import Watcher
from mixsd.storage import read_jsonl, write_jsonl

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_IGNORED = -100  # the label of a token that is not trained on, as torch's cross-entropy has it
_MARK = "Qx7mark"


def export(run: str | Path, *, format: str = "ids", output: str | Path | None = None) -> dict[str, Any]:
    """Write the accepted targets of a run as JSONL, one line each, in their order; a file that is there is replaced at once.

    Args:
        run: the run folder.
        format: ids: `input_ids`, `completion_mask` (1 on the target) and `labels` (-100 on the prompt). chat: `messages`, of the
            system message if the run has one, the question as it was asked, and the target's text.
        output: the file. Default: export-FORMAT.jsonl in the run folder.

    Returns:
        JSON values: `format`, `output`, `written`, `left_out` (targets that were not accepted), and `changed`: of how many targets
        the `prompt`, the `target` (its stop token included) or `any` of the two comes out as other ids where the messages are
        rendered with the run's template at its defaults and encoded. What a template writes after the stop token is not counted.

    Raises:
        UserError: not a run, no targets, an unknown format, or chat without facts or template.
    """
    opened = Run(Path(run).expanduser())
    settings = opened.settings()
    if format not in _FORMATS:
        raise UserError(f'--format "{format}": unknown{did_you_mean(format, _FORMATS)}; known: {", ".join(_FORMATS)}')
    if not opened.targets_file.is_file():
        raise UserError(f"{opened.folder}: has no targets.jsonl; run `mixsd mix` on it first (a method without targets has none)")
    file = Path(output).expanduser() if output is not None else opened.folder / f"export-{format}.jsonl"
    if file.resolve().parent == opened.folder.resolve() and not file.name.startswith("export-"):
        raise UserError(f"{file}: would stand among the run's own files; choose another --output")
    # The tuned model's tokenizer and template are the base's, and at hand wherever the run is.
    tuned = loading.LocalModel(settings.model, opened.model, None) if opened.model.is_dir() else None
    located = tuned or loading.locate(settings.model, offline=True)
    session = Session(opened, settings, located, base_hash="", facts=[], duplicates=0, watcher=Watcher())
    counts = _Counts()
    write_jsonl(file, _FORMATS[format](session, counts))
    return {
        "format": format,
        "output": str(file),
        "written": counts.written,
        "left_out": sum(1 for _ in read_jsonl(opened.targets_file)) - counts.written,
        "changed": dict(counts.changed),
    }


@dataclass
class _Counts:
    written: int = 0
    changed: dict[str, int] = field(default_factory=lambda: {"prompt": 0, "target": 0, "any": 0})


def _accepted(session: Session, counts: _Counts) -> Iterator[Target]:
    for target in accepted_targets(session):
        counts.written += 1
        yield target
    if not counts.written:
        raise UserError(f"{session.run.targets_file}: holds no accepted target")


def _as_ids(session: Session, counts: _Counts) -> Iterator[dict[str, Any]]:
    for target in _accepted(session, counts):
        prompt, ids = target.prompt_ids, target.target_ids
        yield {
            "input_ids": [*prompt, *ids],
            "completion_mask": [0] * len(prompt) + [1] * len(ids),
            "labels": [_IGNORED] * len(prompt) + ids,
        }


def _as_chat(session: Session, counts: _Counts) -> Iterator[dict[str, Any]]:
    if not session.renderer.has_template:
        raise UserError(f"{session.run.folder}: its model has no chat template to render messages with; use --format ids")
    system = [{"role": "system", "content": session.settings.system}] if session.settings.system else []
    for target, question in _with_questions(session, counts):
        messages = [
            *system,
            {"role": "user", "content": session.renderer.question(question)},
            {"role": "assistant", "content": target.text},
        ]
        prompt, reply = _come_back(session.tokenizer, messages, target)
        counts.changed["prompt"] += not prompt
        counts.changed["target"] += not reply
        counts.changed["any"] += not (prompt and reply)
        yield {"messages": messages}


def _with_questions(session: Session, counts: _Counts) -> Iterator[tuple[Target, str]]:
    """The targets with what they answer; both files are in the order of the facts, so neither has to be in memory."""
    run = session.run
    if not run.facts_file.is_file():
        raise UserError(f"{run.folder}: has no facts.jsonl, so no questions; use --format ids")
    facts = read_jsonl(run.facts_file)
    fact: dict[str, Any] | None = None
    for target in _accepted(session, counts):
        while fact is None or fact.get("id") != target.id:
            fact = next(facts, None)
            if fact is None:
                raise UserError(f'{run.targets_file}: the target of "{target.id}" does not follow the order of {run.facts_file}')
        yield target, fact["question"]


def _come_back(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], target: Target) -> tuple[bool, bool]:
    """Whether the prompt, and the target behind it, have their ids again once the messages are rendered and encoded.

    Where the reply begins is seen by rendering another one: its own text might stand anywhere, and a template may trim it.
    """
    other = [*messages[:-1], {"role": "assistant", "content": _MARK}]
    before, _, _ = _rendered(tokenizer, other).rpartition(_MARK)
    whole = _rendered(tokenizer, messages)
    ids = _encoded(tokenizer, whole)
    prompt = ids[: len(target.prompt_ids)] == target.prompt_ids and whole.startswith(before)
    start = _encoded(tokenizer, before)
    reply = whole.startswith(before) and ids[: len(start)] == start
    reply = reply and ids[len(start) : len(start) + len(target.target_ids)] == target.target_ids
    return prompt, reply


def _rendered(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]]) -> str:
    # Without the switches of the run's renderer, which other tools know nothing of.
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False))
    except Exception as error:
        first = (str(error).strip() or repr(error)).splitlines()[0]
        raise UserError(f"the model's chat template refuses the messages ({first}); use --format ids") from error


def _encoded(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False))


_FORMATS: dict[str, Callable[[Session, _Counts], Iterator[dict[str, Any]]]] = {"ids": _as_ids, "chat": _as_chat}
