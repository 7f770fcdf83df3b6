"""The record of a target: ids with their provenance, and what the base model makes of a set of targets.

The ids are the truth; the text is a view that is never read back. A fact whose target was not accepted keeps its line, with
the reason and whatever was decoded last.

NLL is in nats: minus the log-probability of a target's token after the prompt and the target's tokens before it. The tokens of one fact
are not independent, nor are its samples, so every interval resamples facts, and shares and means are ratios of sums over facts.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from mixsd.statistics import Estimate, Unit, mean, ratio_of_sums, stratified

HIGH_NLL = 8.0  # nats; the paper's threshold for a token that the base model finds improbable (Table 8)
REFERENCE_LABEL = "reference (SFT)"  # the label of references beside targets
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
        """Read one line of `targets.jsonl` back, or one of the journal with what that leaves out."""
        named = {name: value for name, value in values.items() if name not in ("lambda", "broke_at")}
        return Target(lam=values["lambda"], **named)

    @staticmethod
    def unusable(key: str, sample: int, reason: str) -> Target:
        """The target of a fact that could not be asked."""
        return Target(key, 0.0, sample, 0, [], [], "", [], 0, "", accepted=False, reason=reason, usable=False)

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
    summary = TargetSummary()
    for target in targets:
        summary.add(target)
    return summary


MOST_STEPS = 400  # of a CDF that is kept or drawn


@dataclass
class TokenLosses:
    """The NLL of the tokens of many targets, in the order they were added, and the fact that each target belongs to."""

    nll: array[float] = field(default_factory=lambda: array("d"))
    ends: array[int] = field(default_factory=lambda: array("q"))
    facts: list[str] = field(default_factory=list)

    def add(self, fact: str, nll: Sequence[float]) -> None:
        """Add a target of a fact: the NLL of each of its tokens, at least one, finite."""
        if not len(nll) or not np.isfinite(nll).all():
            raise ValueError("expected a finite NLL for each of at least one token")
        self.nll.extend(nll)
        self.ends.append(len(self.nll))
        self.facts.append(fact)

    def of(self, facts: Collection[str]) -> TokenLosses:
        """Only the targets of these facts."""
        if not set(self.facts) - set(facts):
            return self
        found = TokenLosses()
        for fact, own in self._targets():
            if fact in facts:
                found.add(fact, own.tolist())
        return found

    def _targets(self) -> Iterator[tuple[str, np.ndarray]]:
        values, start = self.values, 0
        for fact, end in zip(self.facts, self.ends, strict=True):
            yield fact, values[start:end]
            start = end

    @property
    def values(self) -> np.ndarray:
        """All NLL as float64, shape (tokens,); a view, so nothing may be added while it is held."""
        return np.frombuffer(self.nll, dtype=np.float64) if len(self.nll) else np.empty(0)

    def by_fact(self, threshold: float | None = None) -> dict[str, tuple[float, int]]:
        """For each fact what its tokens sum up to and how many they are: their NLL, or how many lie above a threshold."""
        totals: dict[str, tuple[float, int]] = {}
        for fact, own in self._targets():
            total, count = totals.get(fact, (0.0, 0))
            totals[fact] = (total + float(own.sum() if threshold is None else (own > threshold).sum()), count + len(own))
        return totals


def mean_nll(losses: TokenLosses) -> Estimate:
    """Eq. 3 over all tokens, with an interval over facts; n is the number of facts."""
    return _ratio(losses.by_fact(), "nats")


def count_above(losses: TokenLosses, threshold: float) -> int:
    """How many tokens have an NLL strictly above the threshold."""
    return int((losses.values > threshold).sum())


def share_above(losses: TokenLosses, threshold: float) -> Estimate:
    """Share of the tokens whose NLL is strictly above the threshold (Tables 7 and 8), with an interval over facts.

    Where no fact has such a token, or every token is one, there is no interval: resampling would claim certainty.
    """
    found = _ratio(losses.by_fact(threshold), "share")
    return found.without_interval() if found.value in (0.0, 1.0) else found


def share_difference(losses: TokenLosses, reference: TokenLosses, threshold: float) -> Estimate:
    """The share of `losses` above the threshold minus that of `reference`, over the facts that both have, paired by fact.

    The interval is of a difference of two ratios of sums under one resampling of facts.
    """
    ours, theirs = losses.by_fact(threshold), reference.by_fact(threshold)
    facts = [fact for fact in ours if fact in theirs]
    if not facts:
        return Estimate(unit="share", signed=True, over="facts")
    sums = np.array([[*ours[fact], *theirs[fact]] for fact in facts], dtype=np.float64).T
    found = stratified([sums], lambda s: float(s[0][0] / s[0][1] - s[0][2] / s[0][3]))
    found = replace(found, unit="share", signed=True, over="facts")
    certain = len(facts) == 1 or not (sums[0].any() or sums[2].any())
    return found.without_interval() if certain else found


def cdf(losses: TokenLosses, most: int = MOST_STEPS) -> tuple[list[float], list[float]]:
    """The empirical CDF of the NLL: x ascending and y = share of tokens with an NLL of at most x; the last y is 1 (Figure 3).

    Of more than `most` (at least 2) distinct values that many are kept, spread evenly, the first and the last among them.
    """
    values = losses.values
    if not len(values):
        return [], []
    x, counts = np.unique(values, return_counts=True)
    y = np.cumsum(counts) / len(values)
    if len(x) > most:
        kept = np.round(np.linspace(0, len(x) - 1, most)).astype(np.int64)
        x, y = x[kept], y[kept]
    return x.tolist(), y.tolist()


def high_ids(ids: Sequence[int], nll: Sequence[float], threshold: float) -> frozenset[int]:
    """The set of token ids of a reference whose NLL is above the threshold, anywhere in it."""
    return frozenset(token for token, value in zip(ids, nll, strict=True) if value > threshold)


@dataclass
class Overlap:
    """Table 9: for each fact, what share of the reference's high-NLL token ids (`wanted`) occurs anywhere in its target.

    A fact whose set is empty says nothing and is only counted. Of a fact with several targets ids found and asked for are summed.
    """

    wanted: dict[str, frozenset[int]]
    found: dict[str, tuple[int, int]] = field(default_factory=dict)

    def add(self, fact: str, ids: Collection[int]) -> None:
        if (wanted := self.wanted.get(fact)) is not None:
            kept, asked = self.found.get(fact, (0, 0))
            self.found[fact] = (kept + len(wanted.intersection(ids)), asked + len(wanted))

    def without(self, facts: Collection[str]) -> int:
        """How many of these facts have a reference without a single high-NLL token."""
        return sum(fact in facts and not asked for fact, (_, asked) in self.found.items())

    def mean(self, facts: Collection[str]) -> Estimate:
        """Mean of the shares over facts, each fact counting once."""
        return replace(mean([kept / asked for kept, asked in self._of(facts)]), unit="share", over="facts")

    def pooled(self, facts: Collection[str]) -> Estimate:
        """Share of all facts' ids together: a fact counts by the number of its ids."""
        pairs = self._of(facts)
        found = ratio_of_sums([kept for kept, _ in pairs], [asked for _, asked in pairs])
        found = replace(found, unit="share", over="facts")
        return found.without_interval() if found.value in (0.0, 1.0) else found

    def _of(self, facts: Collection[str]) -> list[tuple[int, int]]:
        return [pair for fact, pair in self.found.items() if fact in facts and pair[1]]


def _ratio(totals: dict[str, tuple[float, int]], unit: Unit) -> Estimate:
    found = ratio_of_sums([total for total, _ in totals.values()], [count for _, count in totals.values()])
    return replace(found, unit=unit, over="facts")
