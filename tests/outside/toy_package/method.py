"""Weighted NLL: the first token of a target, from which the rest follows, weighs three times as much as any other."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from mixsd.methods import MethodSpec
from mixsd.run.session import Session
from mixsd.training.examples import Example
from mixsd.training.objectives import Part, Student, Targets, accepted_examples, target_nll
from mixsd.training.states import States

FIRST = 3.0


class Weighted(Targets):
    """Fixed targets under weighted NLL."""

    def part(self, student: Student, step: int, items: Sequence[int]) -> Part:
        return Part([self.examples[item] for item in items], weighted_nll)


def weighted_nll(student: Student, states: States, examples: Sequence[Example]) -> Tensor:
    nll = target_nll(student, states, examples)
    weights = nll.new_tensor([1.0 if place else FIRST for example in examples for place in range(len(example.target_ids))])
    return weights * nll


def weighted(session: Session, teacher: object) -> Weighted:
    return Weighted(accepted_examples(session), session.context, session.settings.drop_overlong)


WEIGHTED = MethodSpec(
    name="weighted",
    title="Weighted MixSD, mixed targets whose first token weighs more",
    about="training targets are mixed as in MixSD, and the first token of each weighs three times as much as any other",
    trains_on="mixed",
    objective="toy_package.method:weighted",
    loss="NLL of the target's tokens, the first one three times",
    settings={"lam": 0.5},
)
NO_METHOD = "weighted"
