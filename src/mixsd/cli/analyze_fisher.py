"""`mixsd analyze fisher`: how far tuned models went, along which directions, and what that has to do with forgetting."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.markup import escape

from mixsd.cli import show
from mixsd.cli.analyzing import analyze
from mixsd.cli.commands import Json, command
from mixsd.cli.progress import watcher


@command(into=analyze, flags=("device", "offline"), resumes=True)
def fisher(
    typed: dict[str, Any],
    sources: Annotated[
        list[Path], typer.Argument(metavar="SOURCE...", show_default=False, help="Run folders, or folders of tuned models.")
    ],
    *,
    model: Annotated[
        str | None,
        typer.Option("--model", metavar="NAME", show_default=False, help="The base model. " + escape("[default: the runs' own]")),
    ] = None,
    reference: Annotated[
        Literal["benchmarks", "general"] | None,
        typer.Option(
            "--reference",
            show_default=False,
            help="Estimate the Fisher on the benchmarks' reference solutions, or on the base model's replies to the bundled general "
            "prompts. " + escape("[default: benchmarks where data is at hand]"),
        ),
    ] = None,
    examples: Annotated[
        int, typer.Option("--examples", metavar="N", min=1, help="Reference examples, one backward pass each.")
    ] = 64,
    data: Annotated[
        str | None,
        typer.Option(
            "--data", metavar="DIR", show_default=False, help="The benchmarks' data. " + escape("[default: $MIXSD_DATA]")
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", metavar="DIR", show_default=False, help="Where to write. " + escape("[default: RUN/analysis of one run]")
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure displacement and Fisher alignment of checkpoints, and correlate them with forgetting (the paper's Tables 5 and 6).

    The Fisher of a base model is estimated once and kept. What a checkpoint came to is kept in its run, so that its weights can be
    deleted. Writes fisher.json, fisher.md and a figure.
    """
    from mixsd.pipeline.analyses import fisher_tables
    from mixsd.pipeline.analyses.fisher import analyze_fisher

    found = analyze_fisher(
        sources, model=model, reference=reference, examples=examples, data=data, output=output, watcher=watcher(), **typed
    )
    if as_json:
        show.as_json(found)
        return
    for line in fisher_tables.lines(found):
        print(line)
    for file in found["files"]:
        print(f"written: {file}")
