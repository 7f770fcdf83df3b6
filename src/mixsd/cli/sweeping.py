"""`mixsd sweep`: many runs from one file, and the comparison of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from mixsd.cli import show
from mixsd.cli.commands import command
from mixsd.cli.options import gather
from mixsd.cli.progress import duration, watcher
from mixsd.errors import MixsdError, RequirementMissedError, UserError
from mixsd.reporting.formats import printable


@command(flags=("device", "backend", "token_budget", "offline"), resumes=True)
def sweep(
    typed: dict[str, Any],
    file: Annotated[
        Path, typer.Argument(metavar="FILE", show_default=False, help="A YAML file with output, seeds, settings and runs.")
    ],
    *,
    output: Annotated[
        Path | None,
        typer.Option("--output", metavar="FOLDER", show_default=False, help="The folder of the runs, in place of the file's."),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option("--only", metavar="NAME", show_default=False, help="Only this run, or configuration. Repeatable."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", metavar="", help="List the runs and what is done, and do nothing.")
    ] = False,
) -> None:
    """Do many runs, every method, setting and seed of a file, one after the other, and compare them. Rerun, it goes on."""
    from mixsd.pipeline import sweep_costs, sweeping

    execution = gather(typed, None)
    if dry_run:
        planned = sweeping.read_sweep(file, output=output, **execution)
        states = sweeping.survey(planned, only=only or (), watcher=watcher())
        costs = sweep_costs.price(planned, states, only=only or (), watcher=watcher())
        for name, state in states.items():
            print(f"{state:6} {printable(name)}" + (f": {_cost(costs['runs'][name])}" if name in costs["runs"] else ""))
        for text in costs["warnings"]:
            print(f"warning: {printable(text)}")
        counts = ", ".join(f"{list(states.values()).count(state)} {state}" for state in ("done", "begun", "to do"))
        if costs["runs"]:
            print(f"in all on this machine: {_cost(costs['total'])}; time is {costs['accuracy']}")
        print(f"{len(states)} runs in {planned.folder}: {counts}; nothing was done")
        return
    _show(sweeping.sweep(file, output=output, only=only or (), watcher=watcher(), **execution))


def _cost(cost: Mapping[str, float]) -> str:
    decoded, trained = (f"{cost[name]:,.0f}" for name in ("decoded_tokens", "trained_tokens"))
    return (
        f"{duration(cost['seconds'])}, {cost['memory'] / 1e9:.1f} GB of memory, {cost['disk'] / 1e9:.1f} GB of disk "
        f"({cost['disk_at_peak'] / 1e9:.1f} at its peak), {decoded} tokens decoded to train on, {trained} trained"
    )


def _show(result: Any) -> None:
    """The comparison, then everything that is wrong; the worst of it decides the exit code."""
    if result.comparison is not None:
        from mixsd.reporting import comparison

        show.console().print(comparison.table(result.comparison))
        for line in comparison.plain_lines(result.comparison):
            print(printable(line))
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
