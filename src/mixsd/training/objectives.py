"""What a step trains on, and how its loss is computed: the seam between the training loop and the methods.

An objective has items (targets, or facts to be answered anew each time) whose order the loop shuffles by their keys. For the
items of a step it gives a `Part`: examples, and a loss that makes one value per supervised token of their states. The loop does
the rest, the same for every method: order, microbatches, normalization, clipping, checkpoints, resume.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from mixsd.errors import UserError
from mixsd.run.session import Session
from mixsd.targets.reading import accepted_targets
from mixsd.targets.target import Target
from mixsd.training.examples import Example, usable
from mixsd.training.lora import Lora
from mixsd.training.losses import States, chunked_nll
from mixsd.training.states import Reading, target_ids


@dataclass
class Student:
    """The model in training, as an objective sees it.

    `model` is plain, or has the adapters of `lora` inside; `steps` counts the optimizer steps that its weights have taken.
    `precision` opens the context of a forward pass (autocast, where training is in bf16).
    """

    model: PreTrainedModel
    lora: Lora | None
    reading: Reading
    device: torch.device
    precision: Callable[[], AbstractContextManager[object]]
    steps: int = 0


# From the states of some examples to one value (N,) per supervised token, in nats.
TokenLoss = Callable[[Student, States, Sequence[Example]], Tensor]


@dataclass(frozen=True)
class Part:
    """Examples of one step that share a loss, and how many of their tokens were decoded for it."""

    examples: list[Example]
    loss: TokenLoss
    decoded: int = 0

    @property
    def tokens(self) -> int:
        """The supervised tokens."""
        return sum(len(example.target_ids) for example in self.examples)


class Objective(Protocol):
    """What the loop asks of a method.

    `keys`: the items', each different; they decide the order. `identity`: a hash of everything that decides the losses besides the
    settings. `probe`: a short example, to find out how the model can be read. `lengths`: the supervised tokens of each item; None
    where they differ from step to step. `dropped`: the keys of what was left out for being longer than the context.
    """

    keys: Sequence[str]
    identity: str
    probe: Example
    lengths: Sequence[int] | None
    dropped: tuple[str, ...]

    def part(self, student: Student, step: int, items: Sequence[int]) -> Part:
        """What these items (indices into `keys`) come to at a step (from 1)."""


@dataclass
class Targets:
    """Fixed targets under token NLL (Eq. 5): SFT and MixSD. Raises `UserError` as `examples.usable` does."""

    given: Iterable[Example]
    context: int | None = None
    drop_overlong: bool = False
    examples: list[Example] = field(init=False)
    dropped: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        self.examples, self.dropped = usable(self.given, self.context, drop_overlong=self.drop_overlong)
        self.keys: Sequence[str] = [example.key for example in self.examples]
        self.probe = min(self.examples, key=len)
        self.lengths: Sequence[int] | None = [len(example.target_ids) for example in self.examples]
        hashed = "".join(repr((example.key, example.prompt_ids, example.target_ids)) for example in self.examples)
        self.identity = hashlib.blake2b(hashed.encode(), digest_size=16).hexdigest()

    def part(self, student: Student, step: int, items: Sequence[int]) -> Part:
        """The items' examples, at every step the same."""
        return Part([self.examples[item] for item in items], target_nll)


def target_nll(student: Student, states: States, examples: Sequence[Example]) -> Tensor:
    """The NLL (N,) of each target token."""
    return chunked_nll(states.rows, states.head, target_ids(examples, states.rows.device), states.chunk)


def fixed_targets(session: Session, teacher: object) -> Targets:
    """The objective of SFT and MixSD: the NLL of the session's accepted targets."""
    return Targets(accepted_examples(session), session.context, session.settings.drop_overlong)


def accepted_examples(session: Session) -> list[Example]:
    """The session's accepted targets, as they are trained on; none is a `UserError`."""
    examples = [example_of(target) for target in accepted_targets(session)]
    if not examples:
        raise UserError(f"{session.run.targets_file}: holds no accepted target to train on")
    return examples


def example_of(target: Target) -> Example:
    """A target as it is trained on."""
    return Example(f"{target.id}/{target.sample}", tuple(target.prompt_ids), tuple(target.target_ids))
