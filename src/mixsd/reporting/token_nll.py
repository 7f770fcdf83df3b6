"""What `mixsd analyze nll` found, as tables: the layout of the paper's Tables 7 to 9, with intervals, in Markdown and on a terminal.

The grid of cells is made once, here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from mixsd.reporting.card import markdown as escaped
from mixsd.reporting.formats import MISSING, interval_text, number, printable, value_text

_TITLES = {"all": "All accepted targets of each source", "common": "Facts accepted in every source"}

Grid = list[list[tuple[str, str]]]  # rows of cells: a number and its interval


def markdown(result: Mapping[str, Any]) -> str:
    """The tables and their notes, as a Markdown page."""
    parts = ["# NLL of targets under the base model", ""]
    for name, block in result["blocks"].items():
        parts += [f"## {title(name, block)}", ""]
        if block["rows"]:
            head = columns(result)
            parts += [f"| {' | '.join(map(escaped, head))} |", f"|---|{'---:|' * (len(head) - 1)}"]
            for cells in grid(result, block):
                parts.append("| " + " | ".join(escaped(_line(*cell)) for cell in cells) + " |")
            parts.append("")
    return "\n".join([*parts, *(f"- {escaped(line)}" for line in notes(result)), ""])


def tables(result: Mapping[str, Any]) -> Iterator[Table]:
    """A table for each block, of what fits on a terminal: each number over its interval; the differences are on the page."""
    for name, block in result["blocks"].items():
        made = Table(title=title(name, block), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
        for place, column in enumerate(("targets", "facts", "mean NLL", *_above(result), "overlap")):
            made.add_column(Text(column), justify="right" if place else "left", min_width=7 if place else 12, overflow="fold")
        for row in block["rows"]:
            cells = _cells(row)
            shown = [cells[0], (cells[1][0], f"{cells[2][0]} tokens"), cells[3], *cells[4:-2:2], cells[-2]]
            made.add_row(*(Text("\n".join(filter(None, cell))) for cell in shown))
        yield made


def title(name: str, block: Mapping[str, Any]) -> str:
    """What a block is over, and of how many facts."""
    counted = f"{block['facts']:,} fact{'' if block['facts'] == 1 else 's'}"
    return f"{_TITLES[name]} ({counted})" if block["facts"] else f"{_TITLES[name]}: there is none"


def columns(result: Mapping[str, Any]) -> list[str]:
    """The heads of the columns."""
    above = [head for name in _above(result) for head in (name, "against reference")]
    return ["targets", "facts", "tokens", "mean NLL", *above, "overlap", "overlap, pooled"]


def grid(result: Mapping[str, Any], block: Mapping[str, Any]) -> Grid:
    """A row of cells for each row of a block, in the order of `columns`."""
    return [_cells(row) for row in block["rows"]]


def notes(result: Mapping[str, Any]) -> list[str]:
    """What the numbers are, what was left out, and what a check came to."""
    told = [
        "NLL in nats per token under the base model; count (share) of the tokens above a threshold; 95% intervals over facts. A "
        "difference is over the facts that both have, paired by fact.",
    ]
    if any(row["overlap"] for block in result["blocks"].values() for row in block["rows"]):
        told.append(
            f"Overlap: of the distinct token ids of a fact's reference with an NLL above {result['overlap_threshold']:g}, the share that "
            "occurs anywhere in its target; mean over facts, and pooled over all ids."
        )
    for name, block in result["blocks"].items():
        without = sum(row["overlap"]["without_high"] for row in block["rows"][-1:] if row["overlap"])
        if without:
            told.append(f"{_TITLES[name]}: {without:,} facts have no such id in the reference and are not in the last overlap.")
    for source in result["sources"]:
        left = [f"{source[status]:,} {status}" for status in ("rejected", "unusable") if source[status]]
        if left:
            told.append(f"{printable(source['label'])}: {', '.join(left)}; not counted above.")
        if source["canonical"]:
            told.append(f"{printable(source['label'])}: {source['canonical']:,} accepted targets are the reference itself.")
    if (check := result["check"]) is not None:
        allowed = ", ".join(f"{value:g} allowed in {name}" for name, value in check["tolerance"].items())
        told.append(
            f"Checked: {check['tokens']:,} stored numbers were measured once more; the largest difference is "
            f"{check['largest_difference']:.1e} nats ({allowed or 'nothing was stored'})."
        )
    return [*told, *map(printable, result["notes"])]


def _above(result: Mapping[str, Any]) -> list[str]:
    return [f"NLL > {level:g}" for level in result["thresholds"]]


def _cells(row: Mapping[str, Any]) -> list[tuple[str, str]]:
    facts = f"{row['facts']:,}" + (f" ({row['targets']:,} targets)" if row["targets"] != row["facts"] else "")
    cells = [(printable(row["label"], keep=""), ""), (facts, ""), (f"{row['tokens']:,}", ""), _cell("number", row["mean"])]
    for item in row["above"]:
        share, ends = _cell("share", item["share"])
        difference = item.get("difference")
        cells.append((f"{number(item['count'], 0)} ({share})", ends))
        cells.append(_cell("share", difference, signed=True) if difference else (MISSING, ""))
    overlap = row["overlap"]
    cells += [_cell("share", overlap[name]) if overlap else (MISSING, "") for name in ("mean", "pooled")]
    return cells


def _line(value: str, interval: str) -> str:
    return f"{value}; {interval}" if interval else value


def _cell(unit: Any, found: Mapping[str, Any], *, signed: bool = False) -> tuple[str, str]:
    ends = interval_text(unit, found["low"], found["high"], signed=signed)
    return value_text(unit, found["value"], signed=signed), "" if ends == MISSING else ends
