"""A sweep file, expanded into runs: every combination of what its entries list, at every seed, each with a folder of its own.

    output: runs/sweep
    seeds: [0, 1, 2]
    settings: {facts: demo, epochs: 20}          # of all runs
    runs:
      - {method: sft}
      - {method: mixsd, lam: [0, 0.3, 0.5]}      # a list crosses: three configurations

A folder is named after the method and what its entry sets, so its name stays when the file is put in another order or grows.
Every configuration comes at the first seed before any comes at the second, so a sweep that was stopped is a comparison already.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from mixsd.errors import UserError, did_you_mean
from mixsd.run.folder import Run
from mixsd.settings import EXECUTION, Settings, build, read_config
from mixsd.storage import digest

_KEYS = ("output", "seeds", "settings", "runs")
_ELSEWHERE = {
    "output": "output stands at the top of the file; each run gets a folder in it",
    "seed": 'seed: the seeds stand at the top of the file, as "seeds: [0, 1]"',
    "shard": "shard: the runs of a sweep are done whole",
}
_LONGEST_TEXT, _LONGEST_NAME = 40, 150  # characters, in a folder's name


@dataclass(frozen=True)
class SweepRun:
    """One run of a sweep: its folder's name, its configuration's (the same without the seed), and where the file asks for it."""

    name: str
    configuration: str
    settings: Settings
    where: str

    @property
    def run(self) -> Run:
        """The run's folder."""
        return Run(Path(self.settings.output).expanduser())


@dataclass(frozen=True)
class Sweep:
    """A sweep's folder and its runs in the order in which they are done."""

    source: str
    folder: Path
    runs: list[SweepRun]

    def chosen(self, only: Collection[str]) -> list[SweepRun]:
        """The runs that are asked for by name or configuration; all without `only`. A name that no run has is a `UserError`."""
        known = [name for run in self.runs for name in (run.name, run.configuration)]
        for name in only:
            if name not in known:
                raise UserError(f"--only {name}: {self.source} has no such run{did_you_mean(name, known)}")
        return [run for run in self.runs if not only or run.name in only or run.configuration in only]


def read_sweep(source: str | Path | Mapping[str, Any], *, output: str | Path | None = None, **execution: Any) -> Sweep:
    """Expand a sweep file, or its values, into runs; nothing but the file is read.

    Raises:
        UserError: bad YAML, an unknown or misplaced key, a bad value, or two configurations that are the same.
    """
    name, values = _read(source)
    if unknown := [key for key in values if key not in _KEYS]:
        hint = did_you_mean(unknown[0], _KEYS) or (" (a setting: put it under settings)" if unknown[0] in _settings() else "")
        raise UserError(f'{name}: unknown key "{unknown[0]}"{hint}; known: {", ".join(_KEYS)}')
    folder = output if output is not None else values.get("output")
    if not isinstance(folder, str | Path) or not str(folder):
        raise UserError(f"{name}: output: expected a folder for the runs, such as runs/sweep")
    seeds = _seeds(values.get("seeds", [0]), name)
    return Sweep(name, Path(folder).expanduser(), list(_expanded(values, seeds, Path(folder), _checked(execution), name)))


def _read(source: str | Path | Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    if isinstance(source, Mapping):
        return "sweep", dict(source)
    path = Path(source).expanduser()
    return str(path), read_config(path)


def _seeds(values: Any, name: str) -> list[int]:
    if not isinstance(values, list | tuple) or not values:
        raise UserError(f"{name}: seeds: expected a list of whole numbers, such as [0, 1, 2]")
    seeds = [build({"seed": value}, f"{name}: seeds").seed for value in values]
    if repeated := [seed for number, seed in enumerate(seeds) if seed in seeds[:number]]:
        raise UserError(f"{name}: seeds: {repeated[0]} stands there twice; keep one")
    return seeds


def _checked(execution: Mapping[str, Any]) -> dict[str, Any]:
    """Settings given beside the file."""
    build(execution, "options")
    if fixed := [name for name in execution if name not in EXECUTION or name == "shard"]:
        raise UserError(f"options: {_ELSEWHERE.get(fixed[0], f'{fixed[0]} belongs in the file, under settings')}")
    return dict(execution)


def _expanded(
    values: Mapping[str, Any], seeds: Sequence[int], folder: Path, execution: Mapping[str, Any], name: str
) -> Iterator[SweepRun]:
    given = values.get("settings")
    shared = _section({} if given is None else given, f"{name}: settings")
    for key, value in shared.items():
        if isinstance(value, list | tuple) and key in _settings() and not _takes_a_list(key):
            raise UserError(f"{name}: settings: {key}: one value for all runs; a list of them goes into an entry of runs")
    build(shared, f"{name}: settings")
    entries = values.get("runs")
    if not isinstance(entries, list | tuple) or not entries:
        raise UserError(f"{name}: runs: expected a list of settings, such as [{{method: sft}}, {{method: mixsd, lam: [0, 0.3]}}]")
    found: list[SweepRun] = []
    for number, entry in enumerate(entries, 1):
        where = f"{name}: runs: entry {number}"
        for own in _crossed(_section(entry, where), where):
            settings = build({**shared, **own, **execution}, where)
            if not settings.facts:
                raise UserError(f"{where}: no facts; name a file of facts (or 'demo' for the bundled ones) under settings")
            found.append(SweepRun("", _name(settings, own), settings, where))
    _refuse_equals(found)
    for seed in seeds:
        for one in found:
            run = f"{one.configuration}-s{seed}"
            settings = one.settings.model_copy(update={"seed": seed, "output": str(folder / run)})
            yield SweepRun(run, one.configuration, settings, f"{one.where} ({run})")


def _section(values: Any, where: str) -> dict[str, Any]:
    if not isinstance(values, Mapping) or not all(isinstance(key, str) for key in values):
        raise UserError(f"{where}: expected settings, such as {{method: mixsd, lam: 0.3}}")
    for key, text in _ELSEWHERE.items():
        if key in values:
            raise UserError(f"{where}: {text}")
    return dict(values)


def _crossed(entry: Mapping[str, Any], where: str) -> Iterator[dict[str, Any]]:
    """Every combination of an entry's lists, the last one changing fastest; a setting that is a list crosses as a list of lists."""
    choices: list[list[tuple[str, Any]]] = []
    for name, value in entry.items():
        several = isinstance(value, list | tuple)
        if several and _takes_a_list(name):
            several = any(isinstance(item, list | tuple) for item in value)
        elif several and not value:
            raise UserError(f"{where}: {name}: the list is empty")
        choices.append([(name, item) for item in (value if several else [value])])
    for combination in product(*choices):
        yield dict(combination)


def _settings() -> Mapping[str, Any]:
    return Settings.model_fields


def _takes_a_list(name: str) -> bool:
    annotation = Settings.model_fields[name].annotation if name in Settings.model_fields else None
    return any(get_origin(kind) is list for kind in (annotation, *get_args(annotation)))


def _name(settings: Settings, own: Mapping[str, Any]) -> str:
    """The method and the entry's other settings in the order of `Settings`, so that the file may be put in another order."""
    parts: list[str] = [re.sub(r"[^\w.+-]+", "_", settings.spec.name)]
    for name in Settings.model_fields:
        if name in own and name != "method":
            value = getattr(settings, name)
            seam = "" if isinstance(value, int | float) and not isinstance(value, bool) else "-"
            parts.append(f"{name}{seam}{_shown(name, value)}")
    whole = "-".join(parts)
    return whole if len(whole) <= _LONGEST_NAME else f"{whole[:_LONGEST_NAME]}-{digest(whole)[:6]}"


def _shown(name: str, value: Any) -> str:
    """A value as part of a folder's name; a text that cannot stand there as it is brings a hash of itself."""
    if isinstance(value, float):
        return repr(int(value) if value.is_integer() else value)
    if value is None or isinstance(value, bool | int):
        return str(value).lower()
    text = value if isinstance(value, str) else "+".join(map(str, value))
    if get_origin(Settings.model_fields[name].annotation) is Literal:
        return text
    slug = re.sub(r"[^A-Za-z0-9_.+]+", "_", text)[:_LONGEST_TEXT]
    return slug if slug == text else f"{slug}-{digest(value)[:6]}"


def _refuse_equals(found: Sequence[SweepRun]) -> None:
    seen: dict[str, SweepRun] = {}
    for one in found:
        key = digest(one.settings.resolved.dump())
        for other, said in (
            (seen.get(key), "are the same configuration"),
            (seen.get(one.configuration), "share a folder's name"),
        ):
            if other is not None:
                entry = one.where.rpartition(": ")[2]
                raise UserError(f"{other.where} ({other.configuration}) and {entry} ({one.configuration}) {said}; keep one")
        seen[key] = seen[one.configuration] = one
