"""`compare.html`: a comparison as one self-contained page, with the targets of its runs token by token.

The template escapes everything. One script of ours, which a content security policy admits by its hash and nothing else, searches the
facts; without it they can all be opened and read.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader

from mixsd.reporting import comparison, formats, pictures, token_view
from mixsd.reporting.html import OUTCOMES

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
        columns=comparison.columns(result),
        rows=comparison.grid(result),
        pairs=comparison.paired(result),
        picture=pictures.elements(pareto(result), pareto(result, narrow=True)),
        drawn=_drawn(found),
        modes=pictures.modes_of(errors),
        errors=errors,
        facts=[_fact(fact) for fact in found.get("facts") or []],
        facts_left=found.get("facts_left") or 0,
        fact_notes=found.get("notes") or [],
        level=comparison.level_text(result),
        taken=comparison.TAKEN,
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )  # fmt: skip
    return page.encode("utf-8", "replace").decode("utf-8")


def _drawn(material: Row) -> dict[str, Any]:
    """Every picture beside the Pareto front, None where there is nothing to draw."""
    from mixsd.figures.cdf import nll_cdf
    from mixsd.figures.curves import curves
    from mixsd.figures.errors import error_bars

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
    return {**fact, "told": [{**item, "target": token_view.shown(item["tokens"], MOST_TOKENS)} for item in told]}


@cache
def _script() -> str:
    source, _, _ = PackageLoader("mixsd.reporting").get_source(Environment(autoescape=True), "search.js")
    return source


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("mixsd.reporting"), autoescape=True, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
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
        SOURCES=token_view.SOURCES, HIGH_NLL=token_view.HIGH_NLL, OUTCOMES=OUTCOMES, MOST_CHARACTERS=MOST_CHARACTERS
    )
    return environment
