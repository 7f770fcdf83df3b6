"""`report.html`: one self-contained page, readable from disk without any network and without a line of script.

The template escapes everything (autoescape), and a content security policy forbids scripts and requests even so. Long inputs
are cut where the page says so and names the file that holds the rest, so the page stays small for any number of facts.

A target token by token, as pages draw it: a colour and a line for its source, a box where the base model was surprised.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader

from mixsd import formats
from mixsd.evaluation.benchmarks import benchmark
from mixsd.reports import benchmarks, methods, pictures, rows
from mixsd.reports.graph import Picture
from mixsd.reports.rows import Measure, measure_of
from mixsd.targets import target

HIGH_NLL = target.HIGH_NLL
SOURCES = {
    "e": ("expert", "picked from the expert conditional"),
    "n": ("naive", "picked from the naive conditional"),
    "g": ("gated", "a naive position where the gate took the expert's token"),
    "r": ("reference", "copied from the reference"),
}


def shown(tokens: Sequence[Mapping[str, Any]], most: int) -> dict[str, Any]:
    """The first `most` of {text, source, base_nll: nats or None} ready for the template, and how many are `left`."""
    return {"tokens": [_shown(token) for token in tokens[:most]], "left": max(0, len(tokens) - most)}


def _shown(token: Mapping[str, Any]) -> dict[str, Any]:
    source, nll = token.get("source"), token.get("base_nll")
    return {
        "text": formats.token_text(str(token.get("text", ""))),
        "source": source if source in SOURCES else "r",
        "high": formats.known(nll) and nll > HIGH_NLL,
        "tip": f"{SOURCES[source][0] if source in SOURCES else f'source {source}'}, base NLL {formats.number(nll)}",
    }


MOST_FACTS = 500
MOST_TOKENS = 400
MOST_CHARACTERS = 600
MOST_BARS = 12
MOST_KINDS = 150
MOST_SCORES = 1000
OUTCOMES = {"correct": "✓", "wrong": "✗", "unparseable": "?", "error": "!"}
_STATUS_ORDER = {"unusable": 0, "rejected": 1, "accepted": 3}


def render(
    report: Mapping[str, Any],
    per_fact: Sequence[Mapping[str, Any]],
    examples: Sequence[Mapping[str, Any]],
    graph: Picture | None = None,
    replies: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
    fisher: Mapping[str, Any] | None = None,
) -> str:
    """Return the page as text.

    `report` is the content of `report.json`; `per_fact` has {id, question, answer, status, reason, attempt, base: {reply,
    outcome}, tuned: {reply, outcome}} per fact; `examples` has {id, question, tokens: [{text, source, base_nll}]} per target; `graph` is
    a picture of the facts; `replies` has some pairs of replies by benchmark, as `replies.chosen` gives them; `fisher` is what
    `mixsd analyze fisher` wrote of the run, if it was asked.
    """
    ordered = worst_first(per_fact)
    details = rows.detail_rows(report)
    page = _environment().get_template("report.html.j2").render(
        report=report,
        columns=rows.columns(report),
        headline=rows.headline_rows(report),
        details=rows.most_asked(details, MOST_KINDS),
        details_left=len(details) - MOST_KINDS,
        most_scores=MOST_SCORES,
        reply_format=rows.format_rows(report),
        facts=ordered[:MOST_FACTS],
        facts_left=len(ordered) - MOST_FACTS,
        examples=[_example(example) for example in examples],
        attempts=attempt_bars((report.get("targets") or {}).get("attempts") or {}),
        graph=graph,
        drawn=pictures.page(report, fisher),
        averaged=pictures.steps_per_point(report),
        method=methods.method_of(report),
        summary=methods.summary(report),
        statuses=methods.statuses(report),
        objective=methods.objective(report),
        chosen_line=methods.chosen_line(report),
        made_here=methods.made_here(report),
        settings=methods.settings_shown(report),
        warnings=benchmarks.warnings(report),
        endings=benchmarks.endings(report),
        asked=benchmarks.asked(report),
        skipped=benchmarks.skipped(report),
        replies=[(benchmark.title_of(suite), pairs) for suite, pairs in (replies or {}).items() if pairs],
    )  # fmt: skip
    # A lone surrogate (JSON can carry one) cannot be written as UTF-8.
    return page.encode("utf-8", "replace").decode("utf-8")


def graph_page(graph: Picture) -> str:
    """A picture of a graph as an SVG file."""
    svg: str = _environment().get_template("macros.html.j2").module.graph_svg(graph)  # type: ignore[attr-defined]
    return svg.strip() + "\n"


def worst_first(per_fact: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Sort the facts: unusable, rejected, accepted but not answered, answered; within each the given order stays."""

    def rank(fact: Mapping[str, Any]) -> int:
        place = _STATUS_ORDER.get(str(fact.get("status")), 0)
        answered = (fact.get("tuned") or {}).get("outcome") == "correct"
        return 2 if place == 3 and not answered else place

    return sorted(per_fact, key=rank)


def attempt_bars(attempts: Mapping[str, int]) -> list[tuple[str, int, float]]:
    """Return (label, count, percent of the longest bar) per attempt number; the tail beyond `MOST_BARS` is summed."""
    counts = sorted((int(attempt), int(count)) for attempt, count in attempts.items())
    bars = [(str(attempt), count) for attempt, count in counts[:MOST_BARS]]
    if tail := sum(count for _, count in counts[MOST_BARS:]):
        bars.append((f"{counts[MOST_BARS][0]}+", tail))
    longest = max((count for _, count in bars), default=0)
    return [(label, count, round(100 * count / longest, 1) if longest else 0.0) for label, count in bars]


def _example(example: Mapping[str, Any]) -> dict[str, Any]:
    tokens = shown(example.get("tokens") or [], MOST_TOKENS)
    return {"id": example.get("id"), "question": example.get("question"), **tokens}


def _typeset(text: str) -> str:
    return text.replace("-", "−")


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("mixsd.reports"), autoescape=True, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )

    def value(score: rows.Score | None, measure: Measure, *, signed: bool = False) -> str:
        return _typeset(formats.value_text(measure.unit, score.value if score else None, signed=signed or measure.signed))

    def interval(score: rows.Score, measure: Measure, *, signed: bool = False) -> str:
        return _typeset(formats.interval_text(measure.unit, score.low, score.high, signed=signed or measure.signed))

    environment.filters.update(
        value=value,
        interval=interval,
        number=lambda value, digits=2: _typeset(formats.number(value, digits)),
        percent=lambda value: formats.value_text("share", value),
        plain=formats.plain,
        moment=formats.moment,
        shown=lambda value, limit=MOST_CHARACTERS: formats.clipped(formats.printable(str(value or "")), limit),
        both_ends=lambda value, limit=MOST_CHARACTERS: formats.middle_clipped(formats.printable(str(value or "")), limit),
        p=formats.p_text,
        known=formats.known,
    )
    environment.tests["known"] = formats.known
    environment.globals.update(
        SOURCES=SOURCES,
        OUTCOMES=OUTCOMES,
        HIGH_NLL=HIGH_NLL,
        Score=rows.Score,
        measure_of=measure_of,
        LENIENT=measure_of("accuracy_lenient"),
    )
    return environment
