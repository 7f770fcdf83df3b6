"""The record of a target: ids with their provenance, and what a set of targets looks like in numbers.

The ids are the truth; the text is a view that is never read back. A fact whose target was not accepted keeps its line, with
the reason and whatever was decoded last.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

HIGH_NLL = 8.0  # nats; the paper's threshold for a token that the base model finds improbable (Table 8)
UNCERTAIN_NLL = 5.0  # the lower one, of Table 7


@dataclass(frozen=True)
class Target:
    """One target of one fact.

    prompt_ids: the naive prompt. target_ids, sources, base_logprobs: as many of each, see `decoding.requests.Decoding`; 'r'
    marks a token of the reference. decoded_tokens: over all attempts. canonical: whether re-encoding `text` gives the ids.
    usable: False where the fact could not be asked at all. kept: how many of the first tokens an earlier attempt had decoded
    (`--retry from-break`).
    """

    id: str
    lam: float
    sample: int
    attempt: int
    prompt_ids: list[int]
    target_ids: list[int]
    sources: str
    base_logprobs: list[float]
    decoded_tokens: int
    text: str
    accepted: bool
    reason: str | None
    canonical: bool = True
    usable: bool = True
    kept: int = 0

    def to_json(self) -> dict[str, Any]:
        """The line of `targets.jsonl`."""
        values = dict(self.__dict__)
        return {"id": values.pop("id"), "lambda": values.pop("lam"), **values}

    @staticmethod
    def from_json(values: dict[str, Any]) -> Target:
        """Read one line of `targets.jsonl` back."""
        values = dict(values)
        return Target(lam=values.pop("lambda"), **values)

    @property
    def status(self) -> str:
        """accepted, rejected or unusable."""
        return "accepted" if self.accepted else "rejected" if self.usable else "unusable"


@dataclass
class TargetSummary:
    """Counts over targets, gathered one at a time so that memory does not grow with their number."""

    statuses: Counter[str] = field(default_factory=Counter)
    attempts: Counter[int] = field(default_factory=Counter)
    sources: Counter[str] = field(default_factory=Counter)
    decoded_tokens: int = 0
    nll_sum: float = 0.0
    above_high: int = 0
    above_uncertain: int = 0
    noncanonical: int = 0

    def add(self, target: Target) -> None:
        self.statuses[target.status] += 1
        self.decoded_tokens += target.decoded_tokens
        if target.accepted:
            self.attempts[target.attempt] += 1
            self.sources.update(target.sources)
            self.nll_sum -= sum(target.base_logprobs)
            self.above_high += sum(-logprob > HIGH_NLL for logprob in target.base_logprobs)
            self.above_uncertain += sum(-logprob > UNCERTAIN_NLL for logprob in target.base_logprobs)
            self.noncanonical += not target.canonical

    def to_json(self) -> dict[str, Any]:
        """Shares and means over the accepted targets; None where there are none."""
        tokens, n = sum(self.sources.values()), self.statuses["accepted"]

        def share(count: float, of: int) -> float | None:
            return count / of if of else None

        return {
            "n": n,
            "tokens": tokens,
            "decoded_tokens": self.decoded_tokens,
            "mean_base_nll": share(self.nll_sum, tokens),
            "share_above_5": share(self.above_uncertain, tokens),
            "share_above_8": share(self.above_high, tokens),
            "sources": {source: share(self.sources[source], tokens) for source in "engr"},
            "noncanonical_share": share(self.noncanonical, n),
            "attempts": {str(attempt): count for attempt, count in sorted(self.attempts.items())},
        }


def summarize(targets: Iterable[Target]) -> TargetSummary:
    """Gather the counts of many targets."""
    summary = TargetSummary()
    for target in targets:
        summary.add(target)
    return summary
