"""`table`: runs in the rows of one of the paper's tables, beside the published numbers.

The tables of the paper (arXiv 2605.16865 v1, Liu et al. 2026, CC BY 4.0) are numbers in `data/published/table-NN.tsv`, made from the
paper's text by `bench/published.py`. The text lost its formulas and lambda with them: a row says whether its lambda is known (from the
drops that Table 5 prints) or inferred. Rows of one method that differ in what else was lost are variants. A run is in a row if its base
model, corpus, method and lambda are the row's; any other run of the corpus' family stands below, as ours only. What is published has
no interval, so the question asked is whether it lies in ours: over seeds, or over the questions of the one run.
"""

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from mixsd import statistics
from mixsd.comparison.compare import cell
from mixsd.comparison.runs import Measured, read
from mixsd.errors import UserError
from mixsd.evaluation import suites
from mixsd.evaluation.scores import AVERAGE, HELD_OUT
from mixsd.formats import MISSING, Cell, Column, Row, Table
from mixsd.formats import number as written
from mixsd.methods import known_method
from mixsd.reports.rows import Key
from mixsd.settings import Settings
from mixsd.statistics import Estimate, Over
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
    **{name: (suites.IN_DOMAIN, name, "accuracy") for name in ("retrieval", "test", "unseen")},
    **{name: (name, name, "accuracy") for name in BENCHMARKS},
    "average": (HELD_OUT, AVERAGE, "accuracy"),
}
_LIMITS = {
    **dict.fromkeys(("share", "overlap"), (0.0, 100.0)),
    **dict.fromkeys(("count", "displacement", "alignment"), (0.0, math.inf)),
}
_THRESHOLDS = {7: 5.0, 8: 8.0}
_NO_PERCENT = ("count", "displacement", "alignment", "checkpoints", "r_displacement", "r_alignment")
# What recipes/ took for what the text lost of a variant.
_CHOSEN: dict[tuple[str, int | None], str] = {
    ("opsd", 2): "samples 1, temperature 0",
    ("mixsd-kl", 2): "samples 1, temperature 1",
    ("mixsd-kl", 3): "samples 8, temperature 1",
}
_SIGNS = {"match": "=", "differs": "≠", "no interval": "?", "not measured": ""}

Ours = dict[str, Estimate]  # by column; accuracies and shares in percent
_Place = tuple[str, str, str, float | None, str]  # model, facts, method, lambda, what else


@dataclass(frozen=True)
class PublishedRow:
    """One row of a table, or what would be one for runs of ours that the paper has not.

    `method` is as in `Settings`, or "base"; `inferred` says that lambda was concluded, not told. values: by column, in percent but for
    Tables 5 to 8; `digits` after the point, as printed.
    """

    model: str
    corpus: str = ""
    method: str = ""
    lam: float | None = None
    inferred: bool = False
    variant: int | None = None
    values: dict[str, float] = field(default_factory=dict)
    digits: dict[str, int] = field(default_factory=dict)


@cache
def published_table(number: int) -> tuple[PublishedRow, ...]:
    """The rows of one table of the paper, in their order."""
    if number not in TITLES:
        raise UserError(f"table {number}: the paper has tables 1 to {max(TITLES)}")
    text = files("mixsd").joinpath(f"data/published/table-{number:02}.tsv").read_text(encoding="utf-8")
    found = []
    for row in csv.DictReader(text.splitlines(), delimiter="\t"):
        numbers = {name: value for name, value in row.items() if name not in _HEAD}
        place = row["model"], row.get("corpus", ""), row.get("method", "")
        found.append(
            PublishedRow(
                *place,
                lam=float(row["lambda"]) if row.get("lambda") else None,
                inferred=row.get("lambda_known") == "inferred",
                variant=int(row["variant"]) if row.get("variant") else None,
                values={name: float(value) for name, value in numbers.items()},
                digits={name: len(value.partition(".")[2]) for name, value in numbers.items()},
            )
        )
    return tuple(found)


def table(number: int, folders: Sequence[str | Path] = ()) -> dict[str, Any]:
    """One table of the paper, and what runs of ours came to.

    Args:
        number: of the table, 1 to 12.
        folders: finished run folders; for Tables 5 to 9 with what `mixsd analyze nll` or `fisher` wrote into each.

    Returns JSON values: `number`, `title`, `columns`, and `rows`, each with its place, `settings` (what else a run of ours had),
    `published` (None for a row that is ours only), `ours` and `verdict` by column, in the table's unit, and `runs`.
    Raises `UserError`: there is no such table, a folder is no finished run, a run is about other facts than the table, or was not
    analyzed.
    """
    rows = published_table(number)
    digits = {name: max(row.digits[name] for row in rows) for name in rows[0].values}
    found: dict[_Place, list[Measured]] = {}
    for folder in folders:
        run = read(Path(folder))
        _check(run, rows, number)
        found.setdefault(_place(run), []).append(run)
    told = _correlated(rows, found) if number == 6 else _told_rows(number, rows, list(digits), found)
    return {"number": number, "title": TITLES[number], "columns": list(digits), "digits": digits, "rows": told}


def _told_rows(
    number: int, rows: Sequence[PublishedRow], columns: Sequence[str], found: dict[_Place, list[Measured]]
) -> list[dict[str, Any]]:
    """The published rows, each with its runs; then what of ours is in none of them."""
    bases: dict[tuple[str, str], list[Measured]] = {}
    for (model, facts, *_), runs in found.items() if number in ACCURACY_TABLES else ():
        bases.setdefault((model, facts), runs[:1])
    told = []
    for row in rows:
        if row.method == "base":
            told.append(_told_base(row, columns, bases.pop((row.model, row.corpus), [])))
        else:
            own = found.pop((row.model, row.corpus, row.method, row.lam, _CHOSEN.get((row.method, row.variant), "")), [])
            told.append(_told_tuned(row, number, columns, own))
    told += [_told_base(PublishedRow(*place, "base"), columns, base) for place, base in bases.items()]
    for (model, facts, method, lam, more), runs in found.items():
        told.append({**_told_tuned(PublishedRow(model, facts, method, lam), number, columns, runs), "settings": more})
    return told


def _told_base(row: PublishedRow, columns: Sequence[str], runs: Sequence[Measured]) -> dict[str, Any]:
    return {**_told(row, _scored(columns, runs, "base"), runs), "seeds": []}


def _told_tuned(row: PublishedRow, number: int, columns: Sequence[str], runs: Sequence[Measured]) -> dict[str, Any]:
    if number in ACCURACY_TABLES:
        return _told(row, _scored(columns, runs, "tuned"), runs)
    return _told(row, _together([_analyzed(number, run.folder, str(run.settings["method"])) for run in runs]), runs)


def _correlated(rows: Sequence[PublishedRow], found: Mapping[_Place, Sequence[Measured]]) -> list[dict[str, Any]]:
    """Table 6: over all runs of a model."""
    by_model = {row.model: (row, list[Measured]()) for row in rows}
    for (model, *_), runs in found.items():
        by_model.setdefault(model, (PublishedRow(model), []))[1].extend(runs)
    return [_told(row, _correlation([run.folder for run in runs]) if runs else {}, runs) for row, runs in by_model.values()]


def _scored(columns: Iterable[str], runs: Sequence[Measured], model: str) -> Ours:
    """The accuracies that every run of a row has, in percent: one run's over its questions, else means over seeds."""
    found: Ours = {}
    for name in columns:
        scores = [score for run in runs if (score := run.scores.get((*_SCORES[name], model, None)))]
        if scores and len(scores) == len(runs):
            mean = statistics.seeds_interval([score.value for score in scores if score.value is not None]).within(0.0, 1.0)
            found[name] = _percent(cell(mean), "seeds") if len(scores) > 1 else _percent(cell(scores[0]), "questions")
    return found


def _analysis(folder: Path, name: str) -> dict[str, Any]:
    """What an analysis wrote into a run; a `UserError` where it was not asked of this run."""
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
        return _displacement(_analysis(folder, "fisher"), folder)
    file = folder / "analysis" / "nll.json"
    rows = ((_analysis(folder, "nll").get("blocks") or {}).get("all") or {}).get("rows") or []
    # The references are the first row; a run that trains on them has no other.
    only = rows[:1] if known_method(method).trains_on == "references" else [row for row in rows if row.get("overlap")]
    if not only:
        raise UserError(f"{file}: holds no targets of a {method} run; `mixsd analyze nll {folder}` writes it anew")
    own = only[0]
    if number == 9:
        return {"overlap": _percent(own["overlap"]["mean"])} if own["overlap"] else {}
    level = next((item for item in own["above"] if item["threshold"] == _THRESHOLDS[number]), None)
    if level is None:
        raise UserError(f"{file}: has no threshold {_THRESHOLDS[number]:g}; `mixsd analyze nll {folder}` without --threshold has")
    return {"count": Estimate(level["count"], n=own["tokens"], over="tokens"), "share": _percent(level["share"])}


def _displacement(found: Mapping[str, Any], folder: Path) -> Ours:
    """The raw displacement (its norm, Eq. 9), the alignment ratio, and the drop in points."""
    final = [row for row in found.get("checkpoints") or [] if row.get("final")]
    if not final:
        raise UserError(f"{folder}/analysis/fisher.json: holds no final model; `mixsd analyze fisher {folder}` measures it")
    row = final[-1]
    names = [name for name in ("displacement", "alignment") if row[name] is not None]
    ours = {name: Estimate(row[name], n=row["count"], over="weights") for name in names}
    return ours | ({"drop": _percent(row["drop"], "questions")} if row["drop"] and row["drop"]["value"] is not None else {})


def _percent(share: Mapping[str, Any], over: Over = "facts") -> Estimate:
    value, low, high = (None if share[name] is None else 100 * share[name] for name in ("value", "low", "high"))
    return Estimate(value, low, high, share["n"], over=over)


def _together(found: Sequence[Ours]) -> Ours:
    """The numbers of a row: those of its one run, or means over its seeds of what all have."""
    if len(found) < 2:
        return dict(found[0]) if found else {}
    together = {}
    for name in found[0]:
        values = [value for own in found if name in own and (value := own[name].value) is not None]
        if len(values) == len(found):
            together[name] = statistics.seeds_interval(values).within(*_LIMITS.get(name, (-math.inf, math.inf)))
    return together


def _correlation(folders: Sequence[Path]) -> Ours:
    """Table 6 for one model: over all checkpoints of its runs, r of raw displacement and of alignment with forgetting."""
    rows = [
        row for folder in folders for row in _analysis(folder, "fisher").get("checkpoints") or [] if row["alignment"] is not None
    ]
    known = [row for row in rows if row["forgetting"] and row["forgetting"]["value"] is not None]
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
    spec = known_method(str(settings["method"]))
    more = {name: settings[name] for name in ("gate", "rehearse", "lora") if settings[name]}
    drawn = {name: settings[name] for name in ("samples", "temperature")}
    if spec.has_teacher and drawn != {name: spec.settings.get(name, Settings.model_fields[name].default) for name in drawn}:
        more |= drawn
    facts = "mquake" if str(settings["facts"]).startswith("mquake") else str(settings["facts"])
    return (
        str(settings["model"]),
        facts.removesuffix(":"),
        str(settings["method"]),
        float(settings["lam"]) if spec.mixes else None,
        ", ".join(f"{name} {value:g}" for name, value in more.items()),
    )


def _told(row: PublishedRow, ours: Ours, runs: Sequence[Measured]) -> dict[str, Any]:
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
        "seeds": [run.seed for run in runs],
    }


def _verdict(row: PublishedRow, column: str, ours: Estimate | None) -> str:
    """Whether the published number lies in our interval, as far as both are known and rounded."""
    if ours is None:
        return "not measured"
    if ours.low is None or ours.high is None:
        return "no interval"
    half = 0.5 * 10.0 ** -row.digits[column]
    return "match" if ours.low - half <= row.values[column] <= ours.high + half else "differs"


def drawn(found: Mapping[str, Any]) -> Table:
    """What `table` found, as a table; each cell "published | ours" and whether the published number lies in our interval."""
    columns = found["columns"]
    shares = [name for name in columns if name not in _NO_PERCENT]
    unit = ", in percent" if shares == columns else f", {' and '.join(shares)} in percent" if shares else ""
    several = len({row["corpus"] for row in found["rows"]}) > 1
    heads = [Column("model"), Column("method, lambda"), Column("seeds", page_only=True)]
    heads += [Column(name, numeric=True) for name in columns]
    rows = []
    for row in found["rows"]:
        seeds = ", ".join(map(str, row["seeds"])) or (MISSING if row["runs"] else "not run")
        on = f" on {row['corpus']}" if row["corpus"] and (several or not row["published"]) else ""
        rows.append(Row([row["model"] + on, _method(row), seeds, *(_drawn(found, row, name) for name in columns)]))
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
