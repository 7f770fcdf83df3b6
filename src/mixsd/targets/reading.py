"""A run's targets, read back: for training (`accepted_targets`), to be looked at (`inspect`), and for other trainers (`export`).

The ids are what is stored and trained on; texts are a view. Each id is decoded alone, so a character that is spread over several
tokens shows as replacement characters. Files are read line by line and only as far as needed.

An export as `ids` is exact (TRL, the Trainer of transformers). As `chat` it is text, for tools that render and encode it themselves
(axolotl, NeMo-RL): how many targets come out as other ids that way is measured.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixsd.decoding.requests import EXPERT, GATED, NAIVE, REFERENCE
from mixsd.errors import UserError, did_you_mean, first_line
from mixsd.models import loading
from mixsd.progress import Watcher
from mixsd.run.folder import Run
from mixsd.run.session import Session
from mixsd.storage import Journal, read_jsonl, write_jsonl
from mixsd.targets.target import Target

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def accepted_targets(session: Session) -> Iterator[Target]:
    """The targets that are trained on, in the order of the facts."""
    for number, row in enumerate(read_jsonl(session.run.targets_file), 1):
        try:
            target = Target.from_json(row)
        except (TypeError, KeyError) as error:
            raise UserError(f"{session.run.targets_file}: line {number}: not a target ({error})") from error
        if target.accepted:
            yield target


def inspect(
    source: str | Path, *, limit: int = 5, ids: Collection[str] = (), attempts: bool = False, model: str | None = None
) -> list[dict[str, Any]]:
    """Show targets, or with `attempts` every decoding that was tried, the rejected ones included.

    Args:
        source: a run folder, or a file of targets.
        limit: how many items, from the beginning of the file; not applied where `ids` are given.
        ids: only the items of these facts, all of them.
        attempts: read the run's attempts.jsonl instead of its targets.
        model: whose tokenizer makes the texts: a folder, a hub name already on this machine, a .gguf file or the built-in
            model. Default for a run: its own. Without one the texts are None.

    Returns one item per target, in the order of the file: `id`, `lambda`, `sample`, `attempt`, `accepted`, `reason`,
    `decoded_tokens` (of this attempt alone with `attempts`), `question` (None where the run's facts are not at hand), `text`,
    `canonical` and `tokens`. A token is `id`, `text`, `supervised`, `source` ('e', 'n', 'g' or 'r'; None in the prompt) and
    `base_nll` (nats; None where it was not measured); the prompt's come first.
    Raises `UserError`: no such file, a line that is not a target, an id that is not in the file, or a model that is not there.
    """
    source = Path(source).expanduser()
    if limit < 1:
        raise UserError(f"--limit {limit}: must be at least 1")
    if source.is_dir():
        return _inspect_run(Run(source), limit, ids, attempts, model)
    if not source.is_file():
        raise UserError(f"{source}: no such run folder or file of targets")
    if attempts:
        raise UserError(f"{source}: attempts are shown of a run folder; name the folder")
    tokenizer = loading.load_tokenizer(loading.locate(model, offline=True).folder) if model else None
    return [_item(target, None, tokenizer) for target in _chosen(read_targets(source), source, limit, ids)]


def _inspect_run(run: Run, limit: int, ids: Collection[str], attempts: bool, model: str | None) -> list[dict[str, Any]]:
    session = _session(run, model)
    file = run.attempts_file if attempts else run.targets_file
    if not file.is_file():
        hint = "nothing was decoded" if attempts else "run `mixsd mix` on it first, or look at its attempts"
        raise UserError(f"{run.folder}: has no {file.name}; {hint}")
    found = list(_chosen(_attempts(file) if attempts else read_targets(file), file, limit, ids))
    wanted = {target.id for target in found}
    facts = read_jsonl(run.facts_file) if run.facts_file.is_file() else ()
    questions: dict[str, str] = {}
    for row in facts:
        if row.get("id") in wanted:
            questions[row["id"]] = row["question"]
            if len(questions) == len(wanted):
                break
    if attempts:  # the journal leaves out the naive prompt, and whether the text encodes back to the ids
        prompts = {key: session.renderer.naive(question) for key, question in questions.items()}
        canonical = session.renderer.is_canonical
        found = [replace(one, prompt_ids=prompts.get(one.id, []), canonical=canonical(one.target_ids)) for one in found]
    return [_item(target, questions.get(target.id), session.tokenizer) for target in found]


def _session(run: Run, model: str | None = None) -> Session:
    """The run's tokenizer and renderer without its facts and hashes. The tuned model's are the base's, and always at hand."""
    settings = run.settings()
    if model is None and run.model.is_dir():
        located = loading.LocalModel(settings.model, run.model, None)
    else:
        located = loading.locate(model or settings.model, revision=None if model else settings.revision, offline=True)
    return Session(run, settings, located, base_hash="", facts=[], duplicates=0, watcher=Watcher())


def read_targets(file: Path) -> Iterator[Target]:
    """The lines of a file of targets, each checked; a bad one is a `UserError` with its number."""
    for number, row in enumerate(read_jsonl(file), 1):
        yield _checked(row, f"{file}: line {number}")


def _attempts(file: Path) -> Iterator[Target]:
    """The journal's attempts as targets without a prompt."""
    for place, row in Journal(file).read():
        own = {"prompt_ids": [], "decoded_tokens": len(row.get("target_ids") or [])}
        yield _checked({**row, **own}, f"{file}: byte {place}")


def _checked(row: dict[str, Any], where: str) -> Target:
    try:
        target = Target.from_json(row)
        lengths = {len(target.target_ids), len(target.sources), len(target.base_logprobs) or len(target.target_ids)}
        ids = all(isinstance(token, int) and token >= 0 for token in [*target.prompt_ids, *target.target_ids])
        numbers = all(isinstance(value, int | float) for value in target.base_logprobs)
    except (TypeError, KeyError) as error:
        raise UserError(f"{where}: not a target ({error})") from error
    if len(lengths) > 1 or not ids or not numbers:
        raise UserError(f"{where}: not a target (ids, sources and log-probabilities must be of one length, ids integers)")
    if unknown := set(target.sources) - {EXPERT, NAIVE, GATED, REFERENCE}:
        raise UserError(f'{where}: not a target (unknown source "{min(unknown)}"; known: e, n, g, r)')
    return target


def _chosen(targets: Iterator[Target], file: Path, limit: int, ids: Collection[str]) -> Iterator[Target]:
    if not ids:
        yield from islice(targets, limit)
        return
    missing = dict.fromkeys(ids)
    for target in targets:
        if target.id in ids:
            missing.pop(target.id, None)
            yield target
    if missing:
        raise UserError(f'{file}: holds nothing of id "{next(iter(missing))}"')


def _item(target: Target, question: str | None, tokenizer: PreTrainedTokenizerBase | None) -> dict[str, Any]:
    tokens = [_token(token, tokenizer, None, None) for token in target.prompt_ids] + tokens_of(target, tokenizer)
    names = ("id", "lambda", "sample", "attempt", "accepted", "reason", "decoded_tokens")
    values = target.to_json()
    view = {"question": question, "text": target.text, "canonical": target.canonical, "tokens": tokens}
    return {name: values[name] for name in names} | view


def tokens_of(target: Target, tokenizer: PreTrainedTokenizerBase | None) -> list[dict[str, Any]]:
    """The tokens that are trained on, each as in `inspect`."""
    logprobs: Sequence[float | None] = target.base_logprobs or [None] * len(target.target_ids)
    return [
        _token(token, tokenizer, source, logprob)
        for token, source, logprob in zip(target.target_ids, target.sources, logprobs, strict=True)
    ]


def _token(token: int, tokenizer: PreTrainedTokenizerBase | None, source: str | None, logprob: float | None) -> dict[str, Any]:
    return {
        "id": token,
        "text": _text(token, tokenizer) if tokenizer else None,
        "supervised": source is not None,
        "source": source,
        "base_nll": None if logprob is None else 0.0 - logprob,
    }


def _text(token: int, tokenizer: PreTrainedTokenizerBase) -> str:
    text = str(tokenizer.decode([token], skip_special_tokens=False, clean_up_tokenization_spaces=False))
    # A SentencePiece decoder drops the space at the beginning of a text, which every token is here.
    spaced = str(tokenizer.convert_ids_to_tokens(token)).startswith("▁")
    return f" {text}" if spaced and not text.startswith(" ") else text


_IGNORED = -100  # the label of a token that is not trained on, as torch's cross-entropy has it
_MARK = "Qx7mark"


def export(run: str | Path, *, format: str = "ids", output: str | Path | None = None) -> dict[str, Any]:
    """Write the accepted targets of a run as JSONL, one line each, in their order; a file that is there is replaced at once.

    Args:
        run: the run folder.
        format: ids: `input_ids`, `completion_mask` (1 on the target) and `labels` (-100 on the prompt). chat: `messages`, of the
            system message if the run has one, the question as it was asked, and the target's text.
        output: the file. Default: export-FORMAT.jsonl in the run folder.

    Returns JSON values: `format`, `output`, `written`, `left_out` (targets that were not accepted), and `changed`: of how many
    targets the `prompt`, the `target` (its stop token included) or `any` of the two comes out as other ids where the messages are
    rendered with the run's template at its defaults and encoded. What a template writes after the stop token is not counted.
    Raises `UserError`: not a run, no targets, an unknown format, or chat without facts or template.
    """
    opened = Run(Path(run).expanduser())
    opened.manifest()
    if format not in _FORMATS:
        raise UserError(f'--format "{format}": unknown{did_you_mean(format, _FORMATS)}; known: {", ".join(_FORMATS)}')
    if not opened.targets_file.is_file():
        raise UserError(f"{opened.folder}: has no targets.jsonl; run `mixsd mix` on it first (a method without targets has none)")
    file = Path(output).expanduser() if output is not None else opened.folder / f"export-{format}.jsonl"
    if file.resolve().parent == opened.folder.resolve() and not file.name.startswith("export-"):
        raise UserError(f"{file}: would stand among the run's own files; choose another --output")
    session, written = _session(opened), 0
    changed = dict.fromkeys(("prompt", "target", "any"), 0)

    def rows() -> Iterator[dict[str, Any]]:
        nonlocal written
        for written, row in enumerate(_FORMATS[format](session, changed), 1):  # noqa: B007
            yield row
        if not written:
            raise UserError(f"{opened.targets_file}: holds no accepted target")

    write_jsonl(file, rows())
    left_out = sum(1 for _ in read_jsonl(opened.targets_file)) - written
    return {"format": format, "output": str(file), "written": written, "left_out": left_out, "changed": changed}


def _as_ids(session: Session, changed: dict[str, int]) -> Iterator[dict[str, Any]]:
    for target in accepted_targets(session):
        prompt, ids = target.prompt_ids, target.target_ids
        yield {
            "input_ids": [*prompt, *ids],
            "completion_mask": [0] * len(prompt) + [1] * len(ids),
            "labels": [_IGNORED] * len(prompt) + ids,
        }


def _as_chat(session: Session, changed: dict[str, int]) -> Iterator[dict[str, Any]]:
    if not session.renderer.has_template:
        raise UserError(f"{session.run.folder}: its model has no chat template to render messages with; use --format ids")
    system = [{"role": "system", "content": session.settings.system}] if session.settings.system else []
    for target, question in _with_questions(session):
        asked = {"role": "user", "content": session.renderer.question(question)}
        messages = [*system, asked, {"role": "assistant", "content": target.text}]
        prompt, reply = _come_back(session.tokenizer, messages, target)
        changed["prompt"] += not prompt
        changed["target"] += not reply
        changed["any"] += not (prompt and reply)
        yield {"messages": messages}


def _with_questions(session: Session) -> Iterator[tuple[Target, str]]:
    """The targets with what they answer; both files are in the order of the facts, so neither has to be in memory."""
    run = session.run
    if not run.facts_file.is_file():
        raise UserError(f"{run.folder}: has no facts.jsonl, so no questions; use --format ids")
    facts = read_jsonl(run.facts_file)
    fact: dict[str, Any] | None = None
    for target in accepted_targets(session):
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
        raise UserError(f"the model's chat template refuses the messages ({first_line(error)}); use --format ids") from error


def _encoded(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False))


_FORMATS: dict[str, Callable[[Session, dict[str, int]], Iterator[dict[str, Any]]]] = {"ids": _as_ids, "chat": _as_chat}
