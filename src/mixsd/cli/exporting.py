"""`mixsd export`: targets for other trainers, and what becomes of their ids there."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mixsd.cli import show
from mixsd.cli.commands import Json, RunFolder, command


@command()
def export(
    run: RunFolder,
    *,
    format: Annotated[
        str, typer.Option("--format", metavar="ids|chat", help="ids: token ids as they are trained on; chat: messages, as text.")
    ] = "ids",
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", metavar="FILE", show_default=False, help="The file. [default: export-FORMAT.jsonl in the run folder]"
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a run's accepted targets for other trainers; for text, say how many of them come out as other tokens there."""
    from mixsd.pipeline.exporting import export as write

    result = write(run, format=format, output=output)
    if as_json:
        show.as_json(result)
        return
    written, changed = result["written"], result["changed"]
    print(f"written: {written:,} targets to {result['output']} ({result['left_out']:,} that were not accepted left out)")
    if format == "chat":
        share = f"{changed['any']:,} of {written:,} ({changed['any'] / written:.1%})"
        print(
            f"changed: {share} have other token ids once these messages are rendered and encoded: "
            f"the prompt of {changed['prompt']:,}, the target of {changed['target']:,}"
        )
