"""Tables 5 to 9 of the paper beside what `mixsd analyze nll` and `mixsd analyze fisher` wrote into runs.

Each run is analyzed on its own (`mixsd analyze nll RUN`), so what is told of a run does not depend on which others were named. Several
seeds of one row are averaged. Table 6 is a correlation over checkpoints, so it takes all runs of a model together.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mixsd import statistics
from mixsd.errors import UserError
from mixsd.pipeline.compared import cell, over_seeds
from mixsd.storage import read_json

TABLES = (5, 6, 7, 8, 9)
Cells = dict[str, dict[str, Any]]
_LIMITS = {
    "share": (0.0, 100.0),
    "overlap": (0.0, 100.0),
    "count": (0.0, math.inf),
    "displacement": (0.0, math.inf),
    "alignment": (0.0, math.inf),
}
_THRESHOLDS = {7: 5.0, 8: 8.0}


def analysis(folder: Path, name: str) -> dict[str, Any]:
    """What an analysis wrote into a run.

    Raises:
        UserError: it was not asked of this run.
    """
    file = folder / "analysis" / f"{name}.json"
    if not file.is_file():
        raise UserError(f"{file}: is not there; `mixsd analyze {name} {folder}` writes it")
    found = read_json(file)
    if not isinstance(found, dict):
        raise UserError(f"{file}: is no result of `mixsd analyze {name}`; run that again")
    return found


def numbers(number: int, folder: Path, method: str) -> Cells:
    """What one run has for the columns of Table 5, 7, 8 or 9: cells as in a comparison, shares in percent."""
    if number == 5:
        return _displacement(analysis(folder, "fisher"), folder)
    rows = ((analysis(folder, "nll").get("blocks") or {}).get("all") or {}).get("rows") or []
    # The references, which SFT trains on, are the first row; a run of SFT has no other.
    own = rows[0] if method == "sft" and rows else next((row for row in rows if row.get("overlap")), None)
    if own is None:
        raise UserError(
            f"{folder}/analysis/nll.json: holds no targets of a {method} run; `mixsd analyze nll {folder}` writes it anew"
        )
    if number == 9:
        overlap = own["overlap"]
        return {"overlap": _percent(cell(overlap["mean"], "facts"))} if overlap else {}
    level = next((item for item in own["above"] if item["threshold"] == _THRESHOLDS[number]), None)
    if level is None:
        raise UserError(
            f"{folder}/analysis/nll.json: has no threshold {_THRESHOLDS[number]:g}; `mixsd analyze nll {folder}` without --threshold has it"
        )
    count = {"value": level["count"], "n": own["tokens"], "low": None, "high": None, "over": "tokens"}
    return {"count": count, "share": _percent(cell(level["share"], "facts"))}


def together(number: int, found: Sequence[Cells]) -> Cells:
    """The cells of a row: those of its one run, or means over its seeds."""
    if len(found) < 2:
        return dict(found[0]) if found else {}
    return {
        name: over_seeds([own[name]["value"] for own in found], _LIMITS.get(name, (-math.inf, math.inf)))
        for name in found[0]
        if all(name in own and own[name]["value"] is not None for own in found)
    }


def correlation(folders: Sequence[Path]) -> Cells:
    """Table 6 for one model: over all checkpoints of its runs, r of raw displacement and of alignment with forgetting."""
    rows = [row for folder in folders for row in analysis(folder, "fisher").get("checkpoints") or []]
    known = [row for row in rows if (row.get("forgetting") or {}).get("value") is not None and row.get("alignment") is not None]
    cells: Cells = {"checkpoints": {"value": len(known), "n": len(known), "low": None, "high": None, "over": "checkpoints"}}
    if len(known) < 2:
        return cells
    for name, metric in (("r_displacement", "displacement"), ("r_alignment", "alignment")):
        made = statistics.pearson(
            [row[metric] for row in known], [row["forgetting"]["value"] for row in known], [row["source"] for row in known]
        )
        cells[name] = {**made.to_json(), "over": "checkpoints"}
    return cells


def _displacement(found: Mapping[str, Any], folder: Path) -> Cells:
    """The raw displacement (its norm, Eq. 9), the alignment ratio, and the drop in points."""
    final = [row for row in found.get("checkpoints") or [] if row.get("final")]
    if not final:
        raise UserError(f"{folder}/analysis/fisher.json: holds no final model; `mixsd analyze fisher {folder}` measures it")
    row = final[-1]
    cells: Cells = {
        name: {"value": row[name], "n": row["count"], "low": None, "high": None, "over": "weights"}
        for name in ("displacement", "alignment")
        if row.get(name) is not None
    }
    if (row.get("drop") or {}).get("value") is not None:
        cells["drop"] = _percent(cell(row["drop"], "questions"))
    return cells


def _percent(found: dict[str, Any]) -> dict[str, Any]:
    return {
        name: 100 * value if name in ("value", "low", "high") and value is not None else value for name, value in found.items()
    }
