"""How far a tuned model went from its base, and whether it went where the base is sensitive (the paper's section 7.1).

    raw displacement             ||delta||_2, delta = tuned - base                             Eq. 9
    Fisher-weighted displacement sum_i F_i delta_i^2                                           Eq. 10
    Fisher alignment ratio       (sum_i F_i delta_i^2 / sum_i delta_i^2) / (1/d sum_i F_i)     Eq. 8, 11

The ratio is 1 for a step in any direction alike, above 1 for one along sensitive weights. Whether the paper's Table 5 prints
||delta|| or its square is not stated; both are here. The models are read from their files block by block and never held; differences
are taken in fp32, sums in fp64. A model that did not move has no ratio: None.

What the checkpoints of runs, and model folders, came to is measured once and written down.

    RUN/analysis/displacements.jsonl   one line per checkpoint and Fisher: what was summed, over all, by layer and by group

A line outlives its checkpoint: weights are large, and once a run's line stands they can be deleted. A rerun takes the lines of
checkpoints that are gone and says so; one whose file has changed is measured again. `model/` is as a rule a copy of a checkpoint,
which is told by the hash of its weights, so it is that checkpoint and not another point.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mixsd.analyse.estimate import Fisher
from mixsd.errors import UserError
from mixsd.models.folder import Weights, blocks
from mixsd.progress import Watcher
from mixsd.run.folder import Run
from mixsd.storage import Journal, digest, file_digest

JOURNAL = "displacements.jsonl"
MODEL = "model"
_STEP = re.compile(r"step-(\d{6,})")
GROUPS = ("attention", "mlp", "norms", "embeddings", "head", "other")
# By the words of a tensor's name; what says most comes first: the norm of a query is a norm.
_WORDS = {
    "norms": re.compile(r"norm|ln(_\w+)?|ln\d|\w*layernorm\w*|\w+_norm|norm\w*"),
    "attention": re.compile(r"\w*attn|\w*attention|attn_\w+"),
    "mlp": re.compile(r"mlp|\w*feed_forward|ffn|experts?|\w*moe\w*|shared_expert\w*|fc\d"),
    "head": re.compile(r"lm_head|embed_out|output_layer"),
    "embeddings": re.compile(r"\w*embed\w*|wte|wpe"),
}
_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks?)\.(\d+)(?:\.|$)")


@dataclass(frozen=True)
class WeightSums:
    """Sums over some of the weights: of delta^2, of F delta^2, of F, and how many weights there are."""

    squared: float = 0.0
    weighted: float = 0.0
    fisher: float = 0.0
    count: int = 0

    def __add__(self, other: WeightSums) -> WeightSums:
        return WeightSums(
            self.squared + other.squared, self.weighted + other.weighted, self.fisher + other.fisher, self.count + other.count
        )

    @property
    def displacement(self) -> float:
        """||delta||_2 (Eq. 9)."""
        return math.sqrt(self.squared)

    @property
    def alignment(self) -> float | None:
        """The Fisher alignment ratio (Eq. 11); None where nothing moved or F is zero."""
        if not self.squared or not self.fisher:
            return None
        return (self.weighted / self.squared) / (self.fisher / self.count)

    def to_json(self) -> dict[str, float | int | None]:
        """All of it as plain values."""
        return {
            "displacement": self.displacement,
            "displacement_squared": self.squared,
            "fisher_weighted": self.weighted,
            "alignment": self.alignment,
            "fisher_sum": self.fisher,
            "count": self.count,
        }


@dataclass(frozen=True)
class Displacement:
    """One model's displacement: over all weights, by layer (a number as text, "outside" of all), by group, by tensor.

    `ignored` are tensors of the folders that are no parameters of the model, so that the Fisher knows none of them.
    """

    total: WeightSums
    layers: Mapping[str, WeightSums]
    groups: Mapping[str, WeightSums]
    tensors: Mapping[str, WeightSums]
    ignored: tuple[str, ...] = ()


def group_of(name: str) -> str:
    """Which of `GROUPS` a parameter is of, by its name."""
    words = name.split(".")
    return next((group for group, known in _WORDS.items() if any(known.fullmatch(word) for word in words)), "other")


def layer_of(name: str) -> str:
    """The number of the layer that a parameter is in, as text; "outside" where it is in none."""
    match = _LAYER.search(name)
    return match[1] if match else "outside"


def displacement(base: Path, tuned: Path, fisher: Fisher, *, on_done: Callable[[int], None] = lambda count: None) -> Displacement:
    """The displacement of a tuned model's folder from its base's, tensor by tensor.

    Args:
        base: the folder of the model that the Fisher was estimated for.
        tuned: a folder with the same tensors, in any precision and any number of files; LoRA is merged in it.
        on_done: told the number of tensors just read.

    Raises:
        UserError: a tensor is missing on one side, has another shape or holds something that is not a number.
    """
    with Weights(base) as first, Weights(tuned) as second, fisher.open() as known:
        one, two = _resolved(first, fisher), _resolved(second, fisher)
        for has, lacks, there, gone in ((one, two, base, tuned), (two, one, tuned, base)):
            if missing := sorted(has.keys() - lacks.keys()):
                raise UserError(
                    f"{gone}: lacks the tensor {missing[0]}, which {there} has; these are not one model before and after"
                )
        if missing := sorted(fisher.sums.keys() - one.keys()):
            raise UserError(
                f"{base}: lacks the tensor {missing[0]}, which the model has once it is loaded; its names are not the model's"
            )
        tensors = {}
        for name in fisher.sums:
            shape = first.shape(one[name])
            for where, other in ((tuned, second.shape(two[name])), ("its Fisher", tuple(known.get_slice(name).get_shape()))):
                if other != shape:
                    raise UserError(f"{name} has shape {shape} in {base} and {other} in {where}; these do not belong together")
            triples = zip(first.blocks(one[name]), second.blocks(two[name]), blocks(known, name), strict=True)
            tensors[name] = sum((_part(name, b.float() - a.float(), f) for a, b, f in triples), WeightSums())
            on_done(1)
    return _aggregated(tensors, tuple(sorted(one.keys() - fisher.sums.keys())))


def _part(name: str, delta: Tensor, fisher: Tensor) -> WeightSums:
    squared = delta.double().square_()
    weights = fisher.double()
    part = WeightSums(float(squared.sum()), float((squared * weights).sum()), float(weights.sum()), delta.numel())
    if not math.isfinite(part.squared):
        raise UserError(f"{name} holds something that is not a number; the model is damaged")
    return part


def _resolved(weights: Weights, fisher: Fisher) -> dict[str, str]:
    """The name in the files of every tensor, by the name that the Fisher has for it; a tied tensor may be there once or twice."""
    found = {name: name for name in weights.names if name not in fisher.aliases}
    for alias, name in fisher.aliases.items():
        if alias not in weights.names:
            continue
        if name not in found:
            found[name] = alias
        elif weights.shape(alias) != weights.shape(name) or not _same(weights.blocks(alias), weights.blocks(name)):
            raise UserError(f"{weights.folder}: {alias} and {name} are one tensor in the base model, and differ here")
    return found


def _same(one: Iterator[Tensor], other: Iterator[Tensor]) -> bool:
    return all(a is not None and b is not None and torch.equal(a, b) for a, b in zip_longest(one, other))


def _aggregated(tensors: dict[str, WeightSums], ignored: tuple[str, ...]) -> Displacement:
    layers: dict[str, WeightSums] = {}
    groups: dict[str, WeightSums] = {}
    for name, part in tensors.items():
        for parts, key in ((layers, layer_of(name)), (groups, group_of(name))):
            parts[key] = parts.get(key, WeightSums()) + part
    in_order = sorted(layers, key=lambda layer: (not layer.isdigit(), int(layer) if layer.isdigit() else 0))
    return Displacement(
        sum(tensors.values(), WeightSums()),
        {layer: layers[layer] for layer in in_order},
        {group: groups[group] for group in GROUPS if group in groups},
        tensors,
        ignored,
    )


@dataclass(frozen=True)
class MeasuredCheckpoint:
    """The displacement of one checkpoint.

    `name` is the checkpoint folder's; `step` is None for a model that is no checkpoint. `final`: it is what `model/` holds. `gone`: its
    weights are no longer there, the numbers are those written down.
    """

    name: str
    step: int | None
    values: Mapping[str, Any]
    final: bool = False
    gone: bool = False


def of_run(run: Run, base: Path, fisher: Fisher, watcher: Watcher) -> list[MeasuredCheckpoint]:
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
        MeasuredCheckpoint(name, int(name.removeprefix("step-")), row["values"], name in twins, name not in folders)
        for name, row in sorted(known.items())
    ]
    if model and not twins:
        found.append(MeasuredCheckpoint(MODEL, None, model["values"], True, MODEL not in folders))
    return found


def of_folders(
    folders: Mapping[str, Path], journal: Path, base: Path, fisher: Fisher, watcher: Watcher
) -> dict[str, MeasuredCheckpoint]:
    """The displacements of plain model folders, by the names given."""
    rows = _measured(dict(folders), journal, base, fisher, watcher)
    return {name: MeasuredCheckpoint(name, None, rows[name]["values"], True, False) for name in folders}


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
