"""`mixsd analyze ...`: the group that the analyses' commands are in; each has a module of its own, `analyze_NAME`.

`mixsd analyze nll`: how likely the base model finds targets, token by token.

`mixsd analyze errors`: what the wrong replies of finished runs are like.

`mixsd analyze fisher`: how far tuned models went, along which directions, and what that has to do with forgetting.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.markup import escape

from mixsd.cli import show
from mixsd.cli.commands import Json, command
from mixsd.cli.options import gather
from mixsd.cli.progress import watcher
from mixsd.formats import printable

analyze = typer.Typer(
    add_completion=False,
    rich_markup_mode="rich",
    help="Say why: what the base model makes of the targets, where an update goes, what wrong replies are like.",
)


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
        from mixsd.run.folder import go_offline

        go_offline()
    from mixsd.analyse import nll as analyse_nll
    from mixsd.targets.target import HIGH_NLL, UNCERTAIN_NLL

    found = analyse_nll.analyze_nll(
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
    for table in analyse_nll.tables(found):
        show.console().print(table.rich())
    for line in analyse_nll.notes(found):
        print(printable(line))
    print(f"analysis: {analyse_nll.output_folder(sources, output)}")


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
    from mixsd.analyse.errors import analyze_errors

    found = analyze_errors(runs, output=output, lenient=lenient, data=data, watcher=watcher())
    if as_json:
        show.as_json(found)
        return
    from mixsd.analyse import errors as analyse_errors

    for table in analyse_errors.tables(found):
        show.console().print(table.rich())
    for line in analyse_errors.notes(found):
        print(printable(line))
    for file in found["files"]:
        print(f"written: {printable(file)}")


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
    from mixsd.analyse import fisher as analyse_fisher
    from mixsd.analyse.fisher import analyze_fisher

    found = analyze_fisher(
        sources, model=model, reference=reference, examples=examples, data=data, output=output, watcher=watcher(), **typed
    )
    if as_json:
        show.as_json(found)
        return
    for table in analyse_fisher.tables(found):
        show.console().print(table.rich())
    for line in analyse_fisher.lines(found):
        print(line)
    for file in found["files"]:
        print(f"written: {file}")
