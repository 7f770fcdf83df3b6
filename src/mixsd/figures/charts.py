"""The pictures of runs but for the Pareto front: what checkpoints scored, error modes, NLL, alignment and training loss.

Each function takes plain values, as reports and analyses hold them, and gives a picture or, where there is nothing to draw, None.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from textwrap import wrap
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from mixsd.figures import style
from mixsd.figures.style import Picture
from mixsd.formats import known, value_text

Point = tuple[float, float, tuple[float, float] | None]  # step, value, the ends of its interval
MOST_BANDS = 4  # lines with a band each
_BAR, _BESIDES = 0.27, 0.85  # inches: a bar with the gap to the next, and what stands above and below them
_LONGEST_LABEL = 0.38  # of a panel's width
MOST_NATS = 20.0  # beyond lie few tokens, and the axis would be theirs
MOST_POINTS = 300  # of a loss; a longer log is averaged
_LABELS = {"memorization": "memorization", "forgetting": "forgetting, nats per token"}


@style.styled
def curves(series: Sequence[Mapping[str, Any]], *, chosen: float | None = None, narrow: bool = False) -> Picture | None:
    """Draw memorization and forgetting along checkpoints, in two panels: a share and nats have no common axis.

    A line for each run; those of one label, a configuration's seeds, look alike. A band is a 95% interval; more than `MOST_BANDS` would
    hide each other and are left out. Validation, where it was scored and there is one run only, goes dashed beside memorization.

    Args:
        series: {"label", "points": [{"step", "memorization", "forgetting"}]}; a point may have `validation`, and for each of them the
            ends of its interval as `NAME_low` and `NAME_high`. What a point lacks, or has as None, is not drawn.
        chosen: the step of the checkpoint that became the model, marked by a dotted line.
        narrow: for one of two columns or a phone.

    Returns:
        The picture, None where nothing can be drawn; a panel for which there is nothing is left out.
    """
    names = [name for name in _LABELS if any(_values(item, name) for item in series)]
    drawn = [item for item in series if any(_values(item, name) for name in names)]
    if not drawn:
        return None
    labels = list(dict.fromkeys(str(item["label"]) for item in drawn))
    looks = [_look(labels.index(str(item["label"])), len(drawn)) for item in drawn]
    entries = [(Line2D([], [], **_look(index, len(drawn))), label) for index, label in enumerate(labels)]
    validated = len(drawn) == 1 and bool(_values(drawn[0], "validation"))
    if validated:
        entries.append((Line2D([], [], **_validation(looks[0])), "validation wording"))
    if chosen is not None:
        entries.append((Line2D([], [], color=style.INK, linestyle=":", linewidth=1.2), "the one that became the model"))
    description = "; ".join(_curves_description(item, names) for item in drawn)
    title = " and ".join(names).capitalize() + " along the checkpoints"
    picture, panels = style.panels(title, description, len(names), 2.6, narrow=narrow, entries=entries)
    for axes, name in zip(panels, names, strict=True):
        for look, item in zip(looks, drawn, strict=True):
            _line(axes, _values(item, name), look, bands=len(drawn) <= MOST_BANDS)
            if name == "memorization" and validated:
                _line(axes, _values(item, "validation"), _validation(look), bands=True)
        if chosen is not None:
            axes.axvline(chosen, color=style.INK, linestyle=":", linewidth=1.2)
        if name == "memorization":
            axes.set_ylim(-0.02, 1.03)
            style.share_axis(axes.yaxis)
        else:
            axes.axhline(0.0, color=style.INK, linewidth=0.8, alpha=0.5)
            style.round_ticks(axes.yaxis, 5)
        style.round_ticks(axes.xaxis, 6, whole=True)
        axes.set_xlabel("optimizer step")
        axes.set_ylabel(_LABELS[name])
    return picture


def _values(item: Mapping[str, Any], name: str) -> list[Point]:
    """The points of a line, by step."""
    found = []
    for point in item["points"]:
        if known(point.get("step")) and known(point.get(name)):
            found.append((float(point["step"]), float(point[name]), style.ends_of(point, f"{name}_")))
    return sorted(found, key=lambda value: value[0])


def _line(axes: Axes, values: Sequence[Point], look: Mapping[str, Any], *, bands: bool) -> None:
    if not values:
        return
    axes.plot([step for step, _, _ in values], [value for _, value, _ in values], **look)
    ends = [(step, *ends) for step, _, ends in values if bands and ends]
    if len(ends) > 1:
        xs, lows, highs = zip(*ends, strict=True)
        axes.fill_between(xs, lows, highs, color=look["color"], alpha=0.14, linewidth=0)
    elif ends:
        axes.vlines(*ends[0], color=look["color"], linewidth=1.2)


def _look(index: int, count: int) -> dict[str, Any]:
    return {**style.look(index), "markerfacecoloralt": style.PAPER, "markersize": 5.0 if count < 8 else 4.0}


def _validation(look: Mapping[str, Any]) -> dict[str, Any]:
    return {**look, "linestyle": (0, (3, 2)), "marker": "o", "fillstyle": "none", "markersize": 5.5}


def _curves_description(item: Mapping[str, Any], names: Sequence[str]) -> str:
    parts = []
    for name in names:
        if values := _values(item, name):
            step, value, _ = values[-1]
            unit = value_text("share", value) if name == "memorization" else value_text("nats", value, signed=True)
            parts.append(f"{name} {unit} at step {step:g}")
    return f"{style.short(item['label'], 60)}: {', '.join(parts)}"


@style.styled
def error_bars(rows: Sequence[Mapping[str, Any]], modes: Sequence[str], *, narrow: bool = False) -> Picture | None:
    """Draw the modes of wrong replies (Figures 4 to 13 of the paper): a stacked bar for each model in a panel for each benchmark.

    A bar is as long as the share of questions with a wrong reply, so that bars over unequally many questions can be compared; the
    counts stand in it where they fit.

    Args:
        rows: {"benchmark", "label", "asked": questions, "counts": {mode: wrong replies}}; bars stand in the order given.
        modes: the modes in the order of the stack.
        narrow: for one of two columns or a phone.

    Returns:
        The picture, None where nothing was asked.
    """
    asked = [row for row in rows if row["asked"]]
    names = list(dict.fromkeys(row["benchmark"] for row in asked))
    if not names or not modes:
        return None
    shown = {name: [row for row in asked if row["benchmark"] == name] for name in names}
    fills = [style.fill(index) for index in range(len(modes))]
    entries = [(Patch(**fill), mode) for fill, mode in zip(fills, modes, strict=True)]
    across = 1 if narrow or len(names) == 1 else 2
    cell = (style.NARROW if narrow else style.WIDTH) / across
    widest = max(style.text_width(str(row["label"])) for row in asked) + 0.2
    left = min(max(widest, 0.6), _LONGEST_LABEL * cell)
    height = _BESIDES + _BAR * max(len(own) for own in shown.values())
    description = "; ".join(_modes_description(row, modes) for row in asked)
    picture, panels = style.panels(
        "Wrong replies by what they are like",
        description,
        len(names),
        height,
        narrow=narrow,
        entries=entries,
        left=left,
        head=0.3,
    )
    for axes, (name, own) in zip(panels, shown.items(), strict=True):
        _bars(axes, own, modes, fills, cell - left - 0.2)
        axes.set_yticks(range(len(own)), [_wrapped(row["label"], left - 0.15) for row in own])
        axes.set_title(style.short(name, style.characters(cell - left, style.FONT_SIZE)))
    return picture


def _bars(
    axes: Axes, rows: Sequence[Mapping[str, Any]], modes: Sequence[str], fills: Sequence[dict[str, Any]], inches: float
) -> None:
    wrong = [sum(row["counts"].get(mode, 0) for mode in modes) for row in rows]
    ends = [count / row["asked"] for count, row in zip(wrong, rows, strict=True)]
    texts = [f"{count:,} of {row['asked']:,}" for count, row in zip(wrong, rows, strict=True)]
    # The longest bar leaves room for the text behind it.
    behind = max(map(style.text_width, texts)) + 0.1
    most = max([*ends, 0.01]) * inches / max(inches - behind, 0.3 * inches)
    starts = [0.0] * len(rows)
    for mode, fill in zip(modes, fills, strict=True):
        counts = [row["counts"].get(mode, 0) for row in rows]
        widths = [count / row["asked"] for count, row in zip(counts, rows, strict=True)]
        axes.barh(range(len(rows)), widths, left=starts, height=0.72, label=mode, **fill)
        for place, (count, width, start) in enumerate(zip(counts, widths, starts, strict=True)):
            if count and width / most * inches > style.text_width(str(count), 7.5) + 0.08:
                ground = {"facecolor": fill["facecolor"], "edgecolor": "none", "pad": 1.0}
                axes.text(start + width / 2, place, str(count), ha="center", va="center", fontsize=7.5,
                          color=style.ink_on(fill["facecolor"]), bbox=ground)  # fmt: skip
        starts = [start + width for start, width in zip(starts, widths, strict=True)]
    for place, (end, text) in enumerate(zip(ends, texts, strict=True)):
        axes.annotate(
            text, (end, place), xytext=(4, 0), textcoords="offset points", va="center", fontsize=style.LEGEND_SIZE - 0.5
        )
    axes.set_xlim(0.0, most)
    axes.set_ylim(len(rows) - 0.5, -0.5)  # the first on top
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    style.share_axis(axes.xaxis)
    axes.set_xlabel("wrong replies, share of questions")


def _wrapped(label: str, inches: float) -> str:
    """A label on one line or two, cut where two do not hold it."""
    most = style.characters(inches)
    text = style.short(label, 2 * most)
    return "\n".join(wrap(text, most)) if len(text) > most and len(wrap(text, most)) == 2 else style.short(text, most)


def _modes_description(row: Mapping[str, Any], modes: Sequence[str]) -> str:
    counts = ", ".join(f"{mode} {row['counts'].get(mode, 0)}" for mode in modes)
    return f"{style.short(row['benchmark'], 40)}, {style.short(row['label'], 60)}: {counts}, of {row['asked']:,}"


@style.styled
def nll_cdf(curves: Sequence[Mapping[str, Any]], thresholds: Sequence[float] = (), *, narrow: bool = False) -> Picture | None:
    """Draw empirical distributions of per-token NLL (Figure 3 of the paper), a step line for each set of targets.

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
    description = "; ".join(_cdf_description(item, points, thresholds) for item, points in drawn)
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


def _cdf_description(item: Mapping[str, Any], points: Sequence[tuple[float, float]], thresholds: Sequence[float]) -> str:
    above = [f"{100 * (1 - _at(points, level)):.1f}% above {level:g} nats" for level in thresholds]
    return style.short(item["label"], 60) + _n(item) + (": " + ", ".join(above) if above else "")


def _n(item: Mapping[str, Any]) -> str:
    return f" (n {item['n']:,})" if known(item.get("n")) else ""


def _at(points: Sequence[tuple[float, float]], level: float) -> float:
    for (_, y), (x, _) in pairwise(points):
        if x > level:
            return y
    return points[-1][1] if points[0][0] <= level else 0.0


@style.styled
def alignment(
    points: Sequence[Mapping[str, Any]],
    correlation: Mapping[str, Any] | None,
    x_name: str,
    y_name: str,
    *,
    narrow: bool = False,
) -> Picture | None:
    """Draw one number of each run or checkpoint against another, with Pearson's correlation (Figure 1); those of one label look alike.

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
    marks = [style.mark(index, 6.5) for index in range(len(groups))]
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


def _correlation(found: Mapping[str, Any] | None) -> str:
    if not found or not known(found.get("r")):
        return ""
    ends = style.ends_of(found)
    interval = f" (95%: {ends[0]:.2f} to {ends[1]:.2f})" if ends else ""
    return f"Pearson's r = {found['r']:.2f}{interval}, n {found['n']:,}".replace("-", "−")


@style.styled
def loss(log: Sequence[Mapping[str, Any]], *, narrow: bool = False) -> Picture | None:
    """Draw the loss; None where the log, {"step", "loss": nats per token}, has no finite one. A long log is averaged."""
    steps = [(float(item["step"]), float(item["loss"])) for item in log if known(item.get("step")) and known(item.get("loss"))]
    if not steps:
        return None
    each = steps_per_point(len(steps))
    buckets = [steps[start : start + each] for start in range(0, len(steps), each)]
    xs, ys = zip(*(tuple(sum(column) / len(bucket) for column in zip(*bucket, strict=True)) for bucket in buckets), strict=True)
    (first, began), (last, ended) = steps[0], steps[-1]
    description = f"From {began:.3g} nats per token at step {first:g} to {ended:.3g} at step {last:g}"
    picture, (axes,) = style.panels("Training loss over optimizer steps", description, 1, 2.6, narrow=narrow)
    axes.plot(xs, ys, color=style.COLORS[0], marker="." if len(xs) == 1 else None)
    axes.plot(xs[-1:], ys[-1:], color=style.COLORS[0], marker="o", markersize=4.5)
    axes.set_ylim(min([0.0, *ys]), max(ys) * 1.05 if max(ys) > 0 else 1.0)
    style.round_ticks(axes.xaxis, 8, whole=True)
    style.round_ticks(axes.yaxis, 6)
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("loss, nats per token")
    return picture


def steps_per_point(steps: int) -> int:
    """How many steps one point is the mean of."""
    return max(1, math.ceil(steps / MOST_POINTS))
