"""What `mixsd analyze errors` found, as tables in Markdown and on a terminal, with replies as examples.

A cell is the share of the wrong replies that have a mode, its count and its interval; n is the number of wrong replies.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from mixsd.reporting.card import fenced
from mixsd.reporting.card import markdown as escaped
from mixsd.reporting.formats import MISSING, interval_text, printable, value_text
from mixsd.reporting.rows import title_of

_BLOCKS = {"benchmarks": "Benchmarks", "in_domain": "The facts' own questions"}
_JUDGED = {
    "strict": "Wrong by the strict judges: the answer has to be in the form that was asked for.",
    "lenient": "LENIENT: wrong by the lenient judges, which take an answer in another form too; not the paper's measure. An answer "
    'clause ("The answer is X.") is as good as a box.',
}


def markdown(result: Mapping[str, Any]) -> str:
    """The tables, how modes were told apart, and some replies of each mode, as a Markdown page."""
    parts = [f"# Error modes ({result['judged']})", "", _JUDGED[result["judged"]], ""]
    for block, rows in _blocks(result):
        heads = columns(rows)
        parts += [f"## {_BLOCKS[block]}", "", f"| {' | '.join(heads)} |", "|---|---|" + "---:|" * (len(heads) - 3) + "---|"]
        for row in rows:
            cells = [place_of(row), row["label"], f"{row['asked']:,}", f"{row['wrong']:,}"]
            cells += [_line(row, mode) for mode in row["counts"]]
            parts.append("| " + " | ".join(escaped(cell) for cell in [*cells, *_tail(row)]) + " |")
        parts.append("")
    parts += ["## How modes are told apart", "", *(f"- {escaped(line)}" for line in notes(result)), ""]
    return "\n".join([*parts, "## Examples", "", *_examples(result)]).rstrip() + "\n"


def tables(result: Mapping[str, Any]) -> Iterator[Table]:
    """A table for each block: every share over its count and interval."""
    for block, rows in _blocks(result):
        made = Table(title=f"{_BLOCKS[block]} ({result['judged']})", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
        for place, head in enumerate(["", "wrong of asked", *rows[0]["counts"]]):
            made.add_column(Text(head), justify="right" if place else "left", overflow="fold")
        for row in rows:
            first = f"{place_of(row)}\n{row['label']}"
            wrong = f"{row['wrong']:,}\nof {row['asked']:,}"
            cells = [_line(row, mode).replace(" (", "\n").replace("; ", "\n").removesuffix(")") for mode in row["counts"]]
            if row["leakage"] != "on" and "leakage" in row["counts"]:
                cells[list(row["counts"]).index("leakage")] = "off"
            made.add_row(*(Text(printable(cell)) for cell in (first, wrong, *cells)))
        yield made


def notes(result: Mapping[str, Any]) -> list[str]:
    """What decided the modes, and what was off or left out."""
    least = result["thresholds"]
    told = [
        "Each wrong reply has the first mode that applies: format (nothing to judge: no box, or no Python block), leakage, collapse, "
        "genuine. Errors of ours are in no mode. Shares are of the wrong replies, with 95% intervals over questions.",
        f"Leakage: an answer, alias or subject of the facts with at least {least['leak_words']} words and {least['leak_characters']} "
        "characters stands in the reply as whole words, whatever the case, and neither in its prompt nor in any reply of the base "
        "model to the same benchmark.",
        f"Collapse: at most {least['collapse_characters']} characters and {least['collapse_newlines']} line breaks are left once the "
        f"answer clause (of at most {least['clause_characters']} characters) and the box are gone; for code, an answer clause or box in such "
        "a reply without a Python block, or beside functions that hold nothing but a docstring.",
    ]
    if result["in_domain"]:
        told.append(
            f"Cross-entity: the reply (its box, where it has one) states an answer or subject of another fact, of at least "
            f"{least['entity_characters']} characters, that its question does not name."
        )
    off: dict[str, list[str]] = {}
    for row in (row for row in result["benchmarks"] if row["leakage"] != "on"):
        off.setdefault(row["leakage"], []).append(f"{row['label']} on {title_of(row['benchmark'])}")
    told += [f"Leakage is {why}: {', '.join(rows)}." for why, rows in off.items()]
    for row in result["benchmarks"]:
        if row["passed_over"]:
            said = ", ".join(f'"{phrase}"' for phrase in row["passed_over"][:10])
            more = len(row["passed_over"]) - 10
            told.append(
                f"{row['label']} on {title_of(row['benchmark'])}: no evidence, since the base says it too: {said}"
                + (f" and {more} more." if more > 0 else ".")
            )
    old = [f"{row['label']}, {place_of(row)}: {row['old_answer']:,}" for row in result["in_domain"] if "old_answer" in row]
    if old:
        told.append(f"Replies with the answer from before the edit, which count as genuine: {'; '.join(old)}.")
    return [*told, *result["notes"]]


def columns(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The heads of a block's columns."""
    return ["asked what", "model", "replies", "wrong", *rows[0]["counts"], "cut short", "leakage"]


def _blocks(result: Mapping[str, Any]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    for block in _BLOCKS:
        rows = result[block]
        if rows:
            order = list(dict.fromkeys((row["benchmark"], row["split"]) for row in rows))
            yield block, sorted(rows, key=lambda row: order.index((row["benchmark"], row["split"])))


def place_of(row: Mapping[str, Any]) -> str:
    """What was asked: the benchmark, or the suite and its split."""
    whole = row["split"] == row["benchmark"]
    return title_of(row["benchmark"]) if whole else f"{row['benchmark']}: {row['split'].removeprefix('memorization/')}"


def _line(row: Mapping[str, Any], mode: str) -> str:
    share = row["shares"][mode]["of_wrong"]
    if share["value"] is None:
        return MISSING
    if mode == "leakage" and row["leakage"] != "on":
        return "off"
    ends = interval_text("share", share["low"], share["high"])
    return f"{value_text('share', share['value'])} ({row['counts'][mode]:,}; {ends})"


def _tail(row: Mapping[str, Any]) -> list[str]:
    return [f"{row['truncated']:,}", row["leakage"].partition(":")[0] if "leakage" in row["counts"] else MISSING]


def _examples(result: Mapping[str, Any]) -> Iterator[str]:
    for _, rows in _blocks(result):
        for row in rows:
            for mode, some in row["examples"].items():
                for example in some:
                    said = [f"leaked or crossed: {', '.join(example['phrases'])}"] if "phrases" in example else []
                    said += [f"left over: {example['left']!r}"] if "left" in example else []
                    yield f"**{escaped(place_of(row))}, {escaped(row['label'])}, {mode}**: {escaped(example['key'])}"
                    yield from (f"({escaped(text)})" for text in said)
                    yield from ("", fenced(example["reply"], "text"), "")
