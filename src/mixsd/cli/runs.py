"""The commands of many runs: compare, sweep, draw and analyze them, put them beside the paper's tables; and export targets."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from mixsd.cli import show
from mixsd.cli.options import Json, RunFolder, RunFolders, argument, command, gather, group, option, switch
from mixsd.cli.show import watcher
from mixsd.errors import MixsdError, RequirementMissedError, UserError
from mixsd.formats import printable

analyze = group("Say why: what the base model makes of the targets, where an update goes, what wrong replies are like.")

Sources = Annotated[list[Path], argument("SOURCE...", "Run folders, or files of targets.")]
AnalysisFolder = Annotated[Path | None, option("--output", "DIR", "The folder to write to. [default: RUN/analysis of one run]")]
Data = Annotated[str | None, option("--data", "DIR", "Folder of the benchmarks' data. [default: the run's, else $MIXSD_DATA]")]


@command()
def compare(
    runs: Annotated[list[Path], argument("RUN RUN ...", "Finished run folders, two or more.")],
    level: Annotated[float | None, option("--level", "SHARE", "At this memorization. [default: the highest all reach]")] = None,
    output: Annotated[
        Path | None, option("--output", "DIR", "Write compare.html, .md, .json and pareto.svg, .png there.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare runs over seeds: what they know, what they forgot, also at equal memorization, and what it cost.

    Runs that differ in their seed only are one configuration. Runs of another base model, other facts, prompts, decoding or
    scorer are refused.
    """
    from mixsd.comparison import page as compare_page
    from mixsd.comparison.compare import compare as compared
    from mixsd.comparison.material import material_of

    found = compared(runs, level=level)
    page = compare_page.write(found, output, material_of(runs)) if output is not None else None
    if as_json:
        show.as_json(found)
        return
    show.comparison(found)
    if page is not None:
        print(f"comparison: {page}; as Markdown: {page.with_name('compare.md')}; the picture: {page.with_name('pareto.svg')}")


@command(flags=("device", "backend", "token_budget", "offline"), resumes=True)
def sweep(
    typed: dict[str, Any],
    file: Annotated[Path, argument("FILE", "A YAML file with output, seeds, settings and runs.")],
    *,
    output: Annotated[Path | None, option("--output", "DIR", "The folder of the runs; overrides the file's.")] = None,
    only: Annotated[list[str] | None, option("--only", "NAME", "Do only this run, or configuration. Repeatable.")] = None,
    dry_run: Annotated[bool, switch("--dry-run", "List the runs, which are done and what the others take; do nothing.")] = False,
) -> None:
    """Do many runs, every method, setting and seed of a file, one after the other, and compare them. Rerun, it goes on."""
    from mixsd.commands import sweep as commands

    execution = gather(typed)
    if not dry_run:
        _show_sweep(commands.sweep(file, output=output, only=only or (), watcher=watcher(), **execution))
        return
    planned = commands.read_sweep(file, output=output, **execution)
    states = commands.survey(planned, only=only or (), watcher=watcher())
    from mixsd.commands.dry_run import price

    costs = price(planned, states, only=only or (), watcher=watcher())
    for name, state in states.items():
        print(f"{state:6} {printable(name)}" + (f": {_cost(costs['runs'][name])}" if name in costs["runs"] else ""))
    for text in costs["warnings"]:
        print(f"warning: {printable(text)}")
    if costs["runs"]:
        print(f"in all: {_cost(costs['total'])}")
    counts = ", ".join(f"{list(states.values()).count(state)} {state}" for state in ("done", "begun", "to do"))
    print(f"{len(states)} runs in {planned.folder}: {counts}; nothing was done")


def _cost(cost: Mapping[str, int]) -> str:
    memory, disk, peak = (show.gigabytes(cost[name]) for name in ("memory", "disk", "disk_at_peak"))
    tokens = f"{cost['decoded_tokens']:,} tokens decoded to train on, {cost['trained_tokens']:,} trained"
    return f"{memory} of memory, {disk} of disk ({peak} at its peak), {tokens}"


def _show_sweep(result: Any) -> None:
    """The comparison, then everything that is wrong; the worst of it decides the exit code."""
    if result.comparison is not None:
        show.comparison(result.comparison)
        print(f"comparison: {result.page}")
    print(f"finished: {len(result.finished)} runs in {result.folder}" + (f", {len(result.left)} left" if result.left else ""))
    missed = "; ".join(f"{name}: {', '.join(texts)}" for name, texts in result.missed.items())
    if result.problem and result.failed:
        print(f"not compared: {printable(result.problem)}")
    if missed and (result.failed or result.problem):
        print(f"required but missed: {printable(missed)}")
    if result.failed:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in result.failed.items())
        raise MixsdError(f"{len(result.failed)} runs failed, the same command tries them again: {reasons}")
    if result.problem:
        raise UserError(f"the runs are complete but cannot be compared: {result.problem}")
    if missed:
        raise RequirementMissedError(f"required but missed: {missed}")


@command()
def figures(
    runs: RunFolders,
    output: Annotated[Path, option("--output", "DIR", "The folder of the pictures.")],
    as_json: Json = False,
) -> None:
    """Draw what runs measured, as SVG and PNG: Pareto, loss, curves, NLL, error modes, alignment; and say what cannot be drawn."""
    from mixsd.comparison.material import draw

    found = draw(runs, output=output)
    if as_json:
        show.as_json(found)
        return
    for name, files in found["files"].items():
        print(printable(f"{name}: {', '.join(files)}"))
    for name, why in found["left_out"].items():
        print(printable(f"not drawn: {name}: {why}"), file=sys.stderr)


@command()
def export(
    run: RunFolder,
    *,
    format: Annotated[str, option("--format", "ids|chat", "ids: token ids as they are trained on; chat: messages.")] = "ids",
    output: Annotated[
        Path | None, option("--output", "FILE", "The file. [default: export-FORMAT.jsonl in the run folder]")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a run's accepted targets for other trainers; for text, say how many of them come out as other tokens there."""
    from mixsd.targets.reading import export as write

    result = write(run, format=format, output=output)
    if as_json:
        show.as_json(result)
        return
    written, changed = result["written"], result["changed"]
    print(f"written: {written:,} targets to {result['output']} ({result['left_out']:,} that were not accepted left out)")
    if format == "chat":
        share = f"{changed['any']:,} of {written:,} ({changed['any'] / written:.1%})"
        parts = f"the prompt of {changed['prompt']:,}, the target of {changed['target']:,}"
        print(f"changed: {share} have other token ids once these messages are rendered and encoded: {parts}")


@command(name="table")
def paper_table(
    number: Annotated[int, argument("NUMBER", "The table's number in the paper.")],
    runs: Annotated[list[Path] | None, argument("RUN ...", "Finished runs, as its recipe makes them.")] = None,
    *,
    output: Annotated[Path | None, option("--output", "DIR", "Write table-NN.md and table-NN.json there.")] = None,
    as_json: Json = False,
) -> None:
    """Put runs beside the paper's numbers: published, ours with its interval, and whether the published one lies in it."""
    from mixsd.comparison import paper
    from mixsd.storage import write_json, write_text

    found = paper.table(number, runs or ())
    if output is not None:
        write_json(output / f"table-{number:02}.json", found)
        write_text(output / f"table-{number:02}.md", paper.markdown(found))
    show.as_json(found) if as_json else show.tables([paper.drawn(found).brief()])


@command(into=analyze, flags=("device", "offline"))
def nll(
    typed: dict[str, Any],
    sources: Sources,
    *,
    thresholds: Annotated[
        list[float] | None, option("--threshold", "NATS", "Count tokens above. Repeatable. [default: 5, 8]")
    ] = None,
    overlap_threshold: Annotated[float, option("--overlap-threshold", "NATS", "Reference tokens above it should be kept.")] = 8.0,
    facts: Annotated[
        Literal["both", "all", "common"], option("--facts", None, "All accepted targets, or the facts accepted in every source.")
    ] = "both",
    check: Annotated[bool, switch("--check", "Measure what is stored once more; it must agree.")] = False,
    model: Annotated[str | None, option("--model", None, "The base model of files, where one must measure.")] = None,
    output: AnalysisFolder = None,
    as_json: Json = False,
) -> None:
    """How likely the base model finds targets: mean NLL, tokens above a threshold, and what of the references they keep.

    Writes nll.json, nll.md and figures.
    """
    options = gather(typed)
    if options.get("offline"):
        from mixsd.run.folder import go_offline

        go_offline()
    from mixsd.analyse import nll as analysis
    from mixsd.targets.target import HIGH_NLL, UNCERTAIN_NLL

    options |= {"overlap_threshold": overlap_threshold, "facts": facts, "check": check, "model": model, "watcher": watcher()}
    found = analysis.analyze_nll(sources, output=output, thresholds=thresholds or (UNCERTAIN_NLL, HIGH_NLL), **options)
    if as_json:
        show.as_json(found)
        return
    show.tables(analysis.tables(found), analysis.notes(found))
    print(f"analysis: {analysis.output_folder(sources, output)}")


@command(into=analyze)
def errors(
    runs: Annotated[list[Path], argument("RUN ...", "Evaluated run folders, one or more.")],
    lenient: Annotated[
        bool, switch("--lenient", "Take an answer without a box too: for models that do not keep the form.")
    ] = False,
    data: Data = None,
    output: AnalysisFolder = None,
    as_json: Json = False,
) -> None:
    """Sort wrong replies into format, leakage, collapse and genuine errors (the paper's Figures 4 to 13).

    Nothing is generated. Writes errors.json, errors.md and stacked bars; replies to the facts' own questions are sorted into format,
    cross-entity and genuine.
    """
    from mixsd.analyse import errors as analysis

    found = analysis.analyze_errors(runs, output=output, lenient=lenient, data=data, watcher=watcher())
    written = [f"written: {file}" for file in found["files"]]
    show.as_json(found) if as_json else show.tables(analysis.tables(found), [*analysis.notes(found), *written])


@command(into=analyze, flags=("device", "offline"), resumes=True)
def fisher(
    typed: dict[str, Any],
    sources: Annotated[list[Path], argument("SOURCE...", "Run folders, or folders of tuned models.")],
    *,
    model: Annotated[str | None, option("--model", "NAME", "The base model. [default: the runs' own]")] = None,
    reference: Annotated[
        Literal["benchmarks", "general"] | None,
        option("--reference", None, "The benchmarks' solutions, or the base's general replies. [default: benchmarks with data]"),
    ] = None,
    examples: Annotated[int, option("--examples", "N", "Reference examples, one backward pass each.", min=1)] = 64,
    data: Data = None,
    output: AnalysisFolder = None,
    as_json: Json = False,
) -> None:
    """Measure displacement and Fisher alignment of checkpoints, and correlate them with forgetting (the paper's Tables 5 and 6).

    The Fisher of a base model is estimated once and kept. What a checkpoint came to is kept in its run, so that its weights can be
    deleted. Writes fisher.json, fisher.md and a figure.
    """
    from mixsd.analyse import fisher as analysis

    options: dict[str, Any] = {
        "model": model,
        "reference": reference,
        "examples": examples,
        "data": data,
        "output": output,
        **typed,
    }
    found = analysis.analyze_fisher(sources, watcher=watcher(), **options)
    written = [f"written: {file}" for file in found["files"]]
    show.as_json(found) if as_json else show.tables(analysis.tables(found), [*analysis.lines(found), *written])
