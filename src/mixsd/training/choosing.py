"""Which checkpoint is taken: the paper's rule (appendix D), one function for every method.

"The first checkpoint that achieves the best training performance observed so far while maintaining stable validation
performance, i.e., without a validation performance drop greater than 5% over the following two consecutive checkpoints."

Read here as: among the checkpoints whose validation score does not fall by more than 5% of itself at either of the next two,
the one with the best training score; of several, the first. The last two are judged by as many as follow, so the last is
always stable.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

FALL = 0.05
FOLLOWING = 2


@dataclass(frozen=True)
class Scored:
    """One checkpoint's scores, shares in [0, 1]; validation comes from wordings that nothing else is measured on."""

    step: int
    train: float
    validation: float


@dataclass(frozen=True)
class Choice:
    """The checkpoint taken, and why, in a sentence for the report."""

    step: int
    why: str


def choose(scored: Sequence[Scored]) -> Choice:
    """Choose among checkpoints in the order of their steps (at least one)."""
    stable = [one for place, one in enumerate(scored) if is_stable(scored, place)]
    best = max(stable, key=lambda one: (one.train, -one.step))
    followed = [one.validation for one in scored if one.step > best.step][:FOLLOWING]
    then = f"then {', '.join(f'{value:.3g}' for value in followed)}" if followed else "the last one"
    return Choice(
        best.step,
        f"the first with the best training score, {best.train:.3g}, among stable ones (validation {best.validation:.3g}, {then})",
    )


def is_stable(scored: Sequence[Scored], place: int) -> bool:
    """Whether the validation score holds at the checkpoints that follow the one at `place`, two at most."""
    floor = scored[place].validation * (1 - FALL)
    # Shares of few questions lie on a coarse grid: exactly 5% less is no fall, whatever the rounding says.
    return all(one.validation >= floor - 1e-9 for one in scored[place + 1 : place + 1 + FOLLOWING])


def still_open(scored: Sequence[Scored]) -> set[int]:
    """The steps that `choose` may yet return, whatever checkpoints follow; the others need not be kept."""
    confirmed = [one for place, one in enumerate(scored[:-FOLLOWING]) if is_stable(scored, place)]
    best = max(confirmed, key=lambda one: (one.train, -one.step), default=None)
    waiting = [one for place, one in enumerate(scored) if place >= len(scored) - FOLLOWING and is_stable(scored, place)]
    return {one.step for one in waiting if best is None or one.train > best.train} | ({best.step} if best else set())
