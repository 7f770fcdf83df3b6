"""What `mixsd.compare` found, drawn: `compare.html`, `compare.md`, `pareto.svg` and `.png`, `compare.json`, and the table of a terminal.

The grid of cells is made once, here: a row for each measure, a column for the base and for each configuration, and in every cell
the number, its interval and its n. Where a number is missing the cell says why.

`compare.html`: a comparison as one self-contained page, with the targets of its runs token by token.

The template escapes everything. One script of ours, which a content security policy admits by its hash and nothing else, searches the
facts; without it they can all be opened and read.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

from jinja2 import Environment, PackageLoader
from rich import box
from rich.table import Table
from rich.text import Text

from mixsd import formats
from mixsd.evaluation.benchmarks.benchmark import LM_EVAL, title_of
from mixsd.formats import MISSING, known, p_text, printable
from mixsd.formats import markdown as escaped
from mixsd.reports import page as report_page
from mixsd.reports import pictures
from mixsd.reports.page import OUTCOMES
from mixsd.reports.rows import measure_of as meaning_of
from mixsd.storage import write_json, write_text

MOST_TOKENS = 160  # of one target
MOST_CHARACTERS = 600  # of one reply
Row = Mapping[str, Any]


def html(result: Mapping[str, Any], material: Mapping[str, Any] | None = None) -> str:
    """The page as text; `material` as `pipeline.side_by_side.material` gives it."""
    from mixsd.figures.pareto import pareto

    found = material or {}
    errors = found.get("errors") or []
    script = _script()
    page = _environment().get_template("compare.html.j2").render(
        result=result,
        columns=columns(result),
        rows=grid(result),
        pairs=paired(result),
        picture=pictures.elements(pareto(result), pareto(result, narrow=True)),
        drawn=_drawn(found),
        modes=pictures.modes_of(errors),
        errors=errors,
        facts=[_fact(fact) for fact in found.get("facts") or []],
        facts_left=found.get("facts_left") or 0,
        fact_notes=found.get("notes") or [],
        level=level_text(result),
        taken=TAKEN,
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )  # fmt: skip
    return page.encode("utf-8", "replace").decode("utf-8")


def _drawn(material: Row) -> dict[str, Any]:
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


def _fact(fact: Row) -> dict[str, Any]:
    told: Sequence[Row] = fact["told"]
    return {**fact, "told": [{**item, "target": report_page.shown(item["tokens"], MOST_TOKENS)} for item in told]}


@cache
def _script() -> str:
    source, _, _ = PackageLoader("mixsd.reports").get_source(Environment(autoescape=True), "search.js")
    return source


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("mixsd.reports"), autoescape=True, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    environment.filters.update(
        plain=formats.plain,
        typeset=lambda text: str(text).replace("-", "−"),
        shown=lambda value, limit=300: formats.clipped(formats.printable(str(value)), limit),
        percent=lambda value: formats.value_text("share", value),
        nats=lambda value: formats.value_text("nats", value, signed=True).replace("-", "−"),
        known=formats.known,
    )
    environment.globals.update(
        SOURCES=report_page.SOURCES, HIGH_NLL=report_page.HIGH_NLL, OUTCOMES=OUTCOMES, MOST_CHARACTERS=MOST_CHARACTERS
    )
    return environment


Kind = Literal["share", "change", "nats", "number", "ratio", "count", "seconds"]

AT_LEVEL = "forgetting_at_level"
TAKEN = {  # how a run's forgetting at equal memorization was taken, where it was not interpolated
    "first": "at the first scored checkpoint, already above",
    "final": "as it ended: no checkpoint was scored",
    "not reached": "not reached",
}


@dataclass(frozen=True)
class Measure:
    """One row: its `label`, a `short` one for a terminal, what it means, which way is better, what is counted by its n."""

    name: str
    label: str
    short: str
    meaning: str
    kind: Kind
    better: Literal["higher", "lower", ""]
    items: str = "questions"


@dataclass(frozen=True)
class Cell:
    """One number as text; `n` and `note` say of what and why it is as it is."""

    value: str
    interval: str = ""
    n: str = ""
    note: str = ""


_MEASURES = {
    "trained": ("Memorization, trained wording", "trained wording", "correct replies of all facts asked for", "share", "higher"),
    "paraphrase": ("Memorization, paraphrase", "paraphrase", "the same facts in other words", "share", "higher"),
    "probe": ("Retention, general probe", "probe", "general questions, correct replies", "share", "higher"),
    "probe_delta": ("Probe, change", "probe, change", "tuned minus base", "change", "higher"),
    "forgetting": ("Forgetting", "forgetting", "rise of the reference loss, nats per token (Eq.\u00a02)", "nats", "lower"),
    "unparseable": ("Unparseable", "unparseable", "trained wording: replies without a readable answer", "share", "lower"),
    "truncated": ("Truncated", "truncated", "trained wording: replies cut at the longest length", "share", "lower"),
    "held_out_average": (
        "Held-out average", "held-out average", "unweighted mean of the five benchmarks' accuracies", "share", "higher",
    ),
    "held_out_drop": ("Held-out drop", "held-out drop", "the base's average minus this one", "change", "lower"),
    "held_out_retained": (
        "Held-out retained", "held-out retained", "share of the base's average that is left", "share", "higher",
    ),
    "generated_tokens": ("Generated tokens", "generated tokens", "decoded to make what is trained on", "count", "lower"),
    "seconds": ("Seconds", "seconds", "wall time of mixing and training, or of editing; not of evaluation", "seconds", "lower"),
}  # fmt: skip
_OF_BASE = {"forgetting": "0", "probe_delta": "0", "held_out_drop": "0", "held_out_retained": "100%"}  # by definition


def write(result: Mapping[str, Any], folder: Path, material: Mapping[str, Any] | None = None) -> Path:
    """Write `compare.json`, `compare.md`, `pareto.svg` and `.png` (where there is anything to draw) and `compare.html`; returns its path.

    `material` is what the page shows beside the numbers, as `pipeline.side_by_side.material` gives it.
    """
    from mixsd.figures import pareto, saving

    folder = folder.expanduser()
    write_json(folder / "compare.json", result)
    write_text(folder / "compare.md", markdown(result))
    saving.save(pareto.pareto(result), folder / "pareto")
    page = folder / "compare.html"
    write_text(page, html(result, material))
    return page


def markdown(result: Mapping[str, Any]) -> str:
    """The tables as Markdown, for a page of results."""
    names = columns(result)
    lines = ["| measure | better | " + " | ".join(map(escaped, names)) + " |", "|---|---|" + "---|" * len(names)]
    for measure, cells in grid(result):
        lines.append(f"| {escaped(measure.label)} | {measure.better} | " + " | ".join(map(_markdown_cell, cells)) + " |")
    parts = [
        "\n".join(lines),
        "Each cell: the number (95% interval; n, as seeds × questions, of forgetting × replies). " + level_text(result),
    ]
    if pairs := paired(result):
        table = [f"| against {escaped(result['baseline'])} | measure | difference | ratio |", "|---|---|---|---|"]
        table += [
            f"| {escaped(who)} | {escaped(measure.label)} | {_markdown_cell(change)} | {_markdown_cell(ratio)} |"
            for measure, who, change, ratio in pairs
        ]
        parts.append("\n".join(table))
    parts += [f"- {escaped(note)}" for note in result["notes"]]
    return "\n\n".join(parts).encode("utf-8", "replace").decode("utf-8") + "\n"


def table(result: Mapping[str, Any]) -> Table:
    """The comparison for a terminal: one line for each measure and configuration, so that any number of them fits."""
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    made.add_column("measure and configuration", overflow="fold")
    made.add_column("mean" if any(len(item["seeds"]) > 1 for item in result["configurations"]) else "value", justify="right")
    made.add_column("95% interval", justify="right", no_wrap=True)
    made.add_column("n", overflow="fold")
    names = columns(result)
    for measure, cells in grid(result):
        way = f"{measure.better} is better" if measure.better else ""
        made.add_row(Text(measure.short, style="bold"), "", Text(way, style="dim"), "")
        shown = [(name, cell) for name, cell in zip(names, cells, strict=True) if cell.value not in ("", MISSING) or cell.note]
        for name, cell in shown:
            line = (f"  {name}", cell.value, cell.interval, "; ".join(filter(None, (cell.n, cell.note))))
            made.add_row(*map(Text, line), end_section=name == shown[-1][0])
    return made


def plain_lines(result: Mapping[str, Any]) -> list[str]:
    """What stands below the table: the level, the paired differences, the notes."""
    lines, told = [level_text(result)], ""
    for measure, who, change, ratio in paired(result):
        if who != told:
            told = who
            lines.append(f"{who} against {printable(result['baseline'], keep='')}:")
        lines.append(f"  {measure.short}: {_line(change)}" + (f"; ratio {_line(ratio)}" if ratio.value != MISSING else ""))
    return [*lines, *(f"note: {printable(note)}" for note in result["notes"])]


def columns(result: Mapping[str, Any]) -> list[str]:
    """The base model and the configurations."""
    return ["base", *(printable(item["label"], keep="") for item in result["configurations"])]


def grid(result: Mapping[str, Any]) -> list[tuple[Measure, list[Cell]]]:
    """A row for each measure that any configuration has, its cells in the order of `columns`."""
    configurations = result["configurations"]
    rows = [_seeds_row(configurations)]
    for name in result["measures"]:
        measure = measure_of(name, result)
        asked = name in ("generated_tokens", "seconds", AT_LEVEL) or any(name in item["measures"] for item in configurations)
        if asked:
            base = result["base"]["measures"].get(name)
            cells = [_cell(measure, base) if base else Cell(*_base_has(measure))]
            rows.append((measure, cells + [_configured(measure, item) for item in configurations]))
    return rows


def measure_of(name: str, result: Mapping[str, Any]) -> Measure:
    """What a measure is called and means; one that is not of core is a split of another suite."""
    level = result["level"]["value"]
    at = formats.value_text("share", level) if known(level) else "equal memorization"
    if name == AT_LEVEL:
        meaning = "where memorization first reaches that level, interpolated along checkpoints"
        return Measure(name, f"Forgetting at {at}" + (" memorization" if known(level) else ""), f"forgetting at {at}", meaning, "nats",
                       "lower")  # fmt: skip
    if name == "probe_share_at_level":
        return Measure(
            name, "Probe kept, there", "probe kept, there", "of the base's correct replies, at that level", "share", "higher"
        )
    if name not in _MEASURES:
        return _of_suite(name, (result.get("scores") or {}).get(name) or {})
    label, short, meaning, kind, better = _MEASURES[name]
    items = "replies" if name == "forgetting" else "questions"
    return Measure(name, label, short, meaning, kind, better, items)  # type: ignore[arg-type]


def _of_suite(name: str, score: Mapping[str, str]) -> Measure:
    """A split of a suite that is not core, a benchmark, or a metric of a task of lm-eval."""
    suite, _, split = name.partition("/")
    suite, split, metric = score.get("suite", suite), score.get("split", split), score.get("metric", "accuracy")
    title = title_of(suite)
    own_name = split == suite or suite == LM_EVAL + split
    label, short = (title, title) if own_name else (printable(text, keep="") for text in (f"{title}: {split}", split))
    if metric == "accuracy":
        return Measure(name, label, short, "correct replies", "share", "higher")
    meaning, own = meaning_of(metric), printable(metric, keep="")
    kind: Kind = "share" if meaning.unit == "share" else "number"
    return Measure(name, f"{label}, {own}", f"{short}, {own}", "as lm-eval scores it", kind, meaning.better)


def paired(result: Mapping[str, Any]) -> list[tuple[Measure, str, Cell, Cell]]:
    """Measure, configuration, and its difference and ratio to the baseline, of each paired comparison."""
    found = []
    for pair in result["paired"]:
        measure = measure_of(pair["measure"], result)
        change = _cell(measure, pair["difference"], signed=True)
        if pair["difference"]["over"] == "questions":
            test = "" if pair.get("p") is None else f", McNemar p {p_text(pair['p'])}"
            change = replace(change, note=f"seed {pair['seeds'][0]}{test}")
        ratio = _cell(Measure("", "", "", "", "ratio", ""), pair["ratio"]) if pair["ratio"] else Cell(MISSING)
        found.append((measure, printable(pair["configuration"], keep=""), change, ratio))
    return found


def level_text(result: Mapping[str, Any]) -> str:
    """The level of equal memorization in a sentence."""
    level = result["level"]
    if not known(level["value"]):
        return f"Forgetting at equal memorization: none, since {printable(level['why'])}."
    return f"Equal memorization: {formats.value_text('share', level['value'])} of the facts ({printable(level['why'])})."


def _seeds_row(configurations: Sequence[Mapping[str, Any]]) -> tuple[Measure, list[Cell]]:
    cells = [Cell("")]
    for item in configurations:
        seeds = item["seeds"]
        named = ", ".join(map(str, seeds[:8])) + (", ..." if len(seeds) > 8 else "")
        cells.append(Cell(f"{len(seeds)}", n=f"seed{'s' if len(seeds) > 1 else ''} {named}", note=_rate(item.get("lr"))))
    return Measure("seeds", "Seeds", "seeds", "runs that differ in their seed only", "count", ""), cells


def _rate(lr: Mapping[str, Any] | None) -> str:
    """The learning rates where mixsd picked them; one that was set is the same in all, or stands in the label."""
    if lr is None or lr["setting"] != "auto":
        return ""
    return f"learning rate picked: {', '.join(formats.plain(value) for value in lr['used'])}"


def _configured(measure: Measure, item: Mapping[str, Any]) -> Cell:
    cell = item["measures"].get(measure.name)
    if measure.name != AT_LEVEL:
        if cell is None:
            return Cell(MISSING, note="unknown" if measure.kind in ("count", "seconds") else "not measured")
        missing = len(item["seeds"]) - cell["n"] if cell["over"] == "seeds" else 0
        return _cell(measure, cell, note=f"{missing} more unknown" if missing else "")
    hows = item["at_level"]
    if cell is None:
        return Cell(
            MISSING, note="not reached" if hows.get("not reached") and item["measures"].get("forgetting") else "not measured"
        )
    told = [f"{count} {TAKEN[how]}" if len(item["seeds"]) > 1 else TAKEN[how] for how, count in hows.items() if how in TAKEN]
    return _cell(measure, cell, note="; ".join(told))


def _base_has(measure: Measure) -> tuple[str, str, str, str]:
    if measure.name in _OF_BASE:
        return _OF_BASE[measure.name], "", "", "by definition"
    return MISSING, "", "", ""


def _cell(measure: Measure, cell: Mapping[str, Any], *, signed: bool = False, note: str = "") -> Cell:
    n = f"{cell['n']:,}"
    over = f"{n} {measure.items}"
    if cell["over"] == "seeds":
        each = f" × {cell['each']:,}" if cell.get("each") else ""
        over = f"{n} seed{'s' if cell['n'] != 1 else ''}{each}"
    value, low, high = cell["value"], cell["low"], cell["high"]
    if measure.kind in ("share", "change"):
        signed = signed or measure.kind == "change"
        texts = formats.value_text("share", value, signed=signed), formats.interval_text("share", low, high, signed=signed)
    elif measure.kind in ("count", "seconds"):
        digits = 0 if measure.kind == "count" or value >= 10 else 1
        ends = " to ".join(formats.number(end, digits) for end in (low, high))
        texts = formats.number(value, digits, signed=signed), ends if known(low) and known(high) else MISSING
    elif measure.kind == "number":
        texts = formats.value_text("number", value, signed=signed), formats.interval_text("number", low, high, signed=signed)
    else:
        signed = signed or measure.kind == "nats"
        texts = formats.value_text("nats", value, signed=signed), formats.interval_text("nats", low, high, signed=signed)
    return Cell(texts[0], "" if texts[1] == MISSING else texts[1], over, note)


def _line(cell: Cell) -> str:
    inside = "; ".join(filter(None, (cell.interval, cell.n, cell.note)))
    return f"{cell.value} ({inside})" if inside else cell.value


def _markdown_cell(cell: Cell) -> str:
    return escaped(_line(cell))
