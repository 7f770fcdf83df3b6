"""Keys and values of all the texts in flight: equal slots in one block of memory per layer, and what each slot holds.

A slot is a row of `capacity` tokens. Where a new text begins as one in some slot does (a system prompt, ten-shot examples, a
fact's prompt at its next attempt), those keys and values are copied and not computed: keys and values of a token depend on
nothing after it. A slot that was let go keeps its content until it is needed. Memory is slots x capacity, bounded by a
number of tokens; when a text outgrows its slot, slots become longer and fewer.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import torch

_ROUND = 64  # capacities are multiples of this
_FEWEST = 2  # one request, with its naive and its expert prompt, is always served


class Pool:
    """`budget` tokens of keys and values, as slots of at least `capacity` tokens.

    Attributes:
        capacity: tokens per slot. slots: how many there are.
        filled: int64 (slots,): the tokens of each slot whose keys and values are there.
        contents: int64 (slots, capacity): the tokens of each slot, also those that are yet to be read; -1 behind them.
        held: bool (slots,): whether somebody holds the slot.
    """

    def __init__(self, budget: int, capacity: int) -> None:
        self.budget = budget
        self.capacity = _rounded(capacity)
        self.slots = self.slots_at(capacity)
        self.filled = np.zeros(self.slots, dtype=np.int64)
        self.contents = np.full((self.slots, self.capacity), -1, dtype=np.int64)
        self.held = np.zeros(self.slots, dtype=bool)
        self._released = np.zeros(self.slots, dtype=np.int64)
        self._clock = 0
        # Per layer, (slots, key-value heads, capacity, head size); made when the layer's first keys come.
        self.keys: dict[int, torch.Tensor] = {}
        self.values: dict[int, torch.Tensor] = {}

    def longest_prefix(self, tokens: np.ndarray, coming: Collection[int] = ()) -> tuple[int, int, int]:
        """The slot whose content shares the longest beginning with `tokens` (n,), and how long that is.

        The third number is how long it will be when the slots in `coming` have been read to the end of what they hold.
        """
        width = min(len(tokens), self.capacity)
        same = np.cumprod(self.contents[:, :width] == tokens[:width], axis=1).sum(axis=1)
        shared = np.minimum(same, self.filled)
        best = int(shared.argmax())
        return best, int(shared[best]), max((int(same[slot]) for slot in coming), default=0)

    def take(self, source: int, tokens: np.ndarray, shared: int) -> int:
        """A free slot for `tokens` (n,), with the first `shared` of them copied from the slot `source`.

        It is `source` itself where that is free, else the one that was let go longest ago.
        """
        free = np.flatnonzero(~self.held)
        slot = source if not self.held[source] else int(free[self._released[free].argmin()])
        if slot != source and shared:
            for blocks in (self.keys, self.values):
                for block in blocks.values():
                    block[slot, :, :shared] = block[source, :, :shared]
        self.held[slot] = True
        self.filled[slot] = shared
        self.contents[slot, : len(tokens)] = tokens
        self.contents[slot, len(tokens) :] = -1
        return slot

    def release(self, slot: int) -> None:
        """Let a slot go; its content stays until it is taken."""
        self._clock += 1
        self._released[slot] = self._clock
        self.held[slot] = False

    def write(self, layer: int, slots: torch.Tensor, positions: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> None:
        """Store keys and values (T, heads, size) of a layer at (slots, positions), both int64 (T,)."""
        for blocks, new in ((self.keys, key), (self.values, value)):
            if layer not in blocks:
                blocks[layer] = new.new_zeros(self.slots, new.shape[1], self.capacity, new.shape[2])
            blocks[layer][slots, :, positions] = new

    def grow(self, capacity: int) -> dict[int, int]:
        """Make every slot at least `capacity` tokens long, within the budget.

        There must be no more slots held than then exist (see `slots_at`). Returns where each slot that is held has moved.
        """
        kept = np.flatnonzero(self.held).tolist()
        capacity = _rounded(capacity)
        slots = self.slots_at(capacity)
        assert len(kept) <= slots
        old, width = self.capacity, min(self.capacity, capacity)
        for blocks in (self.keys, self.values):
            for layer, block in blocks.items():
                longer = block.new_zeros(slots, block.shape[1], capacity, block.shape[3])
                longer[: len(kept), :, :width] = block[kept][:, :, :width]
                blocks[layer] = longer
        contents, filled = np.full((slots, capacity), -1, dtype=np.int64), np.zeros(slots, dtype=np.int64)
        contents[: len(kept), :old], filled[: len(kept)] = self.contents[kept], self.filled[kept]
        self.held = np.arange(slots) < len(kept)
        self.contents, self.filled, self.slots, self.capacity = contents, filled, slots, capacity
        self._released = np.zeros(slots, dtype=np.int64)
        return {slot: place for place, slot in enumerate(kept)}

    def slots_at(self, capacity: int) -> int:
        """How many slots there would be at a capacity."""
        return max(_FEWEST, self.budget // _rounded(capacity))


def _rounded(capacity: int) -> int:
    return -(-capacity // _ROUND) * _ROUND
