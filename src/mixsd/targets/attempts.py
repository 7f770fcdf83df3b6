"""Which attempt a fact gets next: addressed coins, retries, the fallback, and no attempt that would repeat a failed one.

At T = 0 an attempt is a function of its coins. One whose coins agree with a failed attempt's over that attempt's whole length would
give the same tokens, so it is passed over: with lambda 0 or 1 that is every retry.

A retry starts anew (the paper) or, with `--retry from-break`, from where the failed attempt broke: before the first naive token
that the expert found implausible, else before the one it liked least. After two such retries in a row one starts anew, since what they
keep may be what is wrong.

Retries are in flight before new facts, and attempts ahead of need where there is room to spare. A fact's attempts are judged in
their order, whatever the order in which they end: one that was decoded ahead counts when all before it have failed, and is
forgotten when one of them was accepted, or by a kill.
"""

import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from mixsd.decoding.requests import NAIVE, Decoding, Prefix
from mixsd.facts.fact import Fact
from mixsd.facts.prompts import Renderer
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
    """One (fact, sample) on its way to a target; `limit` is the longest reply in tokens, `place` that of its last attempt in the journal.

    `failed` holds the coins of the failed attempts, each as long as its decoding was. `prefix` is what the next retry keeps of
    the last one, and `keeping` how many retries in a row have kept something.
    """

    fact: Fact
    sample: int
    limit: int
    number: int = 0  # of the next attempt
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
    """The attempt that `case` gets next, or None when it is accepted or has no attempt left. `case` moves past those that repeat."""
    while not case.accepted and case.number <= settings.retries + (settings.on_fail == "expert"):
        attempt = attempt_at(case, case.number, settings)
        if not repeats(case, attempt, settings):
            return attempt
        case.number += 1
    case.failed, case.prefix = [], None  # nothing will be compared with them or go on from them
    return None


def repeats(case: Case, attempt: Attempt, settings: Settings) -> bool:
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


_ROOM = 16  # tokens that a reply may need beyond the reference's own length


def reply_limit(fact: Fact, renderer: Renderer, settings: Settings, context: int) -> tuple[int, str | None]:
    """The longest reply to a fact in tokens and None; or 0 and the reason why the fact is unusable."""
    if reason := renderer.unusable(fact):
        return 0, reason
    contextual = settings.spec.mixes or settings.spec.on_policy
    kind, ids = ("expert prompt", renderer.expert(fact)) if contextual else ("prompt", renderer.naive(fact.question))
    room = context - len(ids)
    if room < len(renderer.reference(fact)) + _ROOM:
        return 0, f"its {kind} of {len(ids)} tokens leaves no room for a reply in the context of {context}"
    return min(settings.max_new_tokens or room, room), None


# Attempts are decoded ahead while fewer than this are in flight: few rows do not fill a forward pass.
_SPARE = 24


class Queue:
    """The attempts of a run. `dropped`: the keys of attempts in flight that no longer count."""

    def __init__(self, cases: Iterable[Case], settings: Settings) -> None:
        self.settings = settings
        self.dropped: set[str] = set()
        self._fresh = iter(cases)
        self._retries: deque[tuple[Case, Attempt]] = deque()
        self._queued: set[str] = set()  # the keys of `_retries`
        self._open: dict[str, Case] = {}  # begun and not decided
        self._flying: dict[str, tuple[Case, Attempt]] = {}
        self._ended: dict[str, tuple[Attempt, dict[str, Any]]] = {}  # ahead of their turn
        sampled = settings.temperature > 0 or 0 < settings.lam < 1
        self._looks_ahead = sampled and settings.retry == "restart"

    def take(self) -> tuple[str, Case, Attempt] | None:
        """The next attempt to decode with its key, or None if there is none now."""
        found = self._retries.popleft() if self._retries else self._next_fresh() or self._ahead()
        if found is None:
            return None
        case, attempt = found
        key = _key(case, attempt.number)
        self._queued.discard(key)
        self._open[case.key], self._flying[key] = case, found
        return key, case, attempt

    def at(self, key: str) -> tuple[Case, Attempt]:
        """The attempt in flight of a key."""
        return self._flying[key]

    def end(self, key: str, row: dict[str, Any]) -> Iterator[tuple[Case, Attempt, dict[str, Any]]]:
        """Note that an attempt has ended; yields, in order, those whose turn it now is. The caller records each of them."""
        case, attempt = self._flying.pop(key)
        if key in self.dropped:
            self.dropped.discard(key)
            return
        self._ended[key] = (attempt, row)
        while (due := next_attempt(case, self.settings)) and (found := self._ended.pop(_key(case, due.number), None)):
            yield case, *found
        if due is None:
            del self._open[case.key]
            self.dropped |= {key for key, (other, _) in self._flying.items() if other is case}
            for number in range(self.settings.retries + 2):
                self._ended.pop(_key(case, number), None)
        elif (key := _key(case, due.number)) not in self._flying and key not in self._queued:
            self._queued.add(key)
            self._retries.append((case, due))

    def _next_fresh(self) -> tuple[Case, Attempt] | None:
        for case in self._fresh:
            if attempt := next_attempt(case, self.settings):
                return case, attempt
        return None

    def _ahead(self) -> tuple[Case, Attempt] | None:
        """A later attempt of the fact that has the fewest in flight, where there is room to spare."""
        if not self._looks_ahead or len(self._flying) >= _SPARE:
            return None
        last = self.settings.retries
        begun = {
            case.key: [n for n in range(case.number, last + 1) if (key := _key(case, n)) in self._flying or key in self._ended]
            for case in self._open.values()
        }
        for case in sorted(self._open.values(), key=lambda case: len(begun[case.key])):
            for number in range(max(begun[case.key], default=case.number) + 1, last + 1):
                attempt = attempt_at(case, number, self.settings)
                if not repeats(case, attempt, self.settings):
                    return case, attempt
        return None


def _key(case: Case, number: int) -> str:
    return f"{case.key}/{number}"
