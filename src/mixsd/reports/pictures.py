"""What of a report can be drawn, for its page and for `mixsd figures`; `mixsd.figures`, with matplotlib, is imported when it is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from mixsd.evaluation.benchmarks.benchmark import title_of
from mixsd.reports.rows import sources_of
from mixsd.reports.schema import ErrorModes, Report, Score, TargetNumbers
from mixsd.storage import read_json

if TYPE_CHECKING:
    from mixsd.figures.style import Picture

THRESHOLDS = (5.0, 8.0)  # nats: the paper's levels of an uncertain and of a surprising token
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
    found = [("references", targets.reference_nll_cdf, targets.reference_tokens)]
    if targets.nll_cdf != targets.reference_nll_cdf:
        found.append((label, targets.nll_cdf, targets.tokens))
    return [{"label": name, "n": n, "x": own.x, "y": own.y} for name, own, n in found if own and own.x]


def error_rows(report: Report) -> list[dict[str, Any]]:
    """What wrong replies are like: a bar for each benchmark that this run was asked and each model, the base first, this run last."""
    asked = {item.benchmark for item in report.error_modes}
    return summed(
        (model.label, item)
        for model, record, whose in sources_of(report)
        for item in record.error_modes
        if item.model == whose and item.benchmark in asked
    )


def summed(items: Iterable[tuple[str, ErrorModes]]) -> list[dict[str, Any]]:
    """A bar for each benchmark and label, benchmark by benchmark, with what all items of that label have together."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for label, item in items:
        nothing = {"benchmark": title_of(item.benchmark), "label": label, "asked": 0, "wrong": 0, "counts": Counter[str]()}
        row = found.setdefault(item.benchmark, {}).setdefault(label, nothing)
        row["asked"] += item.asked
        row["wrong"] += sum(item.counts.values())
        row["counts"].update(item.counts)
    return [row for rows in found.values() for row in rows.values()]


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
    found = {(item.get("metric"), item.get("with")): item for item in fisher.get("correlations") or []}
    return points, found.get(("alignment", "forgetting"))


def of_report(report: Report, fisher: Mapping[str, Any] | None = None, *, narrow: bool = False) -> dict[str, Picture | None]:
    """Every picture of one report by name, None where the report has nothing for it; `fisher` is what `fisher_of` its run gives."""
    from mixsd.figures.charts import alignment, curves, error_bars, loss, nll_cdf

    points, rows, chosen = along(report.scores), error_rows(report), report.training.chosen
    taken = next((point["step"] for point in points if chosen and point["step"] == chosen.step), None)
    return {
        "loss": loss(report.training.log, narrow=narrow),
        "curves": curves([{"label": report.run or "tuned", "points": points}], chosen=taken, narrow=narrow),
        "nll": nll_cdf(nll_curves(report.targets), THRESHOLDS, narrow=narrow),
        "errors": error_bars(rows, modes_of(rows), narrow=narrow),
        "alignment": alignment(*aligned(fisher or {}), *ALIGNMENT_AXES, narrow=narrow),
    }


def page(report: Report, fisher: Mapping[str, Any] | None = None) -> dict[str, Markup | None]:
    """The pictures of `of_report` as elements of a page."""
    wide, narrow = of_report(report, fisher), of_report(report, fisher, narrow=True)
    return {name: elements(wide[name], narrow[name]) for name in wide}


def elements(wide: Picture | None, narrow: Picture | None) -> Markup | None:
    """A picture for a page, drawn for a wide one and for a narrow one, of which the style sheet shows one."""
    if wide is None or narrow is None:
        return None
    from mixsd.figures.style import inline

    frame = Markup('<figure class="drawn {}">{}</figure>')
    # matplotlib and an XML writer make the element, and escape what a label holds.
    return Markup("\n").join(frame.format(kind, Markup(inline(made))) for kind, made in (("wide", wide), ("narrow", narrow)))  # noqa: S704
