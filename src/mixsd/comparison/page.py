"""What `mixsd.compare` found, drawn: `compare.html`, `compare.md`, `pareto.svg` and `.png`, `compare.json`, and the tables of a terminal.

The grid of cells is made once: a row for each measure, a column for the base and each configuration, in every cell the number, its
interval and its n, or why there is none. The page is self-contained, with the targets of its runs token by token. Its template escapes
everything; one script of ours, admitted by its hash, searches the facts; without it they can all be opened and read.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader
from markupsafe import Markup

from mixsd.comparison.compare import AT_LEVEL, PROBE_AT_LEVEL, SECONDS, TOKENS
from mixsd.formats import MISSING, Cell, Column, Row, Table, estimate_cell, known, number, p_text, plain, printable, value_text
from mixsd.formats import markdown as escaped
from mixsd.reports import page as report_page
from mixsd.reports import pictures
from mixsd.reports.rows import Measure, measure_of, words_of
from mixsd.statistics import Estimate, Over
from mixsd.storage import write_json, write_text

if TYPE_CHECKING:
    from mixsd.figures.style import Picture

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
    """Write all files; returns the path of `compare.html`. `material` is what `comparison.material.material_of` gives."""
    from mixsd.figures import charts, style

    folder = folder.expanduser()
    write_json(folder / "compare.json", result)
    write_text(folder / "compare.md", markdown(result))
    style.save(charts.pareto(result), folder / "pareto")
    write_text(folder / "compare.html", html(result, material))
    return folder / "compare.html"


def html(result: Values, material: Values | None = None) -> str:
    """The page as text; `material` as in `write`."""
    from mixsd.figures.charts import curves, error_bars, nll_cdf, pareto

    found = {"curves": [], "nll": [], "errors": [], "facts": [], "facts_left": 0, "notes": [], **(material or {})}
    modes = pictures.modes_of(found["errors"])

    def drawn(draw: Callable[..., Picture | None], *values: Any) -> Markup | None:
        return pictures.elements(draw(*values), draw(*values, narrow=True))

    facts = [
        {**fact, "told": [{**item, "target": report_page.shown(item["tokens"], MOST_TOKENS)} for item in fact["told"]]}
        for fact in found["facts"]
    ]
    script, _, _ = PackageLoader("mixsd.reports").get_source(Environment(autoescape=True), "search.js")
    page = report_page.environment().get_template("compare.html.j2").render(
        result=result,
        measures=grid_table(result),
        paired=paired_table(result),
        picture=drawn(pareto, result),
        drawn={
            "curves": drawn(curves, found["curves"]),
            "nll": drawn(nll_cdf, found["nll"], pictures.THRESHOLDS),
            "errors": drawn(error_bars, found["errors"], modes),
        },
        errors=_errors_table(found["errors"], modes) if found["errors"] else None,
        runs=_runs_table(result),
        facts=facts,
        facts_left=found["facts_left"],
        fact_notes=found["notes"],
        level=level_text(result),
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )  # fmt: skip
    return page.encode("utf-8", "replace").decode("utf-8")


def markdown(result: Values) -> str:
    """The tables as Markdown, for a page of results."""
    about = "Each cell: the number (95% interval; n, as seeds × questions, of forgetting × replies). " + level_text(result)
    paired = paired_table(result)
    parts = [grid_table(result).markdown(), about, *([paired.markdown()] if paired else [])]
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
    rows = []
    for heading, cells in grid(result):
        way = heading.measure.way
        rows.append(Row([Cell(heading.label, note=way), *cells], "; ".join(filter(None, (heading.meaning, way)))))
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


def _errors_table(errors: Sequence[Values], modes: Sequence[str]) -> Table:
    rows = []
    for row in errors:
        counts: list[Cell | str] = [f"{row['asked']:,}", f"{row['wrong']:,}"]
        for mode in modes:
            count = row["counts"].get(mode)
            share = value_text("share", count / row["wrong"]) if count is not None and row["wrong"] else ""
            counts.append(Cell(number(count, 0), n=share))
        rows.append(Row([row["benchmark"], row["label"], *counts]))
    heads = ["replies", "wrong", *modes]
    return Table([Column("benchmark"), Column("configuration"), *(Column(head, numeric=True) for head in heads)], rows)


def _runs_table(result: Values) -> Table:
    numeric = ("seed", "learning rate", "steps", "memorization", "forgetting")
    heads = [Column("run"), Column("configuration"), *(Column(head, numeric=True) for head in numeric)]
    rows = []
    for run in result["runs"]:
        scores = []
        for name in ("trained", "forgetting"):
            cell, measure = run["measures"].get(name), heading_of(name, result).measure
            value = value_text(measure.unit, cell["value"], signed=measure.signed) if cell else MISSING
            scores.append(Cell(value, n=f"n {cell['n']:,}" if cell else ""))
        reached = run["at_level"]
        met = Cell("not reached" if run["path"] and known(result["level"]["value"]) else MISSING)
        if reached:
            how = _TAKEN.get(reached["how"]) or f"interpolated, step {number(reached['step'], 0)}"
            met = Cell(value_text("nats", reached["forgetting"], signed=True), note=how)
        steps = Cell(plain(run["steps"]), note=f"model: {run['chosen']['step']}" if run["chosen"] else "")
        rows.append(Row([run["name"], run["configuration"], str(run["seed"]), plain(run["lr"]), steps, *scores, met]))
    return Table([*heads, Column("at equal memorization")], rows)


def grid(result: Values) -> list[tuple[Heading, list[Cell]]]:
    """A row for each measure that any configuration has, with the cells of the base and of each configuration."""
    configurations = result["configurations"]
    rows = [_seeds_row(configurations)]
    for name in result["measures"]:
        if name in (TOKENS, SECONDS, AT_LEVEL) or any(name in item["measures"] for item in configurations):
            heading = heading_of(name, result)
            base = result["base"]["measures"].get(name)
            own = Cell(_BY_DEFINITION[name], note="by definition") if name in _BY_DEFINITION else Cell(MISSING)
            cells = [_cell(heading, base) if base else own]
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
    over: Over = "replies" if metric == "forgetting" else "questions"
    return Heading(name, *words_of(suite, split, metric), measure_of(metric), over)


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
    cell, seeds, hows = item["measures"].get(heading.name), len(item["seeds"]), item["at_level"]
    if cell is None:
        reached = heading.name != AT_LEVEL or "not reached" not in hows or "forgetting" not in item["measures"]
        why = "unknown" if heading.name in (TOKENS, SECONDS) else "not measured"
        return Cell(MISSING, note=why if reached else "not reached")
    told = []
    if heading.name == AT_LEVEL:
        told = [f"{count} {_TAKEN[how]}" if seeds > 1 else _TAKEN[how] for how, count in hows.items() if how in _TAKEN]
    elif cell["over"] == "seeds" and cell["n"] < seeds:
        told = [f"{seeds - cell['n']} more unknown"]
    return _cell(heading, cell, note="; ".join(told))


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
