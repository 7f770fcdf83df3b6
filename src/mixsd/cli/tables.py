"""`mixsd table`: a table of the paper, with runs beside the published numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from mixsd.cli import show
from mixsd.cli.commands import Json, command
from mixsd.reporting.formats import printable

_SIGNS = {"match": "=", "differs": "≠", "no interval": "?", "not measured": ""}


@command(name="table")
def paper_table(
    number: Annotated[int, typer.Argument(metavar="NUMBER", show_default=False, help="The table's number in the paper.")],
    runs: Annotated[
        list[Path] | None, typer.Argument(metavar="RUN ...", show_default=False, help="Finished runs, as its recipe makes them.")
    ] = None,
    *,
    output: Annotated[
        Path | None,
        typer.Option("--output", metavar="DIR", show_default=False, help="Write table-NN.md and table-NN.json there."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Put runs beside the paper's numbers: published, ours with its interval, and whether the published one lies in it."""
    from mixsd.pipeline.paper_tables import table
    from mixsd.storage import write_json, write_text

    found = table(number, runs or ())
    if output is not None:
        write_json(output / f"table-{number:02}.json", found)
        write_text(output / f"table-{number:02}.md", "\n".join(_markdown(found)) + "\n")
    if as_json:
        show.as_json(found)
        return
    drawn = Table(box=None, pad_edge=False, header_style="bold", title=f"Table {number}: {found['title']}{_unit(found)}")
    several = len({row["corpus"] for row in found["rows"]}) > 1
    for name in ("model", "method", *found["columns"]):
        drawn.add_column(name, justify="left" if name in ("model", "method") else "right")
    for row in found["rows"]:
        method = _method(row).replace("lambda ", "").replace(" (inferred)", "?")  # a terminal is narrow
        model = printable(row["model"].rpartition("/")[2]) + (f", {row['corpus']}" if several and row["corpus"] else "")
        drawn.add_row(model, method, *(_cell(found, row, name) for name in found["columns"]))
    show.console().print(drawn)
    print(
        "method, lambda (? inferred)   published | ours: = the published number lies in our 95% interval, ≠ it does not, ? no interval"
    )


def _markdown(found: Mapping[str, Any]) -> Iterator[str]:
    yield f"# Table {found['number']}: {found['title']}"
    yield ""
    yield f"Published | ours (95% interval; n){_unit(found)}; = where the published number lies in the interval, ≠ where not."
    yield ""
    yield "| model | method | seeds | " + " | ".join(found["columns"]) + " |"
    yield "|---|---|---|" + "---|" * len(found["columns"])
    several = len({row["corpus"] for row in found["rows"]}) > 1
    for row in found["rows"]:
        cells = [_cell(found, row, name, whole=True).replace("|", "\\|") for name in found["columns"]]
        seeds = ", ".join(map(str, row["seeds"])) or ("–" if row["runs"] else "not run")
        model = printable(row["model"]) + (
            f" on {printable(row['corpus'])}" if row["corpus"] and (several or not row["published"]) else ""
        )
        yield f"| {model} | {_method(row)} | {seeds} | " + " | ".join(cells) + " |"


def _method(row: Mapping[str, Any]) -> str:
    parts = [row["method"]]
    if row["lambda"] is not None:
        parts.append(f"lambda {row['lambda']:g}" + (" (inferred)" if row["inferred"] else ""))
    if row["variant"]:
        parts.append(f"variant {row['variant']}")
    if row["settings"]:
        parts.append(row["settings"])
    return ", ".join(parts)


def _unit(found: Mapping[str, Any]) -> str:
    """What the columns are in: accuracies and shares are percent, counts, norms and correlations are not."""
    shares = [
        name
        for name in found["columns"]
        if name not in ("count", "displacement", "alignment", "checkpoints", "r_displacement", "r_alignment")
    ]
    if not shares:
        return ""
    return ", in percent" if len(shares) == len(found["columns"]) else f", {' and '.join(shares)} in percent"


def _cell(found: Mapping[str, Any], row: Mapping[str, Any], column: str, *, whole: bool = False) -> str:
    given, ours, digits = (row["published"] or {}).get(column), row["ours"].get(column), found["digits"][column]
    text = "–" if given is None else f"{given:,.{digits}f}"
    if ours is None:
        return text
    text += f" | {ours['value']:,.{digits}f}"
    if whole and ours["low"] is not None:
        text += f" ({ours['low']:,.{digits}f} to {ours['high']:,.{digits}f}; {ours['n']:,}{' seeds' if ours['over'] == 'seeds' else ''})"
    return f"{text} {_SIGNS[row['verdict'].get(column, 'not measured')]}".strip()
