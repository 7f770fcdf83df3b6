"""One forward pass over pieces of many texts laid end to end, so that no position is padding.

The linear layers see the tokens of all pieces as one row. Only attention has to know where a piece begins: it is registered
with transformers' attention interface, writes the new keys and values into the pool's slots, and lets each piece see its own
slot up to its own position (within the layer's window, where it has one). Pieces of about one length attend together.

On a CPU oneDNN makes a kernel for every new shape, which takes longer than a small product, and keeps a thousand of them. So the
numbers of tokens, of logits and of keys are rounded up there: a few rows more, and the same shapes again and again.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import AttentionInterface

from mixsd.decoding.pool import Pool

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NAME = "mixsd_packed"
_ROUND = 16  # sizes on a CPU are multiples of this


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

    index: (rows, width) places in the pass; present: bool (rows, width), None where no piece is shorter than the others.
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
        self.windowed = windowed_layers(model.config.get_text_config())
        lengths = np.array([len(piece.tokens) for piece in pieces])
        starts = np.array([piece.start for piece in pieces])
        firsts = np.concatenate([[0], np.cumsum(lengths)])
        total = int(firsts[-1])
        self.round = _ROUND if device.type == "cpu" else 1
        self.idle = -total % self.round  # rows that belong to nobody, at the end
        within = np.arange(total) - np.repeat(firsts[:-1], lengths)
        slots, positions = np.repeat([piece.slot for piece in pieces], lengths), np.repeat(starts, lengths) + within
        self.slots, self.positions = torch.from_numpy(slots).to(device), torch.from_numpy(positions).to(device)
        self.groups = []
        classes = [int(length - 1).bit_length() for length in lengths]  # 1, 2, up to 4, up to 8, ...
        begin = 0
        while begin < len(pieces):
            end = begin
            while end < len(pieces) and classes[end] == classes[begin]:
                end += 1
            self.groups.append(self._group(slots, positions, firsts, lengths, begin, end, device))
            begin = end

    def _group(
        self,
        slots: np.ndarray,
        positions: np.ndarray,
        firsts: np.ndarray,
        lengths: np.ndarray,
        begin: int,
        end: int,
        device: torch.device,
    ) -> _Group:
        width = int(lengths[begin:end].max())
        columns = np.arange(width)
        present = columns < lengths[begin:end, None]
        index = firsts[begin:end, None] + np.minimum(columns, lengths[begin:end, None] - 1)
        place = positions[index]
        return _Group(
            slots=torch.from_numpy(slots[firsts[begin:end]]).to(device),
            first=int(firsts[begin]),
            last=int(firsts[end]),
            reach=min(_up(int(place.max()) + 1, self.round), self.pool.capacity),
            positions=torch.from_numpy(place).to(device),
            index=torch.from_numpy(index).to(device),
            present=None if present.all() else torch.from_numpy(present).to(device),
        )


def _attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float,
    mixsd_pass: _Pass | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    dropout: float = 0.0,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention interface: query (1, heads, T, size), key and value (1, key-value heads, T, size)."""
    unknown = [name for name, given in others.items() if given is not None and name not in HARMLESS]
    if mixsd_pass is None or attention_mask is not None or unknown:
        raise NotImplementedError(f"packed attention: {', '.join(unknown) or 'a mask, or no pass'}")
    layer, pool = module.layer_idx, mixsd_pass.pool
    if layer in mixsd_pass.windowed and sliding_window is None:
        raise NotImplementedError(f"packed attention: layer {layer} has a sliding window and does not say so")
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


def _up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def windowed_layers(config: Any) -> frozenset[int]:
    """The layers that have a sliding window. One that takes it from the model's own mask alone cannot be packed."""
    if not getattr(config, "sliding_window", None):
        return frozenset()
    types = getattr(config, "layer_types", None) or ["sliding_attention"] * config.num_hidden_layers
    return frozenset(layer for layer, kind in enumerate(types) if kind == "sliding_attention")


HARMLESS = ("position_ids", "use_cache", "is_causal", "output_attentions", "cache_position", "position_embeddings")


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
    """Whether to call scaled_dot_product_attention: on accelerators. On a CPU it takes several times as long for single tokens."""
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

    Args:
        wanted: (piece, token of the piece), both counted from 0: where the next token's logits are wanted.

    Returns:
        Logits (len(wanted), V), in that order.
    """
    order = sorted(range(len(pieces)), key=lambda i: len(pieces[i].tokens))
    laid = [pieces[i] for i in order]
    firsts = dict(zip(order, np.cumsum([0, *(len(piece.tokens) for piece in laid)]).tolist(), strict=False))
    plan = _Pass(pool, laid, model)
    idle = np.zeros(plan.idle, dtype=np.int64)
    tokens = np.concatenate([*(piece.tokens for piece in laid), idle])
    places = [firsts[piece] + token for piece, token in wanted]
    places += places[:1] * (-len(places) % plan.round)
    usual = model.config._attn_implementation
    model.set_attn_implementation(NAME)
    try:
        logits = model(
            input_ids=torch.from_numpy(tokens).to(model.device).unsqueeze(0),
            position_ids=torch.cat([plan.positions, torch.from_numpy(idle).to(model.device)]).unsqueeze(0),
            use_cache=False,
            logits_to_keep=torch.tensor(places, device=model.device, dtype=torch.long),
            mixsd_pass=plan,
        ).logits[0, : len(wanted)]
    finally:
        model.set_attn_implementation(usual)
    for piece in laid:
        pool.contents[piece.slot, piece.start : piece.end] = piece.tokens
        pool.filled[piece.slot] = piece.end
    return logits
