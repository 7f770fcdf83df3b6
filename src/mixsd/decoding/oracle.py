"""The definition of mixed decoding (section 3.2, Eq. 4): one row, no cache, one full forward pass per conditional and token.

Slow on purpose. Every other decoder must give its tokens and sources. It shares no arithmetic with them: the pick, the
gate and the sampling are spelled out here a second time.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch

from mixsd.decoding.requests import Decoding, Request, Sampling

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@torch.inference_mode()
def decode(model: PreTrainedModel, request: Request, sampling: Sampling) -> Decoding:
    """Decode one request, position by position."""

    def log_softmax(prompt: list[int], prefix: list[int]) -> np.ndarray:
        logits = model(torch.tensor([prompt + prefix], device=model.device)).logits[0, -1]
        return torch.log_softmax(logits.double(), dim=-1).cpu().numpy()

    def pick(logprobs: np.ndarray, t: int) -> int:
        if sampling.temperature == 0:
            return int(np.argmax(logprobs))
        k = min(sampling.top_k or len(logprobs), len(logprobs))
        allowed = sorted(np.argsort(-logprobs, kind="stable")[:k])
        weights = [math.exp((logprobs[token] - logprobs.max()) / sampling.temperature) for token in allowed]
        assert request.noise is not None
        left = request.noise[t] * math.fsum(weights)
        for token, weight in zip(allowed, weights, strict=True):
            left -= weight
            if left < 0:
                return int(token)
        return int(allowed[-1])

    ids: list[int] = []
    sources, base_logprobs, ended = "", [], False
    given = request.prefix.ids if request.prefix else []
    support: dict[int, float] = {}
    for t in range(request.max_new_tokens):
        naive = log_softmax(request.naive_ids, ids)
        if request.expert_ids is None:
            token, source = pick(naive, t), "n"
        else:
            assert request.naive_coins is not None
            expert = log_softmax(request.expert_ids, ids)
            token, source = (pick(naive, t), "n") if request.naive_coins[t] else (pick(expert, t), "e")
            if source == "n" and sampling.gate > 0 and expert[token] < expert.max() + math.log(sampling.gate):
                token, source = pick(expert, t), "g"
        if t < len(given):
            assert request.prefix is not None
            token, source = given[t], request.prefix.sources[t]
        elif source == "n" and request.expert_ids is not None:
            support[t] = float(expert[token] - expert.max())
        ended = token in sampling.stops
        token = sampling.stops.get(token, token)
        ids.append(token)
        sources += source
        base_logprobs.append(float(naive[token]))
        if ended:
            break
    last = max(sources.rfind("e"), sources.rfind("g"))  # behind it no expert had to go on from a naive token
    return Decoding(request.key, ids, sources, base_logprobs, ended, {t: value for t, value in support.items() if t < last})
