"""What a model makes of examples at their supervised places: hidden states, and the head that turns them into logits.

Every objective starts from these rows; how they come about (packed, padded, or from a model that cannot be taken apart, whose rows
are its own logits) is decided here and nowhere else.

A packed pass reads a microbatch laid end to end: no padding, and what all examples begin with (chat template, system prompt) is read
once. The linear layers see one long row; attention lets each example see the shared beginning and itself. By causality states and
gradients are those of the padded batch. On a CPU oneDNN makes a kernel for every new shape, so the number of tokens is rounded up there.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AttentionInterface, PreTrainedModel

from mixsd.decoding.packed import UnpackableError, check_layer, path_of, windowed_layers
from mixsd.models.compat import attention_name, attention_of, text_config
from mixsd.training.examples import UNSUPERVISED, Batch, Example, collate
from mixsd.training.losses import States, decoder, evaluating, forward, inseparable, logit_head

NAME = "mixsd_packed_training"
_ROUND = 16  # the number of tokens on a CPU is a multiple of this
# How far packed states may be from the model's own, relative to the largest: rounding, and not another computation.
_TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-3}  # some families' norms are fp32 whatever the weights are
_TOLERANCE_HALF = 0.1
# Logits that may exist at once: 0.5 GB in fp32, which is 2,700 rows of a 49k vocabulary and 500 of a 256k one.
CHUNK_LOGITS = 2**27


class Reading:
    """How a model is read; what it can and cannot do is found out once, on `probe`.

    `path` says which way it goes, and why where it is not the usual one: "packed", "padded: REASON" or "dense: REASON".
    """

    def __init__(self, model: PreTrainedModel, probe: Example) -> None:
        reason = inseparable(model, collate([probe]).to(model.device))
        self.path = f"dense: {reason}" if reason else path(model)
        self.dense, self.packed = reason is not None, self.path == "packed"

    def states(self, model: PreTrainedModel, examples: Sequence[Example]) -> States:
        """The states of `model`, plain or with adapters inside, at the places that predict the examples' targets."""
        if self.packed:
            return States(packed_states(model, examples), logit_head(model), _chunk(model))
        return padded_states(model, collate(examples).to(model.device), dense=self.dense)


def padded_states(model: PreTrainedModel, batch: Batch, *, chunk: int | None = None, dense: bool = False) -> States:
    """The states of a padded batch. `dense` goes through the model's own logits, for one whose head cannot be taken apart."""
    supervised = batch.labels[:, 1:] != UNSUPERVISED
    chunk = chunk or _chunk(model)
    if dense:
        return States(forward(model, batch).logits[:, :-1][supervised], lambda logits: logits, chunk)
    return States(forward(decoder(model), batch).last_hidden_state[:, :-1][supervised], logit_head(model), chunk)


def target_ids(examples: Sequence[Example], device: torch.device) -> Tensor:
    """The target tokens of the examples end to end, int64 (N,)."""
    return torch.tensor([token for example in examples for token in example.target_ids], device=device)


def _chunk(model: PreTrainedModel) -> int:
    return max(1, CHUNK_LOGITS // text_config(model.config).vocab_size)


def packed_states(model: PreTrainedModel, examples: Sequence[Example]) -> Tensor:
    """Return the final hidden states (N, H), with gradients, at the places that predict the examples' target tokens, in order.

    `model` is plain, or the base inside a peft model, and its `path` is "packed". With gradient checkpointing on, it has to be
    the kind that `recomputed_alike` prepares.
    """
    texts = [(*example.prompt_ids, *example.target_ids[:-1]) for example in examples]  # the last token predicts nothing
    plan = _TextPass(texts, model.device, windowed=windowed_layers(model))
    with attention_of(model, NAME):
        hidden: Tensor = model.get_decoder()(
            input_ids=plan.tokens.unsqueeze(0),
            position_ids=plan.positions.unsqueeze(0),
            use_cache=False,
            return_dict=True,
            mixsd_pass=plan,
        ).last_hidden_state[0]
    return hidden[plan.places([len(example.prompt_ids) - 1 for example in examples])]


def recomputed_alike(model: PreTrainedModel) -> Callable[[], tuple[AbstractContextManager[None], AbstractContextManager[None]]]:
    """The `context_fn` of torch's checkpoint under which a layer is computed again with the attention that it had before."""
    return lambda: (nullcontext(), attention_of(model, attention_name(model)))


def path(model: PreTrainedModel) -> str:
    """How the model is trained: "packed", or "padded: " and the reason. It is tried out."""
    with evaluating(model):
        return path_of(model, decoder(model), "padded", lambda: _difference(model))


class _TextPass:
    """How the texts lie in the row: `shared` tokens of all; each text's own, from its place in `firsts` on; on a CPU, `idle` ones."""

    def __init__(self, texts: Sequence[tuple[int, ...]], device: torch.device, *, windowed: frozenset[int]) -> None:
        self.texts, self.device, self.windowed = texts, device, windowed
        self.shared = _common(texts)
        own = [len(text) - self.shared for text in texts]
        order = sorted((row for row in range(len(texts)) if own[row]), key=lambda row: own[row])
        self.firsts = [0] * len(texts)
        tokens, positions = list(texts[0][: self.shared]), list(range(self.shared))
        for row in order:
            self.firsts[row] = len(tokens)
            tokens += texts[row][self.shared :]
            positions += range(self.shared, len(texts[row]))
        self.idle = -len(tokens) % _ROUND if device.type == "cpu" else 0
        self.tokens = torch.tensor(tokens + [0] * self.idle, device=device)
        self.positions = torch.tensor(positions + [0] * self.idle, device=device)
        self.groups = [_TextGroup([0], [self.shared], 0, device)] if self.shared else []
        # Texts of about one length attend together: of 1, 2, up to 4, up to 8, ... tokens of their own.
        for _, together in groupby(order, key=lambda row: (own[row] - 1).bit_length()):
            rows = list(together)
            self.groups.append(_TextGroup([self.firsts[row] for row in rows], [own[row] for row in rows], self.shared, device))

    def places(self, starts: Sequence[int]) -> Tensor:
        """Where in the row the states lie of every text's tokens from position `starts` of that text on."""
        found: list[int] = []
        for text, first, start in zip(self.texts, self.firsts, starts, strict=True):
            found += range(start, min(len(text), self.shared))
            found += range(first + max(start - self.shared, 0), first + len(text) - self.shared)
        return torch.tensor(found, device=self.device)


class _TextGroup:
    """Texts that attend together: `rows` of at most `width` tokens of their own, after `shared` tokens.

    index: (rows, width) places in the row of tokens. kept: which of rows * width are no padding, None where all are.
    """

    def __init__(self, firsts: list[int], lengths: list[int], shared: int, device: torch.device) -> None:
        self.shared = shared
        length = torch.tensor(lengths).unsqueeze(1)
        column = torch.arange(max(lengths))
        self.index = (torch.tensor(firsts).unsqueeze(1) + column.minimum(length - 1)).to(device)
        present = (column < length).flatten()
        self.kept = None if present.all() else present.nonzero().squeeze(1).to(device)
        self._masks: dict[tuple[int | None, int, torch.dtype], Tensor] = {}

    def mask(self, window: int | None, heads: int, dtype: torch.dtype) -> Tensor:
        """(heads * width, shared + width): what to add to the scores of every text. Padding comes last, so nobody sees it as a key."""
        if (window, heads, dtype) not in self._masks:
            key = torch.arange(self.shared + self.index.shape[1], device=self.index.device)
            query = key[self.shared :].unsqueeze(1)
            seen = key <= query
            if window is not None:
                seen &= key > query - window
            mask = torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, float("-inf"))
            self._masks[window, heads, dtype] = mask.repeat(heads, 1)
        return self._masks[window, heads, dtype]


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    mixsd_pass: _TextPass | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    dropout: float = 0.0,
    **others: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface: query (1, heads, T, size), key and value (1, key-value heads, T, size)."""
    if dropout:
        raise UnpackableError("its attention drops out in training")
    whole = mixsd_pass is not None and attention_mask is None and scaling is not None
    check_layer(module, mixsd_pass.windowed if mixsd_pass and whole else None, sliding_window, others)
    assert mixsd_pass is not None
    assert scaling is not None
    # In bf16 the gradient of attention takes ten times as long on a CPU as in fp32. Elsewhere autocast's type, which values have.
    dtype = torch.promote_types(value.dtype, torch.float32) if value.device.type == "cpu" else value.dtype
    query_THD, key_TGD, value_TGD = (part[0].transpose(0, 1).to(dtype) for part in (query, key, value))
    with torch.autocast(value.device.type, enabled=False):
        found = [_attend(group, query_THD, key_TGD, value_TGD, scaling, sliding_window, softcap) for group in mixsd_pass.groups]
    if mixsd_pass.idle:
        found.append(found[0].new_zeros(mixsd_pass.idle, *found[0].shape[1:]))
    return torch.cat(found).unsqueeze(0).to(value.dtype), None


AttentionInterface.register(NAME, _attention)


def _attend(
    group: _TextGroup,
    query_THD: Tensor,
    key_TGD: Tensor,
    value_TGD: Tensor,
    scaling: float,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    """The attention output (tokens of the group, heads, size). Heads: G of keys, each seen by F of queries, H = G * F."""
    heads, groups = query_THD.shape[1], key_TGD.shape[1]
    rows, width = group.index.shape
    # Query heads that share a key head become more queries of it, so that no key is copied for them.
    query_RGQD = _gather(query_THD, group.index).unflatten(2, (groups, heads // groups)).permute(0, 2, 3, 1, 4).flatten(2, 3)
    key_RGKD, value_RGKD = (
        torch.cat([part[: group.shared].expand(rows, -1, -1, -1), _gather(part, group.index)], dim=1).transpose(1, 2)
        for part in (key_TGD, value_TGD)
    )
    mask = group.mask(window, heads // groups, query_THD.dtype)
    if softcap is None:
        output_RGQD = functional.scaled_dot_product_attention(query_RGQD, key_RGKD, value_RGKD, attn_mask=mask, scale=scaling)
    else:
        scores = torch.matmul(query_RGQD, key_RGKD.transpose(-1, -2)) * scaling
        scores = torch.tanh(scores / softcap) * softcap + mask
        probabilities = scores.softmax(dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32))
        output_RGQD = torch.matmul(probabilities.to(value_RGKD.dtype), value_RGKD)
    output_THD = output_RGQD.unflatten(2, (-1, width)).permute(0, 3, 1, 2, 4).reshape(rows * width, heads, -1)
    return output_THD if group.kept is None else _gather(output_THD, group.kept)


def _gather(rows: Tensor, index: Tensor) -> Tensor:
    """`rows[index]` along the first dimension; the gradient of an embedding is much faster on a CPU than that of indexing."""
    return functional.embedding(index, rows.flatten(1)).unflatten(-1, rows.shape[1:])


def _common(texts: Sequence[tuple[int, ...]]) -> int:
    """How many tokens all texts begin with; none where there is but one text, which need not be cut in two."""
    if len(texts) == 1:
        return 0
    # What the first and the last in order have in common, all between them have.
    least, most = min(texts), max(texts)
    same = (one == other for one, other in zip(least, most, strict=False))
    return next((place for place, equal in enumerate(same) if not equal), len(least))


@torch.no_grad()
def _difference(model: PreTrainedModel) -> str | None:
    """What tells packed states from the model's own; None where rounding explains it."""
    vocabulary = text_config(model.config).vocab_size
    ids = [[(7 * i + shift) % vocabulary for i in range(n)] for shift, n in ((1, 3), (2, 7), (3, 4), (4, 5))]
    examples = [Example(str(number), tuple(ids[0] + own[:2]), tuple(own[2:])) for number, own in enumerate(ids[1:])]
    with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
        model.train()
        packed_states(model, examples)  # which refuses dropout inside attention
    model.eval()
    alone = []
    for example in examples:
        text = torch.tensor([[*example.prompt_ids, *example.target_ids[:-1]]], device=model.device)
        hidden = model.get_decoder()(input_ids=text, use_cache=False, return_dict=True).last_hidden_state
        alone.append(hidden[0, len(example.prompt_ids) - 1 :])
    own, packed = torch.cat(alone), packed_states(model, examples)
    allowed = _TOLERANCE.get(own.dtype, _TOLERANCE_HALF) * own.abs().max()
    same = own.shape == packed.shape and (own - packed).abs().max() <= allowed
    return None if same else "packed states are not the model's own"
