"""Which examples make up a step, and how they become tensors.

A step's composition comes from the addressed order alone: a pure function of (seed, epoch, keys), so that a resumed run meets
the same steps. Only inside a step are examples sorted by length and cut into microbatches: little is wasted on padding and
the composition stays random. Sorting is longest first, so a run that does not fit in memory says so at its first forward pass.

Padding goes to the right and everything is decided by length. The id at a padded place is 0, whatever the tokenizer calls its
pad, and no id is ever compared: a tokenizer whose pad is its eos loses nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from mixsd import randomness
from mixsd.training.examples import Example

UNSUPERVISED = -100


@dataclass(frozen=True, slots=True)
class Batch:
    """One forward pass of B examples, T the longest; all int64 of shape (B, T).

    `labels` holds the id at a supervised place and `UNSUPERVISED` elsewhere, not shifted (as transformers has it).
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    position_ids: torch.Tensor
    labels: torch.Tensor

    def to(self, device: torch.device) -> Batch:
        return Batch(
            self.input_ids.to(device), self.attention_mask.to(device), self.position_ids.to(device), self.labels.to(device)
        )


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
