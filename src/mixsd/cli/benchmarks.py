"""`mixsd benchmarks`: what can be asked here, and `check`: whether the judges judge right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Annotated, Any

import typer
from rich.markup import escape

from mixsd.cli import show
from mixsd.cli.commands import Json, Work, app, command
from mixsd.cli.progress import duration, watcher
from mixsd.errors import MixsdError, UserError
from mixsd.reporting.formats import printable

_MOST = 20  # exceptions that are listed

Data = Annotated[
    str | None,
    typer.Option(
        "--data",
        metavar="DIR",
        show_default=False,
        help="Folder of the benchmarks' data. " + escape("[default: $MIXSD_DATA, else the hub and its cache]"),
    ),
]
Offline = Annotated[bool, typer.Option("--offline", metavar="", help="Forbid the network.")]

benchmarks = typer.Typer(
    add_completion=False,
    rich_markup_mode="rich",
    epilog="Then: mixsd evaluate RUN --suite gsm8k. Or all that are at hand, in part: --suite quick",
)
app.add_typer(benchmarks, name="benchmarks")


@benchmarks.callback(invoke_without_command=True)
def listing(context: typer.Context, data: Data = None, offline: Offline = False, as_json: Json = False) -> Work | None:
    """List the held-out benchmarks: where the data of each is, and what it needs. Nothing is downloaded."""
    if context.invoked_subcommand is None:
        return Work(partial(_list, data, offline, as_json), resumes=False)
    if data is not None or offline or as_json:
        raise UserError(f"options of {context.invoked_subcommand} stand behind it: mixsd benchmarks check NAME --offline")
    return None


def _list(data: str | None, offline: bool, as_json: bool) -> None:
    from mixsd.evaluation.benchmarks.checking import survey

    found = survey(data, offline=offline)
    if as_json:
        show.as_json(found)
        return
    for entry in found:
        print(f"{entry['name']:10} {entry['title']:10} {entry['size']:>7,} published   {printable(_place(entry))}")
        for need in entry["needs"]:
            missing = "MISSING, " if need["met"] is False else ""
            print(f"{'':36}needs {need['what']}: {missing}{printable(need['note'])}")


def _place(entry: Mapping[str, Any]) -> str:
    if entry["problem"]:
        return f"cannot be read: {entry['problem']}"
    if entry["items"] is None:
        return str(entry["where"])
    part = "" if entry["items"] == entry["size"] else f"; not all, so only with --limit {entry['items']} or less"
    return f"{entry['items']:,} in {entry['where']}{part}"


@command(into=benchmarks)
def check(
    name: Annotated[str, typer.Argument(metavar="NAME", show_default=False, help="A benchmark of the list.")],
    *,
    data: Data = None,
    offline: Offline = False,
    allow_code_execution: Annotated[
        bool, typer.Option("--allow-code-execution", metavar="", help="Run the programs of HumanEval, in a sandbox.")
    ] = False,
    allow_weak_sandbox: Annotated[
        bool,
        typer.Option(
            "--allow-weak-sandbox", metavar="", help="Run them also where this machine cannot isolate them from your files."
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Check a benchmark's judge: every reference reply must be right, a corrupted one wrong. Exits with 1 where they are not."""
    from mixsd.evaluation.benchmarks import checking

    if offline:
        from mixsd.pipeline.run import go_offline

        go_offline()
    found = checking.check(
        name,
        data,
        offline=offline,
        allow_code_execution=allow_code_execution,
        allow_weak_sandbox=allow_weak_sandbox,
        watcher=watcher(),
    )
    if as_json:
        show.as_json(found)
    else:
        _show(found)
    if not found["passed"]:
        raise MixsdError(f"{found['title']}: {'; '.join(found['problems'])}")


def _show(found: Mapping[str, Any]) -> None:
    n, whole = found["n"], "" if found["n"] == found["size"] else f" ({found['size']:,} are published)"
    print(f"{found['title']}: {n:,} items{whole}, {printable(found['where'])}")
    for form in ("strict", "lenient"):
        part = found[form]
        counts = f"references right {part['right']:,} of {n:,}, twins judged wrong {part['refused']:,} of {n:,}"
        print(f"{form + ':':8} {counts}, errors {part['errors']:,}")
    for form in ("strict", "lenient"):
        _exceptions(form, found[form]["exceptions"])
    apart = f" in the sandbox {found['sandbox']}" if found["sandbox"] else ""
    print(f"{'holds' if found['passed'] else 'FALLS SHORT'}: judged in {duration(found['seconds'])}{apart}")


def _exceptions(form: str, exceptions: Sequence[Mapping[str, Any]]) -> None:
    for item in exceptions[:_MOST]:
        took = "" if item["extracted"] is None else f", took {printable(' '.join(item['extracted'].split())[:80])}"
        why = f" ({printable(item['reason'])})" if item["reason"] else ""
        print(f"  {form} {item['kind']} of {printable(item['id'])}: {item['outcome']}{why}{took}")
    if len(exceptions) > _MOST:
        print(f"  {len(exceptions) - _MOST:,} more of {form}; --json has all")
