"""`mixsd analyze ...`: how likely targets are to the base model, what wrong replies are like, where updates go."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from mixsd.cli import show
from mixsd.cli.options import Json, argument, command, gather, group, option, switch
from mixsd.cli.progress import watcher
from mixsd.formats import printable

analyze = group("Say why: what the base model makes of the targets, where an update goes, what wrong replies are like.")

Output = Annotated[Path | None, option("--output", "DIR", "The folder to write to. [default: RUN/analysis of one run]")]
Data = Annotated[str | None, option("--data", "DIR", "Folder of the benchmarks' data. [default: the run's, else $MIXSD_DATA]")]


@command(into=analyze, flags=("device", "offline"))
def nll(
    typed: dict[str, Any],
    sources: Annotated[list[Path], argument("SOURCE...", "Run folders, or files of targets.")],
    *,
    thresholds: Annotated[
        list[float] | None, option("--threshold", "NATS", "Count tokens above it. Repeatable. [default: 5 and 8]")
    ] = None,
    overlap_threshold: Annotated[
        float, option("--overlap-threshold", "NATS", "Above it a reference's token should be kept.", show_default=True)
    ] = 8.0,
    facts: Annotated[
        Literal["both", "all", "common"],
        option("--facts", None, "All accepted targets of each source, or the facts accepted in every one.", show_default=True),
    ] = "both",
    check: Annotated[bool, switch("--check", "Measure what is stored once more; it must agree.")] = False,
    model: Annotated[str | None, option("--model", None, "The base model of files, where one must measure.")] = None,
    output: Output = None,
    as_json: Json = False,
) -> None:
    """How likely the base model finds targets: mean NLL, tokens above a threshold, and what of the references they keep.

    Writes nll.json, nll.md and figures.
    """
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
    runs: Annotated[list[Path], argument("RUN ...", "Evaluated run folders, one or more.")],
    lenient: Annotated[
        bool, switch("--lenient", "Take an answer without a box too: for models that do not keep the form.")
    ] = False,
    data: Data = None,
    output: Output = None,
    as_json: Json = False,
) -> None:
    """Sort wrong replies into format, leakage, collapse and genuine errors (the paper's Figures 4 to 13).

    Nothing is generated. Writes errors.json, errors.md and stacked bars; replies to the facts' own questions are sorted into format,
    cross-entity and genuine.
    """
    from mixsd.analyse import errors as analyse_errors

    found = analyse_errors.analyze_errors(runs, output=output, lenient=lenient, data=data, watcher=watcher())
    if as_json:
        show.as_json(found)
        return
    for table in analyse_errors.tables(found):
        show.console().print(table.rich())
    for line in analyse_errors.notes(found):
        print(printable(line))
    for file in found["files"]:
        print(f"written: {printable(file)}")


@command(into=analyze, flags=("device", "offline"), resumes=True)
def fisher(
    typed: dict[str, Any],
    sources: Annotated[list[Path], argument("SOURCE...", "Run folders, or folders of tuned models.")],
    *,
    model: Annotated[str | None, option("--model", "NAME", "The base model. [default: the runs' own]")] = None,
    reference: Annotated[
        Literal["benchmarks", "general"] | None,
        option(
            "--reference",
            None,
            "Estimate the Fisher on the benchmarks' reference solutions, or on the base model's replies to the bundled general "
            "prompts. [default: benchmarks where data is at hand]",
        ),
    ] = None,
    examples: Annotated[
        int, option("--examples", "N", "Reference examples, one backward pass each.", show_default=True, min=1)
    ] = 64,
    data: Data = None,
    output: Output = None,
    as_json: Json = False,
) -> None:
    """Measure displacement and Fisher alignment of checkpoints, and correlate them with forgetting (the paper's Tables 5 and 6).

    The Fisher of a base model is estimated once and kept. What a checkpoint came to is kept in its run, so that its weights can be
    deleted. Writes fisher.json, fisher.md and a figure.
    """
    from mixsd.analyse import fisher as analyse_fisher

    found = analyse_fisher.analyze_fisher(
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
