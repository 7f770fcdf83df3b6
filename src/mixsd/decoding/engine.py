"""The project's one decoder: continuous where the model's attention can be packed, in lock-step batches where it cannot.

Whether it can is tried out once per model: a few tokens are read both ways and must give the same logits.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch

from mixsd.decoding import continuous, lockstep
from mixsd.decoding.packed import Piece, forward
from mixsd.decoding.pool import Pool
from mixsd.decoding.requests import Decoding, Request, Sampling

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Attention that looks at keys and values by their positions alone.
_LAYER_TYPES = {"full_attention", "sliding_attention"}
# How far packed logits may be from the model's own, relative to the largest: rounding, and not another computation.
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3}
_TOLERANCE_HALF = 0.1

_packs: WeakKeyDictionary[torch.nn.Module, bool] = WeakKeyDictionary()


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


def packs(model: PreTrainedModel) -> bool:
    """Whether packed passes give this model's own logits."""
    if model not in _packs:
        _packs[model] = _try(model)
    return _packs[model]


@torch.inference_mode()
def _try(model: PreTrainedModel) -> bool:
    config = model.config.get_text_config()
    if not _LAYER_TYPES.issuperset(getattr(config, "layer_types", None) or ()) or model.config.is_encoder_decoder:
        return False
    texts = [[(7 * i + shift) % config.vocab_size for i in range(n)] for shift, n in ((1, 9), (3, 4))]
    pool = Pool(256, 64)
    try:
        own = torch.stack([model(torch.tensor([text], device=model.device)).logits[0, -1] for text in texts])
        forward(model, pool, [Piece(0, 0, texts[0][:5])], [(0, 4)])
        packed = forward(model, pool, [Piece(0, 5, texts[0][5:]), Piece(1, 0, texts[1])], [(0, 3), (1, 3)])
    except torch.OutOfMemoryError:
        raise  # says nothing about the model
    except (NotImplementedError, TypeError, ValueError, AttributeError, KeyError, RuntimeError):
        # Its attention does not go through the interface, or wants what a packed pass does not give. That shows anywhere in
        # code that is not ours (no such argument, attribute or key, shapes that do not fit), so no exception tells it apart;
        # what is really broken fails again, and in the open, when it is decoded in lock-step.
        return False
    allowed = _TOLERANCE.get(own.dtype, _TOLERANCE_HALF) * own.abs().max()
    return bool((own - packed).abs().max() <= allowed)


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
