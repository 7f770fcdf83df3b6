"""How far a tuned model went from its base, and whether it went where the base is sensitive (the paper's section 7.1).

    raw displacement             ||delta||_2, delta = tuned - base                             Eq. 9
    Fisher-weighted displacement sum_i F_i delta_i^2                                           Eq. 10
    Fisher alignment ratio       (sum_i F_i delta_i^2 / sum_i delta_i^2) / (1/d sum_i F_i)     Eq. 8, 11

The ratio is 1 for a step in any direction alike, above 1 for one along sensitive weights. Whether Table 5 prints ||delta|| or its square
is not stated; both are here. Differences are taken in fp32, sums in fp64. RUN/analysis/displacements.jsonl has a line per checkpoint
and Fisher, which outlives the checkpoint, so that its weights can be deleted. `model/` is as a rule a copy of a checkpoint, which the
hash of its weights tells, so it is that checkpoint and not another point.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mixsd.analyse.base_fisher import Fisher
from mixsd.errors import UserError
from mixsd.models.folder import Weights, blocks
from mixsd.progress import Watcher
from mixsd.run.folder import Run
from mixsd.storage import Journal, digest, file_digest
from mixsd.training.checkpoints import list_checkpoints

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
        squared, weighted = self.squared + other.squared, self.weighted + other.weighted
        return WeightSums(squared, weighted, self.fisher + other.fisher, self.count + other.count)

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

    `ignored` are tensors of the folders that are no parameters of the model.
    """

    total: WeightSums
    layers: Mapping[str, WeightSums]
    groups: Mapping[str, WeightSums]
    tensors: Mapping[str, WeightSums]
    ignored: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain values; single tensors are left out."""
        return {
            **self.total.to_json(),
            "layers": {name: part.to_json() for name, part in self.layers.items()},
            "groups": {name: part.to_json() for name, part in self.groups.items()},
            "other": sorted(name for name in self.tensors if group_of(name) == "other"),
            "ignored": list(self.ignored),
        }


def group_of(name: str) -> str:
    """Which of `GROUPS` a parameter is of, by its name."""
    words = name.split(".")
    return next((group for group, known in _WORDS.items() if any(known.fullmatch(word) for word in words)), "other")


def layer_of(name: str) -> str:
    """The number of the layer that a parameter is in, as text; "outside" where it is in none."""
    match = _LAYER.search(name)
    return match[1] if match else "outside"


def displacement(base: Path, tuned: Path, fisher: Fisher) -> Displacement:
    """The displacement of a tuned model's folder from that of the base that the Fisher is of, tensor by tensor.

    Precision and number of files may differ. A tensor that is missing on one side, has another shape or holds something that is not a
    number is a `UserError`.
    """
    with Weights(base) as first, Weights(tuned) as second, fisher.open() as known:
        one, two = _names_by_parameter(first, fisher), _names_by_parameter(second, fisher)
        pairs = ((one, two, base, tuned), (two, one, tuned, base), (fisher.sums, one, "the loaded model", base))
        for has, lacks, owner, folder in pairs:
            if missing := sorted(has.keys() - lacks.keys()):
                raise UserError(f"{folder}: lacks the tensor {missing[0]}, which {owner} has; they do not belong together")
        tensors: dict[str, WeightSums] = {}
        layers: dict[str, WeightSums] = {}
        groups: dict[str, WeightSums] = {}
        for name in fisher.sums:
            shape = first.shape(one[name])
            for where, other in ((tuned, second.shape(two[name])), ("its Fisher", tuple(known.get_slice(name).get_shape()))):
                if other != shape:
                    raise UserError(f"{name} has shape {shape} in {base} and {other} in {where}; these do not belong together")
            triples = zip(first.blocks(one[name]), second.blocks(two[name]), blocks(known, name), strict=True)
            tensors[name] = sum((_sums(name, b.float() - a.float(), f) for a, b, f in triples), WeightSums())
            for parts, key in ((layers, layer_of(name)), (groups, group_of(name))):
                parts[key] = parts.get(key, WeightSums()) + tensors[name]
    return Displacement(
        sum(tensors.values(), WeightSums()),
        {layer: layers[layer] for layer in sorted(layers, key=lambda layer: int(layer) if layer.isdigit() else math.inf)},
        {group: groups[group] for group in GROUPS if group in groups},
        tensors,
        tuple(sorted(one.keys() - fisher.sums.keys())),
    )


def _sums(name: str, delta: Tensor, fisher: Tensor) -> WeightSums:
    squared, weights = delta.double().square_(), fisher.double()
    part = WeightSums(float(squared.sum()), float((squared * weights).sum()), float(weights.sum()), delta.numel())
    if not math.isfinite(part.squared):
        raise UserError(f"{name} holds something that is not a number; the model is damaged")
    return part


def _names_by_parameter(weights: Weights, fisher: Fisher) -> dict[str, str]:
    """The name in the files of every tensor, by the name that the Fisher has for it; a tied tensor may be there once or twice."""
    found = {name: name for name in weights.names if name not in fisher.aliases}
    for alias, name in fisher.aliases.items():
        other = found.setdefault(name, alias) if alias in weights.names else alias
        if other == alias:
            continue
        pairs = zip(weights.blocks(alias), weights.blocks(other), strict=True)
        if weights.shape(alias) != weights.shape(other) or not all(torch.equal(a, b) for a, b in pairs):
            raise UserError(f"{weights.folder}: {alias} and {name} are one tensor in the base model, and differ here")
    return found


def of_run(run: Run, base: Path, fisher: Fisher, watcher: Watcher) -> list[dict[str, Any]]:
    """The displacements of a run's checkpoints and model, by step; the model last, where it is none of them.

    Each has the values of `Displacement.to_json` and `checkpoint`, its folder's name; `step`, None for a model that is no checkpoint;
    `final`, whether it is what `model/` holds; `gone`, whether the numbers are all that is left of it.
    """
    places = [*(folder for _, folder in list_checkpoints(run.checkpoints)), run.model]
    folders = {path.name: path for path in places if any(path.glob("*.safetensors"))}
    measured = _measured(folders, run.folder / "analysis" / JOURNAL, base, fisher, watcher)
    rows = {name: row for name, row in measured.items() if name == MODEL or _STEP.fullmatch(name)}
    if not rows:
        raise UserError(f"{run.folder}: has no checkpoints and no model to measure; train it first")
    final = rows.get(MODEL, {}).get("weights")
    if any(row["weights"] == final for name, row in rows.items() if name != MODEL):
        del rows[MODEL]
    return [
        {
            "checkpoint": name,
            "step": None if name == MODEL else int(name.removeprefix("step-")),
            "final": rows[name]["weights"] == final,
            "gone": name not in folders,
            **rows[name]["values"],
        }
        for name in sorted(rows, key=lambda name: (name == MODEL, name))
    ]


def of_folders(folders: Mapping[str, Path], journal: Path, base: Path, fisher: Fisher, watcher: Watcher) -> list[dict[str, Any]]:
    """The displacements of plain model folders, by the names given; as `of_run`."""
    rows = _measured(folders, journal, base, fisher, watcher)
    return [{"checkpoint": name, "step": None, "final": True, "gone": False, **rows[name]["values"]} for name in folders]


def _measured(folders: Mapping[str, Path], file: Path, base: Path, fisher: Fisher, watcher: Watcher) -> dict[str, dict[str, Any]]:
    """The rows of these folders, and of those that were measured with this Fisher and are gone, by name."""
    rows = {row["name"]: row for _, row in Journal(file).read() if row["fisher"] == fisher.key}
    stamps = {name: _stamp(folder) for name, folder in folders.items()}
    missing = [name for name, stamp in stamps.items() if rows.get(name, {}).get("stamp") != stamp]
    if not missing:
        return rows
    known = {row["weights"]: row["values"] for row in rows.values()}  # the same file twice is read once
    with Journal(file) as journal, watcher.task(f"displacements of {file.parents[1].name}", len(missing)) as task:
        for name in missing:
            weights = digest([[file.name, file_digest(file)] for file in sorted(folders[name].glob("*.safetensors"))])
            if weights not in known:
                known[weights] = displacement(base, folders[name], fisher).to_json()
            row = {"name": name, "fisher": fisher.key, "stamp": stamps[name], "weights": weights, "values": known[weights]}
            journal.append(row)
            rows[name] = row
            task.advance()
    return rows


def _stamp(folder: Path) -> str:
    """What changes when the weights are written anew, without reading them."""
    files = sorted(folder.glob("*.safetensors"))
    return digest([[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files])
