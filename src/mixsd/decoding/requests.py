"""What is asked of a decoder and what it gives back, in token ids."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

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
class Request:
    """One decoding to do.

    naive_ids: the (naive) prompt. expert_ids: the expert prompt, or None for plain decoding under one conditional.
    naive_coins: bool (max_new_tokens,), True where the naive conditional is picked; needed with an expert.
    noise: float64 (max_new_tokens,) in [0, 1), one addressed number per position; needed at a temperature above 0.
    """

    key: str
    naive_ids: list[int]
    max_new_tokens: int
    expert_ids: list[int] | None = None
    naive_coins: np.ndarray | None = None
    noise: np.ndarray | None = None


@dataclass
class Decoding:
    """One finished decoding: as many ids as sources and log-probabilities.

    sources: 'e' expert, 'n' naive, 'g' gated (a naive position that took the expert's token). base_logprobs: natural log of
    each token's probability under the naive conditional, full softmax at T = 1 (Eq. 3). ended: whether it ended by itself
    (its last id is then a stop token) and not at its length limit.
    """

    key: str
    ids: list[int]
    sources: str
    base_logprobs: list[float]
    ended: bool
