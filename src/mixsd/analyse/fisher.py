"""`mixsd analyze fisher`: how far each checkpoint went from the base, along which directions, and whether that explains forgetting.

For every checkpoint the raw displacement, the Fisher-weighted one and the alignment ratio (Eq. 9 to 11); the table is laid out as the
paper's Table 5, with our forgetting (Eq. 2) beside its Drop. Over all checkpoints that have a forgetting, Pearson's r of each number
with it (Table 6). The checkpoints of one run are steps of one path and not independent: the interval resamples whole runs, and
below five runs there is none.

The tables of `mixsd analyze fisher`: the paper's Tables 5 and 6, for a terminal and as Markdown, and each checkpoint's numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mixsd import statistics
from mixsd.analyse import displacement
from mixsd.analyse.base_fisher import EXAMPLES, base_fisher
from mixsd.comparison.compare import labels_of
from mixsd.comparison.runs import read as read_finished
from mixsd.errors import UserError
from mixsd.evaluation import suites
from mixsd.evaluation.scores import AVERAGE, HELD_OUT
from mixsd.formats import known, printable
from mixsd.models.loading import provenance
from mixsd.progress import Watcher
from mixsd.run.folder import Run
from mixsd.storage import read_json, write_json, write_text
from mixsd.training.choosing import read_scores

_NAMES = {"displacement": "raw displacement", "alignment": "alignment ratio", "fisher_weighted": "Fisher-weighted displacement"}
_AGAINST = {"forgetting": "forgetting (Eq. 2)", "drop": "drop over the held-out benchmarks"}
_HEAD = ("method", "runs", "‖Δ‖²", "‖Δ‖", "Σ F Δ²", "alignment", "drop (points)", "forgetting (nats/token)")
_CHECKPOINTS = ("run", "checkpoint", "‖Δ‖²", "‖Δ‖", "Σ F Δ²", "alignment", "forgetting [95%] (n)")
_GROUPS = ("method", "group", "weights", "share of ‖Δ‖²", "share of Σ F Δ²", "alignment")


def lines(result: Mapping[str, Any]) -> Iterator[str]:
    """What the terminal shows: the tables as plain text, aligned, then the notes."""
    fisher = result["fisher"]
    yield f"Fisher of {printable(str(result['base']['name']))}: {_estimated(fisher)}"
    yield ""
    yield from _plain([_HEAD, *_methods(result)])
    yield ""
    yield from _plain([("Pearson's r over checkpoints", "r [95%]", "n", "interval"), *_correlated(result)])
    for note in result["notes"]:
        yield f"note: {printable(note)}"


def markdown(result: Mapping[str, Any]) -> str:
    """All tables as Markdown."""
    parts = [
        f"# Displacement and Fisher alignment\n\nFisher of `{_cell(result['base']['name'])}`: {_estimated(result['fisher'])}.",
        "Final models; a mean over several runs of one method, with Student's 95% interval. Displacements of one model are sums over all "
        "its weights and have no interval.",
        _markdown_table(_HEAD, _methods(result)),
        "Correlation over checkpoints. Those of one run are not independent, so the 95% interval is a bootstrap over whole runs; below "
        "five there is none.",
        _markdown_table(("with", "r [95%]", "n", "interval"), _correlated(result)),
        "## Where the final models moved",
        _markdown_table(_GROUPS, _grouped(result)),
        "## Checkpoints",
        _markdown_table(_CHECKPOINTS, [_checkpoint(row) for row in result["checkpoints"]]),
        *(f"- {_cell(note)}" for note in result["notes"]),
    ]
    return "\n\n".join(parts) + "\n"


def _estimated(fisher: Mapping[str, Any]) -> str:
    counts = ", ".join(f"{name} {count}" for name, count in (fisher.get("counts") or {}).items() if count)
    return f"{fisher['examples']} examples of {fisher['reference']} ({counts}), {fisher['tokens']:,} target tokens, {fisher['precision']}"


def _methods(result: Mapping[str, Any]) -> list[tuple[str, ...]]:
    return [
        (
            str(item["configuration"]),
            str(item["runs"]),
            *(_estimate(item[name]) for name in ("displacement_squared", "displacement", "fisher_weighted", "alignment")),
            _estimate(item["drop"], 100.0),
            _estimate(item["forgetting"]),
        )
        for item in result["table"]
    ]


def _correlated(result: Mapping[str, Any]) -> list[tuple[str, ...]]:
    return [
        (
            f"{_NAMES[item['metric']]} and {_AGAINST[item['with']]}",
            _with_ends(item["r"], item["low"], item["high"]),
            f"{item['n']} of {item['runs']} runs",
            item["interval"],
        )
        for item in result["correlations"]
    ]


def _grouped(result: Mapping[str, Any]) -> list[tuple[str, ...]]:
    found = []
    for row in result["checkpoints"]:
        if row["final"]:
            for name, part in row["groups"].items():
                shares = [
                    f"{part[key] / row[key]:.1%}" if row[key] else "–" for key in ("displacement_squared", "fisher_weighted")
                ]
                found.append((str(row["run"]), name, f"{part['count']:,}", *shares, _number(part["alignment"])))
    return found


def _checkpoint(row: Mapping[str, Any]) -> tuple[str, ...]:
    numbers = [_number(row[name]) for name in ("displacement_squared", "displacement", "fisher_weighted", "alignment")]
    forgetting = row["forgetting"]
    told = f"{_with_ends(forgetting['value'], forgetting['low'], forgetting['high'])} ({forgetting['n']})" if forgetting else "–"
    return (str(row["run"]), str(row["checkpoint"]) + (" (final)" if row["final"] else ""), *numbers, told)


def _estimate(item: Mapping[str, Any], scale: float = 1.0) -> str:
    return _with_ends(*(item[name] * scale if known(item[name]) else None for name in ("value", "low", "high")))


def _with_ends(value: Any, low: Any, high: Any) -> str:
    ends = f" [{_number(low)}, {_number(high)}]" if known(low) and known(high) else ""
    return _number(value) + ends


def _number(value: Any) -> str:
    return "–" if not known(value) else f"{value:.3g}" if value and abs(value) < 100 else f"{value:,.1f}"


def _cell(text: Any) -> str:
    """Foreign text as one cell of a Markdown table."""
    plain = printable(" ".join(str(text).split()), keep="")
    return plain.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("`", "'")


def _markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    made = [head, ["---"] * len(head), *([_cell(cell) for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(row) + " |" for row in made)


def _plain(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    shown = [[printable(cell, keep="") for cell in row] for row in rows]
    widths = [max(len(row[place]) for row in shown) for place in range(len(shown[0]))]
    for row in shown:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


# What is correlated with forgetting, and with the Drop where there is one.
METRICS = ("displacement", "alignment", "fisher_weighted")
_SCORED = (*METRICS, "displacement_squared")
_SUITE = "fisher"


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
    folders = _distinct(sources)
    runs = {folder: Run(folder) for folder in folders if Run(folder).exists()}
    plain = [folder for folder in folders if folder not in runs]
    place = _place(folders, runs, output)
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
            rows.append(_row(names[name].name, str(names[name]), names[name].name, item, None, None))
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


def _distinct(sources: Sequence[str | Path]) -> list[Path]:
    if isinstance(sources, str | Path) or not sources:
        raise UserError("analyze fisher: name one or more run folders or model folders")
    folders = [Path(source).expanduser() for source in sources]
    seen: dict[Path, Path] = {}
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder")
        if seen.setdefault(folder.resolve(), folder) is not folder:
            raise UserError(f"{folder}: is named twice; name each source once")
    return folders


def _place(folders: Sequence[Path], runs: Mapping[Path, Run], output: str | Path | None) -> Path:
    if output is not None:
        return Path(output).expanduser()
    if len(folders) > 1 or not runs:
        raise UserError("where shall the table and the figure go? name a folder with --output")
    return folders[0] / "analysis"


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


def _joined(run: Run, label: str, found: Sequence[displacement.Measured]) -> list[dict[str, Any]]:
    """A run's checkpoints, each with its forgetting and, for the final one, the Drop over the held-out benchmarks."""
    scores = read_scores(run.folder)
    report = read_json(run.report_json) if run.report_json.is_file() else {}
    told = [score for score in report.get("scores") or [] if isinstance(score, dict)]
    by_step = {
        score.get("checkpoint"): score
        for score in [*told, *scores]
        if (score.get("suite"), score.get("split"), score.get("metric"), score.get("model"))
        == (suites.CORE, suites.FORGETTING, "forgetting", "tuned")
    }
    drop = next((s for s in told if (s.get("suite"), s.get("split"), s.get("metric")) == (HELD_OUT, AVERAGE, "drop")), None)
    chosen = ((report.get("training") or {}).get("chosen") or {}).get("step")
    rows = []
    for item in found:
        # Where the model's folder was removed after measuring, the report still says which checkpoint it was.
        final = item.final or (item.step is not None and item.step == chosen)
        forgetting = by_step.get(item.step) or (by_step.get(None) if final else None)
        rows.append(_row(label, str(run.folder), run.name, item, forgetting, drop if final else None) | {"final": final})
    return rows


def _row(
    label: str,
    folder: str,
    name: str,
    item: displacement.Measured,
    forgetting: Mapping[str, Any] | None,
    drop: Mapping[str, Any] | None,
) -> dict[str, Any]:
    def estimate(score: Mapping[str, Any] | None) -> dict[str, Any] | None:
        return {key: score.get(key) for key in ("value", "n", "low", "high")} if score else None

    return {
        "configuration": label,
        "source": folder,
        "run": name,
        "checkpoint": item.name,
        "step": item.step,
        "final": item.final,
        "gone": item.gone,
        **item.values,
        "forgetting": estimate(forgetting),
        "drop": estimate(drop),
    }


def _table(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Table 5: the final model of each configuration, as a mean over its runs with Student's t interval."""
    found = []
    for label in dict.fromkeys(row["configuration"] for row in rows):
        own = [row for row in rows if row["configuration"] == label and row["final"]]
        if not own:
            continue
        values: dict[str, Any] = {}
        for name in (*_SCORED, "drop", "forgetting"):
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
        {"suite": _SUITE, "split": row["run"], "metric": metric, "model": "tuned", "checkpoint": row["step"], "value": row[metric],
         "n": row["count"], "low": None, "high": None}
        for row in rows
        for metric in _SCORED
        if row[metric] is not None
    ]  # fmt: skip


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
    files = [place / "fisher.json", place / "fisher.md"]
    write_text(files[1], markdown(result))
    try:
        from mixsd.figures import charts, saving
    except ImportError:
        result["notes"].append("No figure: the drawings are not installed.")
    else:
        points = [
            {"label": row["configuration"], "x": row["alignment"], "y": row["forgetting"]["value"]}
            for row in result["checkpoints"]
            if row["forgetting"] and row["forgetting"]["value"] is not None and row["alignment"] is not None
        ]
        found = next(
            (item for item in result["correlations"] if (item["metric"], item["with"]) == ("alignment", "forgetting")), None
        )
        told = {name: found[name] for name in ("r", "n", "low", "high")} if found else None
        figure = charts.alignment(points, told, "Fisher alignment ratio", "forgetting (nats per token)")
        if figure is not None:
            files += saving.save(figure, place / "fisher-alignment")
    write_json(files[0], result)
    return {**result, "files": [str(file) for file in files]}
