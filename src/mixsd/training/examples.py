"""What training consumes, a prompt and a target as token ids; which examples make up a step, and how they become tensors.

Nothing is ever truncated: a target cut at the context's end would teach the model to stop in the middle. A step's composition is a
pure function of (seed, epoch, keys), so that a resumed run meets the same steps. Inside a step the longest examples come first, so a
run that does not fit in memory says so at its first forward pass. Padding goes to the right and is told by length, never by id.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from mixsd import randomness
from mixsd.errors import UserError

UNSUPERVISED = -100
_NAMED = 5


@dataclass(frozen=True, slots=True)
class Example:
    """One target to train on.

    `key` is unique among the examples of a run and decides their order. `prompt_ids` is the rendered naive prompt, never
    supervised; `target_ids` are the ids that were decoded, stop token included, all of them supervised.
    """

    key: str
    prompt_ids: tuple[int, ...]
    target_ids: tuple[int, ...]

    def __len__(self) -> int:
        """Prompt and target together, in tokens."""
        return len(self.prompt_ids) + len(self.target_ids)


def usable(
    examples: Iterable[Example], max_length: int | None, *, drop_overlong: bool = False
) -> tuple[list[Example], tuple[str, ...]]:
    """Return the examples to train on and the keys of the dropped ones, both in the given order.

    Raises `UserError` where there is nothing to train on, a key occurs twice, an example has no supervised token, or one is
    longer than the context (`max_length` tokens) and `drop_overlong` is off.
    """
    examples = list(examples)
    if not examples:
        raise UserError("there is no target to train on")
    if twice := [key for key, count in Counter(example.key for example in examples).items() if count > 1]:
        raise UserError(f"every example needs a key of its own; these occur twice: {_names(twice)}")
    if empty := [example.key for example in examples if not example.prompt_ids or not example.target_ids]:
        raise UserError(f"no supervised token in {_names(empty)}: the prompt or the target is empty")
    kept = [example for example in examples if max_length is None or len(example) <= max_length]
    overlong = tuple(example.key for example in examples if max_length is not None and len(example) > max_length)
    if overlong and not drop_overlong:
        raise UserError(
            f"prompt and target are longer than the model's context of {max_length} tokens in {_names(overlong)}; "
            "shorten them or pass --drop-overlong"
        )
    if not kept:
        raise UserError(f"--drop-overlong leaves nothing to train on: all are longer than the context of {max_length} tokens")
    return kept, overlong


def _names(keys: Sequence[str]) -> str:
    more = f" and {len(keys) - _NAMED} more" if len(keys) > _NAMED else ""
    return f"{len(keys)} example{'s' if len(keys) > 1 else ''} ({', '.join(keys[:_NAMED])}{more})"


class Batch(NamedTuple):
    """One forward pass of B examples, T the longest; all int64 (B, T). `labels`: `UNSUPERVISED` but for targets, not shifted."""

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    position_ids: torch.Tensor
    labels: torch.Tensor

    def to(self, device: torch.device) -> Batch:
        return Batch(*(tensor.to(device) for tensor in self))


def steps_per_epoch(examples: int, batch_size: int) -> int:
    """Optimizer steps in one epoch; the last one may be partial and is kept."""
    return math.ceil(examples / batch_size)


def plan_epoch(seed: int, epoch: int, keys: Sequence[str], batch_size: int) -> list[list[int]]:
    """Return the steps of one epoch (from 0), each a list of indices into `keys` in shuffled order."""
    shuffled = randomness.order(seed, list(keys), epoch=epoch)
    return [shuffled[start : start + batch_size] for start in range(0, len(shuffled), batch_size)]


def microbatches(examples: Sequence[Example], size: int) -> list[list[Example]]:
    """A step's examples by length, longest first, cut into forward passes."""
    # The sort is stable, so equal lengths keep their place in the shuffled order.
    longest_first = sorted(examples, key=lambda example: -len(example))
    return [longest_first[at : at + size] for at in range(0, len(longest_first), size)]


def collate(examples: Sequence[Example]) -> Batch:
    """Pad the examples to the longest and mark the target's tokens, and only them, as supervised."""
    shape = len(examples), max(map(len, examples))
    input_ids = torch.zeros(shape, dtype=torch.long)
    attention_mask = torch.zeros(shape, dtype=torch.long)
    labels = torch.full(shape, UNSUPERVISED)
    for row, example in enumerate(examples):
        length, prompt = len(example), len(example.prompt_ids)
        input_ids[row, :length] = torch.tensor(example.prompt_ids + example.target_ids)
        attention_mask[row, :length] = 1
        labels[row, prompt:length] = input_ids[row, prompt:length]
    position_ids = torch.arange(shape[1]).expand(shape)
    return Batch(input_ids, attention_mask, position_ids, labels)
