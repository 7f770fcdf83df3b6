"""Questions with an answer to check: what is asked of a model, and what its reply was worth.

Every suite of free generation is a list of these, so that base and tuned are asked the same in the same way, and each reply is
kept with its outcome. Scores of the rows are `mixsd.evaluation.scores`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mixsd.answers import Expected, Verifier, contains_answer
from mixsd.evaluation.replies import Answerer, Prompt
from mixsd.facts import Fact
from mixsd.prompts import Renderer
from mixsd.settings import Settings
from mixsd.storage import digest


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
) -> Question:
    """A question whose answer is a fact's. Tests of one trained fact (`fact` in their meta) are one group."""
    old = (fact.old_answer, *fact.meta.get("old_aliases", ())) if fact.old_answer else ()
    expected = Expected(fact.answer, fact.aliases)
    group = str(fact.meta.get("fact", fact.id))
    return Question(key, split, group, renderer.question(question), expected, verifier, max_new_tokens, labels, old)


def ask(questions: list[Question], renderer: Renderer, answerer: Answerer) -> list[dict[str, Any]]:
    """Ask one model everything; returns one row per question, in their order."""
    prompts = prompts_of(questions, renderer)
    replies = answerer.replies(prompts)
    rows = []
    for question, prompt in zip(questions, prompts, strict=True):
        reply = replies[question.key]
        text = renderer.reply_text(reply.ids)
        verdict = question.verifier(text, question.expected)
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


def generate(questions: list[Question], renderer: Renderer, answerer: Answerer, holds: Callable[[str], bool]) -> None:
    """Put the replies to a shard's questions into the answerer's journal, and judge nothing."""
    answerer.replies([prompt for prompt in prompts_of(questions, renderer) if holds(prompt.key)])


def prompts_of(questions: list[Question], renderer: Renderer) -> list[Prompt]:
    """The prompts of questions, with their lengths of reply."""
    return [Prompt(question.key, renderer.ids(question.user), question.max_new_tokens) for question in questions]
