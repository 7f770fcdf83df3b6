"""The training loss over optimizer steps. A long log is averaged into at most `MOST_POINTS` points."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from mixsd.figures import style
from mixsd.figures.style import Picture
from mixsd.reporting.formats import known

MOST_POINTS = 300


@style.styled
def loss(log: Sequence[Mapping[str, Any]], *, narrow: bool = False) -> Picture | None:
    """Draw the loss; None where the log, {"step", "loss": nats per token}, has no finite one."""
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
