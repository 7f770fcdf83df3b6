"""What a model makes of a batch at its supervised places: hidden states and the head that turns them into logits.

Every objective starts from these rows, so how they come about (padded, packed, or from a model that cannot be taken apart) is
decided here and nowhere else. For the last kind the rows are the model's own logits, and the head gives them back as they are.

One forward pass over a microbatch laid end to end: no padding, and what all examples begin with is read once.

The tokens of the chat template and the system prompt come first, once, then what each example has of its own. The linear layers
see one long row. Only attention has to know where an example begins: it is registered with transformers' attention interface, and
lets each example see the shared beginning and itself. By causality the states of the shared tokens are the same for every example,
and the gradients of all examples meet in their keys and values, so states and gradients are those of the padded batch.

On a CPU oneDNN makes a kernel for every new shape, so the number of tokens is rounded up there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, PreTrainedModel

from mixsd.decoding.packed import HARMLESS, windowed_layers
from mixsd.training.examples import UNSUPERVISED, Batch, Example, collate
from mixsd.training.losses import Head, decoder, forward, head_is_separable, logit_head

NAME = "mixsd_packed_training"
_ROUND = 16  # the number of tokens on a CPU is a multiple of this
# Attention that looks at keys and values by their positions alone.
_LAYER_TYPES = {"full_attention", "sliding_attention"}
# How far packed states may be from the model's own, relative to the largest: rounding, and not another computation.
_TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-3}  # some families' norms are fp32 whatever the weights are
_TOLERANCE_HALF = 0.1

_packs: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


def packed_states(model: PreTrainedModel, examples: Sequence[Example]) -> Tensor:
    """Return the final hidden states (N, H), with gradients, at the places that predict the examples' target tokens, in order.

    `model` is plain, or the base inside a peft model, and one that `packs`. With gradient checkpointing on, it has to be the
    kind that `recomputed_alike` prepares.
    """
    texts = [(*example.prompt_ids, *example.target_ids[:-1]) for example in examples]  # the last token predicts nothing
    plan = _Pass(texts, model.device, windowed=windowed_layers(model.config.get_text_config()))
    with _attention_of(model, NAME):
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
    return lambda: (nullcontext(), _attention_of(model, model.config._attn_implementation))


def packs(model: PreTrainedModel) -> bool:
    """Whether packed passes give this model's own states; tried out once per model on a few tokens."""
    if model not in _packs:
        training = model.training
        try:
            _packs[model] = _try(model)
        finally:
            model.train(training)
    return _packs[model]


class _Pass:
    """How the texts lie in the row, and what attention has to know of it.

    Of the row's tokens, `shared` belong to all texts; then come the texts' own, each from its place in `firsts` on; then, on a
    CPU, some that belong to nobody.
    """

    def __init__(self, texts: Sequence[tuple[int, ...]], device: torch.device, *, windowed: frozenset[int]) -> None:
        self.texts, self.device, self.windowed = texts, device, windowed
        self.shared = _common(texts)
        own = [len(text) - self.shared for text in texts]
        order = sorted((row for row in range(len(texts)) if own[row]), key=lambda row: own[row])
        self.firsts = [0] * len(texts)
        total = self.shared
        for row in order:
            self.firsts[row] = total
            total += own[row]
        self.idle = -total % _ROUND if device.type == "cpu" else 0
        tokens, positions = list(texts[0][: self.shared]), list(range(self.shared))
        for row in order:
            tokens += texts[row][self.shared :]
            positions += range(self.shared, len(texts[row]))
        self.tokens = torch.tensor(tokens + [0] * self.idle, device=device)
        self.positions = torch.tensor(positions + [0] * self.idle, device=device)
        self.groups = [_Group([0], [self.shared], 0, device)] if self.shared else []
        # Texts of about one length attend together: of 1, 2, up to 4, up to 8, ... tokens of their own.
        classes = [(own[row] - 1).bit_length() for row in order]
        for length_class in sorted(set(classes)):
            rows = [row for row, this in zip(order, classes, strict=True) if this == length_class]
            self.groups.append(_Group([self.firsts[row] for row in rows], [own[row] for row in rows], self.shared, device))

    def places(self, starts: Sequence[int]) -> Tensor:
        """Where in the row the states lie of every text's tokens from position `starts` of that text on."""
        found: list[int] = []
        for text, first, start in zip(self.texts, self.firsts, starts, strict=True):
            found += range(start, min(len(text), self.shared))
            found += range(first + max(start - self.shared, 0), first + len(text) - self.shared)
        return torch.tensor(found, device=self.device)


class _Group:
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
        """(heads * width, shared + width): what to add to the scores. The same for every text, since all begin at one position.

        A padded token comes after all of its text's own, so nobody sees it as a key; what it sees itself is dropped.
        """
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
    scaling: float,
    mixsd_pass: _Pass | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    dropout: float = 0.0,
    **others: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface: query (1, heads, T, size), key and value (1, key-value heads, T, size)."""
    unknown = [name for name, given in others.items() if given is not None and name not in HARMLESS]
    if mixsd_pass is None or attention_mask is not None or dropout or unknown:
        raise NotImplementedError(f"packed attention: {', '.join(unknown) or 'a mask, dropout, or no pass'}")
    if module.layer_idx in mixsd_pass.windowed and sliding_window is None:
        raise NotImplementedError(f"packed attention: layer {module.layer_idx} has a sliding window and does not say so")
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
    group: _Group,
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


@contextmanager
def _attention_of(model: PreTrainedModel, name: str) -> Iterator[None]:
    usual = model.config._attn_implementation
    model.set_attn_implementation(name)
    try:
        yield
    finally:
        model.set_attn_implementation(usual)


def _common(texts: Sequence[tuple[int, ...]]) -> int:
    """How many tokens all texts begin with; none where there is but one text, which need not be cut in two."""
    if len(texts) == 1:
        return 0
    # What the first and the last in order have in common, all between them have.
    least, most = min(texts), max(texts)
    same = (one == other for one, other in zip(least, most, strict=False))
    return next((place for place, equal in enumerate(same) if not equal), len(least))


@torch.no_grad()
def _try(model: PreTrainedModel) -> bool:
    config = model.config.get_text_config()
    if not _LAYER_TYPES.issuperset(getattr(config, "layer_types", None) or ()) or model.config.is_encoder_decoder:
        return False
    ids = [[(7 * i + shift) % config.vocab_size for i in range(n)] for shift, n in ((1, 3), (2, 7), (3, 4), (4, 5))]
    examples = [Example(str(number), tuple(ids[0] + own[:2]), tuple(own[2:])) for number, own in enumerate(ids[1:])]
    try:
        with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
            model.train()
            packed_states(model, examples)  # which refuses dropout inside attention
        model.eval()
        own = torch.cat([_states_alone(model, example) for example in examples])
        packed = packed_states(model, examples)
    except torch.OutOfMemoryError:
        raise  # says nothing about the model
    except (NotImplementedError, TypeError, ValueError, AttributeError, KeyError, IndexError, RuntimeError):
        # As in decoding: no exception tells attention that cannot be packed apart, and what is really broken fails again, and in
        # the open, when it is trained the usual way.
        return False
    allowed = _TOLERANCE.get(own.dtype, _TOLERANCE_HALF) * own.abs().max()
    return own.shape == packed.shape and bool((own - packed).abs().max() <= allowed)


def _states_alone(model: PreTrainedModel, example: Example) -> Tensor:
    text = torch.tensor([[*example.prompt_ids, *example.target_ids[:-1]]], device=model.device)
    hidden: Tensor = model.get_decoder()(input_ids=text, use_cache=False, return_dict=True).last_hidden_state
    return hidden[0, len(example.prompt_ids) - 1 :]


# Logits that may exist at once: 0.5 GB in fp32, which is 2,700 rows of a 49k vocabulary and 500 of a 256k one.
CHUNK_LOGITS = 2**27


@dataclass(frozen=True)
class States:
    """Rows (N, H), one for each token of the examples' targets, in their order; row t predicts token t.

    `chunk` is how many rows of logits may exist at once.
    """

    rows: Tensor
    head: Head
    chunk: int


class Reading:
    """How a model is read; what it can and cannot do is found out once, on `probe`."""

    def __init__(self, model: PreTrainedModel, probe: Example) -> None:
        self.dense = not head_is_separable(model, collate([probe]).to(model.device))
        self.packed = not self.dense and packs(model)

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
        return States(forward(model, batch).logits[:, :-1][supervised], _as_it_is, chunk)
    return States(forward(decoder(model), batch).last_hidden_state[:, :-1][supervised], logit_head(model), chunk)


def target_ids(examples: Sequence[Example], device: torch.device) -> Tensor:
    """The target tokens of the examples end to end, int64 (N,)."""
    return torch.tensor([token for example in examples for token in example.target_ids], device=device)


def _chunk(model: PreTrainedModel) -> int:
    """How many rows of logits may exist at once."""
    return max(1, CHUNK_LOGITS // model.config.get_text_config().vocab_size)


def _as_it_is(logits: Tensor) -> Tensor:
    return logits
