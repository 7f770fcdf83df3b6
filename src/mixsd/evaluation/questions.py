"""Questions with an answer to check: what is asked of a model, its replies, and what each was worth.

A model's replies are generated once, into a journal keyed by the hash of (model, prompt, decoding): the base's in the cache, where all
runs share it, a tuned model's in its run folder. They are judged when they are read: a better verifier needs no new generation.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mixsd.decoding.engine import decode_all, score
from mixsd.decoding.engine import path as decoding_path
from mixsd.decoding.requests import Decoding, Request, Sampling
from mixsd.facts.answers import Expected, Verifier, contains_answer
from mixsd.facts.fact import Fact
from mixsd.facts.prompts import PLAIN_FORMAT, Renderer
from mixsd.models import cpu
from mixsd.randomness import uniforms
from mixsd.run.engines import TRANSFORMERS
from mixsd.run.session import Session
from mixsd.settings import Settings
from mixsd.storage import Journal, cache_folder, digest

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SCORED_AT_ONCE = 32  # continuations whose scores are written down together


@dataclass(frozen=True)
class Prompt:
    """A prompt to be answered.

    noise: float64 (max_new_tokens,) where the reply is sampled, at `temperature` among the `top_k` likeliest tokens (None: all); None for
    greedy. lines: a line break does not end the reply, also without a chat template. group: names prompts that begin alike.
    """

    key: str
    ids: list[int]
    max_new_tokens: int
    noise: np.ndarray | None = None
    noise_address: str | None = None
    temperature: float = 1.0
    top_k: int | None = None
    lines: bool = False
    group: str = ""


@dataclass(frozen=True)
class Reply:
    """A reply as ids; `truncated` where it reached its length limit."""

    ids: list[int]
    truncated: bool


class Answerer:
    """Generates and scores with one model (loaded when something is missing from the journal), never the same thing twice.

    precision: what the numbers depend on besides the model and its path, see `Session.numerics`. token_budget: tokens of context kept in
    memory at a time. on_done: told the number of prompts or continuations just finished. backend: decodes in the place of the model, see
    `mixsd.run.engines`; it is part of what `precision` names.
    """

    def __init__(
        self,
        load_model: Callable[[], PreTrainedModel],
        *,
        model_hash: str,
        precision: str,
        stops: dict[int, int],
        journal: Path,
        token_budget: int = Settings.model_fields["token_budget"].default,
        on_done: Callable[[int], None] = lambda count: None,
        backend: Callable[..., Iterator[Decoding]] | None = None,
    ) -> None:
        self._load_model = load_model
        self._identity = [model_hash, precision, sorted(stops.items())]
        self.stops = stops
        self.journal = Journal(journal)
        self.token_budget = token_budget
        self.on_done = on_done
        self._backend = backend
        self._places = {row["at"]: place for place, row in self.journal.read() if "at" in row}
        # The way in which the journal's replies were decoded; None where it has none of this model's.
        self._path_address = digest(["path", self._identity])
        place = self._places.get(self._path_address)
        self.path: str | None = None if place is None else self.journal.at(place)["path"]

    @cached_property
    def model(self) -> PreTrainedModel:
        """The model, loaded at the first use."""
        return self._load_model()

    def replies(self, prompts: list[Prompt]) -> dict[str, Reply]:
        """The reply to each prompt by its key; what the journal lacks is generated, longest prompts first."""
        addresses = {prompt.key: self._address(prompt) for prompt in prompts}
        missing = {addresses[prompt.key]: prompt for prompt in prompts if addresses[prompt.key] not in self._places}
        if missing and self._takes_another_path():
            return self.replies(prompts)
        self.on_done(len(prompts) - len(missing))
        kinds: dict[tuple[float, int | None, bool], list[tuple[str, Prompt]]] = defaultdict(list)
        for address, prompt in missing.items():
            kinds[0.0 if prompt.noise is None else prompt.temperature, prompt.top_k, prompt.lines].append((address, prompt))
        for (temperature, top_k, lines), asked in sorted(kinds.items(), key=lambda kind: str(kind[0])):
            sampling = Sampling(self._stops_of(lines), temperature=temperature, top_k=top_k)
            requests = [
                Request(at, prompt.ids, prompt.max_new_tokens, noise=prompt.noise) for at, prompt in _longest_first(asked)
            ]
            for decoding in self._decode(requests, sampling):
                row = {"at": decoding.key, "ids": decoding.ids, "truncated": not decoding.ended}
                self._places[decoding.key] = self.journal.append(row)
                self.on_done(1)
        rows = {key: self.journal.at(self._places[address]) for key, address in addresses.items()}
        return {key: Reply(row["ids"], row["truncated"]) for key, row in rows.items()}

    def _address(self, prompt: Prompt) -> str:
        where = ["reply", self._identity, self.path, prompt.ids, prompt.max_new_tokens, prompt.noise_address]
        return digest(where if self._stops_of(prompt.lines) == self.stops else [*where, "lines"])

    def _takes_another_path(self) -> bool:
        """Whether what is decoded now is decoded otherwise than what the journal holds; it is noted there."""
        path = "its own" if self._backend else f"{decoding_path(self.model)}, {cpu.path(self.model)}"
        if path == self.path:
            return False
        self.path = path
        self._places[self._path_address] = self.journal.append({"at": self._path_address, "path": path})
        return True

    def _stops_of(self, lines: bool) -> dict[int, int]:
        """The stop tokens; with `lines`, without the line breaks that are stored as another token."""
        return {token: stored for token, stored in self.stops.items() if token == stored} if lines else self.stops

    def _decode(self, requests: list[Request], sampling: Sampling) -> Iterator[Decoding]:
        if self._backend is None:
            return decode_all(self.model, requests, sampling, token_budget=self.token_budget)
        take = partial(next, iter(requests), None)
        return self._backend(take, sampling, wants_logprobs=None, with_support=False, dropped=())

    def scores(self, pairs: dict[str, tuple[list[int], list[int]]]) -> dict[str, float]:
        """The summed NLL (nats) of each continuation after its prompt, by key."""
        addresses = {key: digest(["score", self._identity, *pair]) for key, pair in pairs.items()}
        missing = iter([key for key in pairs if addresses[key] not in self._places])
        self.on_done(sum(address in self._places for address in addresses.values()))
        while window := list(islice(missing, SCORED_AT_ONCE)):
            for key, logprobs in zip(window, score(self.model, [pairs[key] for key in window]), strict=True):
                self._places[addresses[key]] = self.journal.append({"at": addresses[key], "nll": -sum(logprobs)})
            self.on_done(len(window))
        return {key: float(self.journal.at(self._places[address])["nll"]) for key, address in addresses.items()}

    def close(self) -> None:
        """Let go of the model and the journal's file."""
        self.__dict__.pop("model", None)
        self.journal.close()


@contextmanager
def answering(
    session: Session, folder: Path, model_hash: str, journal: Path, *, engine: str = TRANSFORMERS, **options: Any
) -> Iterator[Answerer]:
    """A model folder that answers as the session has it.

    options: those of `Answerer`, and `load`, which takes the folder and is `session.load_to_decode` by default.
    """
    answerer = Answerer(
        partial(options.pop("load", session.load_to_decode), folder),
        model_hash=model_hash,
        precision=session.numerics if engine == TRANSFORMERS else f"{engine}/{session.numerics}",
        stops=session.renderer.stops.ids,
        journal=journal,
        token_budget=session.settings.token_budget,
        **options,
    )
    with closing(answerer):
        yield answerer


def journal_of_base(model_hash: str) -> Path:
    """Where the replies of a base model are kept, for all runs."""
    return cache_folder() / "replies" / f"{model_hash}.jsonl"


def _longest_first(asked: list[tuple[str, Prompt]]) -> list[tuple[str, Prompt]]:
    """The longest prompts first, so that what does not fit shows at once; but those of one group side by side."""
    longest: dict[str, int] = {}
    for _, prompt in asked:
        longest[prompt.group] = max(longest.get(prompt.group, 0), len(prompt.ids))
    return sorted(asked, key=lambda item: (-longest[item[1].group], item[1].group, -len(item[1].ids)))


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

    labels: parts of `split` with scores of their own. group: what answers belong together (a fact's paraphrases are not independent). old:
    the spellings of the answer before an edit. lenient: a second judge, who also takes an answer in another form. apart: the judges work
    in processes of their own, several at a time, and the reply may have several lines, also where the model has no chat template.
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
    fact: Fact, key: str, split: str, question: str, renderer: Renderer, verifier: Verifier, max_new_tokens: int
) -> Question:
    """A question whose answer, and whose group, is a fact's."""
    others = fact.meta.get("old_aliases")
    aliases = [text for text in others if isinstance(text, str)] if isinstance(others, list) else []
    old = (fact.old_answer, *aliases) if fact.old_answer else ()
    user, expected = renderer.question(question), Expected(fact.answer, fact.aliases)
    return Question(key, split, fact.id, user, expected, verifier, max_new_tokens, old=old)


def reply_row(
    key: str, split: str, group: str, labels: Iterable[str], prompt: list[int], reply: Reply, text: str, **asked: str
) -> dict[str, Any]:
    """A reply as it is kept, not judged yet; `asked` is what is kept of the question."""
    place = {"key": key, "split": split, "group": group, "labels": list(labels), "prompt_hash": digest(prompt), **asked}
    return place | {"reply": text, "reply_ids": reply.ids, "extracted": None, "outcome": None, "truncated": reply.truncated}


def ask(questions: list[Question], renderer: Renderer, answerer: Answerer, context: int | None = None) -> list[dict[str, Any]]:
    """Ask one model everything; a row per question, in their order, an error where `context` tokens leave no room for a reply."""
    rows = []
    for window in _windows(questions):
        prompts = prompts_of(window, renderer, context)
        replies = answerer.replies([prompt for prompt in prompts if prompt.max_new_tokens])
        said = []
        for question, prompt in zip(window, prompts, strict=True):
            reply = replies.get(question.key, Reply([], False))
            text = renderer.reply_text(reply.ids) if reply.ids else ""
            if question.apart and not renderer.has_template:
                text = text.partition(_NEXT)[0].rstrip()
            key, split, group = question.key, question.split, question.group
            row = reply_row(key, split, group, question.labels, prompt.ids, reply, text, question=question.user)
            row["outcome"] = "error"
            if question.old:
                row["old"] = False
            if question.key in replies:
                said.append((question, row))
            rows.append(row)
        judge_all(said)
    return rows


def judge_all(said: Iterable[tuple[Question, dict[str, Any]]]) -> None:
    """Judge the replies of rows, in place; what works apart, several at a time."""
    pairs = list(said)
    threads = ThreadPoolExecutor(os.cpu_count())
    try:
        apart = [threads.submit(_judge, question, row) for question, row in pairs if question.apart]
        for question, row in pairs:
            if not question.apart:
                _judge(question, row)
        for judged in apart:
            judged.result()
    finally:
        threads.shutdown(cancel_futures=True)


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
        options: dict[str, Any] = {"lines": question.apart, "group": group}
        if drawn := question.sampled:
            key = f"{question.split}/{question.group}"
            options |= {"temperature": drawn.temperature, "top_k": drawn.top_k}
            options["noise"] = uniforms(drawn.seed, "evaluation", key, sample=drawn.number, n=length)
            options["noise_address"] = f"{drawn.seed}/evaluation/{key}/{drawn.number}/{drawn.temperature}/{drawn.top_k}"
        prompts.append(Prompt(question.key, ids, length, **options))
    return prompts


def _windows(questions: Iterable[Question]) -> Iterator[list[Question]]:
    stream = iter(questions)
    while window := list(islice(stream, ASKED_AT_ONCE)):
        yield window
