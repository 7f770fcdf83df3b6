"""The pictures of runs: what checkpoints scored, error modes, NLL, alignment, training loss, and the Pareto front.

Each function takes plain values, as reports and analyses hold them, and gives a picture or, where there is nothing to draw, None;
`narrow` ones are for one of two columns or a phone.
"""

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from textwrap import wrap
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from mixsd.figures import style
from mixsd.figures.style import Picture
from mixsd.formats import known, number, value_text

Values = Mapping[str, Any]
Point = tuple[float, float]
MOST_BANDS = 4  # lines with a band each
_BAR, _BESIDES = 0.27, 0.85  # inches: a bar with the gap to the next, and what stands above and below them
_LONGEST_LABEL = 0.38  # of a panel's width
MOST_NATS = 20.0  # beyond lie few tokens, and the axis would be theirs
MOST_POINTS = 300  # of a loss; a longer log is averaged
_LABELS = {"memorization": "memorization", "forgetting": "forgetting, nats per token"}
_MARKER: dict[str, Any] = {"color": style.INK, "linestyle": ":", "linewidth": 1.2}  # a line across a panel


@style.context()
def curves(series: Sequence[Values], *, chosen: float | None = None, narrow: bool = False) -> Picture | None:
    """Draw memorization and forgetting along checkpoints, in two panels: a share and nats have no common axis.

    A line for each run; those of one label, a configuration's seeds, look alike. A band is a 95% interval; more than `MOST_BANDS` would
    hide each other and are left out. Validation, where it was scored and there is one run only, goes dashed beside memorization.

    Args:
        series: {"label", "points": [{"step", "memorization", "forgetting"}]}; a point may have `validation`, and for each of them the
            ends of its interval as `NAME_low` and `NAME_high`. What a point lacks, or has as None, is not drawn.
        chosen: the step of the checkpoint that became the model, marked by a dotted line.
    """
    names = [name for name in _LABELS if any(_steps(item, name) for item in series)]
    drawn = [item for item in series if any(_steps(item, name) for name in names)]
    if not drawn:
        return None
    size = 5.0 if len(drawn) < 8 else 4.0
    labels = list(dict.fromkeys(str(item["label"]) for item in drawn))
    by_label = {label: style.look(index) | {"markersize": size} for index, label in enumerate(labels)}
    looks = [by_label[str(item["label"])] for item in drawn]
    entries = [(Line2D([], [], **look), label) for label, look in by_label.items()]
    validation = {**looks[0], "linestyle": (0, (3, 2)), "marker": "o", "fillstyle": "none", "markersize": 5.5}
    validated = len(drawn) == 1 and bool(_steps(drawn[0], "validation"))
    if validated:
        entries.append((Line2D([], [], **validation), "validation wording"))
    if chosen is not None:
        entries.append((Line2D([], [], **_MARKER), "the one that became the model"))
    description = "; ".join(_ends_told(item, names) for item in drawn)
    title = " and ".join(names).capitalize() + " along the checkpoints"
    picture, panels = style.panels(title, description, len(names), 2.6, narrow=narrow, entries=entries)
    for axes, name in zip(panels, names, strict=True):
        for look, item in zip(looks, drawn, strict=True):
            _line(axes, _steps(item, name), look, bands=len(drawn) <= MOST_BANDS)
        if name == "memorization" and validated:
            _line(axes, _steps(drawn[0], "validation"), validation, bands=True)
        if chosen is not None:
            axes.axvline(chosen, **_MARKER)
        if name == "memorization":
            axes.set_ylim(-0.02, 1.03)
            style.share_axis(axes.yaxis)
        else:
            axes.axhline(0.0, color=style.INK, linewidth=0.8, alpha=0.5)
            style.round_ticks(axes.yaxis, 5)
        style.round_ticks(axes.xaxis, 6, whole=True)
        axes.set(xlabel="optimizer step", ylabel=_LABELS[name])
    return picture


def _steps(item: Values, name: str) -> list[tuple[float, float, Point | None]]:
    """The points of a line, by step: step, value, the ends of its interval."""
    found = [
        (float(point["step"]), float(point[name]), style.ends_of(point, f"{name}_"))
        for point in item["points"]
        if known(point.get("step")) and known(point.get(name))
    ]
    return sorted(found, key=lambda value: value[0])


def _line(axes: Axes, values: Sequence[tuple[float, float, Point | None]], look: Values, *, bands: bool) -> None:
    if not values:
        return
    axes.plot([step for step, _, _ in values], [value for _, value, _ in values], **look)
    ends = [(step, *ends) for step, _, ends in values if bands and ends]
    if len(ends) > 1:
        xs, lows, highs = zip(*ends, strict=True)
        axes.fill_between(xs, lows, highs, color=look["color"], alpha=0.14, linewidth=0)
    elif ends:
        axes.vlines(*ends[0], color=look["color"], linewidth=1.2)


def _ends_told(item: Values, names: Sequence[str]) -> str:
    """The last number of each line of a run, in words."""
    lasts = {name: values[-1] for name in names if (values := _steps(item, name))}
    texts = {
        name: value_text("share", value) if name == "memorization" else value_text("nats", value, signed=True)
        for name, (_, value, _) in lasts.items()
    }
    return f"{style.short(item['label'], 60)}: " + ", ".join(f"{name} {texts[name]} at step {lasts[name][0]:g}" for name in lasts)


@style.context()
def error_bars(rows: Sequence[Values], modes: Sequence[str], *, narrow: bool = False) -> Picture | None:
    """Draw the modes of wrong replies (Figures 4 to 13 of the paper): a stacked bar for each model in a panel for each benchmark.

    A bar is as long as the share of questions with a wrong reply, so that bars over unequally many questions can be compared; the
    counts stand in it where they fit.

    Args:
        rows: {"benchmark", "label", "asked": questions, "counts": {mode: wrong replies}}; bars stand in the order given.
        modes: the modes in the order of the stack.
    """
    shown: dict[str, list[Values]] = {}
    for row in rows:
        if row["asked"]:
            shown.setdefault(row["benchmark"], []).append(row)
    if not shown or not modes:
        return None
    fills = {mode: style.fill(index) for index, mode in enumerate(modes)}
    across = 1 if narrow or len(shown) == 1 else 2
    cell = (style.NARROW if narrow else style.WIDTH) / across
    widest = max(style.text_width(str(row["label"])) for own in shown.values() for row in own) + 0.2
    left = min(max(widest, 0.6), _LONGEST_LABEL * cell)
    told = []
    for row in (row for row in rows if row["asked"]):
        counts = ", ".join(f"{mode} {row['counts'].get(mode, 0)}" for mode in modes)
        told.append(f"{style.short(row['benchmark'], 40)}, {style.short(row['label'], 60)}: {counts}, of {row['asked']:,}")
    picture, panels = style.panels(
        "Wrong replies by what they are like",
        "; ".join(told),
        len(shown),
        _BESIDES + _BAR * max(map(len, shown.values())),
        narrow=narrow,
        entries=[(Patch(**fill), mode) for mode, fill in fills.items()],
        left=left,
        head=0.3,
    )
    for axes, (name, own) in zip(panels, shown.items(), strict=True):
        _bars(axes, own, fills, cell - left - 0.2)
        axes.set_yticks(range(len(own)), [_wrapped(row["label"], style.characters(left - 0.15)) for row in own])
        axes.set_title(style.short(name, style.characters(cell - left, style.FONT_SIZE)))
    return picture


def _wrapped(label: str, most: int) -> str:
    """A label on one line or two, its middle cut where two do not hold it."""
    lines = wrap(style.short(label, 2 * most), most)
    return "\n".join(lines) if len(lines) == 2 else style.short(label, most)


def _bars(axes: Axes, rows: Sequence[Values], fills: Mapping[str, dict[str, Any]], inches: float) -> None:
    """A panel of bars, `inches` wide."""
    wrong = [sum(row["counts"].get(mode, 0) for mode in fills) for row in rows]
    texts = [f"{count:,} of {row['asked']:,}" for count, row in zip(wrong, rows, strict=True)]
    # The longest bar leaves room for the text behind it.
    behind = max(map(style.text_width, texts)) + 0.1
    longest = max(0.01, *(count / row["asked"] for count, row in zip(wrong, rows, strict=True)))
    most = longest * inches / max(inches - behind, 0.3 * inches)
    starts = [0.0] * len(rows)
    for mode, fill in fills.items():
        counts = [row["counts"].get(mode, 0) for row in rows]
        widths = [count / row["asked"] for count, row in zip(counts, rows, strict=True)]
        axes.barh(range(len(rows)), widths, left=starts, height=0.72, label=mode, **fill)
        within: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 7.5, "color": style.ink_on(fill["facecolor"])}
        ground = {"facecolor": fill["facecolor"], "edgecolor": "none", "pad": 1.0}
        for place, (count, width, start) in enumerate(zip(counts, widths, starts, strict=True)):
            if count and width / most * inches > style.text_width(str(count), 7.5) + 0.08:
                axes.text(start + width / 2, place, str(count), bbox=ground, **within)
        starts = [start + width for start, width in zip(starts, widths, strict=True)]
    for place, (count, row, text) in enumerate(zip(wrong, rows, texts, strict=True)):
        end, size = (count / row["asked"], place), style.LEGEND_SIZE - 0.5
        axes.annotate(text, end, xytext=(4, 0), textcoords="offset points", va="center", fontsize=size)
    axes.set_xlim(0.0, most)
    axes.set_ylim(len(rows) - 0.5, -0.5)  # the first on top
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    style.share_axis(axes.xaxis)
    axes.set_xlabel("wrong replies, share of questions")


@style.context()
def nll_cdf(curves: Sequence[Values], thresholds: Sequence[float] = (), *, narrow: bool = False) -> Picture | None:
    """Draw empirical distributions of per-token NLL (Figure 3 of the paper), a step line for each set of targets.

    Args:
        curves: {"label", "n": tokens, or None, "x": nats in ascending order, "y": share of tokens at or below x}.
        thresholds: nats at which a dotted line stands.
    """
    drawn: list[tuple[Values, list[Point]]] = []
    for item in curves:
        found = [(float(x), float(y)) for x, y in zip(item["x"], item["y"], strict=True) if known(x) and known(y)]
        if found:  # begun at 0 nats so that the line stands on the axis
            drawn.append((item, [(0.0, 0.0), *found] if found[0][0] > 0 else found))
    if not drawn:
        return None
    lines = [{name: style.look(index)[name] for name in ("color", "linestyle")} for index in range(len(drawn))]
    entries, told = [], []
    for line, (item, points) in zip(lines, drawn, strict=True):
        n = f" (n {item['n']:,})" if known(item.get("n")) else ""
        shares = [points[place - 1][1] if (place := bisect_right(points, (level, 1.0))) else 0.0 for level in thresholds]
        above = [f"{100 * (1 - share):.1f}% above {level:g} nats" for share, level in zip(shares, thresholds, strict=True)]
        entries.append((Line2D([], [], **line), f"{item['label']}{n}"))
        told.append(style.short(item["label"], 60) + n + (f": {', '.join(above)}" if above else ""))
    longest = max(points[-1][0] for _, points in drawn)
    most = min(MOST_NATS, max([longest, *(1.05 * level for level in thresholds)]))
    title = "Share of tokens at or below a base NLL"
    picture, (axes,) = style.panels(title, "; ".join(told), 1, 2.9, narrow=narrow, entries=entries)
    for line, (_, points) in zip(lines, drawn, strict=True):
        axes.step(*zip(*points, strict=True), where="post", **line)
    for level in thresholds:
        if level <= most:
            axes.axvline(level, **_MARKER | {"linewidth": 1.0})
            axes.annotate(f"{level:g}", (level, 0.0), xytext=(3, 4), textcoords="offset points", fontsize=style.LEGEND_SIZE)
    axes.set(xlim=(0.0, most), ylim=(0.0, 1.0))
    style.share_axis(axes.yaxis)
    style.round_ticks(axes.xaxis, 8, whole=most >= 4)
    cut = f" (to {most:g}; the highest is {longest:.0f})" if longest > most else ""
    axes.set(xlabel=f"base NLL, nats{cut}", ylabel="tokens at or below" if narrow else "share of tokens at or below")
    return picture


@style.context()
def alignment(
    points: Sequence[Values], correlation: Values | None, x_name: str, y_name: str, *, narrow: bool = False
) -> Picture | None:
    """Draw one number of each run or checkpoint against another, with Pearson's correlation (Figure 1); those of one label look alike.

    Args:
        points: {"label", "x", "y"}.
        correlation: {"r", "n", "low", "high"} (the ends of its 95% interval, None where it has none), or None.
        x_name, y_name: what stands at the axes.
    """
    groups: dict[str, list[Point]] = {}
    for point in points:
        if known(point.get("x")) and known(point.get("y")):
            groups.setdefault(str(point["label"]), []).append((float(point["x"]), float(point["y"])))
    if not groups:
        return None
    marks = {label: style.mark(index, 6.5) for index, label in enumerate(groups)}
    entries = [(Line2D([], [], **mark), label) for label, mark in marks.items()]
    told, description = "", f"{sum(map(len, groups.values()))} points"
    if correlation and known(correlation.get("r")):
        ends = style.ends_of(correlation)
        interval = f" (95%: {ends[0]:.2f} to {ends[1]:.2f})" if ends else ""
        told = f"Pearson's r = {correlation['r']:.2f}{interval}, n {correlation['n']:,}".replace("-", "−")
        description += f". {told}"
    picture, (axes,) = style.panels(f"{y_name} against {x_name}", description, 1, 3.3, narrow=narrow, entries=entries, head=0.3)
    for label, places in groups.items():
        axes.plot(*zip(*places, strict=True), **marks[label])
    room = style.NARROW if narrow else style.WIDTH
    axes.set_xlabel(style.short(x_name, style.characters(room - 1, style.FONT_SIZE)))
    axes.set_ylabel(style.short(y_name, style.characters(2.6, style.FONT_SIZE)))
    if told:
        axes.set_title(told.removeprefix("Pearson's ") if narrow else told, fontsize=style.LEGEND_SIZE)
    axes.margins(0.08)
    return picture


@style.context()
def loss(log: Sequence[Values], *, narrow: bool = False) -> Picture | None:
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
    axes.set(xlabel="optimizer step", ylabel="loss, nats per token")
    return picture


def steps_per_point(steps: int) -> int:
    """How many steps one point is the mean of."""
    return max(1, math.ceil(steps / MOST_POINTS))


_SMALLEST_SPAN = 0.1  # of memorization; less would make one fact a mountain
_BEYOND = 0.25  # of the span of what was measured: so far a panel goes to hold the ends of intervals
_ROOM = 0.05  # of the span, so that no mark is cut
_OWN = {"color": style.INK, "linestyle": "none"}
_RING: dict[str, Any] = {**_OWN, "marker": "o", "fillstyle": "none", "markersize": 12.5, "markeredgewidth": 1.1}
_BASE: dict[str, Any] = {**_OWN, "marker": "x", "markersize": 7.5, "markeredgewidth": 1.6}
_LEVEL: dict[str, Any] = {"color": style.INK, "linestyle": (0, (4, 3)), "linewidth": 0.9}


# What stands upwards, by its measure in `mixsd.compare`: in words, at the axis of a wide picture, at that of a tight one.
_UPWARDS = {
    "forgetting": ("forgetting", "(← less is better) forgetting, nats per token", "(← better) forgetting, nats"),
    "held_out_average": ("held-out average", "held-out average (more is better →)", "held-out average (better →)"),
}


@style.context()
def pareto(comparison: Values, *, narrow: bool = False) -> Picture | None:
    """Draw Figure 2 of the paper: what configurations memorized against what they kept, a mark for each with bars for its intervals.

    Memorization against forgetting, where down and right is better; and where the held-out benchmarks were asked, against their average,
    where up and right is. A bar that goes on beyond the picture has no cap at that end: two seeds can have an interval many times wider
    than everything that was measured.

    `comparison` is what `mixsd.compare` returns; the Pareto-optimal are ringed.
    """
    items, runs = comparison["configurations"], comparison["runs"]
    measures = [name for name in _UPWARDS if any(_place(item["measures"], name) for item in items)]
    drawn = [item for item in items if any(_place(item["measures"], name) for name in measures)]
    if not drawn:
        return None
    walked = any(len(run["path"]) > 1 for run in runs)
    looks = [style.mark(index, 7.0, markeredgewidth=1.2) for index in range(len(drawn))]
    entries = [(Line2D([], [], **look), str(item["label"])) for look, item in zip(looks, drawn, strict=True)]
    if any(item.get("optimal") for item in drawn):
        entries.append((Line2D([], [], **_RING), "Pareto-optimal"))
    # It forgot nothing, by definition.
    base = ((comparison.get("base") or {}).get("measures") or {}) | {"forgetting": {"value": 0.0}}
    bases = [_place(base, name) if walked or name != "forgetting" else None for name in measures]
    if any(bases):
        entries.append((Line2D([], [], **_BASE), "the base model"))
    level = (comparison.get("level") or {}).get("value") if walked else None
    if known(level):
        entries.append((Line2D([], [], **_LEVEL), f"equal memorization, {number(100 * level, 1)}%"))
    title = "Memorization against " + " and ".join(_UPWARDS[name][0] for name in measures)
    description = "; ".join(_means_told(item, measures) for item in drawn)
    tight = narrow or len(measures) > 1
    picture, panels = style.panels(title, description, len(measures), 3.1 if tight else 3.6, narrow=narrow, entries=entries)
    for axes, name, place in zip(panels, measures, bases, strict=True):
        _draw(axes, name, drawn, looks, runs, place)
        if known(level):
            axes.axvline(level, **_LEVEL)
        axes.set_xlabel("memorization (better →)" if tight else "memorization, trained wording (more is better →)")
        axes.set_ylabel(_UPWARDS[name][2 if tight else 1])
    return picture


def _place(measures: Values, upwards: str) -> Point | None:
    x, y = ((measures.get(name) or {}).get("value") for name in ("trained", upwards))
    return (float(x), float(y)) if known(x) and known(y) else None


def _draw(
    axes: Axes, upwards: str, items: Sequence[Values], looks: Sequence[Values], runs: Sequence[Values], base: Point | None
) -> None:
    """One panel: thin lines along checkpoints, dots for runs, and over them bars, rings and marks."""
    forgetting = upwards == "forgetting"  # in nats, and measured at checkpoints; the other is a share
    places = [base] if base else []
    ends: tuple[list[float], list[float]] = ([], [])
    means = [_place(item["measures"], upwards) for item in items]
    for index, (look, item, place) in enumerate(zip(looks, items, means, strict=True)):
        own, color = [run for run in runs if run["configuration"] == item["label"]], look["color"]
        paths = [[(point["memorization"], point["forgetting"]) for point in run["path"]] for run in own if forgetting]
        for path in paths:
            if len(path) > 1:
                axes.plot(*zip(*path, strict=True), color=color, alpha=0.45, linewidth=0.9, zorder=2)
        finals = [final for run in own if (final := _place(run["measures"], upwards))]
        if len(finals) > 1:
            axes.plot(*zip(*finals, strict=True), color=color, marker=".", markersize=4, linestyle="none", alpha=0.7, zorder=3)
        if place is None:
            continue
        places += [place, *finals, *(point for path in paths for point in path)]
        bars = [style.ends_of(item["measures"].get(name)) for name in ("trained", upwards)]
        for kept, bar in zip(ends, bars, strict=True):
            kept.extend(bar or ())
        x_bar, y_bar = ([[at - bar[0]], [bar[1] - at]] if bar else None for at, bar in zip(place, bars, strict=True))
        axes.errorbar(*place, xerr=x_bar, yerr=y_bar, color=color, capsize=3, linewidth=1.1, fmt="none", zorder=4)
        if item.get("optimal") and forgetting:
            axes.plot(*place, **_RING, zorder=5)
        # Those that lie under others look out from behind them.
        hidden = min(means[index + 1 :].count(place), 4)
        axes.plot(*place, **{**look, "markersize": look["markersize"] + 4.0 * hidden}, zorder=6)
    if base:
        axes.plot(*base, **_BASE, zorder=5)
    zero = [0.0] if forgetting else []
    axes.set_xlim(_range([x for x, _ in places], ends[0], share=True))
    axes.set_ylim(_range([*zero, *(y for _, y in places)], ends[1], share=not forgetting))
    style.share_axis(axes.xaxis)
    if forgetting:
        style.round_ticks(axes.yaxis, 6)
    else:
        style.share_axis(axes.yaxis)


def _range(measured: Sequence[float], ends: Sequence[float], *, share: bool) -> tuple[float, float]:
    """From the lowest to the highest of what was measured, on to the ends of intervals, but not far, and room for the marks."""
    low, high = min(measured), max(measured)
    beyond = max(_BEYOND * (high - low), 2 * _SMALLEST_SPAN if share else 0.0)
    low, high = max(min([low, *ends]), low - beyond), min(max([high, *ends]), high + beyond)
    if share:
        low, high = max(low, 0.0), min(high, 1.0)
        if high - low < _SMALLEST_SPAN:
            low = max(0.0, high - _SMALLEST_SPAN)
            high = min(1.0, low + _SMALLEST_SPAN)
    room = _ROOM * (high - low) or 0.05
    return low - room, high + room


def _means_told(item: Values, measures: Sequence[str]) -> str:
    """A configuration's means, in words."""
    values = {name: (item["measures"].get(name) or {}).get("value") for name in ("trained", *measures)}
    texts = {name: value_text("share", value) for name, value in values.items()}
    if "forgetting" in values:
        texts["forgetting"] = value_text("nats", values["forgetting"], signed=True)
    told = ", ".join([f"memorization {texts['trained']}", *(f"{_UPWARDS[name][0]} {texts[name]}" for name in measures)])
    seeds = len(item["seeds"])
    return f"{style.short(item['label'], 60)}: {told}, {seeds} seed{'s' if seeds != 1 else ''}"
