"""`table`: runs in the rows of one of the paper's tables, beside the published numbers.

A run is in a row if its base model, corpus, method and lambda are the row's (and it has no gate and no rehearsal, which the paper has
not); any other run of the corpus' family stands below, as ours only. What is published has no interval, so the question asked is
whether it lies in ours: over seeds where there are several, else over the questions of the one run.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mixsd import published
from mixsd.errors import UserError
from mixsd.evaluation import core
from mixsd.evaluation.scores import AVERAGE, HELD_OUT
from mixsd.evaluation.suites import IN_DOMAIN
from mixsd.pipeline import analysis_tables
from mixsd.pipeline.comparable import Measured, read
from mixsd.pipeline.compared import Key, cell, over_seeds
from mixsd.published import BENCHMARKS, Row

TABLES = (1, 2, 3, 4, 10, 11, 12)  # those of accuracies; the others are of analyses
_SCORES: dict[str, Key] = {
    "train": (core.SUITE, core.TRAINED, "accuracy"),
    "retrieval": (IN_DOMAIN, "retrieval", "accuracy"),
    "test": (IN_DOMAIN, "test", "accuracy"),
    "unseen": (IN_DOMAIN, "unseen", "accuracy"),
    **{name: (name, name, "accuracy") for name in BENCHMARKS},
    "average": (HELD_OUT, AVERAGE, "accuracy"),
}
_Place = tuple[str, str, str, float | None, str]  # model, facts, method, lambda, what else


def table(number: int, folders: Sequence[str | Path] = ()) -> dict[str, Any]:
    """One table of the paper, and what runs of ours came to.

    Args:
        number: of the table, 1 to 12.
        folders: finished run folders; for Tables 5 to 9 with what `mixsd analyze nll` or `fisher` wrote into each.

    Returns:
        JSON values: `number`, `title`, `columns`, and `rows`, each with `model`, `corpus`, `method`, `lambda`, `variant`, `settings`
        (what else a run of ours had), `published` by column (percent, or None for a row that is ours only), `ours` by column (`value`,
        `low`, `high` in the table's unit, `n`, `over`), `verdict` by column ("match": the published number lies in our interval, "differs", "no
        interval", "not measured") and `runs`.

    Raises:
        UserError: there is no such table, a folder is no finished run, a run is about other facts than the table, or was not analyzed.
    """
    rows = published.table(number)
    columns = list(rows[0].values)
    found: dict[_Place, list[Measured]] = {}
    for folder in folders:
        run = read(Path(folder))
        _check(run, rows, number)
        found.setdefault(_place(run), []).append(run)
    if number == 6:  # over all runs of a model
        return _result(number, rows, _correlations(rows, found))
    bases: dict[tuple[str, str], Measured] = {}
    for (model, facts, *_), runs in found.items() if number in TABLES else ():
        bases.setdefault((model, facts), runs[0])
    told = []
    for row in rows:
        if row.method == "base":
            base = bases.pop((row.model, row.corpus), None)
            told.append(_told(row, _scored(columns, [base] if base else [], "base"), [base] if base else [], "base"))
            continue
        own = found.pop((row.model, row.corpus, row.method, row.lam, _variant(row)), [])
        told.append(_told(row, _numbers(number, columns, own), own))
    for (model, facts), base in bases.items():
        told.append(_told(Row(facts, model, "base", None, False, None, {}, {}), _scored(columns, [base], "base"), [base], "base"))
    for (model, facts, method, lam, settings), runs in found.items():
        row = Row(facts, model, method, lam, False, None, {}, {})
        told.append({**_told(row, _numbers(number, columns, runs), runs), "settings": settings})
    return _result(number, rows, told)


def _result(number: int, rows: Sequence[Row], told: list[dict[str, Any]]) -> dict[str, Any]:
    digits = {name: max(row.digits[name] for row in rows) for name in rows[0].values}
    return {"number": number, "title": published.TITLES[number], "columns": list(digits), "digits": digits, "rows": told}


def _correlations(rows: Sequence[Row], found: Mapping[_Place, Sequence[Measured]]) -> list[dict[str, Any]]:
    by_model: dict[str, list[Measured]] = {row.model: [] for row in rows}
    for (model, *_), runs in found.items():
        by_model.setdefault(model, []).extend(runs)
    published_rows = {row.model: row for row in rows}
    return [
        _told(
            published_rows.get(model, Row("", model, "", None, False, None, {}, {})),
            analysis_tables.correlation([run.folder for run in runs]) if runs else {},
            runs,
        )
        for model, runs in by_model.items()
    ]


def _numbers(number: int, columns: Sequence[str], runs: Sequence[Measured]) -> dict[str, dict[str, Any]]:
    if number in TABLES:
        return _scored(columns, runs, "tuned")
    return analysis_tables.together(
        number, [analysis_tables.numbers(number, run.folder, str(run.settings["method"])) for run in runs]
    )


def _check(run: Measured, rows: Sequence[Row], number: int) -> None:
    if run.evaluated:
        raise UserError(f"{run.folder}: only evaluates a model; how that model was made is not known, so it is in no row")
    facts, corpora = str(run.settings["facts"]), list(dict.fromkeys(row.corpus for row in rows if row.corpus))
    if corpora and facts.partition(":")[0] not in {corpus.partition(":")[0] for corpus in corpora}:
        raise UserError(f"{run.folder}: was made on {facts}, table {number} is about {', '.join(corpora)}")


def _place(run: Measured) -> _Place:
    settings = run.settings
    method = str(settings["method"])
    lam = float(settings["lam"]) if method in ("mixsd", "mixsd-kl") else None
    more = {name: settings[name] for name in ("gate", "rehearse", "lora") if settings[name]}
    if method != "mixsd" and method in ("opsd", "opsd-nll", "mixsd-kl"):
        default = {"opsd": (8, 1.0)}.get(method, (1, 0.0))
        if (settings["samples"], settings["temperature"]) != default:
            more |= {"samples": settings["samples"], "temperature": settings["temperature"]}
    facts = "mquake" if str(settings["facts"]).startswith("mquake") else str(settings["facts"])
    return (
        str(settings["model"]),
        facts.removesuffix(":"),
        method,
        lam,
        ", ".join(f"{name} {value:g}" for name, value in more.items()),
    )


def _variant(row: Row) -> str:
    """What a run of a row has of its own, as `_place` says it: what recipes/ took for what the text lost."""
    chosen = {
        ("opsd", 2): "samples 1, temperature 0",
        ("mixsd-kl", 2): "samples 1, temperature 1",
        ("mixsd-kl", 3): "samples 8, temperature 1",
    }
    return chosen.get((row.method, row.variant or 0), "")


def _scored(columns: Iterable[str], runs: Sequence[Measured], model: str) -> dict[str, dict[str, Any]]:
    """The accuracies of a row, in percent."""
    return {
        name: number for name in columns if (number := _ours([run.scores.get((*_SCORES[name], model, None)) for run in runs]))
    }


def _told(row: Row, ours: Mapping[str, Mapping[str, Any]], runs: Sequence[Measured], model: str = "tuned") -> dict[str, Any]:
    return {
        "model": row.model,
        "corpus": row.corpus,
        "method": row.method,
        "lambda": row.lam,
        "inferred": row.inferred,
        "variant": row.variant,
        "settings": "",
        "published": row.values or None,
        "ours": dict(ours),
        "verdict": {name: _verdict(row, name, ours.get(name)) for name in row.values},
        "runs": [str(run.folder) for run in runs],
        "seeds": [run.seed for run in runs] if model == "tuned" else [],
    }


def _ours(scores: Sequence[Mapping[str, Any] | None]) -> dict[str, Any] | None:
    """A number of ours in percent: the mean over seeds with Student's interval, or that of one run over its questions."""
    known = [dict(score) for score in scores if score is not None]
    if not known or len(known) < len(scores):
        return None
    found = cell(known[0], "questions") if len(known) == 1 else over_seeds([score["value"] for score in known], (0.0, 1.0))
    return {
        name: 100 * value if name in ("value", "low", "high") and value is not None else value for name, value in found.items()
    }


def _verdict(row: Row, column: str, ours: Mapping[str, Any] | None) -> str:
    if ours is None:
        return "not measured"
    if ours["low"] is None or ours["high"] is None:
        return "no interval"
    half = 0.5 * 10.0 ** -row.digits[column]  # what rounding may have taken
    return "match" if ours["low"] - half <= row.values[column] <= ours["high"] + half else "differs"
