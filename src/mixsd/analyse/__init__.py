"""Why a method works: how likely the base model finds what is trained on, where an update goes, and what wrong replies are like.

`mixsd analyze ...`: analyses of run folders, each with its numbers, its table and its figures as files.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mixsd.errors import UserError


def source_paths(sources: Sequence[str | Path] | str | Path, command: str) -> list[Path]:
    """The paths of what an analysis was asked about.

    Raises:
        UserError: there is none, or one is named twice.
    """
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
