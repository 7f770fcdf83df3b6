"""Which attempt a fact gets next: addressed coins, retries, the fallback, and no attempt that would repeat a failed one.

At T = 0 an attempt is a function of its coins. One whose coins agree with a failed attempt's over that attempt's whole length would
give the same tokens, so it is passed over: with lambda 0 or 1 that is every retry.

A retry starts anew (the paper) or, with `--retry from-break`, from where the failed attempt broke: before the first naive token
that the expert found implausible, else before the one it liked least. It keeps what was decoded up to there and draws new coins
for the rest. After two such retries in a row one starts anew, since what they keep may be what is wrong.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from mixsd.decoding.requests import NAIVE, Decoding, Prefix
from mixsd.facts import Fact
from mixsd.randomness import coins, uniforms
from mixsd.settings import Settings

# A naive token is implausible where the expert gives it less than this share of the probability of its best one.
IMPLAUSIBLE = 0.1
_KEEPING = 2  # retries in a row that may keep something


@dataclass(frozen=True)
class Attempt:
    """One decoding to do: its number, its lambda, the coins (bool) and, at T > 0, the noise (float64), one per position.

    `coins` are those that count: at the positions of `prefix`, the failed attempt's that it comes from.
    """

    number: int
    lam: float
    coins: np.ndarray
    noise: np.ndarray | None
    prefix: Prefix | None = None

    @property
    def kept(self) -> int:
        """How many tokens come from an earlier attempt."""
        return len(self.prefix.ids) if self.prefix else 0


@dataclass
class Case:
    """One (fact, sample) on its way to a target; `limit` is the longest reply in tokens.

    `failed` holds the coins of the failed attempts, each as long as its decoding was. `prefix` is what the next retry keeps of
    the last one, and `keeping` how many retries in a row have kept something. `place` is where the last attempt stands in the journal.
    """

    fact: Fact
    sample: int
    limit: int
    number: int = 0
    decoded_tokens: int = 0
    accepted: bool = False
    place: int | None = None
    failed: list[np.ndarray] = field(default_factory=list)
    prefix: Prefix | None = None
    keeping: int = 0

    @property
    def key(self) -> str:
        return f"{self.fact.id}/{self.sample}"


def next_attempt(case: Case, settings: Settings) -> Attempt | None:
    """The attempt that `case` gets next, or None when it is accepted or has no attempt left."""
    while not case.accepted and case.number <= settings.retries + (settings.on_fail == "expert"):
        attempt = attempt_at(case, case.number, settings)
        if not repeats(case, attempt, settings):
            return attempt
        case.number += 1
    case.failed, case.prefix = [], None  # nothing will be compared with them or go on from them
    return None


def repeats(case: Case, attempt: Attempt, settings: Settings) -> bool:
    """Whether an attempt would give the tokens of a failed one."""
    return settings.temperature == 0 and any(np.array_equal(attempt.coins[: len(old)], old) for old in case.failed)


def attempt_at(case: Case, number: int, settings: Settings) -> Attempt:
    """The attempt of a number, whether or not its turn has come."""
    last = number > settings.retries  # the fallback, which has no naive position
    lam, prefix = (0.0, None) if last else (settings.lam, case.prefix)
    address: dict[str, Any] = {"sample": case.sample, "attempt": number, "n": case.limit}
    flips = coins(settings.seed, case.fact.id, lam=lam, **address)
    if prefix:
        flips[: len(prefix.ids)] = case.failed[-1][: len(prefix.ids)]
    noise = uniforms(settings.seed, "noise", case.fact.id, **address) if settings.temperature > 0 else None
    return Attempt(number, lam, flips, noise, prefix)


def break_at(decoding: Decoding, kept: int) -> int | None:
    """Where a failed attempt broke: the position of a naive token that was not kept from an earlier one; None if it has none.

    A naive token behind the expert's last one was never the expert's to continue, so it counts as implausible.
    """
    naive = [t for t in range(kept, len(decoding.sources)) if decoding.sources[t] == NAIVE]
    doubted = [(decoding.support.get(t, -math.inf), t) for t in naive]
    for support, t in doubted:
        if support < math.log(IMPLAUSIBLE):
            return t
    support, t = min(doubted, default=(0.0, 0))
    return t if support < 0 else None


def is_last(case: Case, attempt: Attempt, *, length: int, settings: Settings) -> bool:
    """Whether no attempt would follow, should this one of `length` tokens be rejected."""
    after = replace(case, failed=list(case.failed))
    record(after, attempt, {"accepted": False, "target_ids": [0] * length, "sources": NAIVE * length}, 0)
    return next_attempt(after, settings) is None


def record(case: Case, attempt: Attempt, row: Mapping[str, Any], place: int) -> None:
    """Note the outcome of an attempt: its line in the journal, which stands at `place`."""
    accepted, ids, broke = row["accepted"], row["target_ids"], row.get("broke_at")
    case.decoded_tokens += len(ids) - attempt.kept
    case.place = place
    case.accepted = accepted
    case.number = attempt.number + 1
    case.failed = [] if accepted else [*case.failed, attempt.coins[: len(ids)].copy()]
    keeps = bool(broke) and not accepted and case.keeping < _KEEPING
    case.prefix = Prefix(ids[:broke], row["sources"][:broke]) if keeps else None
    case.keeping = case.keeping + 1 if keeps else 0
