"""The graph behind a corpus as a picture: its entities on a circle, domain by domain, and an edge for each fact.

Facts that name their subject and, in `meta`, their two domains (as KGFact's do) are edges from the subject to the answer. Large
graphs are drawn by an even choice of their edges, and the picture says so.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from mixsd.facts.fact import Fact

MOST_EDGES = 600
_SIZE, _RADIUS, _TEXT = 460, 165.0, 185.0
# Okabe and Ito's colours, which most people tell apart; a graph of more domains uses them again.
_COLORS = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#8c6d1f")

Edge = tuple[str, str, str, str]  # source domain, target domain, source, target


@dataclass(frozen=True)
class Point:
    """An entity on the page."""

    x: float
    y: float
    color: str
    name: str


@dataclass(frozen=True)
class GraphPicture:
    """A drawing in pixels from the top left. `lines` are SVG paths with their colour; `labels` name the domains."""

    size: int
    points: tuple[Point, ...]
    lines: tuple[tuple[str, str], ...]
    labels: tuple[tuple[float, float, str, str, str], ...] = field(default=())  # x, y, anchor, colour, text
    edges: int = 0  # in the graph, of which as many are drawn as there are lines


def edges_of(facts: Iterable[Fact]) -> list[Edge]:
    """The facts that are edges between domains."""
    found = []
    for fact in facts:
        domains = fact.meta.get("domains")
        source, dash, target = domains.partition("-") if isinstance(domains, str) else ("", "", "")
        if dash and fact.subject and "-" not in target:
            found.append((source, target, fact.subject, fact.answer))
    return found


def counts(edges: Sequence[Edge]) -> tuple[list[str], Counter[tuple[str, str]]]:
    """The domains in the order of their first edge, and how many edges each pair of them has."""
    domains = list(dict.fromkeys(domain for edge in edges for domain in edge[:2]))
    return domains, Counter((source, target) for source, target, _, _ in edges)


def picture(edges: Sequence[Edge]) -> GraphPicture | None:
    """Lay a graph out; None where there is none."""
    if not edges:
        return None
    step = math.ceil(len(edges) / MOST_EDGES)
    drawn = edges[::step]
    domains, _ = counts(edges)
    colors = {domain: _COLORS[number % len(_COLORS)] for number, domain in enumerate(domains)}
    members: dict[str, dict[str, None]] = {domain: {} for domain in domains}
    for source_domain, target_domain, source, target in drawn:
        members[source_domain][source] = None
        members[target_domain][target] = None
    # Each entity one place, and two free places between domains.
    places = sum(map(len, members.values())) + 2 * len(domains)
    at: dict[tuple[str, str], Point] = {}
    labels = []
    place = 0
    for domain, names in members.items():
        x, y = _on_circle((place + (len(names) - 1) / 2) / places, _TEXT)
        labels.append((x, y, "start" if x > _SIZE * 0.55 else "end" if x < _SIZE * 0.45 else "middle", colors[domain], domain))
        for name in names:
            at[domain, name] = Point(*_on_circle(place / places, _RADIUS), colors[domain], name)
            place += 1
        place += 2
    middle = _SIZE / 2
    lines = []
    for source_domain, target_domain, source, target in drawn:
        a, b = at[source_domain, source], at[target_domain, target]
        lines.append((f"M{a.x:g} {a.y:g}Q{middle:g} {middle:g} {b.x:g} {b.y:g}", a.color))
    return GraphPicture(_SIZE, tuple(at.values()), tuple(lines), tuple(labels), len(edges))


def _on_circle(turn: float, radius: float) -> tuple[float, float]:
    angle = 2 * math.pi * turn - math.pi / 2
    return round(_SIZE / 2 + radius * math.cos(angle), 1), round(_SIZE / 2 + radius * math.sin(angle), 1)
