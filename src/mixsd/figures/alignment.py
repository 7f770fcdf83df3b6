"""One number of each run or checkpoint against another, with Pearson's correlation: Figure 1's alignment against forgetting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.lines import Line2D

from mixsd.figures import style
from mixsd.figures.style import Picture
from mixsd.reporting.formats import known


@style.styled
def alignment(
    points: Sequence[Mapping[str, Any]],
    correlation: Mapping[str, Any] | None,
    x_name: str,
    y_name: str,
    *,
    narrow: bool = False,
) -> Picture | None:
    """Draw points; those of one label look alike.

    Args:
        points: {"label", "x", "y"}.
        correlation: {"r", "n", "low", "high"} (the ends of its 95% interval, None where it has none), or None.
        x_name, y_name: what stands at the axes.
        narrow: for one of two columns or a phone.

    Returns:
        The picture, None where no point has both numbers.
    """
    groups: dict[str, list[tuple[float, float]]] = {}
    for point in points:
        if known(point.get("x")) and known(point.get("y")):
            groups.setdefault(str(point["label"]), []).append((float(point["x"]), float(point["y"])))
    if not groups:
        return None
    marks = [_mark(index) for index in range(len(groups))]
    entries = [(Line2D([], [], **mark), label) for mark, label in zip(marks, groups, strict=True)]
    told = _correlation(correlation)
    count = sum(map(len, groups.values()))
    description = f"{count} points. {told}" if told else f"{count} points"
    picture, (axes,) = style.panels(f"{y_name} against {x_name}", description, 1, 3.3, narrow=narrow, entries=entries, head=0.3)
    for mark, places in zip(marks, groups.values(), strict=True):
        axes.plot([x for x, _ in places], [y for _, y in places], **mark)
    room = style.NARROW if narrow else style.WIDTH
    axes.set_xlabel(style.short(x_name, style.characters(room - 1, style.FONT_SIZE)))
    axes.set_ylabel(style.short(y_name, style.characters(2.6, style.FONT_SIZE)))
    if told:
        axes.set_title(told.removeprefix("Pearson's ") if narrow else told, fontsize=style.LEGEND_SIZE)
    axes.margins(0.08)
    return picture


def _mark(index: int) -> dict[str, Any]:
    look = style.look(index)
    return {**look, "linestyle": "none", "markersize": 6.5, "markerfacecoloralt": style.PAPER}


def _correlation(found: Mapping[str, Any] | None) -> str:
    if not found or not known(found.get("r")):
        return ""
    low, high = found.get("low"), found.get("high")
    ends = f" (95%: {low:.2f} to {high:.2f})" if known(low) and known(high) else ""
    return f"Pearson's r = {found['r']:.2f}{ends}, n {found['n']:,}".replace("-", "−")
