"""`mixsd figures`: the pictures of runs as files."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from mixsd.cli import show
from mixsd.cli.commands import Json, command
from mixsd.reporting.formats import printable


@command()
def figures(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", show_default=False, help="Finished run folders, one or more.")],
    output: Annotated[Path, typer.Option("--output", metavar="DIR", show_default=False, help="Where the pictures go.")],
    as_json: Json = False,
) -> None:
    """Draw what runs measured, as SVG and PNG: Pareto, loss, curves, NLL, error modes, alignment; and say what cannot be drawn."""
    from mixsd.pipeline.drawing import draw

    found = draw(runs, output=output)
    if as_json:
        show.as_json(found)
        return
    for name, files in found["files"].items():
        print(printable(f"{name}: {', '.join(files)}"))
    for name, why in found["left_out"].items():
        print(printable(f"not drawn: {name}: {why}"), file=sys.stderr)
