"""Figures 4 to 13 of the paper: what wrong replies are like, a stacked bar for each model in a panel for each benchmark.

A bar is as long as the share of questions with a wrong reply, so that bars over unequally many questions can be compared; the
counts stand in it where they fit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import wrap
from typing import Any

from matplotlib.axes import Axes
from matplotlib.patches import Patch

from mixsd.figures import style
from mixsd.figures.style import Picture

_BAR, _BESIDES = 0.27, 0.85  # inches: a bar with the gap to the next, and what stands above and below them
_LONGEST_LABEL = 0.38  # of a panel's width


@style.styled
def error_bars(rows: Sequence[Mapping[str, Any]], modes: Sequence[str], *, narrow: bool = False) -> Picture | None:
    """Draw the modes of wrong replies.

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
    fills = [_fill(index) for index in range(len(modes))]
    entries = [(Patch(**fill), mode) for fill, mode in zip(fills, modes, strict=True)]
    across = 1 if narrow or len(names) == 1 else 2
    cell = (style.NARROW if narrow else style.WIDTH) / across
    widest = max(style.text_width(str(row["label"])) for row in asked) + 0.2
    left = min(max(widest, 0.6), _LONGEST_LABEL * cell)
    height = _BESIDES + _BAR * max(len(own) for own in shown.values())
    description = "; ".join(_told(row, modes) for row in asked)
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
    ends = [sum(row["counts"].get(mode, 0) for mode in modes) / row["asked"] for row in rows]
    texts = [f"{sum(row['counts'].get(mode, 0) for mode in modes):,} of {row['asked']:,}" for row in rows]
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


def _fill(index: int) -> dict[str, Any]:
    return {
        "facecolor": style.COLORS[index % len(style.COLORS)],
        "hatch": style.HATCHES[index % len(style.HATCHES)],
        "edgecolor": style.FIXED_WHITE,
        "linewidth": 0.6,
    }


def _told(row: Mapping[str, Any], modes: Sequence[str]) -> str:
    counts = ", ".join(f"{mode} {row['counts'].get(mode, 0)}" for mode in modes)
    return f"{style.short(row['benchmark'], 40)}, {style.short(row['label'], 60)}: {counts}, of {row['asked']:,}"
