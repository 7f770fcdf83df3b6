"""The frozen base model beside the student: the teacher of self-distillation, and the model whose replies are rehearsed (beyond the paper).

With LoRA the teacher is the student's own weights with the adapters off, so one model is in memory. Where all weights are trained
it is a second copy in the precision of reading, loaded when it is first needed.

Rehearsal trains, beside the targets, on what the base model itself says to general prompts. Each step takes other prompts and samples
other replies (T = 1, full softmax), all addressed by (seed, prompt, step). Replies are taken until they hold `ratio` times the tokens
of the step's targets, as nearly as whole replies allow, and add `ratio` times their own mean loss to that of the targets. Where the
targets are fixed all replies are decoded before the training, into a journal, so that training holds one model.
"""

from collections import ChainMap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count, islice
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from mixsd.decoding.engine import decode_all
from mixsd.decoding.requests import Decoding, Request, Sampling
from mixsd.randomness import uniforms
from mixsd.storage import Journal
from mixsd.training.examples import Example
from mixsd.training.losses import Divergence, States, chunked_divergence, evaluating
from mixsd.training.objectives import Part, Student, TokenLoss, target_nll
from mixsd.training.states import Reading

_PREPARED_AT_ONCE = 64  # steps whose requests are in memory


class FrozenBase:
    """The base model as it was before training. `load` gives a copy of it, for students without adapters."""

    def __init__(self, load: Callable[[], PreTrainedModel]) -> None:
        self._load = load
        self._copy: tuple[PreTrainedModel, Reading] | None = None

    @torch.no_grad()
    def states(self, student: Student, examples: Sequence[Example]) -> States:
        """The base's states at the places that predict the examples' targets, without gradients."""
        with self._opened(student, examples[0]) as (model, reading):
            return reading.states(model, examples)

    def decode(self, student: Student, requests: list[Request], sampling: Sampling, token_budget: int) -> Iterable[Decoding]:
        """Replies of the base."""
        prompt = tuple(requests[0].naive_ids)
        with self._opened(student, Example("probe", prompt[:-1], prompt[-1:])) as (model, _):
            yield from decode_all(model, requests, sampling, token_budget=token_budget)

    @contextmanager
    def _opened(self, student: Student, probe: Example) -> Iterator[tuple[PreTrainedModel, Reading]]:
        if student.lora is not None:
            with student.lora.model.disable_adapter(), evaluating(student.model), student.precision():
                yield student.model, student.reading
            return
        # The copy has its own precision, which the student's autocast must not change.
        with torch.autocast(student.device.type, enabled=False):
            if self._copy is None:
                model = self._load()
                self._copy = model, Reading(model, probe)
            yield self._copy


def teacher_divergence(teacher: FrozenBase, divergence: Divergence) -> TokenLoss:
    """The loss that holds the student to the teacher on the very same prompts."""

    def loss(student: Student, states: States, examples: Sequence[Example]) -> Tensor:
        return chunked_divergence(states.rows, states.head, teacher.states(student, examples), divergence, states.chunk)

    return loss


class _Reply(NamedTuple):
    """One place in a step's order: which prompt, and the number of its round through all prompts."""

    step: int
    prompt: str
    round: int

    @property
    def key(self) -> str:
        return f"{self.step}/{self.round}/{self.prompt}"


@dataclass
class Rehearsal:
    """The rehearsal of one training: general `prompts` as ids, by id; `ratio` rehearsed tokens per supervised token of the targets.

    `limit` is the longest reply in tokens. `journal` keeps the replies; without one they are decoded again after a resume.
    `decode` is the base model's while it is trained, for replies that were not prepared. `loss` is that of the replies' tokens.
    """

    prompts: Mapping[str, Sequence[int]]
    ratio: float
    limit: int
    seed: int
    journal: Journal | None = None
    decode: Callable[[Student, list[Request]], Iterable[Decoding]] | None = None
    loss: TokenLoss = target_nll

    def __post_init__(self) -> None:
        self._places: dict[str, int] = {}
        self._lengths: dict[str, int] = {}
        for place, row in self.journal.read() if self.journal else ():
            self._places[row["key"]], self._lengths[row["key"]] = place, len(row["ids"])

    def prepare(
        self,
        tokens: Mapping[int, int],
        decode: Callable[[list[Request]], Iterable[Decoding]],
        on_done: Callable[[int], None] = lambda tokens: None,
    ) -> None:
        """Decode what is missing for these steps, `tokens` supervised target tokens each; `on_done` hears of rehearsed tokens."""
        assert self.journal is not None
        steps = iter(tokens.items())
        while window := list(islice(steps, _PREPARED_AT_ONCE)):
            while missing := [reply for step, wanted in window for reply in self._plan(step, wanted, self._lengths)[1]]:
                for decoding in decode([self._request(reply) for reply in missing]):
                    self._places[decoding.key] = self.journal.append({"key": decoding.key, "ids": decoding.ids})
                    self._lengths[decoding.key] = len(decoding.ids)
                    on_done(len(decoding.ids))

    def part(self, student: Student, step: int, tokens: int) -> Part:
        """What a step with so many supervised target tokens rehearses."""
        made: dict[str, list[int]] = {}
        lengths = ChainMap({}, self._lengths)
        taken, missing = self._plan(step, tokens, lengths)
        while missing:
            if self.decode is None:
                raise ValueError(f"the rehearsal of step {step} was not prepared")
            for decoding in self.decode(student, [self._request(reply) for reply in missing]):
                made[decoding.key], lengths[decoding.key] = decoding.ids, len(decoding.ids)
            taken, missing = self._plan(step, tokens, lengths)
        examples = []
        for reply in taken:
            if reply.key not in made and self.journal:
                made[reply.key] = self.journal.at(self._places[reply.key])["ids"]
            examples.append(Example(f"rehearsal/{reply.key}", tuple(self.prompts[reply.prompt]), tuple(made[reply.key])))
        return Part(examples, self.loss)

    def _plan(self, step: int, tokens: int, lengths: Mapping[str, int]) -> tuple[list[_Reply], list[_Reply]]:
        """The replies that a step takes, and those to decode before that is known: no more than it will surely look at."""
        taken, missing = [], []
        wanted, held = self.ratio * tokens, 0
        for reply in self._order(step):
            length = lengths.get(reply.key)
            if length is None:
                missing.append(reply)
                held += self.limit  # the most it can be
                if held >= wanted:
                    break
            elif not missing:
                if held + length / 2 > wanted:
                    break
                held += length
                taken.append(reply)
        return taken, missing

    def _order(self, step: int) -> Iterator[_Reply]:
        """Every prompt in the step's own order; then again, with other noise, for as long as someone asks."""
        keys = sorted(self.prompts)
        for number in count():
            draws = uniforms(self.seed, "rehearsal", "order", sample=number, attempt=step, n=len(keys))
            yield from (_Reply(step, keys[place], number) for place in np.argsort(draws, kind="stable"))

    def _request(self, reply: _Reply) -> Request:
        noise = uniforms(self.seed, "rehearsal", reply.prompt, sample=reply.round, attempt=reply.step, n=self.limit)
        return Request(reply.key, list(self.prompts[reply.prompt]), self.limit, noise=noise)
