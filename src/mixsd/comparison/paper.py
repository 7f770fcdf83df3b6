"""`table`: runs in the rows of one of the paper's tables, beside the published numbers.

The tables of the paper (arXiv 2605.16865 v1, Liu et al. 2026, CC BY 4.0) are numbers in `data/published/table-NN.tsv`, made from the
paper's text by `bench/published.py`. The text lost its formulas and lambda with them: a row says whether its lambda is known (from the
drops that Table 5 prints) or inferred. Rows of one method that differ in what was lost, such as the number of rollouts, are variants.

A run is in a row if its base model, corpus, method and lambda are the row's (and it has no gate and no rehearsal, which the paper has
not); any other run of the corpus' family stands below, as ours only. What is published has no interval, so the question asked is
whether it lies in ours: over seeds where there are several, else over the questions of the one run.

Tables 5 to 9 read what `mixsd analyze nll` and `mixsd analyze fisher` wrote into each run, so what is told of a run does not depend on
which others were named. Table 6 is a correlation over checkpoints, so it takes all runs of a model together.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from mixsd import statistics
from mixsd.comparison.measures import Key, cell
from mixsd.comparison.runs import Measured, read
from mixsd.errors import UserError
from mixsd.evaluation import suites
from mixsd.evaluation.scores import AVERAGE, HELD_OUT
from mixsd.evaluation.suites import IN_DOMAIN
from mixsd.formats import MISSING, Cell, Column, Row, Table
from mixsd.formats import number as written
from mixsd.methods import known_method
from mixsd.reports.schema import Score
from mixsd.statistics import Estimate
from mixsd.storage import read_json

TITLES = {
    1: "KGFact-Small",
    2: "KGFunc",
    3: "KGFact-Large",
    4: "SimpleQA",
    5: "Parameter displacement and Fisher alignment",
    6: "Correlation of displacement and of alignment with forgetting",
    7: "Tokens with an NLL above 5",
    8: "Tokens with an NLL above 8",
    9: "High-NLL tokens of the references that mixed targets keep",
    10: "KGFact-Small, Llama",
    11: "MQuAKE",
    12: "Divergences in place of NLL, KGFact-Small",
}
BENCHMARKS = ("aime24", "math500", "gsm8k", "humaneval", "mmlu")
ACCURACY_TABLES = (1, 2, 3, 4, 10, 11, 12)
_HEAD = ("corpus", "model", "method", "lambda", "lambda_known", "variant")
_SCORES: dict[str, Key] = {
    "train": (suites.CORE, suites.TRAINED, "accuracy"),
    "retrieval": (IN_DOMAIN, "retrieval", "accuracy"),
    "test": (IN_DOMAIN, "test", "accuracy"),
    "unseen": (IN_DOMAIN, "unseen", "accuracy"),
    **{name: (name, name, "accuracy") for name in BENCHMARKS},
    "average": (HELD_OUT, AVERAGE, "accuracy"),
}
_LIMITS = {
    **dict.fromkeys(("share", "overlap"), (0.0, 100.0)),
    **dict.fromkeys(("count", "displacement", "alignment"), (0.0, math.inf)),
}
_THRESHOLDS = {7: 5.0, 8: 8.0}
_NO_PERCENT = ("count", "displacement", "alignment", "checkpoints", "r_displacement", "r_alignment")
_SIGNS = {"match": "=", "differs": "≠", "no interval": "?", "not measured": ""}

Ours = dict[str, Estimate]  # by column; accuracies and shares in percent
_Place = tuple[str, str, str, float | None, str]  # model, facts, method, lambda, what else


@dataclass(frozen=True)
class PublishedRow:
    """One row of a table.

    model: a name on the hub. method: as in `Settings.method`, or "base". lam: None where there is none; `inferred` says that it was
    concluded, not told. variant: 2, 3, ... (of MixSD-KL from 1) where a method stands several times. values: by column, in percent but for
    Tables 5 to 8; `digits` after the point, as printed.
    """

    corpus: str
    model: str
    method: str
    lam: float | None
    inferred: bool
    variant: int | None
    values: dict[str, float]
    digits: dict[str, int]


@cache
def published_table(number: int) -> tuple[PublishedRow, ...]:
    """The rows of one table of the paper, in their order.

    Raises:
        UserError: there is no such table.
    """
    if number not in TITLES:
        raise UserError(f"table {number}: the paper has tables 1 to {max(TITLES)}")
    text = files("mixsd").joinpath(f"data/published/table-{number:02}.tsv").read_text(encoding="utf-8")
    return tuple(_row(values) for values in csv.DictReader(text.splitlines(), delimiter="\t"))


def _row(values: dict[str, str]) -> PublishedRow:
    numbers = {name: text for name, text in values.items() if name not in _HEAD}
    return PublishedRow(
        corpus=values.get("corpus", ""),
        model=values["model"],
        method=values.get("method", ""),
        lam=float(values["lambda"]) if values.get("lambda") else None,
        inferred=values.get("lambda_known") == "inferred",
        variant=int(values["variant"]) if values.get("variant") else None,
        values={name: float(text) for name, text in numbers.items()},
        digits={name: len(text.partition(".")[2]) for name, text in numbers.items()},
    )


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
    rows = published_table(number)
    columns = list(rows[0].values)
    found: dict[_Place, list[Measured]] = {}
    for folder in folders:
        run = read(Path(folder))
        _check(run, rows, number)
        found.setdefault(_place(run), []).append(run)
    if number == 6:  # over all runs of a model
        return _result(number, rows, _correlations(rows, found))
    bases: dict[tuple[str, str], Measured] = {}
    for (model, facts, *_), runs in found.items() if number in ACCURACY_TABLES else ():
        bases.setdefault((model, facts), runs[0])
    told = []
    for row in rows:
        if row.method == "base":
            base = bases.pop((row.model, row.corpus), None)
            own = [base] if base else []
            told.append(_told(row, _scored(columns, own, "base"), own, "base"))
            continue
        own = found.pop((row.model, row.corpus, row.method, row.lam, _variant(row)), [])
        told.append(_told(row, _numbers(number, columns, own), own))
    for (model, facts), base in bases.items():
        told.append(
            _told(PublishedRow(facts, model, "base", None, False, None, {}, {}), _scored(columns, [base], "base"), [base], "base")
        )
    for (model, facts, method, lam, settings), runs in found.items():
        row = PublishedRow(facts, model, method, lam, False, None, {}, {})
        told.append({**_told(row, _numbers(number, columns, runs), runs), "settings": settings})
    return _result(number, rows, told)


def _result(number: int, rows: Sequence[PublishedRow], told: list[dict[str, Any]]) -> dict[str, Any]:
    digits = {name: max(row.digits[name] for row in rows) for name in rows[0].values}
    return {"number": number, "title": TITLES[number], "columns": list(digits), "digits": digits, "rows": told}


def _correlations(rows: Sequence[PublishedRow], found: Mapping[_Place, Sequence[Measured]]) -> list[dict[str, Any]]:
    by_model: dict[str, list[Measured]] = {row.model: [] for row in rows}
    for (model, *_), runs in found.items():
        by_model.setdefault(model, []).extend(runs)
    published_rows = {row.model: row for row in rows}
    told = []
    for model, runs in by_model.items():
        row = published_rows.get(model, PublishedRow("", model, "", None, False, None, {}, {}))
        told.append(_told(row, _correlation([run.folder for run in runs]) if runs else {}, runs))
    return told


def _numbers(number: int, columns: Sequence[str], runs: Sequence[Measured]) -> Ours:
    if number in ACCURACY_TABLES:
        return _scored(columns, runs, "tuned")
    return _together([_analyzed(number, run.folder, str(run.settings["method"])) for run in runs])


def _scored(columns: Iterable[str], runs: Sequence[Measured], model: str) -> Ours:
    """The accuracies of a row, in percent."""
    found = {name: _accuracy([run.scores.get((*_SCORES[name], model, None)) for run in runs]) for name in columns}
    return {name: estimate for name, estimate in found.items() if estimate}


def _accuracy(scores: Sequence[Score | None]) -> Estimate | None:
    """A number of ours in percent: the mean over seeds with Student's interval, or that of one run over its questions."""
    found = [score for score in scores if score is not None]
    if not found or len(found) < len(scores):
        return None
    made: Score | Estimate = found[0]
    if len(found) > 1:
        made = statistics.seeds_interval([score.value for score in found if score.value is not None]).within(0.0, 1.0)
    return replace(_percent(cell(made)), over="questions" if len(found) == 1 else "seeds")


def analysis(folder: Path, name: str) -> dict[str, Any]:
    """What an analysis wrote into a run.

    Raises:
        UserError: it was not asked of this run.
    """
    file = folder / "analysis" / f"{name}.json"
    if not file.is_file():
        raise UserError(f"{file}: is not there; `mixsd analyze {name} {folder}` writes it")
    found = read_json(file)
    if not isinstance(found, dict):
        raise UserError(f"{file}: is no result of `mixsd analyze {name}`; run that again")
    return found


def _analyzed(number: int, folder: Path, method: str) -> Ours:
    """What one run has for the columns of Table 5, 7, 8 or 9."""
    if number == 5:
        return _displacement(analysis(folder, "fisher"), folder)
    rows = ((analysis(folder, "nll").get("blocks") or {}).get("all") or {}).get("rows") or []
    # The references are the first row; a run that trains on them has no other.
    only = known_method(method).trains_on == "references"
    own = rows[0] if only and rows else next((row for row in rows if row.get("overlap")), None)
    if own is None:
        raise UserError(
            f"{folder}/analysis/nll.json: holds no targets of a {method} run; `mixsd analyze nll {folder}` writes it anew"
        )
    if number == 9:
        return {"overlap": _percent(own["overlap"]["mean"])} if own["overlap"] else {}
    level = next((item for item in own["above"] if item["threshold"] == _THRESHOLDS[number]), None)
    if level is None:
        raise UserError(
            f"{folder}/analysis/nll.json: has no threshold {_THRESHOLDS[number]:g}; `mixsd analyze nll {folder}` without --threshold has it"
        )
    return {"count": Estimate(level["count"], n=own["tokens"], over="tokens"), "share": _percent(level["share"])}


def _displacement(found: Mapping[str, Any], folder: Path) -> Ours:
    """The raw displacement (its norm, Eq. 9), the alignment ratio, and the drop in points."""
    final = [row for row in found.get("checkpoints") or [] if row.get("final")]
    if not final:
        raise UserError(f"{folder}/analysis/fisher.json: holds no final model; `mixsd analyze fisher {folder}` measures it")
    row = final[-1]
    names = [name for name in ("displacement", "alignment") if row.get(name) is not None]
    ours = {name: Estimate(row[name], n=row["count"], over="weights") for name in names}
    if (row.get("drop") or {}).get("value") is not None:
        ours["drop"] = replace(_percent(row["drop"]), over="questions")
    return ours


def _percent(share: Mapping[str, Any]) -> Estimate:
    """A share of an analysis, of which the interval is over facts, in percent."""
    value, low, high = (None if share[name] is None else 100 * share[name] for name in ("value", "low", "high"))
    return Estimate(value, low, high, share["n"], over="facts")


def _together(found: Sequence[Ours]) -> Ours:
    """The numbers of a row: those of its one run, or means over its seeds."""
    if len(found) < 2:
        return dict(found[0]) if found else {}
    together = {}
    for name in found[0]:
        values = [own[name].value for own in found if name in own]
        known = [value for value in values if value is not None]
        if len(known) == len(found):
            together[name] = statistics.seeds_interval(known).within(*_LIMITS.get(name, (-math.inf, math.inf)))
    return together


def _correlation(folders: Sequence[Path]) -> Ours:
    """Table 6 for one model: over all checkpoints of its runs, r of raw displacement and of alignment with forgetting."""
    rows = [row for folder in folders for row in analysis(folder, "fisher").get("checkpoints") or []]
    known = [row for row in rows if (row.get("forgetting") or {}).get("value") is not None and row.get("alignment") is not None]
    ours = {"checkpoints": Estimate(len(known), n=len(known), over="checkpoints")}
    for name, metric in (("r_displacement", "displacement"), ("r_alignment", "alignment")) if len(known) > 1 else ():
        points = ([row[metric] for row in known], [row["forgetting"]["value"] for row in known])
        ours[name] = replace(statistics.pearson(*points, [row["source"] for row in known]), over="checkpoints")
    return ours


def _check(run: Measured, rows: Sequence[PublishedRow], number: int) -> None:
    if run.evaluated:
        raise UserError(f"{run.folder}: only evaluates a model; how that model was made is not known, so it is in no row")
    facts, corpora = str(run.settings["facts"]), list(dict.fromkeys(row.corpus for row in rows if row.corpus))
    if corpora and facts.partition(":")[0] not in {corpus.partition(":")[0] for corpus in corpora}:
        raise UserError(f"{run.folder}: was made on {facts}, table {number} is about {', '.join(corpora)}")


def _place(run: Measured) -> _Place:
    settings = run.settings
    method = str(settings["method"])
    spec = known_method(method)
    lam = float(settings["lam"]) if spec.mixes else None
    more = {name: settings[name] for name in ("gate", "rehearse", "lora") if settings[name]}
    if spec.has_teacher:
        default = spec.settings.get("samples", 1), spec.settings.get("temperature", 0.0)
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


def _variant(row: PublishedRow) -> str:
    """What a run of a row has of its own, as `_place` says it: what recipes/ took for what the text lost."""
    chosen = {
        ("opsd", 2): "samples 1, temperature 0",
        ("mixsd-kl", 2): "samples 1, temperature 1",
        ("mixsd-kl", 3): "samples 8, temperature 1",
    }
    return chosen.get((row.method, row.variant or 0), "")


def _told(row: PublishedRow, ours: Ours, runs: Sequence[Measured], model: str = "tuned") -> dict[str, Any]:
    return {
        "model": row.model,
        "corpus": row.corpus,
        "method": row.method,
        "lambda": row.lam,
        "inferred": row.inferred,
        "variant": row.variant,
        "settings": "",
        "published": row.values or None,
        "ours": {name: cell(estimate, estimate.over) for name, estimate in ours.items()},
        "verdict": {name: _verdict(row, name, ours.get(name)) for name in row.values},
        "runs": [str(run.folder) for run in runs],
        "seeds": [run.seed for run in runs] if model == "tuned" else [],
    }


def _verdict(row: PublishedRow, column: str, ours: Estimate | None) -> str:
    if ours is None:
        return "not measured"
    if ours.low is None or ours.high is None:
        return "no interval"
    half = 0.5 * 10.0 ** -row.digits[column]  # what rounding may have taken
    return "match" if ours.low - half <= row.values[column] <= ours.high + half else "differs"


def drawn(found: Mapping[str, Any]) -> Table:
    """What `table` found, as a table; each cell "published | ours" and whether the published number lies in our interval."""
    shares = [name for name in found["columns"] if name not in _NO_PERCENT]
    unit = (
        "" if not shares else ", in percent" if len(shares) == len(found["columns"]) else f", {' and '.join(shares)} in percent"
    )
    several = len({row["corpus"] for row in found["rows"]}) > 1
    heads = [Column("model"), Column("method, lambda"), Column("seeds", page_only=True)]
    rows = []
    for row in found["rows"]:
        seeds = ", ".join(map(str, row["seeds"])) or (MISSING if row["runs"] else "not run")
        on = f" on {row['corpus']}" if row["corpus"] and (several or not row["published"]) else ""
        rows.append(Row([row["model"] + on, _method(row), seeds, *(_drawn(found, row, name) for name in found["columns"])]))
    heads += [Column(name, numeric=True) for name in found["columns"]]
    caption = "published | ours: = the published number lies in our 95% interval, ≠ it does not, ? no interval"
    return Table(heads, rows, f"Table {found['number']}: {found['title']}{unit}", caption)


def markdown(found: Mapping[str, Any]) -> str:
    """What `table` found, as a Markdown page."""
    made = drawn(found)
    return f"# {made.title}\n\n{made.caption[0].upper()}{made.caption[1:]}.\n\n{made.markdown()}\n"


def _method(row: Mapping[str, Any]) -> str:
    lam = None if row["lambda"] is None else f"{row['lambda']:g}" + (" (inferred)" if row["inferred"] else "")
    variant = f"variant {row['variant']}" if row["variant"] else None
    return ", ".join(filter(None, (row["method"], lam, variant, row["settings"])))


def _drawn(found: Mapping[str, Any], row: Mapping[str, Any], column: str) -> Cell:
    ours, digits = row["ours"].get(column), found["digits"][column]
    text = written((row["published"] or {}).get(column), digits)
    if ours is None:
        return Cell(text)
    sign = _SIGNS[row["verdict"].get(column, "not measured")]
    interval = "" if ours["low"] is None else f"{written(ours['low'], digits)} to {written(ours['high'], digits)}"
    return Cell(f"{text} | {written(ours['value'], digits)} {sign}".rstrip(), interval, f"{ours['n']:,} {ours['over']}")
