"""Questions with an answer to check: what is asked of a model, and what its reply was worth.

Every suite of free generation is a list of these, so that base and tuned are asked the same in the same way, and each reply is
kept with its outcome. Scores of the rows are `mixsd.evaluation.scores`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from mixsd.evaluation.replies import Answerer, Prompt, Reply
from mixsd.facts.answers import Expected, Verifier, contains_answer
from mixsd.facts.fact import Fact
from mixsd.facts.prompts import PLAIN_FORMAT, Renderer
from mixsd.randomness import uniforms
from mixsd.settings import Settings
from mixsd.storage import digest

ASKED_AT_ONCE = 4096  # questions whose prompts are in memory as ids


# What a model without a chat template may go on with after its reply: the next question of the plain format.
_NEXT = "\n" + PLAIN_FORMAT.format(system="", question="").partition("\n")[0].rstrip()


@dataclass(frozen=True)
class Sampled:
    """A reply that is sampled, and not greedy: which one it is of several, and how its tokens are drawn."""

    seed: int
    number: int
    temperature: float
    top_k: int | None


@dataclass(frozen=True)
class Question:
    """One thing asked: where it counts, the user turn, and who judges the reply.

    `labels` are the parts of `split` for which there are scores too. `group` names what answers belong together (the fact of a
    paraphrase): they are not independent observations. `old` are the spellings of the answer before an edit, if it is one.
    `lenient` is a second judge, who also takes an answer in another form than the one asked for. `apart`: the judges work in
    processes of their own, so that several may judge at a time; and the reply may have several lines, also where the model has no
    chat template and one line is what is asked of it otherwise.
    """

    key: str
    split: str
    group: str
    user: str
    expected: Expected
    verifier: Verifier
    max_new_tokens: int
    labels: tuple[str, ...] = ()
    old: tuple[str, ...] = ()
    lenient: Verifier | None = None
    sampled: Sampled | None = None
    apart: bool = False


@dataclass(frozen=True)
class Material:
    """What a suite may ask about, and how: a run's facts, the tests that came with them (streamed), renderer and verifier."""

    facts: list[Fact]
    splits: Mapping[str, Callable[[], Iterator[Fact]]]
    labels: tuple[str, ...]
    renderer: Renderer
    settings: Settings
    verifier: Verifier


def about(
    fact: Fact,
    key: str,
    split: str,
    question: str,
    renderer: Renderer,
    verifier: Verifier,
    max_new_tokens: int,
    labels: tuple[str, ...] = (),
    group: str | None = None,
) -> Question:
    """A question whose answer is a fact's; its group is the fact unless one is named."""
    others = fact.meta.get("old_aliases")
    aliases = [text for text in others if isinstance(text, str)] if isinstance(others, list) else []
    old = (fact.old_answer, *aliases) if fact.old_answer else ()
    expected = Expected(fact.answer, fact.aliases)
    user = renderer.question(question)
    return Question(key, split, group or fact.id, user, expected, verifier, max_new_tokens, labels, old)


def ask(questions: list[Question], renderer: Renderer, answerer: Answerer, context: int | None = None) -> list[dict[str, Any]]:
    """Ask one model everything; returns one row per question, in their order.

    A prompt that leaves no room for a reply in `context` tokens is not asked: its outcome is an error of ours.
    """
    rows = []
    for window in _windows(questions):
        prompts = prompts_of(window, renderer, context)
        replies = answerer.replies([prompt for prompt in prompts if prompt.max_new_tokens])
        said = []
        for question, prompt in zip(window, prompts, strict=True):
            reply = replies.get(question.key)
            row = {
                "key": question.key,
                "split": question.split,
                "group": question.group,
                "labels": list(question.labels),
                "prompt_hash": digest(prompt.ids),
                "question": question.user,
                "reply": _text(question, reply, renderer) if reply else "",
                "reply_ids": reply.ids if reply else [],
                "extracted": None,
                "outcome": "error",
                "truncated": bool(reply and reply.truncated),
            }
            if question.old:
                row["old"] = False
            said.append((question, row))
            rows.append(row)
        judge_all([(question, row) for question, row in said if question.key in replies])
    return rows


def judge_all(said: Iterable[tuple[Question, dict[str, Any]]]) -> None:
    """Judge the replies of rows, in place; what works apart, several at a time."""
    pairs = list(said)
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        apart = [threads.submit(_judge, question, row) for question, row in pairs if question.apart]
        for question, row in pairs:
            if not question.apart:
                _judge(question, row)
        try:
            for judged in apart:
                judged.result()
        except BaseException:
            threads.shutdown(cancel_futures=True)
            raise


def _judge(question: Question, row: dict[str, Any]) -> None:
    text = row["reply"]
    verdict = question.verifier(text, question.expected)
    row |= {"extracted": verdict.extracted, "outcome": verdict.outcome}
    if question.lenient:
        second = verdict if verdict.outcome == "correct" else question.lenient(text, question.expected)
        row["lenient"] = second.outcome
        if second.extracted != verdict.extracted:
            row["lenient_extracted"] = second.extracted
    if verdict.reason:
        row["reason"] = verdict.reason
    if question.old:
        row["old"] = verdict.outcome != "correct" and contains_answer(text, question.old[0], question.old[1:])


def _text(question: Question, reply: Reply, renderer: Renderer) -> str:
    text = renderer.reply_text(reply.ids)
    if question.apart and not renderer.has_template:
        text = text.partition(_NEXT)[0].rstrip()
    return text


def generate(
    questions: list[Question], renderer: Renderer, answerer: Answerer, holds: Callable[[str], bool], context: int | None = None
) -> None:
    """Put the replies to a shard's questions into the answerer's journal, and judge nothing."""
    for window in _windows(question for question in questions if holds(question.key)):
        answerer.replies([prompt for prompt in prompts_of(window, renderer, context) if prompt.max_new_tokens])


def prompts_of(questions: list[Question], renderer: Renderer, context: int | None = None) -> list[Prompt]:
    """The prompts of questions, with the lengths of reply that the context leaves: 0 where it leaves none."""
    prompts = []
    for question in questions:
        ids, limit = renderer.ids(question.user), question.max_new_tokens
        length = limit if context is None else max(0, min(limit, context - len(ids)))
        # Questions that begin alike, with the examples of one subject, are asked together: the beginning is then read once.
        group = question.labels[0] if question.apart and question.labels else ""
        prompt = Prompt(question.key, ids, length, lines=question.apart, group=group)
        prompts.append(_drawn(prompt, question) if question.sampled else prompt)
    return prompts


def _drawn(prompt: Prompt, question: Question) -> Prompt:
    """A prompt whose reply is sampled."""
    drawn = question.sampled
    assert drawn is not None
    key = f"{question.split}/{question.group}"
    return replace(
        prompt,
        noise=uniforms(drawn.seed, "evaluation", key, sample=drawn.number, n=prompt.max_new_tokens),
        noise_address=f"{drawn.seed}/evaluation/{key}/{drawn.number}/{drawn.temperature}/{drawn.top_k}",
        temperature=drawn.temperature,
        top_k=drawn.top_k,
    )


def _windows(questions: Iterable[Question]) -> Iterator[list[Question]]:
    stream = iter(questions)
    while window := list(islice(stream, ASKED_AT_ONCE)):
        yield window
