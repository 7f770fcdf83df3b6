"""Axes over optimizer steps, and the loss curve on them, as geometry: ready to be placed by the page's template.

Long logs are averaged into at most `MOST_POINTS` buckets, so the page does not grow with the number of steps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mixsd.reporting.axes import Axes, ticks
from mixsd.reporting.formats import known

MOST_POINTS = 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 52.0, 16.0, 14.0, 44.0


@dataclass(frozen=True)
class Curve:
    """The loss, drawn."""

    axes: Axes
    path: str
    points: tuple[tuple[float, float], ...]
    averaged: int  # steps per drawn point


def loss_curve(log: Sequence[Mapping[str, Any]], width: int, height: int) -> Curve | None:
    """Lay out loss over step; None where the log has no finite loss."""
    steps = [(float(item["step"]), float(item["loss"])) for item in log if known(item.get("step")) and known(item.get("loss"))]
    if not steps:
        return None
    per_point = math.ceil(len(steps) / MOST_POINTS)
    buckets = [steps[start : start + per_point] for start in range(0, len(steps), per_point)]
    data = [tuple(sum(column) / len(bucket) for column in zip(*bucket, strict=True)) for bucket in buckets]
    y_values = ticks(min(0.0, *(y for _, y in data)), max(y for _, y in data), 4)
    axes = over_steps(width, height, [step for step, _ in steps], [(y, f"{y:g}") for y in y_values])
    points = tuple((axes.x(x), axes.y(y)) for x, y in data)
    return Curve(axes, "M" + "L".join(f"{x:g} {y:g}" for x, y in points), points, per_point)


def over_steps(width: int, height: int, steps: Sequence[float], y_ticks: Sequence[tuple[float, str]]) -> Axes:
    """Axes for optimizer steps in ascending order; the other axis reaches from its first tick (value, text) to its last."""
    first, last = steps[0], steps[-1]
    x_values = [x for x in ticks(first, last, width // 90) if first <= x <= last] or [first]
    frame = (width, height, _LEFT, width - _RIGHT, _TOP, height - _BOTTOM)
    axes = Axes(*frame, x_range=(first, last), y_range=(y_ticks[0][0], y_ticks[-1][0]))
    return axes.with_ticks([(x, f"{x:g}") for x in x_values if x == int(x)], y_ticks)
