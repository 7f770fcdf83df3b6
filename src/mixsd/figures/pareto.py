"""Figure 2 of the paper: what configurations memorized against what they kept, a mark for each with bars for its intervals.

Memorization against forgetting, where down and right is better; and where the held-out benchmarks were asked, memorization against
their average, where up and right is. A bar that goes on beyond the picture has no cap at that end: two seeds can have an interval
many times wider than everything that was measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from mixsd.figures import style
from mixsd.figures.style import Picture
from mixsd.formats import known, number, value_text

_SMALLEST_SPAN = 0.1  # of memorization; less would make one fact a mountain
_BEYOND = 0.25  # of the span of what was measured: so far a panel goes to hold the ends of intervals
_ROOM = 0.05  # of the span, so that no mark is cut


@dataclass(frozen=True)
class _Panel:
    """What stands upwards: a measure of `mixsd.compare`, the name of its axis (of a narrow one too), whether it is a share, and whether
    the checkpoints of a path have it."""

    measure: str
    label: str
    narrow: str
    share: bool
    path: str | None

    @property
    def title(self) -> str:
        """The measure in words."""
        return self.measure.replace("_", " ").replace("held out", "held-out")


_PANELS = (
    _Panel("forgetting", "(← less is better) forgetting, nats per token", "(← better) forgetting, nats", False, "forgetting"),
    _Panel("held_out_average", "held-out average (more is better →)", "held-out average (better →)", True, None),
)


@style.styled
def pareto(comparison: Mapping[str, Any], *, narrow: bool = False) -> Picture | None:
    """Draw what `mixsd.compare` returns.

    Args:
        comparison: its `configurations` (drawn in their order, the Pareto-optimal ringed), `runs`, `base` and `level`.
        narrow: for one of two columns or a phone.

    Returns:
        The picture, None where no configuration has both numbers of a panel.
    """
    panels = [panel for panel in _PANELS if any(_place(item["measures"], panel) for item in comparison["configurations"])]
    drawn = [item for item in comparison["configurations"] if any(_place(item["measures"], panel) for panel in panels)]
    if not drawn:
        return None
    walked = any(len(run["path"]) > 1 for run in comparison["runs"])
    looks = [style.mark(index, 7.0, markeredgewidth=1.2) for index in range(len(drawn))]
    entries = [(Line2D([], [], **look), str(item["label"])) for look, item in zip(looks, drawn, strict=True)]
    if any(item.get("optimal") for item in drawn):
        entries.append((Line2D([], [], **_RING), "Pareto-optimal"))
    shown_base = [panel for panel in panels if (walked or panel.path is None) and _base(comparison, panel)]
    if shown_base:
        entries.append((Line2D([], [], **_BASE), "the base model"))
    level = (comparison.get("level") or {}).get("value")
    if known(level) and walked:
        entries.append((Line2D([], [], **_LEVEL), f"equal memorization, {number(100 * level, 1)}%"))
    description = "; ".join(_told(item, panels) for item in drawn)
    title = "Memorization against " + " and ".join(panel.title for panel in panels)
    picture, made = style.panels(
        title, description, len(panels), 3.6 if len(panels) == 1 and not narrow else 3.1, narrow=narrow, entries=entries
    )
    for axes, panel in zip(made, panels, strict=True):
        base = _base(comparison, panel) if panel in shown_base else None
        _draw(axes, panel, drawn, looks, comparison["runs"], base)
        if known(level) and walked:
            axes.axvline(level, **_LEVEL)
        tight = narrow or len(panels) > 1
        axes.set_xlabel("memorization (better →)" if tight else "memorization, trained wording (more is better →)")
        axes.set_ylabel(panel.narrow if tight else panel.label)
    return picture


_OWN: dict[str, Any] = {"color": style.INK, "linestyle": "none"}
_RING: dict[str, Any] = {**_OWN, "marker": "o", "fillstyle": "none", "markersize": 12.5, "markeredgewidth": 1.1}
_BASE: dict[str, Any] = {**_OWN, "marker": "x", "markersize": 7.5, "markeredgewidth": 1.6}
_LEVEL: dict[str, Any] = {"color": style.INK, "linestyle": (0, (4, 3)), "linewidth": 0.9}


def _draw(
    axes: Axes,
    panel: _Panel,
    items: Sequence[Mapping[str, Any]],
    looks: Sequence[Mapping[str, Any]],
    runs: Sequence[Mapping[str, Any]],
    base: tuple[float, float] | None,
) -> None:
    """One panel: thin lines along checkpoints, dots for runs, and over them bars, rings and marks."""
    places: list[tuple[float, float]] = [base] if base else []
    ends: tuple[list[float], list[float]] = ([], [])
    means = [_place(item["measures"], panel) for item in items]
    for index, (look, item) in enumerate(zip(looks, items, strict=True)):
        own = [run for run in runs if run["configuration"] == item["label"]]
        paths = [_path(run, panel) for run in own]
        for path in paths:
            if len(path) > 1:
                axes.plot(*zip(*path, strict=True), color=look["color"], alpha=0.45, linewidth=0.9, zorder=2)
        finals = [final for run in own if (final := _place(run["measures"], panel))]
        if len(finals) > 1:
            axes.plot(
                *zip(*finals, strict=True), color=look["color"], marker=".", markersize=4, linestyle="none", alpha=0.7, zorder=3
            )
        if (place := means[index]) is None:
            continue
        places += [place, *finals, *(point for path in paths for point in path)]
        bars = [style.ends_of(item["measures"].get(name)) for name in ("trained", panel.measure)]
        for kept, bar in zip(ends, bars, strict=True):
            kept.extend(bar or ())
        x_bar, y_bar = ([[at - bar[0]], [bar[1] - at]] if bar else None for at, bar in zip(place, bars, strict=True))
        axes.errorbar(*place, xerr=x_bar, yerr=y_bar, color=look["color"], capsize=3, linewidth=1.1, fmt="none", zorder=4)
        if item.get("optimal") and panel.path:
            axes.plot(*place, **_RING, zorder=5)
        # Those that lie under others look out from behind them.
        hidden = min(means[index + 1 :].count(place), 4)
        axes.plot(*place, **{**look, "markersize": look["markersize"] + 4.0 * hidden}, zorder=6)
    if base:
        axes.plot(*base, **_BASE, zorder=5)
    zero = [0.0] if panel.path else []
    axes.set_xlim(_range([x for x, _ in places], ends[0], share=True))
    axes.set_ylim(_range([*zero, *(y for _, y in places)], ends[1], share=panel.share))
    style.share_axis(axes.xaxis)
    if panel.share:
        style.share_axis(axes.yaxis)
    else:
        style.round_ticks(axes.yaxis, 6)


def _place(measures: Mapping[str, Any], panel: _Panel) -> tuple[float, float] | None:
    x, y = ((measures.get(name) or {}).get("value") for name in ("trained", panel.measure))
    return (float(x), float(y)) if known(x) and known(y) else None


def _path(run: Mapping[str, Any], panel: _Panel) -> list[tuple[float, float]]:
    if panel.path is None:
        return []
    return [(float(point["memorization"]), float(point[panel.path])) for point in run["path"]]


def _base(comparison: Mapping[str, Any], panel: _Panel) -> tuple[float, float] | None:
    measures = (comparison.get("base") or {}).get("measures") or {}
    own = measures if panel.path is None else {**measures, panel.measure: {"value": 0.0}}  # it forgot nothing, by definition
    return _place(own, panel)


def _range(measured: Sequence[float], ends: Sequence[float], *, share: bool) -> tuple[float, float]:
    """From the lowest to the highest of what was measured, on to the ends of intervals, but not far, and room for the marks."""
    low, high = min(measured), max(measured)
    span = high - low
    beyond = max(_BEYOND * span, 2 * _SMALLEST_SPAN if share else 0.0)
    low, high = max(min([low, *ends]), low - beyond), min(max([high, *ends]), high + beyond)
    if share:
        low, high = max(low, 0.0), min(high, 1.0)
        if high - low < _SMALLEST_SPAN:
            low = max(0.0, high - _SMALLEST_SPAN)
            high = min(1.0, low + _SMALLEST_SPAN)
    room = _ROOM * (high - low) or 0.05
    return low - room, high + room


def _told(item: Mapping[str, Any], panels: Sequence[_Panel]) -> str:
    seeds = len(item["seeds"])
    parts = [f"memorization {value_text('share', (item['measures'].get('trained') or {}).get('value'))}"]
    for panel in panels:
        value = (item["measures"].get(panel.measure) or {}).get("value")
        text = value_text("share", value) if panel.share else value_text("nats", value, signed=True)
        parts.append(f"{panel.title} {text}")
    return f"{style.short(item['label'], 60)}: {', '.join(parts)}, {seeds} seed{'s' if seeds != 1 else ''}"
