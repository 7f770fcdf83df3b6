"""`mixsd figures`: every picture that the reports and analyses of runs hold, as SVG and PNG, and for the others why there is none.

One run: its loss, what its checkpoints scored, how likely the base model finds its targets, what wrong replies are like, and alignment
against forgetting where `mixsd analyze fisher` measured it. Several: memorization against retention, and their curves, distributions
and bars in one picture each. The pictures have stable names, so a paper or a page can link to them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixsd.errors import UserError
from mixsd.pipeline.comparable import Measured, read
from mixsd.pipeline.comparing import compare, labels_of
from mixsd.pipeline.run import Run
from mixsd.pipeline.side_by_side import distributions, error_rows, learning, with_nll
from mixsd.reporting import pictures
from mixsd.storage import read_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# By name: the file's, and why there may be none.
_FILES = {
    "pareto": ("pareto", "no configuration has both a memorization and a forgetting (the suite core measures them)"),
    "loss": ("loss", "no training loss was logged"),
    "curves": ("curves", "no checkpoint was scored; --score-checkpoints does"),
    "nll": ("nll-cdf", "the report holds no NLL of targets; `mixsd report` may bring it, or `mixsd analyze nll`"),
    "errors": ("errors", "the report holds no error modes; `mixsd report` brings them where benchmarks were asked"),
    "alignment": ("alignment", "analysis/fisher.json was not found; `mixsd analyze fisher` writes it"),
}


def draw(runs: Sequence[str | Path], *, output: str | Path) -> dict[str, Any]:
    """Draw what can be drawn of finished runs.

    Args:
        runs: one run folder or several; several must have been measured alike (see `mixsd.compare`).
        output: the folder for the pictures, NAME.svg and NAME.png each.

    Returns:
        `files`, the paths by the name of the picture, and `left_out`, why there is none of the other names.

    Raises:
        UserError: a folder is no finished run, runs were not measured alike, nothing can be drawn, or the output cannot be written.
    """
    from mixsd.figures import saving

    folders = [Path(runs)] if isinstance(runs, str | Path) else [Path(run) for run in runs]
    if not folders:
        raise UserError("figures: name a run folder")
    folders = [folder.expanduser() for folder in folders]
    place = Path(output).expanduser()
    if len(folders) == 1:
        made = _alone(folders[0])
        reasons = {"pareto": "it compares configurations: name two runs or more"}
    else:
        made = _together([read(folder) for folder in folders])
        reasons = {"loss": "it is of one run: name a single one"}
    files = {name: saving.save(figure, place / _FILES[name][0]) for name, figure in made.items() if figure is not None}
    left_out = {name: reasons.get(name, why) for name, (_, why) in _FILES.items() if name not in files}
    if not files:
        raise UserError(
            f"{', '.join(map(str, folders))}: nothing to draw: " + "; ".join(f"{name}: {why}" for name, why in left_out.items())
        )
    return {
        "files": {name: [str(file) for file in written] for name, written in files.items()},
        "left_out": left_out,
    }


def _alone(folder: Path) -> dict[str, Figure | None]:
    """The pictures of one run, whatever it was asked."""
    run = Run(folder)
    run.manifest()
    if not run.report_json.is_file():
        raise UserError(
            f"{folder}: has no report.json; finish that run first (the command that made it goes on), or `mixsd report` it"
        )
    report = read_json(run.report_json)
    if not isinstance(report, dict) or not isinstance(report.get("scores"), list):
        raise UserError(f"{run.report_json}: holds no scores; `mixsd report {folder}` writes it anew")
    return {"pareto": None, **pictures.of_report(with_nll(report, folder), _fisher(folder))}


def _together(runs: Sequence[Measured]) -> dict[str, Figure | None]:
    """The pictures of several runs."""
    from mixsd.figures import alignment, cdf, curves, errors, pareto

    compared = compare([run.folder for run in runs])
    labels = labels_of(runs)
    named = [(run.name, run) for run in runs]
    rows = error_rows(named)
    found = [analysis for run in runs if (analysis := _fisher(run.folder))]
    points = [point for analysis in found for point in pictures.aligned(analysis)[0]]
    # A correlation over the points of several analyses is no number that any of them has.
    correlation = pictures.aligned(found[0])[1] if len(found) == 1 else None
    return {
        "pareto": pareto.pareto(compared),
        "curves": curves.curves(learning(list(zip(labels, runs, strict=True)))),
        "nll": cdf.nll_cdf(distributions(named), pictures.THRESHOLDS),
        "errors": errors.error_bars(rows, pictures.modes_of(rows)),
        "alignment": alignment.alignment(points, correlation, *pictures.ALIGNMENT_AXES),
    }


def _fisher(folder: Path) -> dict[str, Any] | None:
    file = folder / "analysis" / "fisher.json"
    return dict(read_json(file)) if file.is_file() else None
