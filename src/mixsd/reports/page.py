"""`report.html`: one self-contained page, readable from disk without any network and without a line of script.

The template escapes everything (autoescape), and a content security policy forbids scripts and requests even so. Long inputs
are cut where the page says so and names the file that holds the rest, so the page stays small for any number of facts.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader

from mixsd import formats
from mixsd.evaluation.benchmarks import benchmark
from mixsd.reports import pictures, rows, words
from mixsd.reports.schema import Report
from mixsd.targets.target import HIGH_NLL

SOURCES = {
    "e": ("expert", "picked from the expert conditional"),
    "n": ("naive", "picked from the naive conditional"),
    "g": ("gated", "a naive position where the gate took the expert's token"),
    "r": ("reference", "copied from the reference"),
}
MOST_FACTS = 500
MOST_TOKENS = 400
MOST_CHARACTERS = 600
MOST_BARS = 12
MOST_KINDS = 150
OUTCOMES = {"correct": "✓", "wrong": "✗", "unparseable": "?", "error": "!"}


def render(
    report: Report,
    per_fact: Sequence[Mapping[str, Any]],
    examples: Sequence[Mapping[str, Any]],
    replies: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
    fisher: Mapping[str, Any] | None = None,
) -> str:
    """Return the page as text.

    Args:
        per_fact: {id, question, answer, status, reason, attempt, base: {reply, outcome}, tuned: {reply, outcome}} per fact.
        examples: {id, question, tokens: [{text, source, base_nll}]} per target.
        replies: some pairs of replies by benchmark, as `words.chosen` gives them.
        fisher: what `mixsd analyze fisher` wrote of the run, if it was asked.
    """
    from mixsd.figures.charts import steps_per_point

    ordered, details = worst_first(per_fact), rows.detail_rows(report)
    tables = {
        "headline": rows.headline_rows(report),
        "details": rows.most_asked(details, MOST_KINDS),
        "reply_format": rows.format_rows(report),
    }
    page = environment().get_template("report.html.j2").render(
        {name: rows.score_table(report, shown) for name, shown in tables.items() if shown},
        report=report,
        words=words,
        details_left=len(details) - MOST_KINDS,
        facts=ordered[:MOST_FACTS],
        facts_left=len(ordered) - MOST_FACTS,
        examples=[{**example, **shown(example["tokens"], MOST_TOKENS)} for example in examples],
        attempts=attempt_bars(report.targets.attempts),
        drawn=pictures.page(report, fisher),
        averaged=steps_per_point(len(report.training.log)),
        replies=[(benchmark.title_of(suite), pairs) for suite, pairs in (replies or {}).items() if pairs],
    )  # fmt: skip
    # A lone surrogate (JSON can carry one) cannot be written as UTF-8.
    return page.encode("utf-8", "replace").decode("utf-8")


def shown(tokens: Sequence[Mapping[str, Any]], most: int) -> dict[str, Any]:
    """The first `most` of {text, source, base_nll: nats or None} ready for the template, and how many are `left`."""
    return {"tokens": [_shown(token) for token in tokens[:most]], "left": max(0, len(tokens) - most)}


def _shown(token: Mapping[str, Any]) -> dict[str, Any]:
    source, nll = token["source"], token["base_nll"]
    return {
        "text": formats.token_text(token["text"]),
        "source": source if source in SOURCES else "r",
        "high": formats.known(nll) and nll > HIGH_NLL,
        "tip": f"{SOURCES[source][0] if source in SOURCES else f'source {source}'}, base NLL {formats.number(nll)}",
    }


def worst_first(per_fact: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Sort the facts: unusable, rejected, accepted but not answered, answered; within each the given order stays."""

    def rank(fact: Mapping[str, Any]) -> int:
        if fact["status"] == "accepted":
            return 3 if (fact["tuned"] or {}).get("outcome") == "correct" else 2
        return 1 if fact["status"] == "rejected" else 0

    return sorted(per_fact, key=rank)


def attempt_bars(attempts: Mapping[str, int]) -> list[tuple[str, int, float]]:
    """Return (label, count, percent of the longest bar) per attempt number; the tail beyond `MOST_BARS` is summed."""
    counts = sorted((int(attempt), count) for attempt, count in attempts.items())
    bars = [(str(attempt), count) for attempt, count in counts[:MOST_BARS]]
    if tail := sum(count for _, count in counts[MOST_BARS:]):
        bars.append((f"{counts[MOST_BARS][0]}+", tail))
    longest = max((count for _, count in bars), default=0) or 1
    return [(label, count, round(100 * count / longest, 1)) for label, count in bars]


@cache
def environment() -> Environment:
    """The templates, with what they write texts and numbers by; for every page of mixsd."""
    made = Environment(
        loader=PackageLoader("mixsd.reports"), autoescape=True, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    made.filters.update(
        typeset=_typeset,
        number=lambda value, digits=2: _typeset(formats.number(value, digits)),
        percent=lambda value: formats.value_text("share", value),
        plain=formats.plain,
        shown=lambda value, limit=MOST_CHARACTERS: formats.clipped(formats.printable(str(value or "")), limit),
        both_ends=lambda value, limit=MOST_CHARACTERS: formats.middle_clipped(formats.printable(str(value or "")), limit),
        visible=lambda value: formats.printable(value, keep=""),
        known=formats.known,
    )
    made.tests["known"] = formats.known
    made.globals.update(SOURCES=SOURCES, OUTCOMES=OUTCOMES, HIGH_NLL=HIGH_NLL)
    return made


def _typeset(text: str) -> str:
    return text.replace("-", "−")
