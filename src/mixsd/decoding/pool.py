"""Keys and values of all the texts in flight: equal slots in one block of memory per layer, and what each slot holds.

A slot is a row of `capacity` tokens. Where a new text begins as one in some slot does (a system prompt, ten-shot examples, a
fact's prompt at its next attempt), those keys and values are copied and not computed: keys and values of a token depend on
nothing after it. A slot that was let go keeps its content until it is needed. Memory is slots x capacity, bounded by a
number of tokens; slots become longer and fewer when a text outgrows them, and shorter and more when all texts are short.
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

    def fitting(self, longest: int) -> int:
        """The capacity that slots should have for texts of up to `longest` tokens: the present one where that will do."""
        if longest > self.capacity:
            # By half, so that it does not grow with every token, but not beyond what leaves the fewest slots in the budget.
            most = self.budget // _FEWEST // _ROUND * _ROUND
            return _rounded(max(longest, min(self.capacity * 3 // 2, most)))
        shorter = _rounded(longest + _ROUND)
        return shorter if 2 * shorter <= self.capacity else self.capacity

    def resize(self, capacity: int) -> dict[int, int]:
        """Make every slot `capacity` tokens long, rounded up, with as many slots as the budget then has.

        No text that is held may be longer, and there must be no more slots held than then exist (see `slots_at`). Of what
        nobody holds, as much stays as there is room for, the latest first. Returns where each slot that is held has moved.
        """
        capacity = _rounded(capacity)
        slots, width = self.slots_at(capacity), min(self.capacity, capacity)
        held, free = np.flatnonzero(self.held), np.flatnonzero(~self.held)
        assert len(held) <= slots
        kept = np.concatenate([held, free[np.argsort(-self._released[free], kind="stable")]])[:slots]
        count = len(kept)
        for blocks in (self.keys, self.values):
            for layer, block in blocks.items():
                blocks[layer] = block.new_zeros(slots, block.shape[1], capacity, block.shape[3])
                blocks[layer][:count, :, :width] = block[torch.from_numpy(kept).to(block.device), :, :width]
        contents = np.full((slots, capacity), -1, dtype=np.int64)
        filled, released = np.zeros(slots, dtype=np.int64), np.zeros(slots, dtype=np.int64)
        contents[:count, :width] = self.contents[kept, :width]
        filled[:count], released[:count] = np.minimum(self.filled[kept], width), self._released[kept]
        self.contents, self.filled, self._released = contents, filled, released
        self.held = np.arange(slots) < len(held)
        self.slots, self.capacity = slots, capacity
        return {slot: place for place, slot in enumerate(held.tolist())}

    def slots_at(self, capacity: int) -> int:
        """How many slots there would be at a capacity."""
        return max(_FEWEST, self.budget // _rounded(capacity))


def _rounded(capacity: int) -> int:
    return -(-capacity // _ROUND) * _ROUND
