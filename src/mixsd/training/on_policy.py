"""OPSD and OPSD-NLL: the student answers, and learns at each of its own tokens what the teacher would say there (section 5).

At each step the facts of the step are answered by the student as it is, to the naive prompt; the teacher reads the same reply
behind the expert prompt. OPSD's loss is the token-level divergence of the two distributions. OPSD-NLL answers once, greedily, and
its loss is the NLL of the teacher's likeliest token at each position; the paper's words leave room for a token drawn from the
teacher's distribution, which is the other choice.

Rollouts carry the number of optimizer steps that the student had taken; a loss on stale ones is refused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mixsd.decoding.engine import decode_all
from mixsd.decoding.requests import Request, Sampling
from mixsd.errors import MixsdError, UserError
from mixsd.randomness import uniforms
from mixsd.run.session import Session
from mixsd.targets.attempts import reply_limit
from mixsd.training import ranks
from mixsd.training.examples import Example
from mixsd.training.losses import Divergence, TeacherStates, chunked_divergence, chunked_nll, teacher_sample, teacher_topk
from mixsd.training.objectives import Part, Student
from mixsd.training.states import States
from mixsd.training.teacher import Teacher, evaluating


@dataclass(frozen=True)
class Asked:
    """A fact as on-policy training asks it: both prompts, and the longest reply in tokens."""

    key: str
    naive_ids: tuple[int, ...]
    expert_ids: tuple[int, ...]
    limit: int


@dataclass(frozen=True)
class RolloutSettings:
    """How the student answers and what it learns from it.

    `loss` is a divergence (OPSD), or which of the teacher's tokens is to be predicted: 'top1' or 'sampled' (OPSD-NLL).
    `stops`: see `decoding.requests.Sampling`; at a `temperature` above 0 the full softmax is sampled.
    """

    samples: int
    temperature: float
    seed: int
    stops: dict[int, int]
    token_budget: int
    loss: Divergence | str


class OnPolicy:
    """The objective of OPSD and OPSD-NLL."""

    dropped: tuple[str, ...] = ()
    lengths: None = None

    def __init__(self, facts: Sequence[Asked], teacher: Teacher, settings: RolloutSettings) -> None:
        """Raises `UserError` where there is nothing to ask."""
        if not facts:
            raise UserError("there is no usable fact to train on")
        self.facts, self.teacher, self.settings = list(facts), teacher, settings
        self.keys = [fact.key for fact in facts]
        decides = settings.samples, settings.temperature, sorted(settings.stops.items()), settings.loss, self.facts
        self.identity = hashlib.blake2b(repr(decides).encode(), digest_size=16).hexdigest()
        shortest = min(facts, key=lambda fact: len(fact.naive_ids)).naive_ids
        self.probe = Example("probe", shortest[:-1], shortest[-1:])
        self._expert = {fact.key: fact.expert_ids for fact in facts}

    def part(self, student: Student, step: int, items: Sequence[int]) -> Part:
        """Answers of the student to these facts, and a loss on them that holds until its next step."""
        examples = self._roll_out(student, step, [self.facts[item] for item in items])
        made_at = student.steps

        def loss(now: Student, states: States, own: Sequence[Example]) -> Tensor:
            if now.steps != made_at:
                raise MixsdError(f"stale rollouts: decoded after {made_at} optimizer steps, trained on after {now.steps}")
            return self._loss(now, step, states, own)

        return Part(examples, loss, sum(len(example.target_ids) for example in examples))

    def _roll_out(self, student: Student, step: int, facts: list[Asked]) -> list[Example]:
        settings = self.settings
        requests = [
            Request(_key(fact.key, sample), list(fact.naive_ids), fact.limit, noise=self._noise(fact, sample, step))
            for fact in facts
            for sample in range(settings.samples)
        ]
        if not requests:
            return []
        with evaluating(student.model), student.precision():
            sampling = Sampling(settings.stops, temperature=settings.temperature)
            found = {
                decoding.key: decoding.ids
                for decoding in decode_all(student.model, requests, sampling, token_budget=settings.token_budget)
            }
        return [Example(request.key, tuple(request.naive_ids), tuple(found[request.key])) for request in requests]

    def _loss(self, student: Student, step: int, states: States, examples: Sequence[Example]) -> Tensor:
        behind = [Example(example.key, self._expert[_fact(example.key)], example.target_ids) for example in examples]
        teacher = self.teacher.states(student, behind)
        wanted = self.settings.loss
        if isinstance(wanted, Divergence):
            known = TeacherStates(teacher.rows, teacher.head)
            return chunked_divergence(states.rows, states.head, known, wanted, states.chunk)
        if wanted == "top1":
            labels = teacher_topk(teacher.rows, teacher.head, 1, teacher.chunk).ids[:, 0].long()
        else:
            drawn = [uniforms(self.settings.seed, "noise", one.key, attempt=step, n=len(one.target_ids)) for one in examples]
            noise = torch.tensor([number for numbers in drawn for number in numbers], dtype=torch.float64)
            labels = teacher_sample(teacher.rows, teacher.head, noise, teacher.chunk)
        return chunked_nll(states.rows, states.head, labels, states.chunk)

    def _noise(self, fact: Asked, sample: int, step: int) -> np.ndarray | None:
        if not self.settings.temperature:
            return None
        return uniforms(self.settings.seed, "rollout", fact.key, sample=sample, attempt=step, n=fact.limit)


def on_policy(session: Session, teacher: Teacher) -> OnPolicy:
    """The objective of OPSD and OPSD-NLL on the session's facts; why some cannot be asked is in the run's log.

    Raises:
        UserError: none can be asked.
    """
    settings = session.settings
    asked, reasons = [], {}
    for fact in session.facts:
        limit, reason = reply_limit(fact, session.renderer, settings, session.context)
        if reason:
            reasons[fact.id] = reason
        else:
            naive, expert = session.renderer.naive(fact.question), session.renderer.expert(fact)
            asked.append(Asked(fact.id, tuple(naive), tuple(expert), limit))
    if not asked:
        first, reason = next(iter(reasons.items()))
        raise UserError(f"no usable fact among {len(reasons)}; the first one, {first}: {reason}")
    if not ranks.follows():
        session.run.log("asked", facts=len(asked), unusable=reasons)
    own = {name: getattr(settings, name) for name in ("samples", "temperature", "seed", "token_budget")}
    loss = Divergence.of(settings) if settings.spec.distilled else settings.nll_token
    return OnPolicy(asked, teacher, RolloutSettings(**own, stops=session.renderer.stops.ids, loss=loss))


def _key(fact: str, sample: int) -> str:
    return f"{fact}/{sample}"


def _fact(key: str) -> str:
    return key.rpartition("/")[0]
