"""The project's one decoder: continuous where the model's attention can be packed, in lock-step batches where it cannot.

Whether it can is tried out once per model: a few tokens are read both ways and must give the same logits. Log-probabilities of given
continuations (`score`) take one padded forward pass per batch, the head on the continuation's positions only.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch

from mixsd.decoding import continuous, lockstep
from mixsd.decoding.packed import Piece, Pool, forward, path_of
from mixsd.decoding.requests import Decoding, Request, Sampling, left_padded, padded_batches
from mixsd.models.compat import text_config

if TYPE_CHECKING:
    from transformers import PreTrainedModel

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
        yield from continuous.decode(
            model,
            take,
            sampling,
            token_budget=token_budget,
            wants_logprobs=wants_logprobs,
            with_support=with_support,
            dropped=dropped,
        )
        return
    for batch in _batches(take, token_budget):
        yield from lockstep.decode(model, batch, sampling, with_support=with_support)


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
    """Natural-log probabilities of each continuation's tokens after its prompt, full softmax at T = 1.

    Args:
        pairs: (prompt ids, continuation ids), neither empty.
        token_budget: padded tokens per forward pass, which bounds the memory.
        on_done: told after each batch how many pairs it finished.

    Returns:
        One list of floats per pair, in the order given.
    """
    items = list(pairs)
    result: list[list[float]] = [[] for _ in items]
    for batch in padded_batches([len(prompt) + len(continuation) for prompt, continuation in items], token_budget):
        for index, logprobs in zip(batch, _score_batch(model, [items[i] for i in batch]), strict=True):
            result[index] = logprobs
        on_done(len(batch))
    return result


def _score_batch(model: PreTrainedModel, pairs: list[tuple[list[int], list[int]]]) -> list[list[float]]:
    rows = [[*prompt, *continuation] for prompt, continuation in pairs]
    # With every row's end in the last column one slice of the logits holds all continuations.
    input_ids, mask, positions = left_padded(rows, model.device)
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
