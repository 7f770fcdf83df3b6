"""Judge once more what a run's models have said, with the judges as they are now; nothing is generated.

The questions are made anew, as `asked.json` says they were asked, and each reply is judged as it stands in the run folder.
"""

from __future__ import annotations

from typing import Any

from mixsd.errors import UserError
from mixsd.evaluation import held_out
from mixsd.evaluation.benchmarks.benchmark import is_benchmark
from mixsd.evaluation.questions import judge_all, prompts_of
from mixsd.pipeline.evaluated import MODELS, asked_file, asked_suites, replies_file
from mixsd.pipeline.session import Session
from mixsd.storage import digest, read_jsonl, write_json, write_jsonl


def regrade(session: Session) -> None:
    """Judge the replies of the session's suites (all that have been asked where it names none) once more.

    Raises:
        UserError: a suite has not been asked, or other questions would be asked now.
    """
    there = asked_suites(session.run)
    wanted = list(session.settings.suite) or [name for name in there if not held_out.is_asked_by_lm_eval(name)]
    for name in wanted:
        if name not in there:
            raise UserError(f"{session.run.folder}: has no replies to {name}; evaluate it first")
        if held_out.is_asked_by_lm_eval(name):
            raise UserError(f"--regrade: {name} is scored by lm-eval, when it is asked")
        _regrade(session, name, there[name])


def _regrade(session: Session, name: str, told: dict[str, Any]) -> None:
    if is_benchmark(name):
        how = {"limit": told["limit"], "benchmark_tokens": told["tokens"], "suite": [name]}
        how |= {"aime_samples": told["samples"]} if told["temperature"] else {}
        exam = held_out.examine(name, session.settings.model_copy(update=how))
        questions, asked = exam.questions(session.settings.seed), exam.asked
        if asked.data != told["data"]:
            raise UserError(f"{session.run.folder}: {name} was asked on other data than {asked.where} holds; evaluate it anew")
    else:
        questions, asked = session.questions(name), session.asked(name)
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
