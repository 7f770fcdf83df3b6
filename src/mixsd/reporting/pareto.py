"""Memorization against forgetting as geometry: a mark for each configuration, bars for its intervals, lines along checkpoints.

Down and right is better. Configurations differ by colour and by shape, so neither has to be told apart alone. A bar that goes on
beyond the picture has no cap at that end: two seeds can have an interval many times wider than everything that was measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mixsd.reporting.axes import Axes, ticks
from mixsd.reporting.formats import known, number, printable, value_text

# Okabe and Ito's colours, which most people tell apart.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8c6d1f", "#56b4e9", "#e69f00", "#4d4d4d")
_SHAPES = (
    "M-5.5 0A5.5 5.5 0 1 0 5.5 0A5.5 5.5 0 1 0 -5.5 0Z",
    "M-5 -5H5V5H-5Z",
    "M0 -6.5L6 4.5H-6Z",
    "M0 -7L6.5 0L0 7L-6.5 0Z",
    "M0 6.5L6 -4.5H-6Z",
    "M-2 -6H2V-2H6V2H2V6H-2V2H-6V-2H-2Z",
    "M-6 -6L0 -2.5L6 -6L2.5 0L6 6L0 2.5L-6 6L-2.5 0Z",
)
_LEFT, _RIGHT, _TOP, _BOTTOM, _LINE = 62.0, 18.0, 16.0, 52.0, 21.0
_SMALLEST_SPAN = 10.0  # percentage points; less would make one fact a mountain
_BEYOND = 0.25  # of the span of what was measured: so far the picture goes to hold the ends of intervals


@dataclass(frozen=True)
class Bar:
    """An interval: a line from (x1, y1) to (x2, y2), and the caps at those of its ends that are in the picture."""

    x1: float
    y1: float
    x2: float
    y2: float
    caps: tuple[str, ...]


@dataclass(frozen=True)
class Mark:
    """One configuration: where its mean lies, its runs as dots, their lines along checkpoints, and its place in the legend."""

    x: float
    y: float
    shape: str
    color: str
    optimal: bool
    label: str
    tip: str
    bars: tuple[Bar, ...]
    dots: tuple[tuple[float, float], ...]
    lines: tuple[str, ...]
    legend_y: float


@dataclass(frozen=True)
class Picture:
    """A drawing in pixels from the top left: the axes with what lies in them, and the legend below."""

    height: int
    axes: Axes
    marks: tuple[Mark, ...]
    base: tuple[float, float] | None
    level: tuple[float, str] | None
    legend_x: float
    legend_base: float


def picture(result: Mapping[str, Any], width: int, plot_height: int) -> Picture | None:
    """Lay out what `mixsd.compare` returns; None where no configuration has both numbers."""
    drawn = [item for item in result["configurations"] if _place(item["measures"])]
    if not drawn:
        return None
    runs = {item["label"]: [run for run in result["runs"] if run["configuration"] == item["label"]] for item in drawn}
    paths = [_points(run) for own in runs.values() for run in own]
    walked = any(len(path) > 1 for path in paths)
    base = _base(result) if walked else None
    places = [place for item in drawn if (place := _place(item["measures"]))]
    everything = [*places, *(point for path in paths for point in path), *([base] if base else [])]
    intervals = [_ends(item["measures"]) for item in drawn]
    x_range = _range([x for x, _ in everything], [end for ends in intervals for end in ends[0]], 0.0, 100.0)
    y_range = _range([0.0, *(y for _, y in everything)], [end for ends in intervals for end in ends[1]])
    x_values, y_values = ticks(*x_range, max(3, width // 110)), ticks(*y_range, 5)
    legend_x = _LEFT if width > 500 else 14.0
    frame = (width, plot_height, _LEFT, width - _RIGHT, _TOP, plot_height - _BOTTOM)
    axes = Axes(*frame, x_range=(x_values[0], x_values[-1]), y_range=(y_values[0], y_values[-1]))
    axes = axes.with_ticks([(x, f"{x:g}%") for x in x_values], [(y, f"{y:g}") for y in y_values])

    marks = []
    for index, (item, (x, y)) in enumerate(zip(drawn, places, strict=True)):
        (x_low, x_high), (y_low, y_high) = _pair(intervals[index][0]), _pair(intervals[index][1])
        bars = []
        if known(x_low) and known(x_high):
            caps = [f"M{axes.x(end):g} {axes.y(y) - 4:g}v8" for end in (x_low, x_high) if x_values[0] <= end <= x_values[-1]]
            bars.append(Bar(axes.x(x_low), axes.y(y), axes.x(x_high), axes.y(y), tuple(caps)))
        if known(y_low) and known(y_high):
            caps = [f"M{axes.x(x) - 4:g} {axes.y(end):g}h8" for end in (y_low, y_high) if y_values[0] <= end <= y_values[-1]]
            bars.append(Bar(axes.x(x), axes.y(y_low), axes.x(x), axes.y(y_high), tuple(caps)))
        own = [_points(run) for run in runs[item["label"]]]
        lines = ["M" + "L".join(f"{axes.x(px):g} {axes.y(py):g}" for px, py in path) for path in own if len(path) > 1]
        finals = [final for run in runs[item["label"]] if (final := _place(run["measures"]))]
        marks.append(
            Mark(
                axes.x(x), axes.y(y), _SHAPES[index % len(_SHAPES)], COLORS[index % len(COLORS)], bool(item.get("optimal")),
                label=_short(printable(item["label"], keep=""), int((width - legend_x - 100) / 7)),
                tip=_tip(item, x, y),
                bars=tuple(bars),
                dots=tuple((axes.x(px), axes.y(py)) for px, py in finals) if len(finals) > 1 else (),
                lines=tuple(lines),
                legend_y=plot_height + _LINE * index + 12,
            )
        )  # fmt: skip
    legend_base = plot_height + _LINE * len(marks) + 12
    level = (result.get("level") or {}).get("value")
    level_at = 100 * level if known(level) and walked else None
    shown_level = level_at is not None and x_values[0] <= level_at <= x_values[-1]
    return Picture(
        height=int(legend_base + (_LINE if base else 0)),
        axes=axes,
        marks=tuple(marks),
        base=(axes.x(base[0]), axes.y(base[1])) if base else None,
        level=(axes.x(level_at), f"equal memorization, {number(level_at, 1)}%") if level_at is not None and shown_level else None,
        legend_x=legend_x,
        legend_base=legend_base,
    )  # fmt: skip


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1].rstrip() + "…"


def _place(measures: Mapping[str, Any]) -> tuple[float, float] | None:
    x, y = ((measures.get(name) or {}).get("value") for name in ("trained", "forgetting"))
    return (100.0 * x, float(y)) if known(x) and known(y) else None


def _points(run: Mapping[str, Any]) -> list[tuple[float, float]]:
    return [(100.0 * point["memorization"], float(point["forgetting"])) for point in run["path"]]


def _base(result: Mapping[str, Any]) -> tuple[float, float] | None:
    score = ((result.get("base") or {}).get("measures") or {}).get("trained")
    return (100.0 * score["value"], 0.0) if score and known(score.get("value")) else None


def _ends(measures: Mapping[str, Any]) -> tuple[list[float], list[float]]:
    found = []
    for name, scale in (("trained", 100.0), ("forgetting", 1.0)):
        cell = measures.get(name) or {}
        ends = (cell.get("low"), cell.get("high"))
        found.append([scale * end for end in ends if end is not None] if all(map(known, ends)) else [])
    return found[0], found[1]


def _pair(ends: Sequence[float]) -> tuple[Any, Any]:
    return (ends[0], ends[1]) if len(ends) == 2 else (None, None)


def _range(
    measured: Sequence[float], ends: Sequence[float], least: float | None = None, most: float | None = None
) -> tuple[float, float]:
    """From the lowest to the highest of what was measured, and on to the ends of intervals, but not far."""
    low, high = min(measured), max(measured)
    room = _BEYOND * (high - low)
    low, high = max(min([low, *ends]), low - room), min(max([high, *ends]), high + room)
    if least is None or most is None:
        return low, high
    low, high = max(low, least), min(high, most)
    if high - low < _SMALLEST_SPAN:
        low = max(least, high - _SMALLEST_SPAN)
        high = min(most, low + _SMALLEST_SPAN)
    return low, high


def _tip(item: Mapping[str, Any], x: float, y: float) -> str:
    seeds = len(item["seeds"])
    return (
        f"{printable(item['label'], keep='')}: memorization {number(x, 1)}%, forgetting {value_text('nats', y, signed=True)}, "
        f"{seeds} seed{'s' if seeds > 1 else ''}"
    )
