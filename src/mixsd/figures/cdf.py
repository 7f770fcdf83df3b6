"""Figure 3 of the paper: the share of tokens whose base NLL is at most so many nats, a step line for each set of targets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from matplotlib.lines import Line2D

from mixsd.figures import style
from mixsd.figures.style import Picture
from mixsd.reporting.formats import known

MOST_NATS = 20.0  # beyond lie few tokens, and the axis would be theirs


@style.styled
def nll_cdf(curves: Sequence[Mapping[str, Any]], thresholds: Sequence[float] = (), *, narrow: bool = False) -> Picture | None:
    """Draw empirical distributions of per-token NLL.

    Args:
        curves: {"label", "n": tokens, or None, "x": nats in ascending order, "y": share of tokens at or below x}.
        thresholds: nats at which a dotted line stands.
        narrow: for one of two columns or a phone.

    Returns:
        The picture, None where no curve has a point.
    """
    drawn = [(item, points) for item in curves if (points := _points(item))]
    if not drawn:
        return None
    looks = [style.look(index) for index in range(len(drawn))]
    lines = [{"color": look["color"], "linestyle": look["linestyle"]} for look in looks]
    entries = [(Line2D([], [], **line), f"{item['label']}{_n(item)}") for line, (item, _) in zip(lines, drawn, strict=True)]
    longest = max(points[-1][0] for _, points in drawn)
    most = min(MOST_NATS, max([longest, *(1.05 * level for level in thresholds)]))
    description = "; ".join(_told(item, points, thresholds) for item, points in drawn)
    title = "Share of tokens at or below a base NLL"
    picture, (axes,) = style.panels(title, description, 1, 2.9, narrow=narrow, entries=entries)
    for line, (_, points) in zip(lines, drawn, strict=True):
        axes.step([x for x, _ in points], [y for _, y in points], where="post", **line)
    for level in thresholds:
        if level <= most:
            axes.axvline(level, color=style.INK, linestyle=":", linewidth=1.0)
            axes.annotate(f"{level:g}", (level, 0.0), xytext=(3, 4), textcoords="offset points", fontsize=style.LEGEND_SIZE)
    axes.set_xlim(0.0, most)
    axes.set_ylim(0.0, 1.0)
    style.share_axis(axes.yaxis)
    style.round_ticks(axes.xaxis, 8, whole=most >= 4)
    axes.set_ylabel("tokens at or below" if narrow else "share of tokens at or below")
    cut = f" (to {most:g}; the highest is {longest:.0f})" if longest > most else ""
    axes.set_xlabel(f"base NLL, nats{cut}")
    return picture


def _points(item: Mapping[str, Any]) -> list[tuple[float, float]]:
    """The points, begun at 0 nats so that the line stands on the axis."""
    found = [(float(x), float(y)) for x, y in zip(item["x"], item["y"], strict=True) if known(x) and known(y)]
    return [(0.0, 0.0), *found] if found and found[0][0] > 0 else found


def _told(item: Mapping[str, Any], points: Sequence[tuple[float, float]], thresholds: Sequence[float]) -> str:
    above = [f"{100 * (1 - _at(points, level)):.1f}% above {level:g} nats" for level in thresholds]
    return style.short(item["label"], 60) + _n(item) + (": " + ", ".join(above) if above else "")


def _n(item: Mapping[str, Any]) -> str:
    return f" (n {item['n']:,})" if known(item.get("n")) else ""


def _at(points: Sequence[tuple[float, float]], level: float) -> float:
    for (_, y), (x, _) in pairwise(points):
        if x > level:
            return y
    return points[-1][1] if points[0][0] <= level else 0.0
