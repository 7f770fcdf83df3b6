"""What is asked of a decoder and what it gives back, in token ids."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

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


@dataclass
class Decoding:
    """One finished decoding: as many ids as sources.

    sources: 'e' expert, 'n' naive, 'g' gated (a naive position that took the expert's token). base_logprobs: natural log of
    each token's probability under the naive conditional, full softmax at T = 1 (Eq. 3), where they were wanted; else fewer than
    the ids. ended: whether it ended by itself (its last id is then a stop token) and not at its length limit. support: where it
    was asked for, by position, for the naive tokens before the last token that is not one: the natural log of the expert's
    probability of that token over that of the expert's best one.
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
    prefix = request.prefix or Prefix([], "")
    if len(prefix.ids) >= request.max_new_tokens:
        raise ValueError("a request must leave its prefix at least one token")
    return Decoding(request.key, list(prefix.ids), prefix.sources, [], False)


def trim_support(decoding: Decoding) -> None:
    """Leave the support of what the expert has read on: the naive tokens behind its last word are beyond its judgement."""
    last = max(decoding.sources.rfind(EXPERT), decoding.sources.rfind(GATED))
    decoding.support = {t: value for t, value in decoding.support.items() if t < last}
