"""Which attempt a fact gets next: addressed coins, retries, the fallback, and no attempt that would repeat a failed one.

At T = 0 an attempt is a function of its coins. One whose coins agree with a failed attempt's over that attempt's whole length would
give the same tokens, so it is passed over: with lambda 0 or 1 that is every retry.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from mixsd.facts import Fact
from mixsd.randomness import coins, uniforms
from mixsd.settings import Settings


@dataclass(frozen=True)
class Attempt:
    """One decoding to do: its number, its lambda, the coins (bool) and, at T > 0, the noise (float64), one per position."""

    number: int
    lam: float
    coins: np.ndarray
    noise: np.ndarray | None


@dataclass
class Case:
    """One (fact, sample) on its way to a target; `limit` is the longest reply in tokens.

    `failed` holds the coins of the failed attempts, each as long as its decoding was. `place` is where the last attempt
    stands in the journal.
    """

    fact: Fact
    sample: int
    limit: int
    number: int = 0
    decoded_tokens: int = 0
    accepted: bool = False
    place: int | None = None
    failed: list[np.ndarray] = field(default_factory=list)

    @property
    def key(self) -> str:
        return f"{self.fact.id}/{self.sample}"


def next_attempt(case: Case, settings: Settings) -> Attempt | None:
    """The attempt that `case` gets next, or None when it is accepted or has no attempt left."""
    while not case.accepted and case.number <= settings.retries + (settings.on_fail == "expert"):
        lam = settings.lam if case.number <= settings.retries else 0.0
        flips = coins(settings.seed, case.fact.id, lam=lam, sample=case.sample, attempt=case.number, n=case.limit)
        if settings.temperature > 0:
            noise = uniforms(settings.seed, "noise", case.fact.id, sample=case.sample, attempt=case.number, n=case.limit)
            return Attempt(case.number, lam, flips, noise)
        if not any(np.array_equal(flips[: len(old)], old) for old in case.failed):
            return Attempt(case.number, lam, flips, None)
        case.number += 1
    return None


def is_last(case: Case, attempt: Attempt, *, length: int, settings: Settings) -> bool:
    """Whether no attempt would follow, should this one of `length` tokens be rejected."""
    after = replace(case, failed=list(case.failed))
    record(after, attempt, accepted=False, length=length, place=0)
    return next_attempt(after, settings) is None


def record(case: Case, attempt: Attempt, *, accepted: bool, length: int, place: int) -> None:
    """Note the outcome of an attempt that decoded `length` tokens and stands at `place` in the journal."""
    case.decoded_tokens += length
    case.place = place
    case.accepted = accepted
    case.number = attempt.number + 1
    case.failed = [] if accepted else [*case.failed, attempt.coins[:length].copy()]
