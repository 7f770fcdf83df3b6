"""What of a report can be drawn, for its page and for `mixsd figures`: from the values of `report.json` to those that a figure takes.

The drawing itself is `mixsd.figures`, which brings matplotlib in; it is imported when a picture is made. The graph behind a corpus is
drawn here, as geometry: facts that name their subject and, in `meta`, their two domains are edges on a circle of entities; of a large
graph an even choice of edges, and the picture says so.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from mixsd.evaluation.benchmarks.benchmark import title_of
from mixsd.facts.fact import Fact
from mixsd.reports.rows import models_of
from mixsd.reports.schema import ErrorModes, Report, Score, TargetNumbers
from mixsd.storage import read_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

THRESHOLDS = (5.0, 8.0)  # nats: the paper's levels of an uncertain and of a surprising token
REFERENCES = "references"
ALIGNMENT_AXES = ("Fisher alignment ratio", "forgetting, nats per token")
# Scores of checkpoints that are drawn, by (split, metric).
_ALONG = {
    ("memorization/trained", "accuracy"): "memorization",
    ("memorization/validation", "accuracy"): "validation",
    ("retention/forgetting", "forgetting"): "forgetting",
}
# The order of a stack; what a report has besides comes after.
_MODES = ("format", "leakage", "cross-entity", "collapse", "genuine")


def along(scores: Sequence[Score]) -> list[dict[str, Any]]:
    """What was measured at checkpoints, by step: each number that was scored, with the ends of its interval."""
    found: dict[int, dict[str, Any]] = {}
    for score in scores:
        name = _ALONG.get((score.split, score.metric))
        if name and (score.suite, score.model) == ("core", "tuned") and score.checkpoint is not None and score.value is not None:
            point = found.setdefault(score.checkpoint, {"step": score.checkpoint})
            point |= {name: score.value, f"{name}_low": score.low, f"{name}_high": score.high}
    return [found[step] for step in sorted(found)]


def nll_curves(targets: TargetNumbers, label: str = "targets") -> list[dict[str, Any]]:
    """The distributions of base NLL that a report holds: of the references, and of the targets where they are others."""
    references = (REFERENCES, targets.reference_nll_cdf, targets.reference_tokens)
    others = [] if targets.nll_cdf == targets.reference_nll_cdf else [(label, targets.nll_cdf, targets.tokens)]
    return [{"label": name, "n": n, "x": own.x, "y": own.y} for name, own, n in (references, *others) if own and own.x]


def error_rows(report: Report) -> list[dict[str, Any]]:
    """What wrong replies are like: a bar for each benchmark that this run was asked and each model, the base first, this run last."""
    found = []
    beside = iter(report.beside)
    for model in models_of(report):
        whose = "base" if model.role == "base" else "tuned"
        listed = next(beside).error_modes if model.role == "beside" else report.error_modes
        found += [(model.label, item) for item in listed if item.model == whose]
    asked = list(dict.fromkeys(item.benchmark for item in report.error_modes))
    return summed(sorted((pair for pair in found if pair[1].benchmark in asked), key=lambda pair: asked.index(pair[1].benchmark)))


def summed(items: Iterable[tuple[str, ErrorModes]]) -> list[dict[str, Any]]:
    """A bar for each benchmark and label, benchmark by benchmark, with what all items of that label have together."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for label, item in items:
        nothing = {"benchmark": title_of(item.benchmark), "label": label, "asked": 0, "wrong": 0, "counts": Counter[str]()}
        row = found.setdefault((item.benchmark, label), nothing)
        row["asked"] += item.asked
        row["wrong"] += sum(item.counts.values())
        row["counts"].update(item.counts)
    order = list(dict.fromkeys(benchmark for benchmark, _ in found))
    return [found[key] for key in sorted(found, key=lambda key: order.index(key[0]))]


def modes_of(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The modes that any row counts, in the order of a stack."""
    present = {mode for row in rows for mode in row["counts"]}
    return [mode for mode in _MODES if mode in present] + sorted(present - set(_MODES))


def fisher_of(folder: Path) -> dict[str, Any] | None:
    """What `mixsd analyze fisher` wrote of a run, if it was asked."""
    file = folder / "analysis" / "fisher.json"
    return dict(read_json(file)) if file.is_file() else None


def aligned(fisher: Mapping[str, Any]) -> tuple[list[dict[str, Any]], Mapping[str, Any] | None]:
    """What `mixsd analyze fisher` found, as the points of a picture and their correlation."""
    points = [
        {"label": row.get("configuration") or "", "x": row.get("alignment"), "y": (row.get("forgetting") or {}).get("value")}
        for row in fisher.get("checkpoints") or []
    ]
    asked = ("alignment", "forgetting")
    return points, next(
        (item for item in fisher.get("correlations") or [] if (item.get("metric"), item.get("with")) == asked), None
    )


def of_report(report: Report, fisher: Mapping[str, Any] | None = None, *, narrow: bool = False) -> dict[str, Figure | None]:
    """Every picture of one report by name, None where the report has nothing for it: loss, curves, nll, errors, alignment.

    `fisher` is what `mixsd analyze fisher` wrote of the run.
    """
    from mixsd.figures.charts import alignment, curves, error_bars, loss, nll_cdf

    points, rows = along(report.scores), error_rows(report)
    chosen = report.training.chosen.step if report.training.chosen else None
    return {
        "loss": loss(report.training.log, narrow=narrow),
        "curves": curves(
            [{"label": report.run or "tuned", "points": points}],
            chosen=chosen if any(point["step"] == chosen for point in points) else None,
            narrow=narrow,
        ),
        "nll": nll_cdf(nll_curves(report.targets), THRESHOLDS, narrow=narrow),
        "errors": error_bars(rows, modes_of(rows), narrow=narrow),
        "alignment": alignment(*aligned(fisher or {}), *ALIGNMENT_AXES, narrow=narrow),
    }


def steps_per_point(report: Report) -> int:
    """How many steps a point of the drawn loss is the mean of."""
    from mixsd.figures import charts

    return charts.steps_per_point(len(report.training.log))


def page(report: Report, fisher: Mapping[str, Any] | None = None) -> dict[str, Markup | None]:
    """The pictures of `of_report` as elements of a page."""
    wide, narrow = of_report(report, fisher), of_report(report, fisher, narrow=True)
    return {name: elements(wide[name], narrow[name]) for name in wide}


def elements(wide: Figure | None, narrow: Figure | None) -> Markup | None:
    """A picture for a page, drawn for a wide one and for a narrow one, of which the style sheet shows one."""
    if wide is None or narrow is None:
        return None
    from mixsd.figures.style import inline

    # matplotlib and an XML writer make the element, and escape what a label holds.
    made = [(kind, Markup(inline(figure))) for kind, figure in (("wide", wide), ("narrow", narrow))]  # noqa: S704
    return Markup("\n").join(Markup('<figure class="drawn {}">{}</figure>').format(*item) for item in made)


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
