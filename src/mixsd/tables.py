"""One table, shown three ways: on a terminal, as Markdown, and on a page (the macro `table` of `macros.html.j2`).

Whoever has numbers to show makes a `Table` of cells once. Foreign text may stand in any cell: it is made visible and escaped here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mixsd.formats import MISSING, Cell, markdown, printable

if TYPE_CHECKING:
    from rich.table import Table as RichTable

_STYLES = {"better": "green", "worse": "red", "unclear": "dim"}


@dataclass(frozen=True)
class Column:
    """A column: its head, what stands in small print below it on a page, and whether it is this run's own.

    numeric: set to the right, and never folded. width: on a terminal at most so many characters. page_only: left out on a terminal.
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

    own: it is this run's own, which a page says by its colour. head: it heads the rows below it, which a terminal sets bold.
    """

    cells: Sequence[Cell | str]
    about: str = ""
    own: bool = False
    head: bool = False

    @property
    def parts(self) -> list[Cell]:
        """The cells, plain texts too."""
        return [cell if isinstance(cell, Cell) else Cell(cell) for cell in self.cells]


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

    def rich(self) -> RichTable:
        """The table for a terminal: in each cell the value over its interval, its n and its note."""
        from rich import box
        from rich.table import Table as RichTable
        from rich.text import Text

        made = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
        made.title, made.title_justify = Text(printable(self.title)) if self.title else None, "left"
        made.caption, made.caption_justify = Text(printable(self.caption)) if self.caption else None, "left"
        shown = [place for place, column in enumerate(self.columns) if not column.page_only]
        for column in (self.columns[place] for place in shown):
            made.add_column(
                Text(printable(column.head, keep="")),
                justify="right" if column.numeric else "left",
                max_width=column.width,
                no_wrap=column.numeric,
                overflow="fold",
            )
        for row in self.rows:
            cells = [row.parts[place] for place in shown]
            style = "bold" if row.head else ""
            made.add_row(*(Text(cell.stacked, style=_STYLES.get(cell.verdict, style)) for cell in cells))
        return made

    def brief(self) -> Table:
        """The same table with the values alone."""
        return replace(self, rows=[Row([cell.value for cell in row.parts]) for row in self.rows])

    def long(self, names: str) -> Table:
        """The same cells, each in a row of its own below its row's name, so that any number of columns fits into a terminal.

        Args:
            names: head of the column that names this table's rows and columns.
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
