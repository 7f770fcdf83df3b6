"""KGFunc's default corpus, made once for all its tests, and the operations by label."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

from mixsd.facts.fact import Fact
from mixsd.facts.kgfunc import TRAINED, UNSEEN, kgfunc

BY_LABEL = {operation.label: operation for operation in (*TRAINED, *UNSEEN)}
LABELS = "BCDEFGH"


@cache
def default() -> dict[str, list[Fact]]:
    corpus = kgfunc()
    return {"train": list(corpus.facts()), **{name: list(facts()) for name, facts in corpus.splits.items()}}


def everything() -> Iterator[Fact]:
    for facts in default().values():
        yield from facts


def label_of(fact: Fact) -> str:
    return fact.id.split("-")[-2]
