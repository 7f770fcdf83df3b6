"""From rows of logits to tokens, with the randomness handed in.

At a temperature above 0 the token is where the position's one addressed number falls in the cumulative distribution over the
allowed tokens in the order of their ids: ids and not ranks, so that two nearly equal logits that swap ranks in another batch
do not swap the outcome.
"""

from __future__ import annotations

import math

import torch

from mixsd.decoding.requests import Sampling


def pick(logits_RV: torch.Tensor, noise_R: torch.Tensor | None, sampling: Sampling) -> torch.Tensor:
    """Take one token per row: logits (R, V) and noise (R,) float64 in [0, 1) give ids (R,), int64."""
    if sampling.temperature == 0:
        return logits_RV.argmax(dim=-1)
    assert noise_R is not None
    if sampling.top_k is not None and sampling.top_k < logits_RV.shape[-1]:
        ids_RK = logits_RV.topk(sampling.top_k, dim=-1).indices.sort(dim=-1).values
        logits_RV = logits_RV.gather(-1, ids_RK)
        return ids_RK.gather(-1, _fall(logits_RV, noise_R, sampling.temperature).unsqueeze(-1)).squeeze(-1)
    return _fall(logits_RV, noise_R, sampling.temperature)


def _fall(logits_RV: torch.Tensor, noise_R: torch.Tensor, temperature: float) -> torch.Tensor:
    """The column (R,) in which each row's number falls; the probabilities in the logits' precision, their sum in float64."""
    if logits_RV.dtype in (torch.bfloat16, torch.float16):
        logits_RV = logits_RV.float()
    cumulative_RV = torch.softmax(logits_RV / temperature, dim=-1).cumsum(dim=-1, dtype=torch.float64)
    threshold_R1 = noise_R.to(cumulative_RV.device).unsqueeze(-1) * cumulative_RV[:, -1:]
    return torch.searchsorted(cumulative_RV, threshold_R1, right=True).squeeze(-1).clamp(max=logits_RV.shape[-1] - 1)


def implausible(expert_RV: torch.Tensor, token_R: torch.Tensor, gate: float) -> torch.Tensor:
    """Where the expert gives a token less than `gate` times the probability of its own best one; bool (R,)."""
    if gate <= 0:
        return torch.zeros_like(token_R, dtype=torch.bool)
    return support(expert_RV, token_R) < math.log(gate)


def support(expert_RV: torch.Tensor, token_R: torch.Tensor) -> torch.Tensor:
    """The natural log of the expert's probability of a token over that of its own best one; float64 (R,), at most 0."""
    of_token_R = expert_RV.gather(-1, token_R.unsqueeze(-1)).squeeze(-1)
    return of_token_R.double() - expert_RV.max(dim=-1).values.double()
