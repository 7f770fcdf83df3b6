"""The commands of many runs: compare them, sweep over them, put them beside the paper's tables, draw them; and export targets."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from mixsd.cli import show
from mixsd.cli.options import Json, RunFolder, RunFolders, argument, command, gather, option, switch
from mixsd.cli.progress import watcher
from mixsd.errors import MixsdError, RequirementMissedError, UserError
from mixsd.formats import printable


@command()
def compare(
    runs: Annotated[list[Path], argument("RUN RUN ...", "Finished run folders, two or more.")],
    level: Annotated[
        float | None,
        option(
            "--level",
            "SHARE",
            "Compare forgetting where memorization first reaches this share. [default: the highest that every run reaches]",
        ),
    ] = None,
    output: Annotated[
        Path | None, option("--output", "DIR", "Write compare.html, compare.md, compare.json, pareto.svg and .png there.")
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

    execution = gather(typed, None)
    if not dry_run:
        _show(commands.sweep(file, output=output, only=only or (), watcher=watcher(), **execution))
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
    return (
        f"{cost['memory'] / 1e9:.1f} GB of memory, {cost['disk'] / 1e9:.1f} GB of disk ({cost['disk_at_peak'] / 1e9:.1f} at its peak), "
        f"{cost['decoded_tokens']:,} tokens decoded to train on, {cost['trained_tokens']:,} trained"
    )


def _show(result: Any) -> None:
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
    format: Annotated[
        str, option("--format", "ids|chat", "ids: token ids as they are trained on; chat: messages, as text.", show_default=True)
    ] = "ids",
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
        print(
            f"changed: {share} have other token ids once these messages are rendered and encoded: "
            f"the prompt of {changed['prompt']:,}, the target of {changed['target']:,}"
        )


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
    if as_json:
        show.as_json(found)
        return
    show.console().print(paper.drawn(found).brief().rich())
