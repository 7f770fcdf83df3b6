"""The teacher of self-distillation: the base model, frozen. The seam where another one would stand is `Teacher`.

With LoRA the teacher is the student's own weights with the adapters off, so one model is in memory. Where all weights are trained
it is a second copy in the precision of reading, loaded when it is first needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from mixsd.decoding.engine import decode_all
from mixsd.decoding.requests import Decoding, Request, Sampling
from mixsd.training.chunked_divergence import TeacherStates, chunked_divergence
from mixsd.training.divergence import Divergence
from mixsd.training.examples import Example
from mixsd.training.objectives import Student, TokenLoss
from mixsd.training.states import Reading, States


class Teacher(Protocol):
    """Whose distributions the student learns."""

    def states(self, student: Student, examples: Sequence[Example]) -> States:
        """The teacher's states at the places that predict the examples' targets, without gradients."""

    def decode(self, student: Student, requests: list[Request], sampling: Sampling, token_budget: int) -> Iterable[Decoding]:
        """Replies of the teacher."""


class FrozenBase:
    """The base model as it was before training. `load` gives a copy of it, for students without adapters."""

    def __init__(self, load: Callable[[], PreTrainedModel]) -> None:
        self._load = load
        self._copy: tuple[PreTrainedModel, Reading] | None = None

    @torch.no_grad()
    def states(self, student: Student, examples: Sequence[Example]) -> States:
        """The base's states at the places that predict the examples' targets."""
        with self._opened(student, examples[0]) as (model, reading):
            return reading.states(model, examples)

    def decode(self, student: Student, requests: list[Request], sampling: Sampling, token_budget: int) -> Iterable[Decoding]:
        """Replies of the base."""
        with self._opened(
            student, Example("probe", tuple(requests[0].naive_ids[:-1]), tuple(requests[0].naive_ids[-1:]))
        ) as opened:
            yield from decode_all(opened[0], requests, sampling, token_budget=token_budget)

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


def teacher_divergence(teacher: Teacher, divergence: Divergence) -> TokenLoss:
    """The loss that holds the student to the teacher on the very same prompts."""

    def loss(student: Student, states: States, examples: Sequence[Example]) -> Tensor:
        known = teacher.states(student, examples)
        return chunked_divergence(states.rows, states.head, TeacherStates(known.rows, known.head), divergence, states.chunk)

    return loss


@contextmanager
def evaluating(model: PreTrainedModel) -> Iterator[None]:
    """The model without dropout, for a while."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
