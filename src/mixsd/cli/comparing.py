"""`mixsd compare`: finished runs in one table and one picture."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mixsd.cli import show
from mixsd.cli.commands import Json, command
from mixsd.reporting.formats import printable


@command()
def compare(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN RUN ...", show_default=False, help="Finished run folders, two or more.")
    ],
    level: Annotated[
        float | None,
        typer.Option(
            "--level",
            metavar="SHARE",
            show_default=False,
            help="Compare forgetting where memorization first reaches this share. [default: the highest that every run reaches]",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            metavar="DIR",
            show_default=False,
            help="Write compare.html, compare.md, compare.json, pareto.svg and .png there.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare runs over seeds: what they know, what they forgot, also at equal memorization, and what it cost.

    Runs that differ in their seed only are one configuration. Runs of another base model, other facts, prompts, decoding or
    scorer are refused.
    """
    from mixsd.pipeline.comparing import compare as compared
    from mixsd.pipeline.side_by_side import material_of
    from mixsd.reporting import comparison

    found = compared(runs, level=level)
    page = comparison.write(found, output, material_of(runs)) if output is not None else None
    if as_json:
        show.as_json(found)
        return
    show.console().print(comparison.table(found))
    for line in comparison.plain_lines(found):
        print(printable(line))
    if page is not None:
        print(f"comparison: {page}; as Markdown: {page.with_name('compare.md')}; the picture: {page.with_name('pareto.svg')}")
