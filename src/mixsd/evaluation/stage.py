"""The stage that evaluates: base and tuned answer every suite; leaves `evaluation/SUITE/{base,tuned}.jsonl` and how it was asked.

Replies lie in journals, the base's in the cache where all runs share them, the tuned model's in the run folder; so a further suite, or
a larger sample, generates only what is new. A suite that was asked otherwise before is asked again. A run may be of one model alone,
which is then the base.

Judge once more what a run's models have said, with the judges as they are now; nothing is generated.

The questions are made anew, as `asked.json` says they were asked, and each reply is judged as it stands in the run folder.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mixsd.decoding.requests import Decoding
from mixsd.errors import MixsdError, UserError
from mixsd.evaluation import suites
from mixsd.evaluation.asked import (
    MODELS,
    asked_file,
    asked_suites,
    examination,
    examine,
    is_asked_by_lm_eval,
    is_done,
    is_half_done,
    replies_file,
    write_suite,
)
from mixsd.evaluation.benchmarks.benchmark import is_benchmark
from mixsd.evaluation.questions import Answerer, Question, Reply, answering, ask, generate, journal_of_base, judge_all, prompts_of
from mixsd.facts.records import bundled_records
from mixsd.models import loading
from mixsd.run import engines
from mixsd.run.engines import TRANSFORMERS
from mixsd.run.session import Session, timed
from mixsd.storage import Shard, digest, left_beside, merge, read_jsonl, write_json, write_jsonl


@dataclass(frozen=True)
class Candidate:
    """A model that is asked: `name` is base or tuned."""

    name: str
    folder: Path
    hash: str


def evaluate(session: Session, tuned: Path | None = None) -> None:
    """Ask base and tuned the session's suites, those that have not been asked so.

    `tuned`: the tuned model's folder; None takes the run's own.
    """
    tuned = tuned or session.run.model
    if not session.alone and not tuned.is_dir():
        raise UserError(f"{session.run.folder}: has no model/ yet; run `mixsd train` on it first")
    missing = [name for name in examination(session).names if not is_done(session, name)]
    if not missing:
        return
    if session.corpus is None and session.run.manifest().get("identity", {}).get("corpus"):
        raise UserError(f"{session.run.splits}: the corpus's tests are gone; the command that made the run writes them anew")
    models = [Candidate("base", session.located.folder, session.base_hash)]
    if not session.alone:
        models.append(Candidate("tuned", tuned, loading.model_hash(tuned)))
    asked = {name: examination(session).questions(name) for name in missing if not is_asked_by_lm_eval(name)}
    with timed(session, "evaluate"):
        if shard := Shard.of(session.settings.shard):
            _generate_part(session, asked, models, shard)
            return
        if asked:
            _evaluate_all(session, asked, models)
        for name in missing:
            if is_asked_by_lm_eval(name):
                _ask_by_lm_eval(session, name, models)
    if examination(session).skipped:
        session.run.log("skipped", suites=examination(session).skipped)


def count(session: Session, asked: dict[str, list[Question]]) -> int:
    """How many replies and scores one model makes, for a progress bar and a plan."""
    return sum(map(len, asked.values())) + (_references(session) if suites.CORE in asked else 0)


def _references(session: Session) -> int:
    return len(bundled_records("general_prompts.jsonl")[: session.settings.forgetting_prompts])


def _evaluate_all(session: Session, asked: dict[str, list[Question]], models: list[Candidate]) -> None:
    references: dict[str, Reply] | None = None
    paths: set[str | None] = set()
    for model in models:
        journal = _journal(session, model)
        merge(left_beside(_parts(session, model)), journal, lambda row: row.get("at"))
        with _answering(session, asked, model, journal) as answerer:
            if references is None:
                references = _sampled(session, asked, answerer)
            for name, questions in asked.items():
                rows = ask(questions, session.renderer, answerer, session.context)
                if name == suites.CORE:
                    rows += suites.forgetting(answerer, session.renderer, references)
                _refuse_failures(session, name, model, rows)
                write_suite(session.run, examination(session).asked(name), model.name, rows, whole=model is models[-1])
            paths.add(answerer.path)
        gc.collect()
    if len(paths) > 1:
        session.watcher.say(
            f"base and tuned were decoded in different ways ({'; '.join(sorted(map(str, paths)))}), and near-ties may fall otherwise; "
            f"to ask the base anew, delete {_journal(session, models[0])}"
        )
    for part in session.run.evaluation.glob("*.partial*.jsonl"):
        part.unlink()


def _refuse_failures(session: Session, suite: str, model: Candidate, rows: list[dict[str, Any]]) -> None:
    replied = [row for row in rows if row["reply_ids"]]
    failed = [row for row in replied if row["outcome"] == "error"]
    if len(failed) * 10 > len(replied):
        why = f" ({failed[0]['reason']})" if failed[0].get("reason") else ""
        raise MixsdError(f"the verifier of {suite} failed on {len(failed)} of {len(replied)} replies of {model.name}{why}")
    if (unasked := len(rows) - len(replied)) and model.name == "base":
        session.watcher.say(
            f"{suite}: {unasked} of {len(rows)} questions leave no room for a reply in the context of {session.context}; "
            "they count as errors"
        )


def _ask_by_lm_eval(session: Session, suite: str, models: list[Candidate]) -> None:
    """What lm-eval asks and scores itself, in a process of its own, one model after the other."""
    import torch

    from mixsd.evaluation import lm_eval

    if session.device.type == "cuda":
        torch.cuda.empty_cache()  # memory that this process has freed and keeps is not there for another
    settings = session.settings
    for model in models[is_half_done(session, suite) :]:
        ran = lm_eval.run(
            suite.removeprefix(suites.LM_EVAL),
            model.folder,
            device=str(session.device),
            dtype=str(session.dtype).removeprefix("torch."),
            limit=settings.limit,
            log=replies_file(session.run, suite, model.name).with_suffix(".log"),
            offline=settings.offline,
            trust_remote_code=settings.trust_remote_code,
            chat_template=settings.lm_eval_chat_template,
            say=session.watcher.say,
        )
        asked = examination(session).asked(suite)
        write_suite(session.run, asked, model.name, ran.rows, whole=model is models[-1], results=ran.results, about=ran.about)


def _generate_part(session: Session, asked: dict[str, list[Question]], models: list[Candidate], shard: Shard) -> None:
    """What `_evaluate_all` needs of a shard's keys, in journals of its own: another machine may have another cache."""
    references: dict[str, Reply] | None = None
    for model in models:
        journal = shard.beside(_parts(session, model))
        if model.name == "base":
            merge([_journal(session, model)], journal, lambda row: row.get("at"))
        with _answering(session, asked, model, journal, parts=shard.count) as answerer:
            if references is None:
                references = _sampled(session, asked, answerer)
            _generate(session, asked, answerer)
            if suites.CORE in asked:
                suites.forgetting(answerer, session.renderer, references)
        gc.collect()


def _generate(session: Session, asked: dict[str, list[Question]], answerer: Answerer) -> None:
    shard = Shard.of(session.settings.shard)
    for questions in asked.values():
        generate(questions, session.renderer, answerer, shard.holds if shard else lambda key: True, session.context)


def _sampled(session: Session, asked: dict[str, list[Question]], base: Answerer) -> dict[str, Reply]:
    """The reference replies, which come from the base model; none where no suite needs them."""
    if suites.CORE not in asked:
        return {}
    shard = Shard.of(session.settings.shard)
    return suites.sample_references(session.renderer, session.settings, base, shard.holds if shard else lambda key: True)


@contextmanager
def _answering(
    session: Session, asked: dict[str, list[Question]], model: Candidate, journal: Path, *, parts: int = 1
) -> Iterator[Answerer]:
    """One model that answers, with its progress; the reference replies too come from the base.

    On another backend, a process of its own has answered before.
    """
    items = count(session, asked)
    if model.name == "base" and suites.CORE in asked:
        items += _references(session)
    if session.settings.backend != TRANSFORMERS:
        with session.watcher.task(f"{model.name} answers", -(-items // parts)) as task:
            engines.answer(session, model.name, model.folder, list(asked), journal, task.advance)
    with (
        session.watcher.task(f"evaluating {model.name}", -(-items // parts)) as task,
        answering(session, model.folder, model.hash, journal, engine=session.settings.backend, on_done=task.advance) as answerer,
    ):
        yield answerer


def answer_apart(
    session: Session,
    model: Candidate,
    names: list[str],
    journal: Path,
    decode: Callable[..., Iterator[Decoding]],
    on_done: Callable[[int], None],
) -> None:
    """Put a model's replies to some suites into a journal, decoded on a backend, in its process."""
    asked = {name: examination(session).questions(name) for name in names}
    with answering(
        session, model.folder, model.hash, journal, engine=session.settings.backend, on_done=on_done, backend=decode
    ) as answerer:
        if model.name == "base":
            _sampled(session, asked, answerer)
        _generate(session, asked, answerer)


def _journal(session: Session, model: Candidate) -> Path:
    """Where the replies of a model are kept: the base's are shared by all runs, the tuned model's are this run's own."""
    if model.name == "base":
        return journal_of_base(model.hash)
    return session.run.evaluation / "tuned.replies.jsonl"


def _parts(session: Session, model: Candidate) -> Path:
    return session.run.evaluation / f"{model.name}.partial.jsonl"


def regrade(session: Session) -> None:
    """Judge the replies of the session's suites (all that have been asked where it names none) once more.

    Raises:
        UserError: a suite has not been asked, or other questions would be asked now.
    """
    there = asked_suites(session.run)
    wanted = list(session.settings.suite) or [name for name in there if not is_asked_by_lm_eval(name)]
    for name in wanted:
        if name not in there:
            raise UserError(f"{session.run.folder}: has no replies to {name}; evaluate it first")
        if is_asked_by_lm_eval(name):
            raise UserError(f"--regrade: {name} is scored by lm-eval, when it is asked")
        _regrade(session, name, there[name])


def _regrade(session: Session, name: str, told: dict[str, Any]) -> None:
    if is_benchmark(name):
        how = {"limit": told["limit"], "benchmark_tokens": told["tokens"], "suite": [name]}
        how |= {"aime_samples": told["samples"]} if told["temperature"] else {}
        exam = examine(name, session.settings.model_copy(update=how))
        questions, asked = exam.questions(session.settings.seed), exam.asked
        if asked.data != told["data"]:
            raise UserError(f"{session.run.folder}: {name} was asked on other data than {asked.where} holds; evaluate it anew")
    else:
        questions, asked = examination(session).questions(name), examination(session).asked(name)
    by_key = {question.key: question for question in questions}
    hashes = {prompt.key: digest(prompt.ids) for prompt in prompts_of(questions, session.renderer, session.context)}
    for model in MODELS:
        file = replies_file(session.run, name, model)
        if not file.is_file():
            continue
        rows = list(read_jsonl(file))
        judged = [row for row in rows if row.get("outcome") is not None and row["reply_ids"]]
        for row in judged:
            if hashes.get(row["key"]) != row["prompt_hash"]:
                raise UserError(f"{file}: {row['key']} was asked otherwise than it would be now; evaluate {name} anew")
        with session.watcher.task(f"judging {name}, {model}", len(judged)) as task:
            for start in range(0, len(judged), 64):
                part = judged[start : start + 64]
                judge_all((by_key[row["key"]], row) for row in part)
                task.advance(len(part))
        write_jsonl(file, rows)
    write_json(asked_file(session.run, name), asked.to_json())
