"""What is asked of a decoder and what it gives back, in token ids; and how rows of logits become tokens, the randomness handed in.

At a temperature above 0 the token is where the position's one addressed number falls in the cumulative distribution over the
allowed tokens in the order of their ids: ids and not ranks, so that two nearly equal logits that swap ranks in another batch
do not swap the outcome.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

EXPERT, NAIVE, GATED, REFERENCE = "e", "n", "g", "r"


@dataclass(frozen=True)
class Sampling:
    """How a token is taken from a conditional.

    temperature: 0 takes the argmax (the lowest id of a tie). top_k: at a temperature above 0, only the k likeliest count;
    None is the full softmax. gate: at a naive position the naive token is taken only if the expert conditional gives it at
    least this share of the probability of its own best token (0: the paper). stops: each stop token's id, mapped to
    the id that is stored for it.
    """

    stops: Mapping[int, int]
    temperature: float = 0.0
    top_k: int | None = None
    gate: float = 0.0

    def is_implausible(self, support: float) -> bool:
        """Whether the gate refuses a naive token of this support (see `support`)."""
        return self.gate > 0 and support < math.log(self.gate)


@dataclass(frozen=True)
class Prefix:
    """The beginning of a target that an earlier attempt has decoded: as many ids as sources."""

    ids: list[int]
    sources: str


@dataclass(frozen=True)
class Request:
    """One decoding to do.

    naive_ids: the (naive) prompt. expert_ids: the expert prompt, or None for plain decoding under one conditional.
    naive_coins: bool (max_new_tokens,), True where the naive conditional is picked; needed with an expert.
    noise: float64 (max_new_tokens,) in [0, 1), one addressed number per position; needed at a temperature above 0.
    prefix: what the target begins with; its tokens count towards max_new_tokens, and its positions have their coins unused.
    """

    key: str
    naive_ids: list[int]
    max_new_tokens: int
    expert_ids: list[int] | None = None
    naive_coins: np.ndarray | None = None
    noise: np.ndarray | None = None
    prefix: Prefix | None = None

    @property
    def kept(self) -> int:
        """How many tokens are given."""
        return len(self.prefix.ids) if self.prefix else 0


@dataclass
class Decoding:
    """One finished decoding: as many ids as sources.

    sources: 'e' expert, 'n' naive, 'g' gated (a naive position that took the expert's token). base_logprobs: natural log of
    each token's probability under the naive conditional, full softmax at T = 1 (Eq. 3), where they were wanted; else fewer than
    the ids. ended: whether it ended by itself (its last id is then a stop token) and not at its length limit. support: where it
    was asked for, by position of a naive token: the natural log of the expert's probability of that token over that of the expert's
    best one; nothing for naive tokens at the end, behind which no other token stands.
    """

    key: str
    ids: list[int]
    sources: str
    base_logprobs: list[float]
    ended: bool
    support: dict[int, float] = field(default_factory=dict)


def begin(request: Request) -> Decoding:
    """The decoding of a request before its first step."""
    if request.max_new_tokens < 1:
        raise ValueError("a request must ask for at least one token")
    if request.kept >= request.max_new_tokens:
        raise ValueError("a request must leave its prefix at least one token")
    prefix = request.prefix or Prefix([], "")
    return Decoding(request.key, list(prefix.ids), prefix.sources, [], False)


def trim_support(decoding: Decoding) -> None:
    """Leave the support of what the expert has read on: the naive tokens behind its last word are beyond its judgement."""
    last = max(decoding.sources.rfind(EXPERT), decoding.sources.rfind(GATED))
    decoding.support = {t: value for t, value in decoding.support.items() if t < last}


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


def support(expert_RV: torch.Tensor, token_R: torch.Tensor) -> torch.Tensor:
    """The natural log of the expert's probability of a token over that of its own best one; float64 (R,), at most 0."""
    of_token_R = expert_RV.gather(-1, token_R.unsqueeze(-1)).squeeze(-1)
    return of_token_R.double() - expert_RV.max(dim=-1).values.double()


def left_padded(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ids, mask and positions (R, T) of texts whose ends stand in the last column; positions count from each row's first token."""
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + list(row) for row in rows], device=device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
    return ids, mask, (mask.cumsum(dim=-1) - 1).clamp(min=0)


def padded_batches(lengths: Sequence[int], token_budget: int) -> Iterator[list[int]]:
    """Indices of texts, the shortest first, in batches that hold so many tokens when padded, and at least one text."""
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: lengths[i]):  # the newest is the longest and sets the width
        if batch and (len(batch) + 1) * lengths[index] > token_budget:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch
