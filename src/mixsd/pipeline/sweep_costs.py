"""What a sweep would take: the dry run of each run that is not done, and their sum. Runs that differ in their seed cost the same."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from mixsd.pipeline.plan import plan
from mixsd.pipeline.sweep_file import Sweep
from mixsd.pipeline.sweeping import State, chosen_runs
from mixsd.progress import Watcher

# What a run is said to take, from its plan.
_NAMES = ("seconds", "memory", "disk", "disk_at_peak", "decoded_tokens", "trained_tokens")


def price(
    planned: Sweep, states: dict[str, State], *, only: Collection[str] = (), watcher: Watcher | None = None
) -> dict[str, Any]:
    """Estimate what is left of a sweep, as `mixsd inject --dry-run` does for one run.

    Returns:
        `runs`, by name: `seconds`, `memory` (bytes at the peak), `disk` (bytes in the end) and `disk_at_peak`, `decoded_tokens` to train
        on and `trained_tokens`; `total` of them: memory and `disk_at_peak` of one run at a time beside those that are there; `accuracy`
        of the time; `available` and `free`, the bytes of memory and disk that are there; `warnings`.

    Raises:
        UserError: as `mixsd inject` would for a run.
    """
    watcher = watcher or Watcher()
    todo = [run for run in chosen_runs(planned, only) if states[run.name] != "done"]
    plans: dict[str, dict[str, Any]] = {}
    runs: dict[str, dict[str, Any]] = {}
    found: dict[str, Any] = {}
    with watcher.task("estimating", len({run.configuration for run in todo})) as task:
        for run in todo:
            if run.configuration not in plans:
                found = plan(run.settings, watcher)
                plans[run.configuration] = found
                task.advance()
            runs[run.name] = _of(plans[run.configuration])
    total: dict[str, float] = dict.fromkeys(_NAMES, 0.0)
    before = 0.0
    for cost in runs.values():
        for name in ("seconds", "disk", "decoded_tokens", "trained_tokens"):
            total[name] += cost[name]
        total["memory"] = max(total["memory"], cost["memory"])
        total["disk_at_peak"] = max(total["disk_at_peak"], before + cost["disk_at_peak"])
        before += cost["disk"]
    if not found:
        return {"runs": runs, "total": total, "accuracy": "", "available": None, "free": None, "warnings": []}
    available, free = found["memory"]["available"], found["disk"]["free"]
    return {
        "runs": runs,
        "total": total,
        "accuracy": found["seconds"]["accuracy"],
        "available": available,
        "free": free,
        "warnings": list(_warnings(runs, total, available, free)),
    }


def _warnings(
    runs: Mapping[str, Mapping[str, float]], total: Mapping[str, float], available: float, free: float
) -> Iterator[str]:
    if large := [name for name, cost in runs.items() if cost["memory"] > available]:
        yield (
            f"{len(large)} of {len(runs)} runs may need more than the {available / 1e9:.1f} GB of memory that are free, the largest "
            f"{total['memory'] / 1e9:.1f}: {', '.join(large[:3])}{', ...' if len(large) > 3 else ''}; `mixsd inject --dry-run` with one run's "
            "settings says in which stage, and what to lower"
        )
    if total["disk_at_peak"] > free:
        yield (
            f"the sweep needs {total['disk_at_peak'] / 1e9:.1f} GB of disk, {free / 1e9:.1f} are free: choose another --output, or lower "
            "keep_checkpoints"
        )


def _of(found: dict[str, Any]) -> dict[str, float]:
    return {
        "seconds": found["seconds"]["total"],
        "memory": found["memory"]["peak"],
        "disk": found["disk"]["total"],
        "disk_at_peak": found["disk"]["peak"],
        "decoded_tokens": found["tokens"]["decoded"],
        "trained_tokens": found["training"]["tokens"],
    }
