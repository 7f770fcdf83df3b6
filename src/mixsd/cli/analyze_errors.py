"""`mixsd analyze errors`: what the wrong replies of finished runs are like."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mixsd.cli import show
from mixsd.cli.analyzing import analyze
from mixsd.cli.commands import Json, command
from mixsd.cli.progress import watcher
from mixsd.reporting.formats import printable


@command(into=analyze)
def errors(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN ...", show_default=False, help="Evaluated run folders, one or more.")
    ],
    lenient: Annotated[
        bool,
        typer.Option("--lenient", metavar="", help="Take an answer without a box too: for models that do not keep the form."),
    ] = False,
    data: Annotated[
        str | None,
        typer.Option(
            "--data", metavar="DIR", show_default=False, help="The benchmarks' data. [default: where the run had it, $MIXSD_DATA]"
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", metavar="DIR", show_default=False, help="Where to write. [default: RUN/analysis of one run]"),
    ] = None,
    as_json: Json = False,
) -> None:
    """Sort wrong replies into format, leakage, collapse and genuine errors (the paper's Figures 4 to 13).

    Nothing is generated. Writes errors.json, errors.md and stacked bars; replies to the facts' own questions are sorted into format,
    cross-entity and genuine.
    """
    from mixsd.pipeline.analyses.errors import analyze_errors

    found = analyze_errors(runs, output=output, lenient=lenient, data=data, watcher=watcher())
    if as_json:
        show.as_json(found)
        return
    from mixsd.reporting import error_tables

    for table in error_tables.tables(found):
        show.console().print(table)
    for line in error_tables.notes(found):
        print(printable(line))
    for file in found["files"]:
        print(f"written: {printable(file)}")
