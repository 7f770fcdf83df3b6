"""Which replies to a benchmark a page shows: what the tuned model lost, what it gained, what is wrong in both, then the rest.

A page holds a few of them; all lie in the run folder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

MOST = 10
_SHOWN = ("reply", "outcome", "extracted", "reason", "truncated", "lenient")
Row = Mapping[str, Any]


def chosen(base: Sequence[Row], tuned: Sequence[Row] | None, most: int = MOST) -> list[dict[str, Any]]:
    """At most `most` pairs of replies, those first whose outcome changed; `tuned` is None in each where only one model was asked.

    One kind does not crowd out the others: of what was lost and of what was gained, half the room each goes first.
    """
    others: Sequence[Row | None] = [None] * len(base) if tuned is None else tuned
    ranked: dict[int, list[tuple[Row, Row | None]]] = {}
    for pair in zip(base, others, strict=True):
        ranked.setdefault(_rank(*pair), []).append(pair)
    half = most // 2
    first = [pair for rank in (0, 1) for pair in ranked.get(rank, [])[:half]]
    rest = [pair for rank in sorted(ranked) for pair in ranked[rank][half if rank < 2 else 0 :]]
    return [_shown(*pair) for pair in sorted([*first, *rest][:most], key=lambda pair: _rank(*pair))]


def _rank(base: Row, tuned: Row | None) -> int:
    right = [row["outcome"] == "correct" for row in (base, tuned) if row is not None]
    if len(right) == 2 and right[0] != right[1]:
        return 0 if right[0] else 1
    if tuned is not None and base["outcome"] != tuned["outcome"]:
        return 2
    return 4 if all(right) else 3


def _shown(base: Row, tuned: Row | None) -> dict[str, Any]:
    labels = list(base.get("labels") or [])
    return {"key": base["key"], "question": base.get("question"), "labels": labels, "base": _of(base), "tuned": _of(tuned)}


def _of(row: Row | None) -> dict[str, Any] | None:
    return None if row is None else {name: row.get(name) for name in _SHOWN}
