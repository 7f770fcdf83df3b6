"""How numbers, tables and foreign text are written, the same on the page, in the terminal and in the model card.

A missing value (n = 0, not measured, NaN) is a dash, never a zero. Text that a model or a user wrote may hold control characters,
escape sequences and half surrogates: they are made visible, so that no output can be steered by them. Whoever has numbers to show
makes a `Table` of cells once; it is drawn on a terminal, as Markdown, and on a page (`macros.html.j2`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Any, TypeGuard

if TYPE_CHECKING:
    from rich.console import Group

    from mixsd.statistics import Estimate, Unit

MISSING = "–"

# An absolute path, or one from the home folder, within a sentence. A name may hold spaces, so it ends where the clause does.
_PATH = re.compile(r"(?<![\w/.:<\\])(?:~|[A-Za-z]:)?[/\\][^;:,()'\"\n]+")


def known(value: Any) -> TypeGuard[float]:
    """Return whether `value` is a number that can be shown: not None, not NaN, not infinite."""
    return isinstance(value, int | float) and math.isfinite(value)


def number(value: Any, digits: int = 2, *, signed: bool = False) -> str:
    """Write a number with a fixed count of decimals and thousands separators; `signed` puts a plus before a rise."""
    if not known(value):
        return MISSING
    rounded = round(float(value), digits) + 0.0  # + 0.0 turns -0.0 into 0.0
    return f"{rounded:{'+' if signed and rounded else ''},.{digits}f}"


@dataclass(frozen=True)
class Cell:
    """A number as text, in the parts that a table sets: its interval, what it is over, and a note; "" where there is none.

    verdict: of a change, "better", "worse" or "unclear". bar: low, value and high as shares of 1, where a page may draw them.
    """

    value: str
    interval: str = ""
    n: str = ""
    note: str = ""
    verdict: str = ""
    bar: tuple[float, float, float] | None = None

    @property
    def line(self) -> str:
        """All of it in one line: "83.3% (64.1 to 93.3; 24 questions)"."""
        inside = "; ".join(filter(None, (self.interval, self.n, self.note)))
        return f"{self.value} ({inside})" if self.value and inside else self.value or inside

    @property
    def stacked(self) -> str:
        """All of it, a line for each part, made visible."""
        return "\n".join(printable(part, keep="") for part in (self.value, self.interval, self.n, self.note) if part)


def estimate_cell(
    estimate: Estimate | None, *, digits: int | None = None, signed: bool = False, note: str = "", verdict: str = ""
) -> Cell:
    """Write an estimate as its unit has it; `digits` and `signed` where the table decides on decimals, or that it is a change."""
    if estimate is None:
        return Cell(MISSING, note=note)
    if digits is None and estimate.unit == "seconds":
        digits = 0 if (estimate.value or 0) >= 10 else 1
    signed = signed or estimate.signed
    value = value_text(estimate.unit, estimate.value, signed=signed, digits=digits)
    ends = interval_text(estimate.unit, estimate.low, estimate.high, signed=signed, digits=digits)
    over = estimate.over.removesuffix("s") if estimate.n == 1 else estimate.over
    n = f"{estimate.n:,} {over}" if over else f"n {estimate.n:,}"
    numbers = [number for number in (estimate.low, estimate.value, estimate.high) if known(number) and 0 <= number <= 1]
    bar = (numbers[0], numbers[1], numbers[2]) if len(numbers) == 3 and estimate.unit == "share" and not signed else None
    return Cell(value, "" if ends == MISSING else ends, n, note, verdict, bar)


def value_text(unit: Unit, value: Any, *, signed: bool = False, digits: int | None = None) -> str:
    """Write one number as its unit has it: a share in percent, a change of one in percentage points."""
    if not known(value):
        return MISSING
    sign = "" if unit != "share" else " pp" if signed else "%"
    return _scaled(unit, value, signed, digits) + sign


def interval_text(unit: Unit, low: Any, high: Any, *, signed: bool = False, digits: int | None = None) -> str:
    """Write the ends of an interval without their unit, or a dash where there is none."""
    ends = [_scaled(unit, end, signed, digits) for end in (low, high) if known(end)]
    return " to ".join(ends) if len(ends) == 2 else MISSING


def _scaled(unit: Unit, value: float, signed: bool, digits: int | None) -> str:
    if unit == "magnitude" and digits is None:
        return f"{value:.3g}" if value and abs(value) < 100 else f"{value:,.1f}"
    decimals = {"share": 1, "count": 0, "seconds": 0}.get(unit, 3) if digits is None else digits
    return number(100 * value if unit == "share" else value, decimals, signed=signed)


def plain(value: Any) -> str:
    """Write a setting or an environment value: a dash for None, yes or no for a bool, small floats as they are typed."""
    if value is None:
        return MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}" if math.isfinite(value) else MISSING
    if isinstance(value, list | tuple):
        return ", ".join(plain(item) for item in value) or MISSING
    return printable(str(value)) or MISSING


def distinct(names: Iterable[str]) -> list[str]:
    """The names in their order, where one comes again with a number."""
    found: list[str] = []
    for name in names:
        label, count = name, 1
        while label in found:
            count += 1
            label = f"{name} #{count}"
        found.append(label)
    return found


@cache
def _signs(keep: str) -> dict[int, str]:
    """What is written for characters that would steer an output, by code."""
    signs = dict.fromkeys([*range(0x80, 0xA0), *range(0xD800, 0xE000)], "�")  # controls and lone surrogates
    signs |= {code: chr(0x2400 + code) for code in range(0x20)} | {0x7F: "␡"}  # their pictures
    # Bidirectional marks, overrides and isolates reorder or hide text.
    signs |= {code: f"\\u{code:04x}" for code in (0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))}
    return {code: sign for code, sign in signs.items() if chr(code) not in keep}


def printable(text: str, *, keep: str = "\n\t") -> str:
    """Make control characters, bidirectional overrides and lone surrogates visible; those in `keep` stay."""
    return text.translate(_signs(keep))


def token_text(text: str) -> str:
    """Write one token so that its whitespace can be seen: newline as an arrow (the line still breaks), tab, lone spaces."""
    if not text:
        return "∅"
    if text.isspace():
        text = text.replace(" ", "␣")
    return printable(text).replace("\n", "⏎\n").replace("\t", "⇥")


def clipped(text: str, limit: int) -> str:
    """Cut a long text and say how much is missing."""
    return text if len(text) <= limit else f"{text[:limit].rstrip()} … ({len(text) - limit:,} more characters)"


def middle_clipped(text: str, limit: int) -> str:
    """Cut a long text in its middle: what a reply comes to stands at its end."""
    if len(text) <= limit:
        return text
    head = limit // 3
    return f"{text[:head].rstrip()} … ({len(text) - limit:,} more characters) … {text[head - limit :].lstrip()}"


def p_text(value: Any) -> str:
    """Write the p of a test: three decimals, and what is less as that."""
    return "< 0.001" if known(value) and value < 0.001 else number(value, 3)


def public_name(name: str) -> str:
    """Return a hub name as it is and only the last part of a path on the user's machine."""
    if "\\" in name:
        return PureWindowsPath(name).name or name
    path = PurePosixPath(name)
    return path.name if name.startswith(("/", ".", "~")) or len(path.parts) > 2 else name


def without_paths(text: str) -> str:
    """A sentence in which every path of the user's machine is only its last part."""
    return _PATH.sub(lambda found: public_name(found[0].rstrip("/\\. ")), text)


def markdown(text: str) -> str:
    """Escape foreign text for one line of Markdown or one cell of a table, HTML included."""
    line = " ".join(printable(text).split())
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_{}\[\]|#~$])", r"\\\1", line)


def fenced(text: str, language: str) -> str:
    """Put `text` in a code fence that is longer than any run of backticks in it."""
    fence = "`" * max(3, *(len(run) + 1 for run in re.findall(r"`+", text)), 0)
    return f"{fence}{language}\n{printable(text)}\n{fence}"


# What the expert's guidance may name; "{{" and "}}" in it are single braces, and "{}" is itself.
PLACEHOLDERS = ("reference", "answer", "statement")
_PLACEHOLDER = re.compile(r"\{\{|\}\}|\{(\w+)\}")


def placeholders(guidance: str) -> list[str]:
    """The names that guidance wants filled in, in order, known or not."""
    return [match[1] for match in _PLACEHOLDER.finditer(guidance) if match[1]]


def fill(guidance: str, values: Mapping[str, str]) -> str:
    """Guidance with its placeholders filled in; what was filled in is not searched again, so a value may hold any braces."""
    return _PLACEHOLDER.sub(lambda match: values[match[1]] if match[1] else match[0][0], guidance)


_STYLES = {"better": "green", "worse": "red", "unclear": "dim"}


@dataclass(frozen=True)
class Column:
    """A column: its head, what stands in small print below it on a page, and whether it is this run's own.

    numeric: set to the right, and never folded. width: on a terminal at most so many characters. page_only: left out there.
    """

    head: str
    about: str = ""
    numeric: bool = False
    own: bool = False
    width: int | None = None
    page_only: bool = False


@dataclass(frozen=True)
class Row:
    """A row: a cell for each column, and what stands in small print below the first on a page.

    own: it is this run's own, which a page colours. head: it heads the rows below it, which a terminal sets bold.
    """

    cells: Sequence[Cell | str]
    about: str = ""
    own: bool = False
    head: bool = False

    @property
    def parts(self) -> list[Cell]:
        """The cells, plain texts too."""
        return [cell if isinstance(cell, Cell) else Cell(cell) for cell in self.cells]


_LEAST_WIDTH = 12  # characters of a column, where it has a word that long


@dataclass(frozen=True)
class Table:
    """Rows of cells under columns. The first column names the row; `caption` says what a cell is."""

    columns: Sequence[Column]
    rows: Sequence[Row] = ()
    title: str = ""
    caption: str = ""

    def markdown(self) -> str:
        """The table as Markdown, each cell in one line; without title and caption."""
        rule = ["---:" if column.numeric else "---" for column in self.columns]
        lines = [[markdown(column.head) for column in self.columns], rule]
        lines += [[markdown(cell.line) for cell in row.parts] for row in self.rows]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)

    def rich(self) -> Group:
        """The table for a terminal: in each cell the value over its interval, its n and its note."""
        from rich import box
        from rich.console import Group
        from rich.table import Table as RichTable
        from rich.text import Text

        made = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
        shown = {place: column for place, column in enumerate(self.columns) if not column.page_only}
        for place, column in shown.items():
            words = " ".join([column.head, *(row.parts[place].stacked for row in self.rows)]).split()
            made.add_column(
                Text(printable(column.head, keep="")),
                justify="right" if column.numeric else "left",
                # A name beside many numbers shall not be squeezed to a letter a line.
                min_width=min(_LEAST_WIDTH, max(map(len, words), default=0)),
                max_width=column.width,
                no_wrap=column.numeric,
                overflow="fold",
            )
        for row in self.rows:
            style = "bold" if row.head else ""
            cells = [row.parts[place] for place in shown]
            made.add_row(*(Text(cell.stacked, style=_STYLES.get(cell.verdict, style)) for cell in cells))
        # Not rich's own title and caption, which wrap at the width of the table, however narrow it is.
        above, below = ([Text(printable(text), style="italic")] if text else [] for text in (self.title, self.caption))
        return Group(*above, made, *below)

    def brief(self) -> Table:
        """The same table with the values alone."""
        return replace(self, rows=[Row([cell.value for cell in row.parts]) for row in self.rows])

    def long(self, names: str) -> Table:
        """The same cells, each in a row of its own below its row's name, so that any number of columns fits into a terminal.

        `names` heads the column that names this table's rows and columns.
        """
        heads = [Column(names), *(Column(head, numeric=True) for head in ("value", "95% interval", "n")), Column("")]
        found = []
        for row in self.rows:
            first, *others = row.parts
            found.append(Row([first.value, "", first.note, "", ""], head=True))
            for column, cell in zip(self.columns[1:], others, strict=True):
                if not column.page_only and (cell.value not in ("", MISSING) or cell.note):
                    last = Cell(" ".join(filter(None, (cell.note, cell.verdict))), verdict=cell.verdict)
                    found.append(Row([f"  {column.head}", cell.value, cell.interval, cell.n.removeprefix("n "), last]))
        return Table(heads, found, self.title, self.caption)
