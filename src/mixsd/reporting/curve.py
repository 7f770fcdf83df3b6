"""Axes over optimizer steps, and the loss curve on them, as geometry: ready to be placed by the page's template.

Long logs are averaged into at most `MOST_POINTS` buckets, so the page does not grow with the number of steps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mixsd.reporting.formats import known

MOST_POINTS = 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 52.0, 16.0, 14.0, 44.0


@dataclass(frozen=True)
class Axes:
    """The frame of a drawing over optimizer steps, in pixels from the top left; a tick is (position, text)."""

    width: int
    height: int
    left: float
    right: float
    top: float
    bottom: float
    x_range: tuple[float, float]
    y_range: tuple[float, float]
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]

    @staticmethod
    def of(width: int, height: int, steps: Sequence[float], y_values: Sequence[float], y_texts: Sequence[str]) -> Axes:
        """A frame for steps in ascending order, with the given ticks on the other axis, which it reaches from end to end."""
        first, last = steps[0], steps[-1]
        left, right, top, bottom = _LEFT, width - _RIGHT, _TOP, height - _BOTTOM
        x_values = [x for x in ticks(first, last, width // 90) if first <= x <= last] or [first]
        bare = Axes(width, height, left, right, top, bottom, (first, last), (y_values[0], y_values[-1]), (), ())
        return replace(
            bare,
            x_ticks=tuple((bare.x(x), f"{x:g}") for x in x_values if x == int(x)),
            y_ticks=tuple((bare.y(y), text) for y, text in zip(y_values, y_texts, strict=True)),
        )

    def x(self, step: float) -> float:
        """Where a step lies from the left."""
        return _place(step, *self.x_range, self.left, self.right)

    def y(self, value: float) -> float:
        """Where a value lies from the top."""
        return _place(value, *self.y_range, self.bottom, self.top)


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
    axes = Axes.of(width, height, [step for step, _ in steps], y_values, [f"{y:g}" for y in y_values])
    points = tuple((axes.x(x), axes.y(y)) for x, y in data)
    return Curve(axes, "M" + "L".join(f"{x:g} {y:g}" for x, y in points), points, per_point)


def _place(value: float, low: float, high: float, start: float, end: float) -> float:
    part = (value - low) / (high - low) if high > low else 0.5
    return round(start + part * (end - start), 1)


def ticks(low: float, high: float, about: int) -> list[float]:
    """Return round numbers (1, 2 or 5 times a power of ten apart) that enclose [low, high], about `about` steps."""
    size = max(abs(low), abs(high))
    raw = (high - low) / max(about, 1)
    if raw <= 1e-9 * max(size, 1.0):  # a flat curve
        raw = size if size > 1e-6 else 1.0
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 12) for index in range(first, max(last, first + 1) + 1)]
