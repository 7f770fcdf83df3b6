"""The headline for the terminal: one line per measure and model, so any number of runs fits into 80 columns.

Nothing is said by colour alone, and every character of our own is in Windows' code page too. Requirements and warnings are the
command line's to print; this is the table of scores.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from mixsd.formats import MISSING, interval_text, p_text, printable, public_name, value_text
from mixsd.reports import benchmarks, methods
from mixsd.reports.rows import Entry, Row, headline_rows, is_alone

_STYLES = {"better": "green", "worse": "red", "unclear": "dim"}


def table(report: Mapping[str, Any]) -> Table:
    """Return the headline as a rich table: measure, model, score, 95% interval, n, change from the base."""
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), caption=_caption(report), caption_justify="left")
    made.add_column("measure", max_width=24, overflow="fold")
    made.add_column("model", no_wrap=True, overflow="ellipsis", max_width=14)
    for name in ("score", "95% interval", "n"):
        made.add_column(name, justify="right", no_wrap=True)
    if not is_alone(report):
        made.add_column("change", no_wrap=True)
    rows = headline_rows(report)
    for row in rows:
        # One table row holds one line per model, so that a wrapped name leaves no gaps between the models.
        lines = [_line(row, entry)[: len(made.columns) - 1] for entry in _measured(row)]
        made.add_row(Text(row.name), *(Text("\n").join(column) for column in zip(*lines, strict=True)), end_section=True)
    if not rows:
        made.add_row("nothing was measured", "", MISSING, MISSING, "0")
    return made


def endings(report: Mapping[str, Any]) -> Table | None:
    """Return how the replies to benchmarks ended, as counts; None where none was asked."""
    found = benchmarks.endings(report)
    if not found:
        return None
    caption = "how the replies ended; lenient: accuracy that also takes another form of answer"
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), caption=caption, caption_justify="left")
    made.add_column("replies", no_wrap=True)
    made.add_column("model", no_wrap=True, overflow="ellipsis", max_width=12)
    for name in ("all", "wrong", "unparseable", "errors", "truncated", "lenient"):
        made.add_column(name, justify="right", no_wrap=True)
    title = ""
    for item in found:
        counts = (item.replies, item.wrong, item.unparseable, item.errors, item.truncated)
        lenient = value_text("share", item.lenient.value) if item.lenient else MISSING
        made.add_row(
            "" if item.title == title else item.title,
            Text(item.column.label),
            *(MISSING if count is None else f"{count:,}" for count in counts),
            lenient,
        )
        title = item.title
    return made


def plain_lines(report: Mapping[str, Any]) -> list[str]:
    """Return the same headline as lines of plain text, for logs and pipes; the fields are two spaces apart."""
    lines = [_caption(report)]
    rows = headline_rows(report)
    width = max((len(row.label) for row in rows), default=0)
    for row in rows:
        for entry in _measured(row):
            score, interval, n = _cells(row, entry)
            change = _change(row, entry)
            line = f"{row.label:{width}}  {entry.column.label}  {score}  [{interval}]  n={n}"
            p = f"  McNemar p {p_text(entry.p)}" if entry.p is not None else ""
            lines.append(line + (f"  change {change}" if change else "") + p)
    for item in benchmarks.endings(report):
        counts = {"wrong": item.wrong, "unparseable": item.unparseable, "errors": item.errors, "truncated": item.truncated}
        listed = ", ".join(f"{count:,} {name}" for name, count in counts.items() if count is not None)
        lenient = f"; lenient {value_text('share', item.lenient.value)}" if item.lenient else ""
        lines.append(f"{item.title:{width}}  {item.column.label}  of {item.replies:,} replies {listed}{lenient}")
    return lines + told(report)


def told(report: Mapping[str, Any]) -> list[str]:
    """Return what was chosen and what it cost, what was asked and what was not, a line each, where there is something to say."""
    lines = [("chosen", methods.chosen_line(report)), ("cost", methods.cost_line(report))]
    found = [f"{name}: {printable(text)}" for name, text in lines if text and methods.made_here(report)]
    return found + benchmarks.lines(report)


def _line(row: Row, entry: Entry) -> list[Text]:
    name = Text(entry.column.label, style="bold" if entry is row.tuned else "")
    change = Text(_change(row, entry), style=_STYLES.get(row.verdict(entry) or "", ""))
    return [name, *map(Text, _cells(row, entry)), change]


def _measured(row: Row) -> list[Entry]:
    # Forgetting is a change from the base: the base has none of its own.
    return [entry for entry in row.entries if not (row.measure.of_base and entry.column.role == "base")]


def _cells(row: Row, entry: Entry) -> tuple[str, str, str]:
    score, unit, signed = entry.score, row.measure.unit, row.measure.signed
    if score is None:
        return MISSING, MISSING, MISSING
    return (
        value_text(unit, score.value, signed=signed),
        interval_text(unit, score.low, score.high, signed=signed),
        f"{score.n:,}",
    )


def _change(row: Row, entry: Entry) -> str:
    word = _WORDS.get(row.verdict(entry) or "", "")
    if row.measure.of_base or entry.column.role == "base":
        return word
    if entry.change is None or entry.change.value is None:
        return MISSING
    return f"{value_text(row.measure.unit, entry.change.value, signed=True)} {word}".rstrip()


_WORDS = {"better": "better", "worse": "worse", "unclear": "unclear"}


def _caption(report: Mapping[str, Any]) -> str:
    facts = report.get("facts") or {}
    if not methods.made_here(report):
        evaluated = f"evaluated only: {printable(public_name(str((report.get('base') or {}).get('name') or MISSING)), keep='')}"
        asked = f", {facts['asked']} facts asked" if facts.get("asked") else ""
        return evaluated + (", alone" if is_alone(report) else " is the base") + asked
    words = {"asked": "asked", **methods.statuses(report)}
    parts = [f"{facts[name]} {word}" for name, word in words.items() if facts.get(name) is not None]
    return "facts: " + (", ".join(parts) or MISSING)
