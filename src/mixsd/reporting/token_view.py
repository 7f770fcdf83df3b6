"""A target token by token, as pages draw it: a colour and a line for its source, a box where the base model was surprised."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mixsd.mixing import targets
from mixsd.reporting import formats

HIGH_NLL = targets.HIGH_NLL
SOURCES = {
    "e": ("expert", "picked from the expert conditional"),
    "n": ("naive", "picked from the naive conditional"),
    "g": ("gated", "a naive position where the gate took the expert's token"),
    "r": ("reference", "copied from the reference"),
}


def shown(tokens: Sequence[Mapping[str, Any]], most: int) -> dict[str, Any]:
    """The first `most` of {text, source, base_nll: nats or None} ready for the template, and how many are `left`."""
    return {"tokens": [_shown(token) for token in tokens[:most]], "left": max(0, len(tokens) - most)}


def _shown(token: Mapping[str, Any]) -> dict[str, Any]:
    source, nll = token.get("source"), token.get("base_nll")
    return {
        "text": formats.token_text(str(token.get("text", ""))),
        "source": source if source in SOURCES else "r",
        "high": formats.known(nll) and nll > HIGH_NLL,
        "tip": f"{SOURCES[source][0] if source in SOURCES else f'source {source}'}, base NLL {formats.number(nll)}",
    }
