"""Runs side by side beyond their scores: what their pictures show, and fact by fact what each was trained on and now says.

A configuration's first run stands for all where one has to (targets, distributions of NLL); wrong replies are counted over all its
runs. `mixsd figures` draws the same as files with stable names; where there is none it says why.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixsd.comparison.compare import compare, labels_of
from mixsd.comparison.runs import Measured, read
from mixsd.errors import UserError
from mixsd.evaluation import suites
from mixsd.models import loading
from mixsd.reports import pictures
from mixsd.reports.schema import read_report
from mixsd.run.folder import Run
from mixsd.storage import read_jsonl
from mixsd.targets.reading import read_targets, tokens_of
from mixsd.targets.target import Target

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from mixsd.figures.style import Picture

MOST_FACTS = 200
MOST_TOKENS = 12_000  # of all facts and configurations that are shown; about a megabyte of page
Labelled = Sequence[tuple[str, Measured]]


def material_of(folders: Sequence[str | Path]) -> dict[str, Any]:
    """What the page of a comparison of these runs shows beside the numbers.

    Returns `curves`, `nll` and `errors` as the figures take them; `facts`, each {id, question, answer, told: [{label, run,
    status, reason, tokens, reply, outcome}]} with a token as `inspect` gives it; `facts_left`, how many more there are; `notes`.
    """
    read_runs = [read(Path(folder)) for folder in folders]
    runs = list(zip(labels_of(read_runs), read_runs, strict=True))
    first: dict[str, Measured] = {}
    for label, run in runs:
        if label not in first or run.seed < first[label].seed:
            first[label] = run
    firsts = list(first.items())
    return {"curves": learning(runs), "nll": distributions(firsts), "errors": error_rows(runs), **_facts(firsts)}


def learning(runs: Labelled) -> list[dict[str, Any]]:
    """What each run scored along its checkpoints."""
    return [{"label": label, "points": pictures.along(run.report.scores)} for label, run in runs]


def distributions(runs: Labelled) -> list[dict[str, Any]]:
    """A line for the references, which all runs share, and for the targets of each run."""
    found: list[dict[str, Any]] = []
    for label, run in runs:
        for item in pictures.nll_curves(run.report.targets, label):
            if not any((item["x"], item["y"]) == (other["x"], other["y"]) for other in found):
                found.append(item)
    return found


def error_rows(runs: Labelled) -> list[dict[str, Any]]:
    """The base once, then each label with what its runs have together, benchmark by benchmark."""
    items = [(label, item) for label, run in runs for item in run.report.error_modes]
    base = {item.benchmark: ("base", item) for _, item in reversed(items) if item.model == "base"}
    return pictures.summed([*reversed(base.values()), *(pair for pair in items if pair[1].model != "base")])


def _facts(runs: Labelled) -> dict[str, Any]:
    """The first facts of the runs' common file, as many as a page holds, with what each run has of them."""
    found: dict[str, Any] = {"facts": [], "facts_left": 0, "notes": []}
    file = next((file for _, run in runs if (file := Run(run.folder).facts_file).is_file()), None)
    if file is None:
        return found
    rows = iter(read_jsonl(file))
    asked = list(islice(rows, MOST_FACTS))
    wanted = {row["id"] for row in asked}
    targets = {label: _targets(run, wanted) for label, run in runs}
    trained = {label: (row for row in run.rows(suites.CORE, "tuned") if row["split"] == suites.TRAINED) for label, run in runs}
    replies = {label: {row["group"]: row for row in rows if row["group"] in wanted} for label, rows in trained.items()}
    tokenizer, why = _tokenizer(run for _, run in runs)
    if tokenizer is None and any(targets.values()):
        found["notes"].append(f"Targets are not shown: {why}")
    spent = 0
    for row in asked:
        told: list[dict[str, Any]] = []
        for label, run in runs:
            target, reply = targets[label].get(row["id"]), replies[label].get(row["id"], {})
            told.append({
                "label": label, "run": run.name,
                "status": target and target.status, "reason": target and target.reason,
                "tokens": tokens_of(target, tokenizer) if target and tokenizer else [],
                "reply": reply.get("reply"), "outcome": reply.get("outcome"),
            })  # fmt: skip
        spent += sum(len(item["tokens"]) for item in told)
        if spent > MOST_TOKENS and found["facts"]:
            break
        found["facts"].append({"id": row["id"], "question": row["question"], "answer": row["answer"], "told": told})
    return {**found, "facts_left": len(asked) - len(found["facts"]) + sum(1 for _ in rows)}


def _targets(run: Measured, wanted: set[str]) -> dict[str, Target]:
    """One target of each fact, an accepted one where there is one."""
    found: dict[str, Target] = {}
    file = Run(run.folder).targets_file
    for target in read_targets(file) if file.is_file() else ():
        if target.id in wanted and (target.id not in found or (target.accepted and not found[target.id].accepted)):
            found[target.id] = target
    return found


def _tokenizer(runs: Iterable[Measured]) -> tuple[PreTrainedTokenizerBase | None, str]:
    """The tokenizer that the runs share: of a tuned model, else of the base if it is on this machine."""
    why = "no run"
    for run in runs:
        own = Run(run.folder).model
        try:
            pinned = run.settings.get("revision")
            folder = own if own.is_dir() else loading.locate(run.settings["model"], revision=pinned, offline=True).folder
            return loading.load_tokenizer(folder), ""
        except UserError as error:
            why = str(error)
    return None, why


# By name: the file's, and why there may be none.
_FILES = {
    "pareto": ("pareto", "no configuration has both a memorization and a forgetting (the suite core measures them)"),
    "loss": ("loss", "no training loss was logged"),
    "curves": ("curves", "no checkpoint was scored; --score-checkpoints does"),
    "nll": ("nll-cdf", "the report holds no NLL of targets"),
    "errors": ("errors", "the report holds no error modes; `mixsd report` brings them where benchmarks were asked"),
    "alignment": ("alignment", "analysis/fisher.json was not found; `mixsd analyze fisher` writes it"),
}


def draw(runs: Sequence[str | Path], *, output: str | Path) -> dict[str, Any]:
    """Draw what can be drawn of finished runs.

    Args:
        runs: one run folder, or several that were measured alike (see `mixsd.compare`).
        output: the folder for the pictures, NAME.svg and NAME.png each.

    Returns `files`, the paths by the name of the picture, and `left_out`, why there is none of the other names.
    Raises `UserError`: a folder is no finished run, runs were not measured alike, nothing can be drawn, or the output cannot be
    written.
    """
    from mixsd.figures import style

    folders = [Path(run).expanduser() for run in ([runs] if isinstance(runs, str | Path) else runs)]
    if not folders:
        raise UserError("figures: name a run folder")
    if len(folders) == 1:
        run = Run(folders[0])
        run.manifest()
        made = pictures.of_report(read_report(run.report_json), pictures.fisher_of(run.folder))
        reasons = {"pareto": "it compares configurations: name two runs or more"}
    else:
        made = _pictures_together(folders)
        reasons = {"loss": "it is of one run: name a single one"}
    place = Path(output).expanduser()
    files = {name: style.save(made[name], place / file) for name, (file, _) in _FILES.items() if made.get(name) is not None}
    left_out = {name: reasons.get(name, why) for name, (_, why) in _FILES.items() if name not in files}
    if not files:
        told = "; ".join(f"{name}: {why}" for name, why in left_out.items())
        raise UserError(f"{', '.join(map(str, folders))}: nothing to draw: {told}")
    return {"files": {name: [str(file) for file in written] for name, written in files.items()}, "left_out": left_out}


def _pictures_together(folders: Sequence[Path]) -> dict[str, Picture | None]:
    from mixsd.figures import charts

    compared = compare(folders)
    runs = [read(folder) for folder in folders]
    named = [(run.name, run) for run in runs]
    rows = error_rows(named)
    found = [analysis for run in runs if (analysis := pictures.fisher_of(run.folder))]
    points = [point for analysis in found for point in pictures.aligned(analysis)[0]]
    # A correlation over the points of several analyses is no number that any of them has.
    correlation = pictures.aligned(found[0])[1] if len(found) == 1 else None
    return {
        "pareto": charts.pareto(compared),
        "curves": charts.curves(learning(list(zip(labels_of(runs), runs, strict=True)))),
        "nll": charts.nll_cdf(distributions(named), pictures.THRESHOLDS),
        "errors": charts.error_bars(rows, pictures.modes_of(rows)),
        "alignment": charts.alignment(points, correlation, *pictures.ALIGNMENT_AXES),
    }
