"""What a target is made of, token by token: where each one came from, whether it is trained on, how likely the base found it.

The ids are what is stored and trained on; the texts here are a view. Each id is decoded alone, so a character that is spread
over several tokens shows as replacement characters. Files are read line by line and only as far as needed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixsd import loading
from mixsd.decoding.requests import EXPERT, GATED, NAIVE, REFERENCE
from mixsd.errors import UserError
from mixsd.mixing.targets import Target
from mixsd.pipeline.run import Run
from mixsd.pipeline.session import Session
from mixsd.progress import Watcher
from mixsd.storage import Journal, read_jsonl

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


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

    Returns:
        One item per target, in the order of the file: `id`, `lambda`, `sample`, `attempt`, `accepted`, `reason`,
        `decoded_tokens` (of this attempt alone with `attempts`), `question` (None where the run's facts are not at hand), `text`,
        `canonical` and `tokens`. A token is `id`, `text`, `supervised`, `source` ('e', 'n', 'g' or 'r'; None in the prompt) and
        `base_nll` (nats; None where it was not measured); the prompt's come first.

    Raises:
        UserError: no such file, a line that is not a target, an id that is not in the file, or a model that is not there.
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
    questions = _questions(run, {target.id for target in found})
    if attempts:
        found = [_with_prompt(target, questions.get(target.id), session) for target in found]
    return [_item(target, questions.get(target.id), session.tokenizer) for target in found]


def _session(run: Run, model: str | None) -> Session:
    """The run's tokenizer and renderer without its facts and hashes. The tuned model's are the base's, and always at hand."""
    settings = run.settings()
    if model is None and run.model.is_dir():
        located = loading.LocalModel(settings.model, run.model, None)
    else:
        located = loading.locate(model or settings.model, offline=True)
    return Session(run, settings, located, base_hash="", facts=[], duplicates=0, watcher=Watcher())


def read_targets(file: Path) -> Iterator[Target]:
    """The lines of a file of targets, each checked; a bad one is a `UserError` with its number."""
    for number, row in enumerate(read_jsonl(file), 1):
        yield _checked(row, f"{file}: line {number}")


def _attempts(file: Path) -> Iterator[Target]:
    """The journal's attempts as targets without a prompt."""
    for place, row in Journal(file).read():
        row.pop("broke_at", None)
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


def _questions(run: Run, wanted: set[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    if run.facts_file.is_file():
        for row in read_jsonl(run.facts_file):
            if row.get("id") in wanted:
                found[row["id"]] = row["question"]
                if len(found) == len(wanted):
                    break
    return found


def _with_prompt(attempt: Target, question: str | None, session: Session) -> Target:
    """Give an attempt what the journal leaves out: the naive prompt, and whether its text encodes back to its ids."""
    values = attempt.to_json()
    values["prompt_ids"] = session.renderer.naive(question) if question is not None else []
    values["canonical"] = session.renderer.is_canonical(attempt.target_ids)
    return Target.from_json(values)


def _item(target: Target, question: str | None, tokenizer: PreTrainedTokenizerBase | None) -> dict[str, Any]:
    tokens = [_token(token, tokenizer, None, None) for token in target.prompt_ids] + tokens_of(target, tokenizer)
    return {
        "id": target.id,
        "lambda": target.lam,
        "sample": target.sample,
        "attempt": target.attempt,
        "accepted": target.accepted,
        "reason": target.reason,
        "decoded_tokens": target.decoded_tokens,
        "question": question,
        "text": target.text,
        "canonical": target.canonical,
        "tokens": tokens,
    }


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
