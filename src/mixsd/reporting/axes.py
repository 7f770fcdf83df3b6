"""Two axes as geometry: where a value lies in the drawing, and the round numbers that stand at its ticks."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Axes:
    """The frame of a drawing, in pixels from the top left; a tick is (position, text)."""

    width: int
    height: int
    left: float
    right: float
    top: float
    bottom: float
    x_range: tuple[float, float]
    y_range: tuple[float, float]
    x_ticks: tuple[tuple[float, str], ...] = ()
    y_ticks: tuple[tuple[float, str], ...] = ()

    def with_ticks(self, x_ticks: Iterable[tuple[float, str]], y_ticks: Iterable[tuple[float, str]]) -> Axes:
        """The same frame with ticks, given as (value, text)."""
        return replace(
            self,
            x_ticks=tuple((self.x(x), text) for x, text in x_ticks),
            y_ticks=tuple((self.y(y), text) for y, text in y_ticks),
        )

    def x(self, value: float) -> float:
        """Where a value lies from the left; one outside the range lies at its end."""
        return _place(value, *self.x_range, self.left, self.right)

    def y(self, value: float) -> float:
        """Where a value lies from the top; one outside the range lies at its end."""
        return _place(value, *self.y_range, self.bottom, self.top)


def _place(value: float, low: float, high: float, start: float, end: float) -> float:
    part = (min(max(value, low), high) - low) / (high - low) if high > low else 0.5
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
