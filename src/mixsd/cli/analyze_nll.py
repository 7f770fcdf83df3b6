"""`mixsd analyze nll`: how likely the base model finds targets, token by token."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from mixsd.cli import show
from mixsd.cli.analyzing import analyze
from mixsd.cli.commands import Json, command
from mixsd.cli.options import gather
from mixsd.cli.progress import watcher
from mixsd.reporting.formats import printable


@command(into=analyze, flags=("device", "offline"))
def nll(
    typed: dict[str, Any],
    sources: Annotated[
        list[Path], typer.Argument(metavar="SOURCE...", show_default=False, help="Run folders, or files of targets.")
    ],
    *,
    thresholds: Annotated[
        list[float] | None,
        typer.Option(
            "--threshold", metavar="NATS", show_default=False, help="Count tokens above it. Repeatable. [default: 5 and 8]"
        ),
    ] = None,
    overlap_threshold: Annotated[
        float, typer.Option("--overlap-threshold", metavar="NATS", help="Above it a reference's token should be kept.")
    ] = 8.0,
    facts: Annotated[
        Literal["both", "all", "common"],
        typer.Option("--facts", help="All accepted targets of each source, or the facts accepted in every one."),
    ] = "both",
    check: Annotated[bool, typer.Option("--check", metavar="", help="Measure what is stored once more; it must agree.")] = False,
    model: Annotated[
        str | None, typer.Option("--model", show_default=False, help="Of files: their base model, where one must measure.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", metavar="DIR", show_default=False, help="Where nll.json, nll.md and figures go. [default: RUN/analysis]"
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """How likely the base model finds targets: mean NLL, tokens above a threshold, and what of the references they keep."""
    options = gather(typed, None)
    if options.get("offline"):
        from mixsd.pipeline.run import go_offline

        go_offline()
    from mixsd.mixing.targets import HIGH_NLL, UNCERTAIN_NLL
    from mixsd.pipeline.analyses import nll as analyses

    found = analyses.analyze_nll(
        sources,
        output=output,
        thresholds=thresholds or (UNCERTAIN_NLL, HIGH_NLL),
        overlap_threshold=overlap_threshold,
        facts=facts,
        check=check,
        model=model,
        watcher=watcher(),
        **options,
    )
    if as_json:
        show.as_json(found)
        return
    from mixsd.reporting import token_nll

    for table in token_nll.tables(found):
        show.console().print(table)
    for line in token_nll.notes(found):
        print(printable(line))
    print(f"analysis: {analyses.output_folder(sources, output)}")
