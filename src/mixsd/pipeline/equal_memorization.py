"""What a run forgot at a given memorization, by interpolation along its checkpoints.

Along the checkpoints, in the order of their steps, forgetting is interpolated linearly between the two around the place where
memorization first reaches the level; what memorization does later has no part in it. A run that was above the level when it was
first scored counts as it was then; one without scored checkpoints counts as it ended. Both may have forgotten less at the level
itself, so every run says which it was. The default level is the highest that every run reaches, at most 95%: beyond, it hangs on
the last few facts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from mixsd.evaluation import core
from mixsd.pipeline.comparable import Measured

HIGHEST_LEVEL = 0.95
_MEMORIZATION, _FORGETTING = (core.TRAINED, "accuracy"), (core.FORGETTING, "forgetting")
# Interpolated too where it was scored at the checkpoints.
_ALONG = {"validation": ("memorization/validation", "accuracy"), "probe": (core.PROBE, "accuracy")}


def path_of(run: Measured) -> list[dict[str, Any]]:
    """Memorization and forgetting along the checkpoints; the final model stands at its own step, unless that one was scored."""
    training = run.report.get("training") or {}
    last = (training.get("chosen") or {}).get("step") or training.get("steps")
    steps = sorted({at for *_, model, at in run.scores if at is not None and model == "tuned"})
    points = []
    for at in [*steps, *([None] if last is None or last not in steps else [])]:
        found = {
            name: run.scores.get((core.SUITE, split, metric, "tuned", at))
            for name, (split, metric) in (("memorization", _MEMORIZATION), ("forgetting", _FORGETTING), *_ALONG.items())
        }
        if found["memorization"] and found["forgetting"]:
            values = {name: score["value"] for name, score in found.items() if score}
            points.append({"step": last if at is None else at, **values, "scored": at is not None})
    return sorted(points, key=lambda point: math.inf if point["step"] is None else point["step"])


def at_level(path: Sequence[dict[str, Any]], level: float) -> dict[str, Any] | None:
    """The path's values where memorization first reaches `level`, interpolated; None where it never does.

    `how`: "interpolated", "first" (above the level when it was first scored), or "final" (no checkpoint was scored).
    """
    before: dict[str, Any] | None = None
    for point in path:
        if point["memorization"] >= level - 1e-12:
            numbers = [name for name, value in point.items() if isinstance(value, int | float) and name != "scored"]
            if before is None:
                how = "first" if any(other["scored"] for other in path) else "final"
                return {**{name: point[name] for name in numbers}, "how": how}
            share = (level - before["memorization"]) / (point["memorization"] - before["memorization"])
            known = [name for name in numbers if before.get(name) is not None]
            return {**{name: before[name] + share * (point[name] - before[name]) for name in known}, "how": "interpolated"}
        before = point
    return None


def common_level(runs: Sequence[Measured], paths: Sequence[Sequence[dict[str, Any]]]) -> tuple[float | None, str]:
    """The highest memorization that every run reaches, as a whole number of facts and at most `HIGHEST_LEVEL`."""
    highest = {
        run.name: max((point["memorization"] for point in path), default=0.0) for run, path in zip(runs, paths, strict=True)
    }
    name, least = min(highest.items(), key=lambda item: item[1])
    facts = (runs[0].scores.get((core.SUITE, *_MEMORIZATION, "tuned", None)) or {}).get("n") or 1
    level = math.floor(min(least, HIGHEST_LEVEL) * facts + 1e-9) / facts
    if level <= 0:
        return None, f"{name} memorizes nothing, so there is no level that every run reaches; --level sets one"
    if least > HIGHEST_LEVEL:
        return level, f"every run reaches it; beyond {HIGHEST_LEVEL:.0%} it would hang on the last few facts"
    return level, f"the highest that every run reaches; {name} goes no further"
