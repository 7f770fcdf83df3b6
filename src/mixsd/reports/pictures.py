"""What of a report can be drawn, for its page and for `mixsd figures`: from the values of `report.json` to those that a figure takes.

The drawing itself is `mixsd.figures`, which brings matplotlib in; it is imported when a picture is made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from mixsd.evaluation.benchmarks.benchmark import title_of
from mixsd.formats import known
from mixsd.reports.rows import columns, is_alone

if TYPE_CHECKING:
    from matplotlib.figure import Figure

THRESHOLDS = (5.0, 8.0)  # nats: the paper's levels of an uncertain and of a surprising token
REFERENCES = "references"
ALIGNMENT_AXES = ("Fisher alignment ratio", "forgetting, nats per token")
# Scores of checkpoints that are drawn, as (split, metric).
_ALONG = {
    "memorization": ("memorization/trained", "accuracy"),
    "validation": ("memorization/validation", "accuracy"),
    "forgetting": ("retention/forgetting", "forgetting"),
}
# The order of a stack; what a report has besides comes after.
_MODES = ("format", "leakage", "cross-entity", "collapse", "genuine")


def along(scores: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What was measured at checkpoints, by step: each number that was scored, with the ends of its interval."""
    names = {score: name for name, score in _ALONG.items()}
    found: dict[int, dict[str, Any]] = {}
    for item in scores:
        name = names.get((item.get("split", ""), item.get("metric", "")))
        own = item.get("suite") == "core" and item.get("model") == "tuned"
        if name and own and known(item.get("checkpoint")) and known(item.get("value")):
            point = found.setdefault(int(item["checkpoint"]), {"step": int(item["checkpoint"])})
            point |= {name: item["value"], f"{name}_low": item.get("low"), f"{name}_high": item.get("high")}
    return [found[step] for step in sorted(found)]


def nll_curves(report: Mapping[str, Any], label: str = "targets") -> list[dict[str, Any]]:
    """The distributions of base NLL that a report holds: of the references, and of the targets where they are others."""
    targets = report.get("targets") or {}
    found: list[dict[str, Any]] = []
    for name, own in ((REFERENCES, targets.get("reference_nll_cdf")), (label, targets.get("nll_cdf"))):
        if own and own.get("x") and not (found and own == targets.get("reference_nll_cdf")):
            found.append(
                {
                    "label": name,
                    "n": targets.get("reference_tokens" if name == REFERENCES else "tokens"),
                    "x": own["x"],
                    "y": own["y"],
                }
            )
    return found


def error_rows(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What wrong replies are like: a bar for each benchmark and model, the base first, this run last."""
    labels = [column.label for column in columns(report)]
    last = "base" if is_alone(report) else "tuned"
    sources = [(labels[0], report, "base")] if not is_alone(report) else []
    beside = report.get("beside") or []
    sources += [(label, other, "tuned") for label, other in zip(labels[1:], beside, strict=False)]
    sources += [(labels[-1], report, last)]
    rows = [
        {"benchmark": title_of(item["benchmark"]), "label": label, "asked": item["asked"], "counts": item["counts"]}
        for label, source, model in sources
        for item in source.get("error_modes") or []
        if item["model"] == model
    ]
    order = list(dict.fromkeys(title_of(item["benchmark"]) for item in report.get("error_modes") or []))
    return sorted((row for row in rows if row["benchmark"] in order), key=lambda row: order.index(row["benchmark"]))


def modes_of(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The modes that any row counts, in the order of a stack."""
    present = {mode for row in rows for mode in row["counts"]}
    return [mode for mode in _MODES if mode in present] + sorted(present - set(_MODES))


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


def of_report(
    report: Mapping[str, Any], fisher: Mapping[str, Any] | None = None, *, narrow: bool = False
) -> dict[str, Figure | None]:
    """Every picture of one report by name, None where the report has nothing for it: loss, curves, nll, errors, alignment.

    `fisher` is what `mixsd analyze fisher` wrote of the run.
    """
    from mixsd.figures.charts import alignment, curves, error_bars, loss, nll_cdf

    training = report.get("training") or {}
    points = along(report.get("scores") or [])
    chosen = (training.get("chosen") or {}).get("step")
    rows = error_rows(report)
    return {
        "loss": loss(training.get("log") or [], narrow=narrow),
        "curves": curves(
            [{"label": report.get("run") or "tuned", "points": points}],
            chosen=chosen if any(point["step"] == chosen for point in points) else None,
            narrow=narrow,
        ),
        "nll": nll_cdf(nll_curves(report), THRESHOLDS, narrow=narrow),
        "errors": error_bars(rows, modes_of(rows), narrow=narrow),
        "alignment": alignment(*aligned(fisher or {}), *ALIGNMENT_AXES, narrow=narrow),
    }


def steps_per_point(report: Mapping[str, Any]) -> int:
    """How many steps a point of the drawn loss is the mean of."""
    from mixsd.figures import charts

    return charts.steps_per_point(len((report.get("training") or {}).get("log") or []))


def page(report: Mapping[str, Any], fisher: Mapping[str, Any] | None = None) -> dict[str, Markup | None]:
    """The pictures of `of_report` as elements of a page."""
    wide, narrow = of_report(report, fisher), of_report(report, fisher, narrow=True)
    return {name: elements(wide[name], narrow[name]) for name in wide}


def elements(wide: Figure | None, narrow: Figure | None) -> Markup | None:
    """A picture for a page, drawn for a wide one and for a narrow one, of which the style sheet shows one."""
    if wide is None or narrow is None:
        return None
    from mixsd.figures.saving import inline

    # matplotlib and an XML writer make the element, and escape what a label holds.
    made = [(kind, Markup(inline(figure))) for kind, figure in (("wide", wide), ("narrow", narrow))]  # noqa: S704
    return Markup("\n").join(Markup('<figure class="drawn {}">{}</figure>').format(*item) for item in made)
