"""What was measured along checkpoints as geometry: memorization and validation in one drawing, forgetting in another below it.

Two drawings and not two scales in one: a share and nats have no common axis, and where their lines cross would mean nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mixsd.reporting.axes import Axes, ticks
from mixsd.reporting.curve import over_steps
from mixsd.reporting.formats import Unit, known, number, value_text

# By drawing: its name for the stylesheet, the title of its axis, unit, and its lines as (name, split, metric).
_DRAWINGS: tuple[tuple[str, str, Unit, tuple[tuple[str, str, str], ...]], ...] = (
    (
        "shares",
        "correct replies",
        "share",
        (("memorization", "memorization/trained", "accuracy"), ("validation", "memorization/validation", "accuracy")),
    ),
    ("forgetting", "forgetting, nats", "nats", (("forgetting", "retention/forgetting", "forgetting"),)),
)
MEANINGS = {
    "memorization": "the trained wording",
    "validation": "wordings that nothing else is measured on",
    "forgetting": "rise of the reference loss",
}


@dataclass(frozen=True)
class Line:
    """One score along checkpoints: its name, its path, and its points with what each says when it is pointed at."""

    name: str
    path: str
    points: tuple[tuple[float, float, str], ...]


@dataclass(frozen=True)
class Drawing:
    """One drawing; `chosen` is where the chosen checkpoint lies from the left."""

    name: str
    title: str
    axes: Axes
    lines: tuple[Line, ...]
    chosen: float | None


def checkpoint_curves(scores: Iterable[Mapping[str, Any]], width: int, height: int, chosen: int | None = None) -> list[Drawing]:
    """Lay out what the checkpoints scored; nothing where none was. `chosen` is the step of the one that became the model."""
    found = _series(scores)
    steps = sorted({step for values in found.values() for step, _ in values})
    made = []
    for name, title, unit, lines in _DRAWINGS:
        present = [(line, values) for line, *score in lines if (values := found.get((score[0], score[1])))]
        if not present:
            continue
        y_values = _range([y for _, values in present for _, y in values], unit)
        axes = over_steps(width, height, [0, *steps], [(y, _tick(unit, y)) for y in y_values])
        drawn = tuple(_line(axes, line, values, unit) for line, values in present)
        made.append(Drawing(name, title, axes, drawn, axes.x(chosen) if chosen in steps else None))
    return made


def _series(scores: Iterable[Mapping[str, Any]]) -> dict[tuple[str, str], list[tuple[int, float]]]:
    found: dict[tuple[str, str], list[tuple[int, float]]] = {}
    for item in scores:
        own = item.get("suite") == "core" and item.get("model") == "tuned"
        if own and known(item.get("checkpoint")) and known(item.get("value")):
            found.setdefault((item["split"], item["metric"]), []).append((int(item["checkpoint"]), float(item["value"])))
    return {key: sorted(values) for key, values in found.items()}


def _line(axes: Axes, name: str, values: Sequence[tuple[int, float]], unit: Unit) -> Line:
    points = tuple(
        (axes.x(step), axes.y(y), f"step {step}: {name} {value_text(unit, y, signed=name == 'forgetting')}") for step, y in values
    )
    return Line(name, "M" + "L".join(f"{x:g} {y:g}" for x, y, _ in points), points)


def _range(values: Sequence[float], unit: Unit) -> list[float]:
    """A share always stands between 0 and 1; a change always beside 0."""
    if unit == "share":
        return [0.0, 0.25, 0.5, 0.75, 1.0]
    return ticks(min(0.0, *values), max(0.0, *values), 3)


def _tick(unit: Unit, value: float) -> str:
    return f"{number(100 * value, 0)}%" if unit == "share" else f"{value:g}".replace("-", "−")
