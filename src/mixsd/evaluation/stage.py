"""The stage that evaluates: base and tuned answer every suite; leaves `evaluation/SUITE/{base,tuned}.jsonl` and how it was asked.

Replies lie in journals, the base's in the cache where all runs share them, so a further suite or a larger sample generates only what is
new. A suite that was asked otherwise is asked again. A run may be of one model alone, the base. `regrade` generates nothing.
"""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mixsd.decoding.requests import Decoding
from mixsd.errors import MixsdError, UserError
from mixsd.evaluation import lm_eval, suites
from mixsd.evaluation.asked import MODELS, asked_file, asked_suites, examination, examine, replies_file, was_asked, write_suite
from mixsd.evaluation.benchmarks.benchmark import LM_EVAL, is_benchmark
from mixsd.evaluation.questions import Answerer, Question, Reply, answering, ask, generate, journal_of_base, judge_all, prompts_of
from mixsd.facts.records import bundled_records
from mixsd.models import loading
from mixsd.run import engines
from mixsd.run.engines import TRANSFORMERS
from mixsd.run.session import Session, timed
from mixsd.storage import Shard, digest, left_beside, merge, read_jsonl, write_json, write_jsonl

_Questions = dict[str, list[Question]]  # by suite
Decode = Callable[..., Iterator[Decoding]]


@dataclass(frozen=True)
class Candidate:
    """A model that is asked: `name` is base or tuned."""

    name: str
    folder: Path
    hash: str


def evaluate(session: Session, tuned: Path | None = None) -> None:
    """Ask base and tuned (None: the run's own model) the session's suites, those that have not been asked so."""
    tuned = tuned or session.run.model
    if not session.alone and not tuned.is_dir():
        raise UserError(f"{session.run.folder}: has no model/ yet; run `mixsd train` on it first")
    asks = examination(session)
    missing = [name for name in asks.names if not was_asked(session, name, MODELS[:1] if session.alone else MODELS)]
    if not missing:
        return
    if session.corpus is None and session.run.manifest().get("identity", {}).get("corpus"):
        raise UserError(f"{session.run.splits}: the corpus's tests are gone; the command that made the run writes them anew")
    models = [Candidate("base", session.located.folder, session.base_hash)]
    if not session.alone:
        models.append(Candidate("tuned", tuned, loading.model_hash(tuned)))
    asked = {name: asks.questions(name) for name in missing if not name.startswith(LM_EVAL)}
    with timed(session, "evaluate"):
        shard = Shard.of(session.settings.shard)
        if asked or shard:
            _answer_all(session, asked, models, shard)
        if shard:
            return
        for name in missing:
            if name not in asked:
                _ask_by_lm_eval(session, name, models)
    if asks.skipped:
        session.run.log("skipped", suites=asks.skipped)


def _answer_all(session: Session, asked: _Questions, models: list[Candidate], shard: Shard | None) -> None:
    """Let the models answer, and write what they said; of a shard, only fill journals of its own: another machine has another cache."""
    references: dict[str, Reply] | None = None
    paths: set[str | None] = set()
    for model in models:
        journal, parts = _journal(session, model), session.run.evaluation / f"{model.name}.partial.jsonl"
        taken = left_beside(parts)
        if shard:
            taken, journal = [journal] if model.name == "base" else [], shard.beside(parts)
        merge(taken, journal, lambda row: row.get("at"))
        with _answering(session, asked, model, journal, parts=shard.count if shard else 1) as answerer:
            if references is None:
                references = _sampled(session, asked, answerer)
            if shard:
                suites.forgetting(answerer, session.renderer, references)
            for name, questions in asked.items():
                if shard:
                    generate(questions, session.renderer, answerer, shard.holds, session.context)
                    continue
                rows = ask(questions, session.renderer, answerer, session.context)
                if name == suites.CORE:
                    rows += suites.forgetting(answerer, session.renderer, references)
                _refuse_failures(session, name, model, rows)
                write_suite(session.run, examination(session).asked(name), model.name, rows, whole=model is models[-1])
            paths.add(answerer.path)
        gc.collect()
    if shard:
        return
    if len(paths) > 1:
        session.watcher.say(
            f"base and tuned were decoded in different ways ({'; '.join(sorted(map(str, paths)))}), and near-ties may fall otherwise; "
            f"to ask the base anew, delete {_journal(session, models[0])}"
        )
    for part in session.run.evaluation.glob("*.partial*.jsonl"):
        part.unlink()


def _journal(session: Session, model: Candidate) -> Path:
    """Where the replies of a model are kept: the base's are shared by all runs, the tuned model's are this run's own."""
    return journal_of_base(model.hash) if model.name == "base" else session.run.evaluation / "tuned.replies.jsonl"


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
    import torch

    if session.device.type == "cuda":
        torch.cuda.empty_cache()  # memory that this process has freed and keeps is not there for another
    settings = session.settings
    for model in models[was_asked(session, suite, MODELS[:1]) :]:
        ran = lm_eval.run(
            suite.removeprefix(LM_EVAL),
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
        write_suite(session.run, examination(session).asked(suite), model.name, ran.rows, whole=model is models[-1], ran=ran)


def _holds(session: Session) -> Callable[[str], bool]:
    shard = Shard.of(session.settings.shard)
    return shard.holds if shard else lambda key: True


def _sampled(session: Session, asked: _Questions, base: Answerer) -> dict[str, Reply]:
    """The reference replies, which come from the base model; none where no suite needs them."""
    return suites.sample_references(session.renderer, session.settings, base, _holds(session)) if suites.CORE in asked else {}


@contextmanager
def _answering(session: Session, asked: _Questions, model: Candidate, journal: Path, *, parts: int) -> Iterator[Answerer]:
    """One model that answers, with its progress; on another backend, a process of its own has answered before."""
    items = sum(map(len, asked.values()))
    if suites.CORE in asked:  # the base makes the reference replies, both models score them
        references = len(bundled_records("general_prompts.jsonl")[: session.settings.forgetting_prompts])
        items += references * (2 if model.name == "base" else 1)
    if session.settings.backend != TRANSFORMERS:
        with session.watcher.task(f"{model.name} answers", -(-items // parts)) as task:
            engines.answer(session, model.name, model.folder, list(asked), journal, task.advance)
    with (
        session.watcher.task(f"evaluating {model.name}", -(-items // parts)) as task,
        answering(session, model.folder, model.hash, journal, engine=session.settings.backend, on_done=task.advance) as answerer,
    ):
        yield answerer


def answer_apart(
    session: Session, model: Candidate, names: list[str], journal: Path, decode: Decode, on_done: Callable[[int], None]
) -> None:
    """Put a model's replies to some suites into a journal, decoded on a backend, in its process."""
    asked = {name: examination(session).questions(name) for name in names}
    engine = session.settings.backend
    with answering(session, model.folder, model.hash, journal, engine=engine, on_done=on_done, backend=decode) as answerer:
        if model.name == "base":
            _sampled(session, asked, answerer)
        for questions in asked.values():
            generate(questions, session.renderer, answerer, _holds(session), session.context)


def regrade(session: Session) -> None:
    """Judge the replies of the session's suites (all that have been asked where it names none) once more.

    The questions are made anew, as `asked.json` says they were asked; where others would be asked now, that is a `UserError`.
    """
    there = asked_suites(session.run)
    for name in session.settings.suite or [name for name in there if not name.startswith(LM_EVAL)]:
        if name not in there:
            raise UserError(f"{session.run.folder}: has no replies to {name}; evaluate it first")
        if name.startswith(LM_EVAL):
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
            for part in (judged[start : start + 64] for start in range(0, len(judged), 64)):
                judge_all((by_key[row["key"]], row) for row in part)
                task.advance(len(part))
        write_jsonl(file, rows)
    write_json(asked_file(session.run, name), asdict(asked))
