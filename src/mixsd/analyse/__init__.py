"""`mixsd analyze ...`: why a method works, from run folders: NLL of targets, where an update goes, what wrong replies are like."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mixsd.errors import UserError
from mixsd.formats import MISSING, Cell, estimate_cell
from mixsd.statistics import Estimate, Unit


def source_paths(sources: Sequence[str | Path] | str | Path, command: str) -> list[Path]:
    """The paths of what an analysis was asked about; none, or one that is named twice, is a `UserError`."""
    paths = [Path(source).expanduser() for source in ([sources] if isinstance(sources, str | Path) else sources)]
    if not paths:
        raise UserError(f"analyze {command}: name one or more run folders")
    seen: set[Path] = set()
    for path in paths:
        if path.resolve() in seen:
            raise UserError(f"{path}: is named twice; name each source once")
        seen.add(path.resolve())
    return paths


def output_folder(sources: Sequence[Path], output: str | Path | None) -> Path:
    """Where the results go: as named, else `analysis` in the one run folder that is the source."""
    if output is not None:
        return Path(output).expanduser()
    if len(sources) == 1 and not sources[0].exists():
        raise UserError(f"{sources[0]}: no such run folder or file")
    if len(sources) != 1 or not sources[0].is_dir():
        raise UserError("where shall the tables and figures go? name a folder with --output")
    return sources[0] / "analysis"


def numbers_cell(found: Mapping[str, Any] | None, unit: Unit = "share", *, signed: bool = False, n: str = "") -> Cell:
    """The numbers of an analysis as a cell, with their interval; `n` is what it says of how many."""
    estimate = Estimate(**found, unit=unit, signed=signed) if found else Estimate()
    return Cell(MISSING) if estimate.value is None else replace(estimate_cell(estimate), n=n)
