"""One table, shown three ways: on a terminal, as Markdown, and on a page (the macro `table` of `macros.html.j2`).

Whoever has numbers to show makes a `Table` of cells once. Foreign text may stand in any cell: it is made visible and escaped here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from mixsd.formats import MISSING, Cell, printable
from mixsd.formats import markdown as escaped

if TYPE_CHECKING:
    from rich.table import Table as RichTable

_STYLES = {"better": "green", "worse": "red", "unclear": "dim"}


@dataclass(frozen=True)
class Column:
    """A column: its head, what stands in small print below it on a page, and whether it is this run's own.

    numeric: set to the right. width: on a terminal at most so many characters, folded. page_only: left out on a terminal.
    """

    head: str
    about: str = ""
    numeric: bool = False
    own: bool = False
    width: int | None = None
    page_only: bool = False


@dataclass(frozen=True)
class Row:
    """A row: a cell for each column, and what stands in small print below the first on a page."""

    cells: Sequence[Cell | str]
    about: str = ""


@dataclass(frozen=True)
class Table:
    """Rows of cells under columns. The first column names the row; `caption` says what a cell is."""

    columns: Sequence[Column]
    rows: Sequence[Row] = field(default_factory=list)
    title: str = ""
    caption: str = ""

    def markdown(self) -> str:
        """The table as Markdown, each cell in one line; without title and caption."""
        rule = ["---:" if column.numeric else "---" for column in self.columns]
        lines = [[escaped(column.head) for column in self.columns], rule]
        lines += [[escaped(_cell(cell).line) for cell in row.cells] for row in self.rows]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)

    def rich(self) -> RichTable:
        """The table for a terminal: in each cell the value over its interval and its n."""
        from rich import box
        from rich.table import Table as RichTable
        from rich.text import Text

        made = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), title=self.title or None)
        made.title_justify, made.caption_justify, made.caption = "left", "left", self.caption or None
        shown = [place for place, column in enumerate(self.columns) if not column.page_only]
        for column in (self.columns[place] for place in shown):
            side: Literal["left", "right"] = "right" if column.numeric else "left"
            made.add_column(Text(printable(column.head, keep="")), justify=side, max_width=column.width, overflow="fold")
        for row in self.rows:
            cells = [_cell(row.cells[place]) for place in shown]
            made.add_row(*(Text(printable(cell.stacked), style=_STYLES.get(cell.verdict, "")) for cell in cells))
        return made

    def long(self, rows: str = "measure", columns: str = "model") -> Table:
        """The same cells, each in a row of its own, so that any number of columns fits into a terminal.

        Args:
            rows: head of the column that names this table's rows.
            columns: head of the column that names this table's columns.
        """
        heads = [Column(rows, width=24), Column(columns, width=24)]
        heads += [Column(head, numeric=True) for head in ("value", "95% interval", "n")] + [Column("")]
        found = []
        for row in self.rows:
            first = _cell(row.cells[0]).value
            for column, cell in zip(self.columns[1:], map(_cell, row.cells[1:]), strict=True):
                if not column.page_only and (cell.value not in ("", MISSING) or cell.note):
                    last = Cell(" ".join(filter(None, (cell.verdict, cell.note))), verdict=cell.verdict)
                    found.append(Row([first, column.head, cell.value, cell.interval, cell.n, last]))
                    first = ""
        return Table(heads, found, self.title, self.caption)


def _cell(cell: Cell | str) -> Cell:
    return Cell(cell) if isinstance(cell, str) else cell
