"""The project's one decoder: continuous where the model's attention can be packed, in lock-step batches where it cannot.

Whether it can is tried out once per model: a few tokens are read both ways and must give the same logits. In lock-step a request has one
row (naive) or two (naive and expert), which are fed the same chosen token; rows of ended requests leave the batch and its cache at once.
Results come in the order in which requests end, and depend on no other request. Log-probabilities of given continuations (`score`)
take one padded forward pass per batch, the head on the continuation's positions only.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from transformers import DynamicCache

from mixsd.decoding import continuous
from mixsd.decoding.packed import Piece, Pool, forward, path_of
from mixsd.decoding.requests import (
    EXPERT,
    GATED,
    NAIVE,
    Decoding,
    Request,
    Sampling,
    begin,
    left_padded,
    padded_batches,
    pick,
    support,
    trim_support,
)
from mixsd.models.compat import text_config

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class _Batch:
    """The rows that are still being decoded: naive rows of all requests first, then the expert rows of those with one."""

    def __init__(self, model: PreTrainedModel, requests: list[Request]) -> None:
        self.model = model
        self.requests = requests
        self.with_expert = [i for i, request in enumerate(requests) if request.expert_ids is not None]
        prompts = [request.naive_ids for request in requests]
        prompts += [requests[i].expert_ids or [] for i in self.with_expert]
        distinct = {tuple(prompt): place for place, prompt in enumerate(dict.fromkeys(map(tuple, prompts)))}
        # Which of the distinct prompts each row has; None once the rows have been made from them.
        self.spread: list[int] | None = [distinct[tuple(prompt)] for prompt in prompts]
        self.input_ids, self.mask, self.positions = left_padded(list(distinct), model.device)
        self.cache = DynamicCache()

    def logits(self) -> tuple[torch.Tensor, torch.Tensor]:
        """One forward pass: naive logits (R, V) and, for the requests with an expert, expert logits (E, V)."""
        last_logits = self.model(
            input_ids=self.input_ids,
            attention_mask=self.mask,
            position_ids=self.positions,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        if last_logits.dtype in (torch.bfloat16, torch.float16):
            last_logits = last_logits.float()
        if self.spread is not None:
            rows = torch.tensor(self.spread, device=self.mask.device)
            last_logits, self.mask, self.positions = last_logits[rows], self.mask[rows], self.positions[rows]
            self.cache.batch_select_indices(rows)
            self.spread = None
        return last_logits[: len(self.requests)], last_logits[len(self.requests) :]

    def feed(self, tokens: torch.Tensor) -> None:
        """Make `tokens` (R,) the next input of both rows of each request."""
        rows = torch.cat([tokens, tokens[self.with_expert]])
        self.input_ids = rows.unsqueeze(-1)
        self.positions = self.positions[:, -1:] + 1
        self.mask = torch.cat([self.mask, torch.ones_like(self.input_ids)], dim=-1)

    def keep(self, kept: list[int]) -> None:
        """Drop the rows of every request whose index is not in `kept`."""
        place = {old: new for new, old in enumerate(self.with_expert)}
        expert_rows = [len(self.requests) + place[i] for i in kept if i in place]
        rows = torch.tensor([*kept, *expert_rows], device=self.mask.device)
        self.mask, self.input_ids, self.positions = self.mask[rows], self.input_ids[rows], self.positions[rows]
        self.cache.batch_select_indices(rows)
        self.requests = [self.requests[i] for i in kept]
        self.with_expert = [i for i, request in enumerate(self.requests) if request.expert_ids is not None]


@torch.inference_mode()
def decode_in_lockstep(
    model: PreTrainedModel, requests: list[Request], sampling: Sampling, *, with_support: bool = False
) -> Iterator[Decoding]:
    """Decode requests, at least one, as one batch; yields each one as it ends. `with_support`: decodings carry `support`.

    Raises `ValueError`: a request for no tokens, or whose prefix leaves it none.
    """
    open_ = [begin(replace(request, prefix=None)) for request in requests]
    batch = _Batch(model, requests)
    t = 0
    while open_:
        naive_RV, expert_EV = batch.logits()
        tokens, sources, supports = _choose(batch, naive_RV, expert_EV, t, sampling)
        for i, request in enumerate(batch.requests):
            if request.prefix and t < request.kept:  # given, and not to be chosen
                tokens[i], sources[i] = request.prefix.ids[t], request.prefix.sources[t]
            elif with_support and sources[i] == NAIVE and i in supports:
                open_[i].support[t] = supports[i]
        stops = [int(token) in sampling.stops for token in tokens]
        stored = [sampling.stops.get(int(token), int(token)) for token in tokens]
        stored_R1 = torch.tensor(stored, device=naive_RV.device).unsqueeze(-1)
        logprobs = torch.log_softmax(naive_RV, dim=-1).gather(-1, stored_R1).squeeze(-1).tolist()
        t += 1
        kept = []
        for i, decoding in enumerate(open_):
            decoding.ids.append(stored[i])
            decoding.sources += sources[i]
            decoding.base_logprobs.append(logprobs[i])
            decoding.ended = stops[i]
            if decoding.ended or t >= batch.requests[i].max_new_tokens:
                trim_support(decoding)
                yield decoding
            else:
                kept.append(i)
        if kept:
            batch.feed(stored_R1.squeeze(-1))
            if len(kept) < len(open_):
                batch.keep(kept)
        open_ = [open_[i] for i in kept]


def _choose(
    batch: _Batch, naive_RV: torch.Tensor, expert_EV: torch.Tensor, t: int, sampling: Sampling
) -> tuple[torch.Tensor, list[str], dict[int, float]]:
    """The chosen tokens (R,) and their sources at position t: the picked conditional alone decides (Eq. 4), but for the gate.

    And, for each request with an expert, the support of its naive token.
    """
    noise_R = None
    if sampling.temperature > 0:
        values = [request.noise[t] for request in batch.requests if request.noise is not None]
        noise_R = torch.tensor(np.array(values), dtype=torch.float64, device=naive_RV.device)
    tokens = pick(naive_RV, noise_R, sampling)
    sources = [NAIVE] * len(tokens)
    if not batch.with_expert:
        return tokens, sources, {}
    rows = torch.tensor(batch.with_expert, device=naive_RV.device)
    by_expert_E = pick(expert_EV, None if noise_R is None else noise_R[rows], sampling)
    supports = dict(zip(batch.with_expert, support(expert_EV, tokens[rows]).tolist(), strict=True))
    tokens = tokens.clone()
    for place, (i, value) in enumerate(supports.items()):
        coins = batch.requests[i].naive_coins
        assert coins is not None
        if not coins[t] or sampling.is_implausible(value):
            tokens[i] = by_expert_E[place]
            sources[i] = GATED if coins[t] else EXPERT
    return tokens, sources, supports


# How far packed logits may be from the model's own, relative to the largest: rounding, and not another computation.
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3}
_TOLERANCE_HALF = 0.1

TOKENS_PER_PASS = 4096  # padded

_paths: WeakKeyDictionary[torch.nn.Module, str] = WeakKeyDictionary()


def decode(
    model: PreTrainedModel,
    take: Callable[[], Request | None],
    sampling: Sampling,
    *,
    token_budget: int,
    wants_logprobs: Callable[[Decoding], bool] | None = None,
    with_support: bool = False,
    dropped: Collection[str] = (),
) -> Iterator[Decoding]:
    """Decode all requests; yields each one as it ends. See `continuous.decode` for the arguments.

    In lock-step a decoding's `base_logprobs` are always complete, and what was dropped is yielded all the same.
    """
    if packs(model):
        wanted: dict[str, Any] = {"wants_logprobs": wants_logprobs, "with_support": with_support, "dropped": dropped}
        yield from continuous.decode(model, take, sampling, token_budget=token_budget, **wanted)
        return
    for batch in _batches(take, token_budget):
        yield from decode_in_lockstep(model, batch, sampling, with_support=with_support)


def decode_all(
    model: PreTrainedModel, requests: Iterable[Request], sampling: Sampling, *, token_budget: int
) -> Iterator[Decoding]:
    """Decode requests that are all known beforehand, without their log-probabilities."""
    stream = iter(requests)
    return decode(model, lambda: next(stream, None), sampling, token_budget=token_budget)


def path(model: PreTrainedModel) -> str:
    """How the model is decoded: "packed", or "lock-step: " and the reason. It is tried out once per model."""
    if model not in _paths:
        _paths[model] = path_of(model, model, "lock-step", lambda: _difference(model))
    return _paths[model]


def packs(model: PreTrainedModel) -> bool:
    """Whether packed passes give this model's own logits."""
    return path(model) == "packed"


@torch.inference_mode()
def _difference(model: PreTrainedModel) -> str | None:
    """What tells packed logits from the model's own; None where rounding explains it."""
    vocabulary = text_config(model.config).vocab_size
    texts = [[(7 * i + shift) % vocabulary for i in range(n)] for shift, n in ((1, 9), (3, 4))]
    pool = Pool(256, 64)
    own = torch.stack([model(torch.tensor([text], device=model.device)).logits[0, -1] for text in texts])
    forward(model, pool, [Piece(0, 0, texts[0][:5])], [(0, 4)])
    packed = forward(model, pool, [Piece(0, 5, texts[0][5:]), Piece(1, 0, texts[1])], [(0, 3), (1, 3)])
    allowed = _TOLERANCE.get(own.dtype, _TOLERANCE_HALF) * own.abs().max()
    return None if (own - packed).abs().max() <= allowed else "packed logits are not the model's own"


def _batches(take: Callable[[], Request | None], token_budget: int) -> Iterator[list[Request]]:
    """As many requests at a time as the budget holds when all are padded to the longest, and at least one."""
    held: Request | None = None  # the one that did not fit in
    while True:
        batch: list[Request] = []
        rows = longest = 0
        while request := held or take():
            rows += 1 + (request.expert_ids is not None)
            longest = max(longest, max(len(request.naive_ids), len(request.expert_ids or ())) + request.max_new_tokens)
            held = request if batch and rows * longest > token_budget else None
            if held:
                break
            batch.append(request)
        if not batch:
            return
        yield batch


@torch.inference_mode()
def score(
    model: PreTrainedModel,
    pairs: Iterable[tuple[list[int], list[int]]],
    *,
    token_budget: int = TOKENS_PER_PASS,
    on_done: Callable[[int], None] = lambda count: None,
) -> list[list[float]]:
    """Natural-log probabilities of each continuation's tokens after its prompt, full softmax at T = 1, in the order given.

    `pairs` are (prompt ids, continuation ids), neither empty; `token_budget` bounds the padded tokens per forward pass; `on_done` is
    told after each batch how many pairs it finished.
    """
    items = list(pairs)
    result: list[list[float]] = [[] for _ in items]
    for batch in padded_batches([len(prompt) + len(continuation) for prompt, continuation in items], token_budget):
        for index, logprobs in zip(batch, _score_batch(model, [items[i] for i in batch]), strict=True):
            result[index] = logprobs
        on_done(len(batch))
    return result


def _score_batch(model: PreTrainedModel, pairs: list[tuple[list[int], list[int]]]) -> list[list[float]]:
    """A call of its own, so that no batch's logits are held while the next one's are made."""
    # With every row's end in the last column one slice of the logits holds all continuations.
    input_ids, mask, positions = left_padded([[*prompt, *continuation] for prompt, continuation in pairs], model.device)
    longest = max(len(continuation) for _, continuation in pairs)
    logits = model(
        input_ids=input_ids, attention_mask=mask, position_ids=positions, use_cache=False, logits_to_keep=longest + 1
    ).logits
    result = []
    for row, (_, continuation) in enumerate(pairs):
        count = len(continuation)
        own = logits[row, -count - 1 : -1]
        own = own if own.dtype == torch.float64 else own.float()
        targets = torch.tensor(continuation, device=own.device).unsqueeze(-1)
        result.append(torch.log_softmax(own, dim=-1).gather(-1, targets).squeeze(-1).tolist())
    return result
