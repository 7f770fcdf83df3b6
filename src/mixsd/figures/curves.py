"""Memorization and forgetting over optimizer steps, in two panels: a share and nats have no common axis.

A line for each run; those of one label, a configuration's seeds, look alike. A band is a 95% interval; more than `MOST_BANDS` would
hide each other and are left out. Validation, where it was scored and there is one run only, goes dashed beside memorization.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from mixsd.figures import style
from mixsd.figures.style import Picture
from mixsd.reporting.formats import known, value_text

MOST_BANDS = 4  # lines with a band each
_LABELS = {"memorization": "memorization", "forgetting": "forgetting, nats per token"}


@style.styled
def curves(series: Sequence[Mapping[str, Any]], *, chosen: float | None = None, narrow: bool = False) -> Picture | None:
    """Draw what was measured along checkpoints.

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
    description = "; ".join(_told(item, names) for item in drawn)
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


def _values(item: Mapping[str, Any], name: str) -> list[tuple[float, float, float | None, float | None]]:
    """(step, value, low, high) by step."""
    found = []
    for point in item["points"]:
        if known(point.get("step")) and known(point.get(name)):
            low, high = point.get(f"{name}_low"), point.get(f"{name}_high")
            ends = (low, high) if known(low) and known(high) else (None, None)
            found.append((float(point["step"]), float(point[name]), *ends))
    return sorted(found, key=lambda value: value[0])


def _line(
    axes: Axes, values: Sequence[tuple[float, float, float | None, float | None]], look: Mapping[str, Any], *, bands: bool
) -> None:
    if not values:
        return
    steps = [step for step, *_ in values]
    axes.plot(steps, [value for _, value, _, _ in values], **look)
    ends = [(step, low, high) for step, _, low, high in values if bands and low is not None and high is not None]
    if len(ends) > 1:
        xs, lows, highs = zip(*ends, strict=True)
        axes.fill_between(xs, lows, highs, color=look["color"], alpha=0.14, linewidth=0)
    elif ends:
        step, low, high = ends[0]
        axes.vlines(step, low, high, color=look["color"], linewidth=1.2)


def _look(index: int, count: int) -> dict[str, Any]:
    return {**style.look(index), "markerfacecoloralt": style.PAPER, "markersize": 5.0 if count < 8 else 4.0}


def _validation(look: Mapping[str, Any]) -> dict[str, Any]:
    return {**look, "linestyle": (0, (3, 2)), "marker": "o", "fillstyle": "none", "markersize": 5.5}


def _told(item: Mapping[str, Any], names: Sequence[str]) -> str:
    parts = []
    for name in names:
        if values := _values(item, name):
            step, value, _, _ = values[-1]
            unit = value_text("share", value) if name == "memorization" else value_text("nats", value, signed=True)
            parts.append(f"{name} {unit} at step {step:g}")
    return f"{style.short(item['label'], 60)}: {', '.join(parts)}"
