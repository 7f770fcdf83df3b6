"""One table, three ways to show it."""

from __future__ import annotations

import io

from rich.console import Console

from mixsd.formats import Cell, Column, Row, Table, estimate_cell
from mixsd.statistics import Estimate

TRAINED = Estimate(5 / 6, 0.641, 0.933, 24, "share")
SCORES = Table(
    [Column("measure"), Column("base", numeric=True), Column("tuned", numeric=True), Column("odd | name", page_only=True)],
    [
        Row(["trained wording", estimate_cell(None), estimate_cell(TRAINED, verdict="better"), "a\nb"]),
        Row(["for*getting", estimate_cell(None, note="by definition"), Cell("+0.1"), "<b>\x1b[31m"]),
    ],
    title="Scores",
    caption="each cell: value, interval, n",
)


def _printed(table: Table, width: int = 100) -> str:
    out = io.StringIO()
    Console(file=out, width=width).print(table.rich())
    return out.getvalue()


def test_markdown_has_each_cell_in_one_escaped_line() -> None:
    assert SCORES.markdown().splitlines() == [
        "| measure | base | tuned | odd \\| name |",
        "| --- | ---: | ---: | --- |",
        "| trained wording | – | 83.3% (64.1 to 93.3; 24 questions) | a b |",
        "| for\\*getting | – (by definition) | +0.1 | &lt;b&gt;␛\\[31m |",
    ]


def test_a_terminal_sets_the_parts_of_a_cell_one_below_the_other() -> None:
    lines = [line.split() for line in _printed(SCORES).splitlines() if line.strip()]
    assert lines[0] == ["Scores"]
    assert ["trained", "wording", "–", "83.3%"] in lines
    assert ["64.1", "to", "93.3"] in lines
    assert ["24", "questions"] in lines
    assert lines[-1] == "each cell: value, interval, n".split()
    assert "odd" not in _printed(SCORES)
    assert "\x1b[31m" not in _printed(Table([Column("a")], [Row(["\x1b[31mred"])]))


def test_the_long_form_has_a_row_for_each_cell_that_says_something() -> None:
    assert [[cell.value for cell in row.parts] for row in SCORES.long("measure and model").rows] == [
        ["trained wording", "", "", "", ""],
        ["  tuned", "83.3%", "64.1 to 93.3", "24 questions", "better"],
        ["for*getting", "", "", "", ""],
        ["  base", "–", "", "", "by definition"],
        ["  tuned", "+0.1", "", "", ""],
    ]
    many = Table([Column("measure"), *(Column(f"configuration {place}") for place in range(30))],
                 [Row(["probe", *(estimate_cell(TRAINED) for _ in range(30))])])  # fmt: skip
    assert max(map(len, _printed(many.long("measure and model"), 80).splitlines())) <= 80


def test_a_bar_is_drawn_of_a_share_with_an_interval_only() -> None:
    assert estimate_cell(TRAINED).bar == (0.641, 5 / 6, 0.933)
    assert estimate_cell(TRAINED, signed=True).bar is None
    assert estimate_cell(TRAINED.without_interval()).bar is None
    assert estimate_cell(Estimate(1.1, 0.9, 1.3, 5, "share")).bar is None
    assert estimate_cell(Estimate(0.5, 0.1, 0.9, 5, "nats")).bar is None


def test_a_long_title_of_a_narrow_table_wraps_at_the_terminal_only() -> None:
    title = "Fisher of /a/path/that/is/long/enough/to/pass/the/edge/of/a/terminal: 3 examples of general"
    shown = _printed(Table([Column("method"), Column("a", numeric=True)], [Row(["sft", "1"])], title=title), width=80)
    first, second, *_ = shown.splitlines()
    assert (len(first) <= 80, f"{first} {second}".split()) == (True, title.split())
