"""Which attempts are in flight: retries before new facts, and attempts ahead of need where there is room to spare.

A fact's attempts are judged in their order, whatever the order in which they end: an attempt that was decoded ahead counts when
all before it have failed, and is forgotten when one of them was accepted, or by a kill. So the result is that of one attempt after
another; only the last few facts no longer wait for their retries one by one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

from mixsd.mixing.attempts import Attempt, Case, attempt_at, next_attempt, repeats
from mixsd.settings import Settings

# Attempts are decoded ahead while fewer than this are in flight: few rows do not fill a forward pass.
_SPARE = 24


class Queue:
    """The attempts of a run.

    Attributes:
        dropped: the keys of attempts in flight that no longer count.
    """

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
        self._open[case.key] = case
        self._flying[key] = found
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
        begun = {
            case.key: [n for n in range(case.number, self.settings.retries + 1) if self._is_begun(_key(case, n))]
            for case in self._open.values()
        }
        for case in sorted(self._open.values(), key=lambda case: len(begun[case.key])):
            for number in range(max(begun[case.key], default=case.number) + 1, self.settings.retries + 1):
                attempt = attempt_at(case, number, self.settings)
                if not repeats(case, attempt, self.settings):
                    return case, attempt
        return None

    def _is_begun(self, key: str) -> bool:
        return key in self._flying or key in self._ended


def _key(case: Case, number: int) -> str:
    return f"{case.key}/{number}"
