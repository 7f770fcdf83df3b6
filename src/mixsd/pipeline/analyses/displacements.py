"""The displacements of the checkpoints of runs, and of model folders, measured once and written down.

    RUN/analysis/displacements.jsonl   one line per checkpoint and Fisher: what was summed, over all, by layer and by group

A line outlives its checkpoint: weights are large, and once a run's line stands they can be deleted. A rerun takes the lines of
checkpoints that are gone and says so; one whose file has changed is measured again. `model/` is as a rule a copy of a checkpoint,
which is told by the hash of its weights, so it is that checkpoint and not another point.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mixsd.analysis.displacement import Displacement, displacement, group_of
from mixsd.analysis.fisher import Fisher
from mixsd.errors import UserError
from mixsd.pipeline.run import Run
from mixsd.progress import Watcher
from mixsd.storage import Journal, digest, file_digest

JOURNAL = "displacements.jsonl"
MODEL = "model"
_STEP = re.compile(r"step-(\d{6,})")


@dataclass(frozen=True)
class Measured:
    """The displacement of one checkpoint.

    `name` is the checkpoint folder's; `step` is None for a model that is no checkpoint. `final`: it is what `model/` holds. `gone`: its
    weights are no longer there, the numbers are those written down.
    """

    name: str
    step: int | None
    values: Mapping[str, Any]
    final: bool = False
    gone: bool = False


def of_run(run: Run, base: Path, fisher: Fisher, watcher: Watcher) -> list[Measured]:
    """The displacements of a run's checkpoints and model, by step; the model last, where it is none of them.

    Raises:
        UserError: there is nothing to measure and nothing written down, or a folder is damaged.
    """
    folders = {folder.name: folder for folder in _checkpoints(run)}
    rows = _measured(folders, run.folder / "analysis" / JOURNAL, base, fisher, watcher)
    known = {name: row for name, row in rows.items() if name == MODEL or _STEP.fullmatch(name)}
    if not known:
        raise UserError(f"{run.folder}: has no checkpoints and no model to measure; train it first")
    model = known.pop(MODEL, None)
    twins = [name for name, row in known.items() if model and row["weights"] == model["weights"]]
    found = [
        Measured(name, int(name.removeprefix("step-")), row["values"], name in twins, name not in folders)
        for name, row in sorted(known.items())
    ]
    if model and not twins:
        found.append(Measured(MODEL, None, model["values"], True, MODEL not in folders))
    return found


def of_folders(folders: Mapping[str, Path], journal: Path, base: Path, fisher: Fisher, watcher: Watcher) -> dict[str, Measured]:
    """The displacements of plain model folders, by the names given."""
    rows = _measured(dict(folders), journal, base, fisher, watcher)
    return {name: Measured(name, None, rows[name]["values"], True, False) for name in folders}


def _checkpoints(run: Run) -> list[Path]:
    """The run's checkpoints and its model, where they hold weights."""
    found = [path for path in sorted(run.checkpoints.glob("step-*")) if _STEP.fullmatch(path.name)]
    return [path for path in [*found, run.model] if any(path.glob("*.safetensors"))]


def _measured(folders: dict[str, Path], file: Path, base: Path, fisher: Fisher, watcher: Watcher) -> dict[str, dict[str, Any]]:
    """The rows of these folders, and of those that were measured with this Fisher and are gone, by name."""
    rows = {row["name"]: row for _, row in Journal(file).read() if row.get("fisher") == fisher.key and "values" in row}
    stamps = {name: _stamp(folder) for name, folder in folders.items()}
    missing = [name for name, stamp in stamps.items() if rows.get(name, {}).get("stamp") != stamp]
    if not missing:
        return rows
    made: dict[str, dict[str, Any]] = {}  # by weights: the same file twice is read once
    with Journal(file) as journal, watcher.task(f"displacements of {file.parents[1].name}", len(missing)) as task:
        for name in missing:
            weights = _weights_hash(folders[name])
            if weights not in made:
                same = next((row["values"] for row in rows.values() if row["weights"] == weights), None)
                made[weights] = same or values_of(displacement(base, folders[name], fisher))
            rows[name] = {
                "name": name,
                "fisher": fisher.key,
                "stamp": stamps[name],
                "weights": weights,
                "values": made[weights],
            }
            journal.append(rows[name])
            task.advance()
    return rows


def values_of(found: Displacement) -> dict[str, Any]:
    """A displacement as plain values; single tensors are left out."""
    return {
        **found.total.to_json(),
        "layers": {name: part.to_json() for name, part in found.layers.items()},
        "groups": {name: part.to_json() for name, part in found.groups.items()},
        "other": sorted(name for name in found.tensors if group_of(name) == "other"),
        "ignored": list(found.ignored),
    }


def _stamp(folder: Path) -> str:
    """What changes when the weights are written anew, without reading them."""
    files = sorted(folder.glob("*.safetensors"))
    return digest([[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files])


def _weights_hash(folder: Path) -> str:
    return digest([[file.name, file_digest(file)] for file in sorted(folder.glob("*.safetensors"))])
