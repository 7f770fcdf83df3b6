"""`mixsd analyze fisher`: how far each checkpoint went from the base, along which directions, and whether that explains forgetting.

For every checkpoint the numbers of Eq. 9 to 11, in a table as the paper's Table 5, with our forgetting (Eq. 2) beside its Drop; and over
all checkpoints that have a forgetting, Pearson's r of each number with it (Table 6). The checkpoints of one run are steps of one path
and not independent: the interval resamples whole runs, and below five runs there is none.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mixsd import statistics
from mixsd.analyse import displacement, numbers_cell, output_folder, source_paths
from mixsd.analyse.base_fisher import EXAMPLES, base_fisher
from mixsd.comparison.compare import labels_of
from mixsd.comparison.runs import read as read_finished
from mixsd.errors import UserError
from mixsd.evaluation import suites
from mixsd.evaluation.scores import AVERAGE, HELD_OUT, score_row
from mixsd.formats import MISSING, Column, Row, Table, printable, value_text
from mixsd.formats import markdown as escaped
from mixsd.models.loading import provenance
from mixsd.progress import Watcher
from mixsd.reports.schema import Score, read_report
from mixsd.run.folder import Run
from mixsd.statistics import Estimate
from mixsd.storage import write_json, write_text
from mixsd.training.choosing import read_scores

# What is correlated with forgetting, and with the Drop where there is one.
METRICS = ("displacement", "alignment", "fisher_weighted")
_FORGETTING = (suites.CORE, suites.FORGETTING, "forgetting")
_DROP = (HELD_OUT, AVERAGE, "drop", "tuned", None)
_COLUMNS = {"displacement_squared": "‖Δ‖²", "displacement": "‖Δ‖", "fisher_weighted": "Σ F Δ²", "alignment": "alignment"}
_NAMES = {"displacement": "raw displacement", "alignment": "alignment ratio", "fisher_weighted": "Fisher-weighted displacement"}
_AGAINST = {"forgetting": "forgetting (Eq. 2)", "drop": "drop over the held-out benchmarks"}


def analyze_fisher(
    sources: Sequence[str | Path],
    *,
    model: str | None = None,
    reference: str | None = None,
    examples: int = EXAMPLES,
    data: str | None = None,
    output: str | Path | None = None,
    watcher: Watcher | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Measure displacement and Fisher alignment of runs' checkpoints or of model folders, and correlate them with forgetting.

    Args:
        sources: run folders, or folders of tuned models; then `model` names their base.
        model: the base model; by default the runs' own.
        reference, examples, data, options: what the Fisher is estimated on, and how; see `base_fisher`.
        output: the folder for the results; by default `analysis` in the run folder where there is exactly one source.

    Returns JSON values: `fisher` (what it was estimated on), `checkpoints` (one entry for each, in order), `table`,
    `correlations`, `scores`, `notes` and `files`.
    """
    from mixsd.figures import charts, style
    from mixsd.reports import pictures

    watcher = watcher or Watcher()
    folders = source_paths(sources, "fisher")
    runs = {folder: Run(folder) for folder in folders if Run(folder).exists()}
    plain = [folder for folder in folders if folder not in runs]
    for folder in plain:
        if not (folder / "config.json").is_file():
            what = "neither a run folder (no run.yaml) nor a model folder (no config.json)"
            raise UserError(f"{folder}: {what if folder.is_dir() else 'no such folder'}")
    place = output_folder(folders if runs else [], output)
    if model is None:
        if plain:
            hint = f", such as --model {name}" if (name := _base_record(plain[0]).get("name")) else ""
            raise UserError(f"{plain[0]}: a model folder; name the model that it was tuned from with --model{hint}")
        settings = next(iter(runs.values())).settings()
        model, options = settings.model, {"revision": settings.revision, **options}
    fisher, session = base_fisher(model, reference=reference, examples=examples, data=data, watcher=watcher, **options)
    hashes = {folder: (run.manifest().get("identity") or {}).get("model_hash") for folder, run in runs.items()}
    hashes |= {folder: _base_record(folder).get("hash", session.base_hash) for folder in plain}
    if other := next((folder for folder, own in hashes.items() if own != session.base_hash), None):
        raise UserError(f"{other}: was made from another base model than {model}; analyze what comes of each base apart")
    try:
        labels = labels_of([read_finished(folder) for folder in runs])
    except UserError:  # one is not finished
        labels = [run.name for run in runs.values()]
    rows = []
    for run, label in zip(runs.values(), labels, strict=True):
        rows += _joined(run, label, displacement.of_run(run, session.located.folder, fisher, watcher))
    if plain:
        names = {str(folder.resolve()): folder for folder in plain}
        measured = displacement.of_folders(names, place / displacement.JOURNAL, session.located.folder, fisher, watcher)
        for folder, item in zip(plain, measured, strict=True):
            who = {"configuration": folder.name, "source": str(folder), "run": folder.name}
            rows.append({**who, **item, "forgetting": None, "drop": None})
    record = {name: value for name, value in fisher.record.items() if name not in ("sums", "aliases")} | {"mean": fisher.mean}
    result: dict[str, Any] = {
        "analysis": "fisher",
        "base": {"name": session.settings.model, "hash": session.base_hash},
        "fisher": record,
        "checkpoints": rows,
        "table": _table(rows),
        "correlations": _correlations(rows),
        "scores": _scores(rows),
        "notes": _remarks(rows),
    }
    files = [place / "fisher.json", place / "fisher.md"]
    write_text(files[1], markdown(result))
    files += style.save(charts.alignment(*pictures.aligned(result), *pictures.ALIGNMENT_AXES), place / "fisher-alignment")
    write_json(files[0], result)
    return {**result, "files": [str(file) for file in files]}


def _base_record(folder: Path) -> dict[str, Any]:
    """What mixsd wrote of the base into a model folder that it tuned."""
    found = (provenance(folder) or {}).get("base")
    return found if isinstance(found, dict) else {}


def _joined(run: Run, label: str, found: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A run's checkpoints, each with its forgetting and, for the final one, the Drop over the held-out benchmarks."""
    report = read_report(run.report_json) if run.report_json.is_file() else None
    listed = [*(report.scores if report else ()), *(Score(**values) for values in read_scores(run.folder))]
    scores = {score.key: score.model_dump(include={"value", "n", "low", "high"}) for score in listed}
    chosen = report.training.chosen.step if report and report.training.chosen else None
    rows = []
    for item in found:
        # Where the model's folder was removed after measuring, the report still says which checkpoint it was.
        final = item["final"] or (item["step"] is not None and item["step"] == chosen)
        of_step, of_model = (scores.get((*_FORGETTING, "tuned", step)) for step in (item["step"], None))
        told = {"forgetting": of_step or (of_model if final else None), "drop": scores.get(_DROP) if final else None}
        rows.append({"configuration": label, "source": str(run.folder), "run": run.name, **item, "final": final, **told})
    return rows


def _table(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Table 5: the final model of each configuration, as a mean over its runs with Student's t interval."""
    found = []
    for label in dict.fromkeys(row["configuration"] for row in rows):
        own = [row for row in rows if row["configuration"] == label and row["final"]]
        if not own:
            continue
        values: dict[str, Any] = {}
        for name in (*METRICS, "displacement_squared", "drop", "forgetting"):
            known = [row[name]["value"] if isinstance(row[name], dict) else row[name] for row in own]
            values[name] = statistics.seeds_interval([value for value in known if value is not None]).to_json()
            if len(own) == 1 and isinstance(own[0][name], dict):
                values[name] = own[0][name]  # one run: the interval is that over its items
        found.append({"configuration": label, "runs": len(own), **values})
    return found


def _correlations(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Table 6: r of each number with forgetting over checkpoints, and with the Drop over final models that have one."""
    found = []
    for against in _AGAINST:
        known = [row for row in rows if row[against] and row[against]["value"] is not None]
        for metric in METRICS:
            points = [row for row in known if row[metric] is not None]
            if len(points) < 2:
                continue
            sources = [row["source"] for row in points]
            made = statistics.pearson([row[metric] for row in points], [row[against]["value"] for row in points], sources)
            runs = len(set(sources))
            interval = "bootstrap over runs" if made.low is not None else f"none ({runs} runs)"
            found.append(
                {"metric": metric, "with": against, "r": made.value, "n": made.n, "runs": runs, "low": made.low, "high": made.high,
                 "interval": interval}
            )  # fmt: skip
    return found


def _scores(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The displacements as scores; exact sums over the weights, so they have no interval."""
    return [
        score_row("fisher", row["run"], metric, "tuned", Estimate(row[metric], n=row["count"]), row["step"])
        for row in rows
        for metric in (*METRICS, "displacement_squared")
        if row[metric] is not None
    ]


def _remarks(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    told = []
    names = [f"{row['run']}/{row['checkpoint']}" for row in rows]
    if gone := [name for name, row in zip(names, rows, strict=True) if row["gone"]]:
        shown = ", ".join(gone[:4]) + (f" and {len(gone) - 4} more" if len(gone) > 4 else "")
        told.append(f"gone: {shown}; their numbers are those that were written down while they were there.")
    if still := [name for name, row in zip(names, rows, strict=True) if row["alignment"] is None]:
        told.append(f"No alignment ratio where nothing moved: {', '.join(still)}.")
    if lacking := sum(row["forgetting"] is None for row in rows):
        told.append(f"{lacking} of {len(rows)} checkpoints have no forgetting (--score-checkpoints) and are in no correlation.")
    if other := sorted({name for row in rows for name in row["other"]}):
        told.append(
            f'In no known group of parameters, so under "other": {", ".join(other[:5])}{" ..." if len(other) > 5 else ""}.'
        )
    return told


def markdown(result: Mapping[str, Any]) -> str:
    """All tables as Markdown."""
    parts = [
        f"# Displacement and Fisher alignment\n\nFisher of {escaped(result['base']['name'])}: {escaped(_estimated(result['fisher']))}.",
        "Final models; a mean over several runs of one method, with Student's 95% interval. Displacements of one model are sums over all "
        "its weights and have no interval.",
        _methods(result).markdown(),
        "Correlation over checkpoints. Those of one run are not independent, so the 95% interval is a bootstrap over whole runs; below "
        "five there is none.",
        _correlated(result).markdown(),
        "## Where the final models moved",
        _grouped(result).markdown(),
        "## Checkpoints",
        _checkpoints(result).markdown(),
        *(f"- {escaped(note)}" for note in result["notes"]),
    ]
    return "\n\n".join(parts) + "\n"


def tables(result: Mapping[str, Any]) -> list[Table]:
    """What a terminal shows."""
    title = f"Fisher of {result['base']['name']}: {_estimated(result['fisher'])}"
    return [replace(_methods(result), title=title), replace(_correlated(result), title="Pearson's r over checkpoints")]


def lines(result: Mapping[str, Any]) -> Iterator[str]:
    """What stands below the tables on a terminal."""
    return (f"note: {printable(note)}" for note in result["notes"])


def _estimated(fisher: Mapping[str, Any]) -> str:
    counts = ", ".join(f"{name} {count}" for name, count in fisher["counts"].items() if count)
    return f"{fisher['examples']} examples of {fisher['reference']} ({counts}), {fisher['tokens']:,} target tokens, {fisher['precision']}"


def _columns(names: Sequence[str], numbers: Sequence[str]) -> list[Column]:
    return [*map(Column, names), *(Column(head, numeric=True) for head in numbers)]


def _methods(result: Mapping[str, Any]) -> Table:
    rows = []
    for item in result["table"]:
        drop = {name: 100 * value if name != "n" and value is not None else value for name, value in item["drop"].items()}
        numbers = [*(item[name] for name in _COLUMNS), drop, item["forgetting"]]
        rows.append(Row([item["configuration"], str(item["runs"]), *(numbers_cell(own, "magnitude") for own in numbers)]))
    return Table(_columns(["method"], ["runs", *_COLUMNS.values(), "drop (points)", "forgetting (nats/token)"]), rows)


def _correlated(result: Mapping[str, Any]) -> Table:
    rows = []
    for item in result["correlations"]:
        r = numbers_cell({"value": item["r"], "n": item["n"], "low": item["low"], "high": item["high"]}, "magnitude")
        named = f"{_NAMES[item['metric']]} and {_AGAINST[item['with']]}"
        rows.append(Row([named, r, f"{item['n']} of {item['runs']} runs", item["interval"]]))
    return Table([*_columns(["with"], ["r", "n"]), Column("interval")], rows)


def _grouped(result: Mapping[str, Any]) -> Table:
    rows = []
    for row in (row for row in result["checkpoints"] if row["final"]):
        for name, part in row["groups"].items():
            sums = ("displacement_squared", "fisher_weighted")
            shares = [value_text("share", part[key] / row[key]) if row[key] else MISSING for key in sums]
            rows.append(Row([row["run"], name, f"{part['count']:,}", *shares, value_text("magnitude", part["alignment"])]))
    return Table(_columns(["method", "group"], ["weights", "share of ‖Δ‖²", "share of Σ F Δ²", "alignment"]), rows)


def _checkpoints(result: Mapping[str, Any]) -> Table:
    rows = []
    for row in result["checkpoints"]:
        forgetting = row["forgetting"] and numbers_cell(row["forgetting"], "magnitude", n=f"n {row['forgetting']['n']:,}")
        name = f"{row['checkpoint']} (final)" if row["final"] else row["checkpoint"]
        rows.append(Row([row["run"], name, *(value_text("magnitude", row[key]) for key in _COLUMNS), forgetting or MISSING]))
    return Table(_columns(["run", "checkpoint"], [*_COLUMNS.values(), "forgetting"]), rows)
