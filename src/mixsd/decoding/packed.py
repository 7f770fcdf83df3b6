"""One forward pass over pieces of many texts laid end to end, so that no position is padding, and the pool of what was read.

The linear layers see the tokens of all pieces as one row. Only attention, registered with transformers' interface, has to know where
a piece begins: it writes the new keys and values into the pool's slots, and lets each piece see its own slot up to its own position
(within the layer's window, where it has one). Pieces of about one length attend together.

On a CPU oneDNN makes a kernel for every new shape, which takes longer than a small product, and keeps a thousand of them. So the
numbers of tokens, of logits and of keys are rounded up there.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from transformers import AttentionInterface

from mixsd.models.compat import HARMLESS, attention_of, text_config

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_CAPACITY_ROUND = 64  # capacities are multiples of this
_FEWEST = 2  # one request, with its naive and its expert prompt, is always served


class Pool:
    """Keys and values of all the texts in flight: one block of memory per layer, in equal slots; `budget` tokens in all.

    Where a new text begins as one in some slot does (a system prompt, ten-shot examples, a fact's prompt at its next attempt), those
    keys and values are copied and not computed. A slot that was let go keeps its content until it is needed. Slots become longer and
    fewer when a text outgrows them, and shorter and more when all texts are short.

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
        """A free slot for `tokens` (n,), the first `shared` copied from `source`: that one if free, else the one let go longest ago."""
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
            most = self.budget // _FEWEST // _CAPACITY_ROUND * _CAPACITY_ROUND
            return _rounded(max(longest, min(self.capacity * 3 // 2, most)))
        shorter = _rounded(longest + _CAPACITY_ROUND)
        return shorter if 2 * shorter <= self.capacity else self.capacity

    def resize(self, capacity: int) -> dict[int, int]:
        """Make every slot `capacity` tokens long, rounded up, with as many slots as the budget then has; returns where held ones moved.

        No text that is held may be longer, and no more slots be held than then exist (see `slots_at`). Of what nobody holds, as much
        stays as there is room for, the latest first.
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
    return _up(capacity, _CAPACITY_ROUND)


def _up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


NAME = "mixsd_packed"
# Attention that looks at keys and values by their positions alone.
_LAYER_TYPES = {"full_attention", "sliding_attention"}
_ROUND = 16  # sizes on a CPU are multiples of this


class UnpackableError(NotImplementedError):
    """Why a model's attention cannot be packed."""


def path_of(model: PreTrainedModel, module: nn.Module, otherwise: str, difference: Callable[[], str | None]) -> str:
    """Return "packed", or `otherwise` and the reason why passes through `module`, the model or its decoder, are not packed.

    `difference` reads a few tokens both ways and says what tells the results apart.
    """
    others = sorted(set(getattr(text_config(model.config), "layer_types", None) or ()) - _LAYER_TYPES)
    arguments = inspect.signature(module.forward).parameters.values()
    if others:
        reason: str | None = f"it has layers of {others[0]}"
    elif model.config.is_encoder_decoder:
        reason = "it has an encoder"
    elif all(argument.kind is not inspect.Parameter.VAR_KEYWORD for argument in arguments):
        reason = "it hands nothing on to attention"
    else:
        try:
            reason = difference()
        except UnpackableError as error:
            reason = str(error)
    return f"{otherwise}: {reason}" if reason else "packed"


@dataclass(frozen=True)
class Piece:
    """New tokens of one text: they go to `slot` from position `start` on."""

    slot: int
    start: int
    tokens: list[int]

    @property
    def end(self) -> int:
        return self.start + len(self.tokens)


@dataclass
class _Group:
    """Pieces that attend together, `rows` of at most `width` tokens: the tokens from `first` to `last` of the pass.

    index: (rows, width) places in the pass; present: bool (rows, width), None where all pieces are equally long.
    """

    slots: torch.Tensor
    first: int
    last: int
    reach: int
    positions: torch.Tensor
    index: torch.Tensor
    present: torch.Tensor | None
    masks: dict[int | None, torch.Tensor] = field(default_factory=dict)

    def mask(self, window: int | None) -> torch.Tensor:
        """bool (rows, 1, 1, width, reach): the slot positions that each token sees."""
        if window not in self.masks:
            keys = torch.arange(self.reach, device=self.positions.device)
            seen = keys <= self.positions[:, :, None]
            if window is not None:
                seen &= keys > self.positions[:, :, None] - window
            self.masks[window] = seen[:, None, None]
        return self.masks[window]


class _Pass:
    """What attention has to know of one forward pass."""

    def __init__(self, pool: Pool, pieces: list[Piece], model: PreTrainedModel) -> None:
        self.pool, device = pool, model.device
        self.windowed = windowed_layers(model)
        lengths = np.array([len(piece.tokens) for piece in pieces])
        starts = np.array([piece.start for piece in pieces])
        firsts = np.concatenate([[0], np.cumsum(lengths)])
        total = int(firsts[-1])
        self.round = _ROUND if device.type == "cpu" else 1
        self.idle = -total % self.round  # rows that belong to nobody, at the end
        within = np.arange(total) - np.repeat(firsts[:-1], lengths)
        slots, positions = np.repeat([piece.slot for piece in pieces], lengths), np.repeat(starts, lengths) + within
        self.slots, self.positions = torch.from_numpy(slots).to(device), torch.from_numpy(positions).to(device)

        def group(begin: int, end: int) -> _Group:
            columns = np.arange(int(lengths[begin:end].max()))
            present = columns < lengths[begin:end, None]
            index = firsts[begin:end, None] + np.minimum(columns, lengths[begin:end, None] - 1)
            place = positions[index]
            return _Group(
                slots=torch.from_numpy(slots[firsts[begin:end]]).to(device),
                first=int(firsts[begin]),
                last=int(firsts[end]),
                reach=min(_up(int(place.max()) + 1, self.round), pool.capacity),
                positions=torch.from_numpy(place).to(device),
                index=torch.from_numpy(index).to(device),
                present=None if present.all() else torch.from_numpy(present).to(device),
            )

        # Pieces stand in the order of their lengths; together go those of 1, 2, up to 4, up to 8, ... tokens.
        runs = [list(run) for _, run in groupby(range(len(pieces)), key=lambda i: int(lengths[i] - 1).bit_length())]
        self.groups = [group(run[0], run[-1] + 1) for run in runs]


def _attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    mixsd_pass: _Pass | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    dropout: float = 0.0,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention interface: query (1, heads, T, size), key and value (1, key-value heads, T, size)."""
    whole = mixsd_pass is not None and attention_mask is None and scaling is not None
    layer = check_layer(module, mixsd_pass.windowed if mixsd_pass and whole else None, sliding_window, others)
    assert mixsd_pass is not None
    assert scaling is not None
    pool = mixsd_pass.pool
    count = len(mixsd_pass.slots)
    pool.write(
        layer, mixsd_pass.slots, mixsd_pass.positions, key[0, :, :count].transpose(0, 1), value[0, :, :count].transpose(0, 1)
    )
    query_THD = query[0].transpose(0, 1)
    found = [
        _attend(group, query_THD, pool.keys[layer], pool.values[layer], scaling, sliding_window, softcap)
        for group in mixsd_pass.groups
    ]
    if mixsd_pass.idle:
        found.append(query_THD.new_zeros(mixsd_pass.idle, *query_THD.shape[1:]))
    return torch.cat(found).unsqueeze(0), None


def windowed_layers(model: PreTrainedModel) -> frozenset[int]:
    """The layers that have a sliding window. One that takes it from the model's own mask alone cannot be packed."""
    config = text_config(model.config)
    if not getattr(config, "sliding_window", None):
        return frozenset()
    types = getattr(config, "layer_types", None) or ["sliding_attention"] * config.num_hidden_layers
    return frozenset(layer for layer, kind in enumerate(types) if kind == "sliding_attention")


def check_layer(module: Any, windowed: frozenset[int] | None, window: int | None, others: Mapping[str, Any]) -> int:
    """The number of a layer that is to attend in a packed pass; `UnpackableError` where it does so in a way that such a pass does not know.

    `windowed` is None where it is called otherwise than it has to be: without the pass or its scaling, or with a mask.
    """
    unknown = [name for name, given in others.items() if given is not None and name not in HARMLESS]
    layer = getattr(module, "layer_idx", None)
    if windowed is None or layer is None or unknown:
        raise UnpackableError(
            f"its attention takes {unknown[0] if unknown else 'a mask, or is not told its pass, layer and scaling'}"
        )
    if layer in windowed and window is None:
        raise UnpackableError(f"layer {layer} has a sliding window and does not say so")
    return int(layer)


def _attend(
    group: _Group,
    query_THD: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    scaling: float,
    window: int | None,
    softcap: float | None,
) -> torch.Tensor:
    """The attention output (tokens of the group, heads, size)."""
    width = group.index.shape[1]
    key_RHLD = keys[:, :, : group.reach].index_select(0, group.slots)
    value_RHLD = values[:, :, : group.reach].index_select(0, group.slots)
    query_RWHD = (query_THD[group.first : group.last] if width == 1 else query_THD[group.index]).view(
        *group.index.shape, *query_THD.shape[1:]
    )
    if softcap is None and _fuses(query_THD):
        mask = group.mask(window)[:, :, 0]
        output_RWHD = torch.nn.functional.scaled_dot_product_attention(
            query_RWHD.transpose(1, 2), key_RHLD, value_RHLD, attn_mask=mask, scale=scaling, enable_gqa=True
        ).transpose(1, 2)
    else:
        output_RWHD = _spelled_out(query_RWHD, key_RHLD, value_RHLD, group.mask(window), scaling, softcap)
    return output_RWHD.flatten(0, 1) if group.present is None else output_RWHD[group.present]


def _fuses(query: torch.Tensor) -> bool:
    """On accelerators; on a CPU scaled_dot_product_attention takes several times as long for single tokens."""
    return query.device.type != "cpu"


def _spelled_out(
    query_RWHD: torch.Tensor,
    key_RHLD: torch.Tensor,
    value_RHLD: torch.Tensor,
    mask: torch.Tensor,
    scaling: float,
    softcap: float | None,
) -> torch.Tensor:
    """Attention as two products; query heads that share a key head are folded into one, so that no key is copied."""
    rows, width, heads, size = query_RWHD.shape
    shared, reach = key_RHLD.shape[1:3]
    # (rows, key heads, query heads of each, width, size), the middle two as one
    folded = query_RWHD.view(rows, width, shared, heads // shared, size).permute(0, 2, 3, 1, 4).reshape(rows, shared, -1, size)
    scores = torch.matmul(folded, key_RHLD.transpose(-1, -2))
    if scores.dtype in (torch.bfloat16, torch.float16):
        scores = scores.float()
    scores = scores.mul_(scaling).view(rows, shared, heads // shared, width, reach)
    if softcap is not None:
        scores = scores.div_(softcap).tanh_().mul_(softcap)
    scores = scores.masked_fill_(~mask, float("-inf")).softmax(dim=-1).to(value_RHLD.dtype)
    output = torch.matmul(scores.view(rows, shared, -1, reach), value_RHLD)
    return output.view(rows, shared, heads // shared, width, size).permute(0, 3, 1, 2, 4).reshape(rows, width, heads, size)


AttentionInterface.register(NAME, _attention)


def forward(model: PreTrainedModel, pool: Pool, pieces: list[Piece], wanted: list[tuple[int, int]]) -> torch.Tensor:
    """Feed pieces to the model and record them in the pool.

    `wanted` are (piece, token of the piece), both counted from 0; the next token's logits there are returned, (len(wanted), V).
    """
    order = sorted(range(len(pieces)), key=lambda i: len(pieces[i].tokens))
    laid = [pieces[i] for i in order]
    firsts = dict(zip(order, np.cumsum([0, *(len(piece.tokens) for piece in laid)]).tolist(), strict=False))
    plan = _Pass(pool, laid, model)
    idle = np.zeros(plan.idle, dtype=np.int64)
    tokens = np.concatenate([*(piece.tokens for piece in laid), idle])
    places = [firsts[piece] + token for piece, token in wanted]
    places += places[:1] * (-len(places) % plan.round)
    with attention_of(model, NAME):
        logits = model(
            input_ids=torch.from_numpy(tokens).to(model.device).unsqueeze(0),
            position_ids=torch.cat([plan.positions, torch.from_numpy(idle).to(model.device)]).unsqueeze(0),
            use_cache=False,
            logits_to_keep=torch.tensor(places, device=model.device, dtype=torch.long),
            mixsd_pass=plan,
        ).logits[0, : len(wanted)]
    for piece in laid:
        pool.contents[piece.slot, piece.start : piece.end] = piece.tokens
        pool.filled[piece.slot] = piece.end
    return logits
