"""`mixsd analyze fisher`: how far each checkpoint went from the base, along which directions, and whether that explains forgetting.

For every checkpoint the raw displacement, the Fisher-weighted one and the alignment ratio (Eq. 9 to 11); the table is laid out as the
paper's Table 5, with our forgetting (Eq. 2) beside its Drop. Over all checkpoints that have a forgetting, Pearson's r of each number
with it (Table 6). The checkpoints of one run are steps of one path and not independent: the interval resamples whole runs, and
below five runs there is none.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mixsd import statistics
from mixsd.analyse import displacement, output_folder, source_paths
from mixsd.analyse.base_fisher import EXAMPLES, base_fisher
from mixsd.comparison.compare import labels_of
from mixsd.comparison.runs import read as read_finished
from mixsd.errors import UserError
from mixsd.evaluation import suites
from mixsd.evaluation.scores import AVERAGE, HELD_OUT, score_row
from mixsd.formats import MISSING, Cell, Column, Row, Table, estimate_cell, printable, value_text
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
_SUITE = "fisher"
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
        reference: what the Fisher is estimated on, 'benchmarks' or 'general'; None takes the former where data is at hand.
        examples: how many reference examples.
        data: the folder of the benchmarks' data; else $MIXSD_DATA.
        output: the folder for the results; by default `analysis` in the run folder where there is exactly one source.
        options: `device`, `dtype`, `offline` and `trust_remote_code`, as the settings of these names.

    Returns:
        JSON values: `fisher` (what it was estimated on), `checkpoints` (one entry for each, in order), `table`, `correlations`, `scores`,
        `notes` and `files`.

    Raises:
        UserError: any bad input.
    """
    watcher = watcher or Watcher()
    folders = source_paths(sources, "fisher")
    if missing := next((folder for folder in folders if not folder.is_dir()), None):
        raise UserError(f"{missing}: no such folder")
    runs = {folder: Run(folder) for folder in folders if Run(folder).exists()}
    plain = [folder for folder in folders if folder not in runs]
    place = output_folder(folders if runs else [], output)
    wanted = _base_of(runs, plain, model)
    if model is None:
        options = {"revision": next(iter(runs.values())).settings().revision, **options}
    fisher, session = base_fisher(wanted, reference=reference, examples=examples, data=data, watcher=watcher, **options)
    for folder, run in runs.items():
        if (run.manifest().get("identity") or {}).get("model_hash") != session.base_hash:
            raise UserError(f"{folder}: was made from another base model than {wanted}; analyze the runs of each base apart")
    for folder in plain:
        made = (provenance(folder) or {}).get("base") or {}
        if isinstance(made, dict) and made.get("hash", session.base_hash) != session.base_hash:
            raise UserError(
                f"{folder}: was made from another base model ({made.get('name')}) than {wanted}; name that one with --model"
            )
    labels = _labels(runs)
    rows, gone = [], []
    for folder, run in runs.items():
        found = displacement.of_run(run, session.located.folder, fisher, watcher)
        rows += _joined(run, labels[folder], found)
        gone += [f"{run.name}/{item.name}" for item in found if item.gone]
    if plain:
        names = {str(folder.resolve()): folder for folder in plain}
        journal = place / displacement.JOURNAL
        for name, item in displacement.of_folders(names, journal, session.located.folder, fisher, watcher).items():
            rows.append(_row(names[name].name, str(names[name]), names[name].name, item, item.final, None, None))
    result: dict[str, Any] = {
        "analysis": "fisher",
        "base": {"name": session.settings.model, "hash": session.base_hash},
        "fisher": {name: value for name, value in fisher.record.items() if name not in ("sums", "aliases")}
        | {"mean": fisher.mean},
        "checkpoints": rows,
        "table": _table(rows),
        "correlations": _correlations(rows),
        "scores": _scores(rows),
        "notes": _of_gone(gone) + _remarks(rows),
    }
    return _write(result, place)


def _of_gone(names: Sequence[str]) -> list[str]:
    if not names:
        return []
    shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
    return [f"gone: {shown}; their numbers are those that were written down while they were there."]


def _base_of(runs: Mapping[Path, Run], plain: Sequence[Path], model: str | None) -> str:
    """The base model's name."""
    for folder in plain:
        if not (folder / "config.json").is_file():
            raise UserError(f"{folder}: neither a run folder (no run.yaml) nor a model folder (no config.json)")
    if model:
        return model
    if plain:
        made = (provenance(plain[0]) or {}).get("base") or {}
        hint = f", such as --model {made['name']}" if isinstance(made, dict) and made.get("name") else ""
        raise UserError(f"{plain[0]}: a model folder; name the model that it was tuned from with --model{hint}")
    return next(iter(runs.values())).settings().model


def _labels(runs: Mapping[Path, Run]) -> dict[Path, str]:
    """What each run's configuration is called: as in a comparison where all are finished, else by their folders."""
    try:
        read = [read_finished(folder) for folder in runs]
    except UserError:
        return {folder: run.name for folder, run in runs.items()}
    return dict(zip(runs, labels_of(read), strict=True)) if read else {}


def _joined(run: Run, label: str, found: Sequence[displacement.MeasuredCheckpoint]) -> list[dict[str, Any]]:
    """A run's checkpoints, each with its forgetting and, for the final one, the Drop over the held-out benchmarks."""
    report = read_report(run.report_json) if run.report_json.is_file() else None
    scores = {score.key: score for score in report.scores} if report else {}
    scores |= {score.key: score for score in (Score(**values) for values in read_scores(run.folder))}
    chosen = report.training.chosen.step if report and report.training.chosen else None
    drop = scores.get((HELD_OUT, AVERAGE, "drop", "tuned", None))
    rows = []
    for item in found:
        # Where the model's folder was removed after measuring, the report still says which checkpoint it was.
        final = item.final or (item.step is not None and item.step == chosen)
        of_step = [scores.get((suites.CORE, suites.FORGETTING, "forgetting", "tuned", step)) for step in (item.step, None)]
        forgetting = of_step[0] or (of_step[1] if final else None)
        rows.append(_row(label, str(run.folder), run.name, item, final, forgetting, drop if final else None))
    return rows


def _row(
    label: str, folder: str, name: str, item: displacement.MeasuredCheckpoint, final: bool, forgetting: Score | None, drop: Score | None
) -> dict[str, Any]:  # fmt: skip
    def number(score: Score | None) -> dict[str, Any] | None:
        return None if score is None else {"value": score.value, "n": score.n, "low": score.low, "high": score.high}

    return {
        "configuration": label,
        "source": folder,
        "run": name,
        "checkpoint": item.name,
        "step": item.step,
        "final": final,
        "gone": item.gone,
        **item.values,
        "forgetting": number(forgetting),
        "drop": number(drop),
    }


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
                values[name] = dict(own[0][name])  # one run: the interval is that over its items
        found.append({"configuration": label, "runs": len(own), **values})
    return found


def _correlations(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Table 6: r of each number with forgetting over checkpoints, and with the Drop over final models that have one."""
    found = []
    for against in ("forgetting", "drop"):
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
        score_row(_SUITE, row["run"], metric, "tuned", Estimate(row[metric], n=row["count"]), row["step"])
        for row in rows
        for metric in (*METRICS, "displacement_squared")
        if row[metric] is not None
    ]


def _remarks(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    told = []
    if still := [f"{row['run']}/{row['checkpoint']}" for row in rows if row["alignment"] is None]:
        told.append(f"No alignment ratio where nothing moved: {', '.join(still)}.")
    if lacking := sum(row["forgetting"] is None for row in rows):
        told.append(
            f"{lacking} of {len(rows)} checkpoints have no forgetting (--score-checkpoints measures it) and are in no correlation."
        )
    if names := sorted({name for row in rows for name in row.get("other") or []}):
        told.append(
            f'In no known group of parameters, so under "other": {", ".join(names[:5])}{" ..." if len(names) > 5 else ""}.'
        )
    return told


def _write(result: dict[str, Any], place: Path) -> dict[str, Any]:
    from mixsd.figures import charts, style
    from mixsd.reports import pictures

    files = [place / "fisher.json", place / "fisher.md"]
    write_text(files[1], markdown(result))
    files += style.save(charts.alignment(*pictures.aligned(result), *pictures.ALIGNMENT_AXES), place / "fisher-alignment")
    write_json(files[0], result)
    return {**result, "files": [str(file) for file in files]}


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
    counts = ", ".join(f"{name} {count}" for name, count in (fisher.get("counts") or {}).items() if count)
    return f"{fisher['examples']} examples of {fisher['reference']} ({counts}), {fisher['tokens']:,} target tokens, {fisher['precision']}"


def _methods(result: Mapping[str, Any]) -> Table:
    heads = [Column("method"), Column("runs", numeric=True), *(Column(head, numeric=True) for head in _COLUMNS.values())]
    heads += [Column("drop (points)", numeric=True), Column("forgetting (nats/token)", numeric=True)]
    rows = []
    for item in result["table"]:
        drop = {name: 100 * value if name != "n" and value is not None else value for name, value in item["drop"].items()}
        numbers = [*(item[name] for name in _COLUMNS), drop, item["forgetting"]]
        rows.append(Row([item["configuration"], str(item["runs"]), *map(_magnitude, numbers)]))
    return Table(heads, rows)


def _correlated(result: Mapping[str, Any]) -> Table:
    heads = [Column("with"), Column("r", numeric=True), Column("n", numeric=True), Column("interval")]
    rows = []
    for item in result["correlations"]:
        r = _magnitude({"value": item["r"], "n": item["n"], "low": item["low"], "high": item["high"]})
        named = f"{_NAMES[item['metric']]} and {_AGAINST[item['with']]}"
        rows.append(Row([named, r, f"{item['n']} of {item['runs']} runs", item["interval"]]))
    return Table(heads, rows)


def _grouped(result: Mapping[str, Any]) -> Table:
    heads = ("weights", "share of ‖Δ‖²", "share of Σ F Δ²", "alignment")
    rows = []
    for row in (row for row in result["checkpoints"] if row["final"]):
        for name, part in row["groups"].items():
            shares = [
                value_text("share", part[key] / row[key]) if row[key] else MISSING
                for key in ("displacement_squared", "fisher_weighted")
            ]
            rows.append(Row([row["run"], name, f"{part['count']:,}", *shares, value_text("magnitude", part["alignment"])]))
    return Table([Column("method"), Column("group"), *(Column(head, numeric=True) for head in heads)], rows)


def _checkpoints(result: Mapping[str, Any]) -> Table:
    heads = [Column("run"), Column("checkpoint"), *(Column(head, numeric=True) for head in (*_COLUMNS.values(), "forgetting"))]
    rows = []
    for row in result["checkpoints"]:
        forgetting: Cell | str = MISSING
        if row["forgetting"]:
            forgetting = replace(_magnitude(row["forgetting"]), n=f"n {row['forgetting']['n']:,}")
        name = f"{row['checkpoint']} (final)" if row["final"] else row["checkpoint"]
        rows.append(Row([row["run"], name, *(value_text("magnitude", row[key]) for key in _COLUMNS), forgetting]))
    return Table(heads, rows)


def _magnitude(found: Mapping[str, Any]) -> Cell:
    return replace(estimate_cell(Estimate(**found, unit="magnitude")), n="")
