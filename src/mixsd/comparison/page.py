"""What `mixsd.compare` found, drawn: `compare.html`, `compare.md`, `pareto.svg` and `.png`, `compare.json`, and the tables of a terminal.

The grid of cells is made once, here: a row for each measure, a column for the base and for each configuration, and in every cell
the number, its interval and its n. Where a number is missing the cell says why. The page is self-contained, with the targets of its
runs token by token. Its template escapes everything; one script of ours, which a content security policy admits by its hash and
nothing else, searches the facts; without it they can all be opened and read.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader

from mixsd.comparison.measures import AT_LEVEL, PROBE_AT_LEVEL, SECONDS, TOKENS
from mixsd.formats import MISSING, Cell, Column, Row, Table, estimate_cell, known, number, p_text, plain, printable, value_text
from mixsd.formats import markdown as escaped
from mixsd.reports import page as report_page
from mixsd.reports import pictures
from mixsd.reports.rows import Measure, measure_of, words_of
from mixsd.statistics import Estimate, Over
from mixsd.storage import write_json, write_text

MOST_TOKENS = 160  # of one target
Values = Mapping[str, Any]

_TAKEN = {  # how a run's forgetting at equal memorization was taken, where it was not interpolated
    "first": "at the first scored checkpoint, already above",
    "final": "as it ended: no checkpoint was scored",
    "not reached": "not reached",
}
_BY_DEFINITION = {"forgetting": "0", "probe_delta": "0", "held_out_drop": "0", "held_out_retained": "100%"}  # of the base


@dataclass(frozen=True)
class Heading:
    """The head of a row: what it is called and means, what its numbers are, and what is counted by their n."""

    name: str
    label: str
    meaning: str
    measure: Measure
    over: Over = "questions"


# What no report has, or has under another name.
_OWN = {
    "probe_delta": ("Probe, change", "tuned minus base", Measure("share", signed=True, better="higher")),
    "unparseable": ("Unparseable", "trained wording: replies without a readable answer", Measure("share", better="lower")),
    "truncated": ("Truncated", "trained wording: replies cut at the longest length", Measure("share", better="lower")),
    PROBE_AT_LEVEL: ("Probe kept, there", "of the base's correct replies, at that level", Measure("share", better="higher")),
    TOKENS: ("Generated tokens", "decoded to make what is trained on", Measure("count", better="lower")),
    SECONDS: (
        "Seconds",
        "wall time of mixing and training, or of editing; not of evaluation",
        Measure("seconds", better="lower"),
    ),
}


def write(result: Values, folder: Path, material: Values | None = None) -> Path:
    """Write `compare.json`, `compare.md`, `pareto.svg` and `.png` (where there is anything to draw) and `compare.html`; returns its path.

    `material` is what the page shows beside the numbers, as `comparison.material.material` gives it.
    """
    from mixsd.figures import charts, style

    folder = folder.expanduser()
    write_json(folder / "compare.json", result)
    write_text(folder / "compare.md", markdown(result))
    style.save(charts.pareto(result), folder / "pareto")
    page = folder / "compare.html"
    write_text(page, html(result, material))
    return page


def html(result: Values, material: Values | None = None) -> str:
    """The page as text; `material` as in `write`."""
    from mixsd.figures.charts import pareto

    found = material or {}
    errors = found.get("errors") or []
    script, _, _ = PackageLoader("mixsd.reports").get_source(Environment(autoescape=True), "search.js")
    page = report_page.environment().get_template("compare.html.j2").render(
        result=result,
        measures=grid_table(result),
        paired=paired_table(result),
        picture=pictures.elements(pareto(result), pareto(result, narrow=True)),
        drawn=_drawn(found),
        errors=_errors_table(errors),
        runs=_runs_table(result),
        facts=[_fact(fact) for fact in found.get("facts") or []],
        facts_left=found.get("facts_left") or 0,
        fact_notes=found.get("notes") or [],
        level=level_text(result),
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )  # fmt: skip
    return page.encode("utf-8", "replace").decode("utf-8")


def _drawn(material: Values) -> dict[str, Any]:
    """Every picture beside the Pareto front, None where there is nothing to draw."""
    from mixsd.figures.charts import curves, error_bars, nll_cdf

    lines, distributions, errors = (material.get(name) or [] for name in ("curves", "nll", "errors"))
    modes = pictures.modes_of(errors)
    makers = {
        "curves": lambda narrow: curves(lines, narrow=narrow),
        "nll": lambda narrow: nll_cdf(distributions, pictures.THRESHOLDS, narrow=narrow),
        "errors": lambda narrow: error_bars(errors, modes, narrow=narrow),
    }
    return {name: pictures.elements(make(False), make(True)) for name, make in makers.items()}


def _fact(fact: Values) -> dict[str, Any]:
    told: Sequence[Values] = fact["told"]
    return {**fact, "told": [{**item, "target": report_page.shown(item["tokens"], MOST_TOKENS)} for item in told]}


def markdown(result: Values) -> str:
    """The tables as Markdown, for a page of results."""
    parts = [
        grid_table(result).markdown(),
        "Each cell: the number (95% interval; n, as seeds × questions, of forgetting × replies). " + level_text(result),
    ]
    if (paired := paired_table(result)) is not None:
        parts.append(paired.markdown())
    parts += [f"- {escaped(note)}" for note in result["notes"]]
    return "\n\n".join(parts).encode("utf-8", "replace").decode("utf-8") + "\n"


def tables(result: Values) -> list[Table]:
    """The comparison for a terminal: a line for each measure and configuration, so that any number of them fits; then the pairs."""
    paired = paired_table(result)
    return [grid_table(result).long("measure and configuration"), *([paired] if paired else [])]


def lines(result: Values) -> list[str]:
    """What stands below the tables on a terminal."""
    return [level_text(result), *(f"note: {printable(note)}" for note in result["notes"])]


def grid_table(result: Values) -> Table:
    """The measures by configuration."""
    heads = [Column("measure"), Column("base"), *(Column(item["label"]) for item in result["configurations"])]
    rows = [Row([Cell(heading.label, note=heading.measure.way), *cells], _about(heading)) for heading, cells in grid(result)]
    return Table(heads, rows)


def paired_table(result: Values) -> Table | None:
    """Each configuration's differences and ratios to the baseline; None where nothing is paired."""
    rows = []
    for pair in result["paired"]:
        heading = heading_of(pair["measure"], result)
        change = _cell(heading, pair["difference"], signed=True)
        if pair["difference"]["over"] == "questions":
            test = "" if pair["p"] is None else f", McNemar p {p_text(pair['p'])}"
            change = replace(change, note=f"seed {pair['seeds'][0]}{test}")
        ratio = _cell(Heading("", "", "", Measure("ratio")), pair["ratio"]) if pair["ratio"] else MISSING
        rows.append(Row([pair["configuration"], heading.label, change, ratio]))
    heads = [Column(f"against {result['baseline']}", width=24), Column("measure"), Column("difference"), Column("ratio")]
    return Table(heads, rows) if rows else None


def _errors_table(errors: Sequence[Values]) -> Table | None:
    if not errors:
        return None
    modes = pictures.modes_of(errors)
    heads = ["benchmark", "configuration", "replies", "wrong", *modes]
    rows = []
    for row in errors:
        counts: list[Cell | str] = [f"{row['asked']:,}", f"{row['wrong']:,}"]
        for mode in modes:
            count = row["counts"].get(mode)
            share = value_text("share", count / row["wrong"]) if count is not None and row["wrong"] else ""
            counts.append(Cell(number(count, 0), n=share))
        rows.append(Row([row["benchmark"], row["label"], *counts]))
    return Table([Column(head, numeric=place > 1) for place, head in enumerate(heads)], rows)


def _runs_table(result: Values) -> Table:
    numeric = ("seed", "learning rate", "steps", "memorization", "forgetting")
    heads = [
        Column("run"),
        Column("configuration"),
        *(Column(head, numeric=True) for head in numeric),
        Column("at equal memorization"),
    ]
    rows = []
    for run in result["runs"]:
        steps = Cell(plain(run["steps"]), note=f"model: {run['chosen']['step']}" if run["chosen"] else "")
        scores = [run["measures"].get(name) for name in ("trained", "forgetting")]
        memorized, forgot = (Cell(MISSING) if cell is None else _number(heading_of(name, result), cell)
                             for name, cell in zip(("trained", "forgetting"), scores, strict=True))  # fmt: skip
        reached = run["at_level"]
        if reached:
            how = (
                f"interpolated, step {number(reached['step'], 0)}" if reached["how"] == "interpolated" else _TAKEN[reached["how"]]
            )
            met = Cell(value_text("nats", reached["forgetting"], signed=True), note=how)
        else:
            met = Cell("not reached" if run["path"] and known(result["level"]["value"]) else MISSING)
        cells = [run["name"], run["configuration"], str(run["seed"]), plain(run["lr"]), steps, memorized, forgot, met]
        rows.append(Row(cells))
    return Table(heads, rows)


def _number(heading: Heading, cell: Values) -> Cell:
    return Cell(value_text(heading.measure.unit, cell["value"], signed=heading.measure.signed), n=f"n {cell['n']:,}")


def grid(result: Values) -> list[tuple[Heading, list[Cell]]]:
    """A row for each measure that any configuration has, with the cells of the base and of each configuration."""
    configurations = result["configurations"]
    rows = [_seeds_row(configurations)]
    for name in result["measures"]:
        if name in (TOKENS, SECONDS, AT_LEVEL) or any(name in item["measures"] for item in configurations):
            heading = heading_of(name, result)
            base = result["base"]["measures"].get(name)
            cells = [_cell(heading, base) if base else _base_has(name)]
            rows.append((heading, cells + [_configured(heading, item) for item in configurations]))
    return rows


def heading_of(name: str, result: Values) -> Heading:
    """What a measure is called and means."""
    if name == AT_LEVEL:
        level = result["level"]["value"]
        at = f"{value_text('share', level)} memorization" if known(level) else "equal memorization"
        meaning = "where memorization first reaches that level, interpolated along checkpoints"
        return Heading(name, f"Forgetting at {at}", meaning, measure_of("forgetting"))
    if name in _OWN:
        return Heading(name, *_OWN[name])
    suite, split, metric = (result["scores"][name][part] for part in ("suite", "split", "metric"))
    return Heading(
        name, *words_of(suite, split, metric), measure_of(metric), "replies" if metric == "forgetting" else "questions"
    )


def _about(heading: Heading) -> str:
    return "; ".join(filter(None, (heading.meaning, heading.measure.way)))


def _seeds_row(configurations: Sequence[Values]) -> tuple[Heading, list[Cell]]:
    cells = [Cell("")]
    for item in configurations:
        seeds, lr = item["seeds"], item["lr"]
        named = ", ".join(map(str, seeds[:8])) + (", ..." if len(seeds) > 8 else "")
        # A rate that was set is the same in all, or stands in the label.
        picked = ", ".join(map(plain, lr["used"])) if lr and lr["setting"] == "auto" else ""
        note = f"learning rate picked: {picked}" if picked else ""
        cells.append(Cell(f"{len(seeds)}", n=f"seed{'s' if len(seeds) > 1 else ''} {named}", note=note))
    return Heading("seeds", "Seeds", "runs that differ in their seed only", Measure("count")), cells


def _configured(heading: Heading, item: Values) -> Cell:
    cell, several = item["measures"].get(heading.name), len(item["seeds"]) > 1
    if heading.name != AT_LEVEL:
        if cell is None:
            return Cell(MISSING, note="unknown" if heading.name in (TOKENS, SECONDS) else "not measured")
        missing = len(item["seeds"]) - cell["n"] if cell["over"] == "seeds" else 0
        return _cell(heading, cell, note=f"{missing} more unknown" if missing else "")
    hows = item["at_level"]
    if cell is None:
        reachable = hows.get("not reached") and item["measures"].get("forgetting")
        return Cell(MISSING, note="not reached" if reachable else "not measured")
    told = [f"{count} {_TAKEN[how]}" if several else _TAKEN[how] for how, count in hows.items() if how in _TAKEN]
    return _cell(heading, cell, note="; ".join(told))


def _base_has(name: str) -> Cell:
    return Cell(_BY_DEFINITION[name], note="by definition") if name in _BY_DEFINITION else Cell(MISSING)


def _cell(heading: Heading, cell: Values, *, signed: bool = False, note: str = "") -> Cell:
    measure, over = heading.measure, "seeds" if cell["over"] == "seeds" else heading.over
    ends = cell["value"], cell["low"], cell["high"], cell["n"]
    made = estimate_cell(Estimate(*ends, measure.unit, measure.signed or signed, over), note=note)
    return replace(made, n=f"{made.n} × {cell['each']:,}") if cell.get("each") else made


def level_text(result: Values) -> str:
    """The level of equal memorization in a sentence."""
    level = result["level"]
    if not known(level["value"]):
        return f"Forgetting at equal memorization: none, since {printable(level['why'])}."
    return f"Equal memorization: {value_text('share', level['value'])} of the facts ({printable(level['why'])})."
