"""Questions with an answer to check: what is asked of a model, and what its reply was worth.

Every suite of free generation is a list of these, so that base and tuned are asked the same in the same way, and each reply is
kept with its outcome. Scores of the rows are `mixsd.evaluation.scores`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from mixsd.answers import Expected, Verdict, Verifier, contains_answer
from mixsd.evaluation.replies import Answerer, Prompt, Reply
from mixsd.facts import Fact
from mixsd.prompts import Renderer
from mixsd.settings import Settings
from mixsd.storage import digest

ASKED_AT_ONCE = 4096  # questions whose prompts are in memory as ids


@dataclass(frozen=True)
class Question:
    """One thing asked: where it counts, the user turn, and who judges the reply.

    `labels` are the parts of `split` for which there are scores too. `group` names what answers belong together (the fact of a
    paraphrase): they are not independent observations. `old` are the spellings of the answer before an edit, if it is one.
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
        for question, prompt in zip(window, prompts, strict=True):
            reply = replies.get(question.key, Reply([], False))
            text = renderer.reply_text(reply.ids)
            verdict = question.verifier(text, question.expected) if prompt.max_new_tokens else Verdict("error")
            row = {
                "key": question.key,
                "split": question.split,
                "group": question.group,
                "labels": list(question.labels),
                "prompt_hash": digest(prompt.ids),
                "reply": text,
                "reply_ids": reply.ids,
                "extracted": verdict.extracted,
                "outcome": verdict.outcome,
                "truncated": reply.truncated,
            }
            if question.old:
                row["old"] = verdict.outcome != "correct" and contains_answer(text, question.old[0], question.old[1:])
            rows.append(row)
    return rows


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
        prompts.append(Prompt(question.key, ids, limit if context is None else max(0, min(limit, context - len(ids)))))
    return prompts


def _windows(questions: Iterable[Question]) -> Iterator[list[Question]]:
    stream = iter(questions)
    while window := list(islice(stream, ASKED_AT_ONCE)):
        yield window
