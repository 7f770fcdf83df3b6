"""`analyze errors`: the error modes of finished runs side by side, the paper's Figures 4 to 13 (section 7.3, appendix E.3).

Runs are shown together only where they were asked the same. Their base stands once where it said the same in all of them. A cell of
the tables is the share of the wrong replies that have a mode, its interval and its count.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from mixsd.analyse import output_folder, source_paths
from mixsd.errors import UserError
from mixsd.evaluation import suites
from mixsd.evaluation.asked import MODELS, asked_file, asked_suites, comparable
from mixsd.evaluation.benchmarks.benchmark import title_of
from mixsd.evaluation.error_modes import IN_DOMAIN_MODES, MODES, THRESHOLDS
from mixsd.evaluation.tallies import Examined, Tally
from mixsd.formats import MISSING, Cell, Column, Row, Table, distinct, estimate_cell, fenced, middle_clipped
from mixsd.formats import markdown as escaped
from mixsd.progress import Watcher
from mixsd.run.folder import Run
from mixsd.statistics import Estimate
from mixsd.storage import digest, write_json, write_text

BASE = "base"
_EXAMPLES = 3
_SHOWN = 600  # characters of a reply
_BLOCKS = {"benchmarks": "Benchmarks", "in_domain": "The facts' own questions"}
_JUDGED = {
    "strict": "Wrong by the strict judges: the answer has to be in the form that was asked for.",
    "lenient": "LENIENT: wrong by the lenient judges, which take an answer in another form too; not the paper's measure. An answer "
    'clause ("The answer is X.") is as good as a box.',
}


def analyze_errors(
    runs: Sequence[str | Path] | str | Path,
    *,
    output: str | Path | None = None,
    lenient: bool = False,
    data: str | None = None,
    watcher: Watcher | None = None,
) -> dict[str, Any]:
    """Sort the wrong replies of evaluated runs into the paper's error modes.

    Args:
        runs: run folders whose benchmarks, or whose facts' own questions, have been asked.
        output: the folder for errors.json, errors.md and the figure; by default `analysis` in the run folder where there is one.
        lenient: a reply is wrong, and has something to judge, by the lenient judges, and an answer clause is as good as a box.
        data: a folder of the benchmarks' data, for the prompts; else where the run found it, else $MIXSD_DATA.
        watcher: is told about the progress; silent by default.

    Returns:
        What is in errors.json: `judged` (strict or lenient), `thresholds`, `runs`, `benchmarks` and `in_domain` (one row for each model:
        counts, shares with n and interval, examples with their evidence), `notes`, the flat list `scores`, and `files`.

    Raises:
        UserError: a folder is no evaluated run, one stands twice, or two were asked otherwise.
    """
    folders = source_paths(runs, "errors")
    opened = [Examined.open(Run(folder), data) for folder in folders]
    place = output_folder(folders, output)
    _check_alike(opened)
    labels = _labels(opened)
    shown = _Shown(labels)
    with (watcher or Watcher()).task("sorting replies", sum(len(asked_suites(run.run)) for run in opened)) as task:
        for examined in opened:
            for suite in asked_suites(examined.run):
                _look(examined, suite, lenient, shown)
                task.advance()
    if not (shown.benchmarks or shown.in_domain):
        raise UserError(
            f"{folders[0]}: was asked nothing whose errors could be sorted; evaluate it with --suite gsm8k, for example"
        )
    result: dict[str, Any] = {
        "judged": "lenient" if lenient else "strict",
        "modes": list(MODES),
        "thresholds": asdict(THRESHOLDS),
        "runs": [_told(examined, labels[id(examined)]) for examined in opened],
        "benchmarks": shown.benchmarks,
        "in_domain": shown.in_domain,
        "notes": list(dict.fromkeys(shown.notes)),
        "scores": shown.scores,
    }
    files = [place / "errors.json", place / "errors.md"]
    for name, rows, modes in (("benchmarks", shown.benchmarks, MODES), ("in-domain", shown.in_domain, IN_DOMAIN_MODES)):
        bars = [
            {"benchmark": place_of(row), "label": row["label"], "asked": row["asked"], "counts": row["counts"]} for row in rows
        ]
        if any(sum(bar["counts"].values()) for bar in bars):
            files += _draw(bars, modes, place / f"errors-{name}")
    write_text(files[1], markdown(result))
    result["files"] = [str(path) for path in files]
    write_json(files[0], result)
    return result


@dataclass
class _Shown:
    """The rows made so far; a base that said the same as one before is left out."""

    labels: dict[int, str]
    benchmarks: list[dict[str, Any]] = field(default_factory=list)
    in_domain: list[dict[str, Any]] = field(default_factory=list)
    scores: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    said: set[str] = field(default_factory=set)

    def add(self, tally: Tally, examined: Examined, to: list[dict[str, Any]]) -> None:
        """Add one model's row, unless it is a base that is there."""
        label = self.labels[id(examined)]
        if tally.model == MODELS[0] and not examined.alone:
            same = digest([tally.suite, tally.split, [(row["key"], row["reply"], row["outcome"]) for row in tally.rows]])
            if same in self.said:
                return
            self.said.add(same)
            first = not any(row["benchmark"] == tally.suite and row["split"] == tally.split for row in to)
            label = BASE if first else f"{BASE} of {label}"
        to.append(_row(tally, label, examined))
        self.scores += [{**score, "run": examined.run.name, "label": label} for score in tally.scores()]
        if tally.leakage.startswith("off: prompts unknown"):
            self.notes.append(f"{label}, {tally.suite}: leakage is {tally.leakage}; name the benchmarks' data with --data")


def _look(examined: Examined, suite: str, lenient: bool, shown: _Shown) -> None:
    """Sort one suite of one run."""
    if suite in examined.benchmarks():
        for tally in examined.of_benchmark(suite, examined.rows(suite), lenient=lenient):
            shown.add(tally, examined, shown.benchmarks)
    elif suite in (suites.CORE, suites.IN_DOMAIN):
        for tally in examined.of_facts(suite, examined.rows(suite)):
            shown.add(tally, examined, shown.in_domain)
    else:
        shown.notes.append(f"{suite} is left out: only replies that are generated freely have modes")


def _check_alike(opened: Sequence[Examined]) -> None:
    """Refuse runs that were asked the same benchmark in another way, or whose models read other prompts."""
    first: dict[str, tuple[Examined, dict[str, Any], list[tuple[str, str]]]] = {}
    for examined in opened:
        told = asked_suites(examined.run)
        for suite in examined.benchmarks():
            base = examined.rows(suite)[MODELS[0]]
            own = examined, comparable(told[suite]), [(row["key"], row["prompt_hash"]) for row in base]
            other, how, prompts = first.setdefault(suite, own)
            names = [name for name in how.keys() & own[1].keys() if how[name] != own[1][name]]
            if names or prompts != own[2]:
                what = f"another {sorted(names)[0]} (see {asked_file(examined.run, suite)})" if names else "other prompts"
                raise UserError(
                    f"{examined.run.folder}: {suite} was asked with {what} than in {other.run.folder}; look at each alone"
                )


def _labels(opened: Sequence[Examined]) -> dict[int, str]:
    """A name for each run: its method and what it is known by, with the folder's name where that is not enough."""
    plain = [run.run.name if run.alone or run.run.events("tuned") else run.settings.label for run in opened]
    named = [f"{label} ({run.run.name})" if plain.count(label) > 1 else label for label, run in zip(plain, opened, strict=True)]
    return dict(zip(map(id, opened), distinct(named), strict=True))


def _told(examined: Examined, label: str) -> dict[str, Any]:
    settings = examined.settings
    return {
        "label": label,
        "name": examined.run.name,
        "method": settings.method,
        "lambda": settings.lam if settings.mixes else None,
        "seed": settings.seed,
        "phrases": len(examined.injected) if examined.has_entities else 0,
    }


def _row(tally: Tally, label: str, examined: Examined) -> dict[str, Any]:
    """What is told of one model's replies to one benchmark, or split."""
    measures = {"of_wrong": tally.share_of_wrong, "of_asked": tally.share_of_asked}
    shares = {mode: {name: share(mode).to_json() for name, share in measures.items()} for mode in tally.modes}
    return {
        **tally.brief(),
        "split": tally.split,
        "label": label,
        "run": examined.run.name,
        "errors": tally.errors,
        "shares": shares,
        "passed_over": tally.passed_over,
        **({"old_answer": tally.old} if tally.old is not None else {}),
        "examples": {mode: _examples(tally, mode) for mode in tally.modes},
    }


def _examples(tally: Tally, mode: str) -> list[dict[str, Any]]:
    """The first replies of a mode, one for each question, shortened, with the evidence."""
    some: dict[str, dict[str, Any]] = {}
    for row, judged in tally.judged:
        if judged.mode == mode and len(some) < _EXAMPLES:
            evidence: dict[str, Any] = {"phrases": list(judged.phrases)} if judged.phrases else {}
            if mode == "collapse":
                evidence["left"] = judged.left
            told = {"key": row["key"], "reply": middle_clipped(row["reply"], _SHOWN), "truncated": row["truncated"], **evidence}
            some.setdefault(row["group"], told)
    return list(some.values())


def _draw(bars: list[dict[str, Any]], modes: Sequence[str], stem: Path) -> list[Path]:
    from mixsd.figures import style
    from mixsd.figures.charts import error_bars

    return style.save(error_bars(bars, modes), stem)


def markdown(result: Mapping[str, Any]) -> str:
    """The tables, how modes were told apart, and some replies of each mode, as a Markdown page."""
    parts = [f"# Error modes ({result['judged']})", _JUDGED[result["judged"]]]
    for block, name in _BLOCKS.items():
        if result[block]:
            parts += [f"## {name}", _table(result, block).markdown()]
    parts += ["## How modes are told apart", "\n".join(f"- {escaped(line)}" for line in notes(result)), "## Examples"]
    return "\n\n".join([*parts, *_examples_shown(result)]) + "\n"


def tables(result: Mapping[str, Any]) -> list[Table]:
    """A table for each block that has rows."""
    return [_table(result, block) for block in _BLOCKS if result[block]]


def _table(result: Mapping[str, Any], block: str) -> Table:
    rows = _in_order(result[block])
    heads = [
        Column("asked what", width=16),
        Column("model", width=16),
        Column("replies", numeric=True),
        Column("wrong", numeric=True),
    ]
    heads += [Column(mode, numeric=True) for mode in rows[0]["counts"]]
    heads += [Column("cut short", numeric=True, page_only=True), Column("leakage", page_only=True)]
    made = []
    for row in rows:
        leakage = row["leakage"].partition(":")[0] if "leakage" in row["counts"] else MISSING
        counts: list[Cell | str] = [f"{row['asked']:,}", f"{row['wrong']:,}", *(_mode_cell(row, mode) for mode in row["counts"])]
        made.append(Row([place_of(row), row["label"], *counts, f"{row['truncated']:,}", leakage]))
    return Table(heads, made, f"{_BLOCKS[block]} ({result['judged']})")


def _mode_cell(row: Mapping[str, Any], mode: str) -> Cell:
    share = Estimate(**row["shares"][mode]["of_wrong"], unit="share")
    if share.value is None:
        return Cell(MISSING)
    if mode == "leakage" and row["leakage"] != "on":
        return Cell("off")
    return replace(estimate_cell(share), n=f"{row['counts'][mode]:,}")


def _in_order(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The rows of one benchmark, or split, side by side."""
    order = list(dict.fromkeys((row["benchmark"], row["split"]) for row in rows))
    return sorted(rows, key=lambda row: order.index((row["benchmark"], row["split"])))


def notes(result: Mapping[str, Any]) -> list[str]:
    """What decided the modes, and what was off or left out."""
    least = result["thresholds"]
    told = [
        "Each wrong reply has the first mode that applies: format (nothing to judge: no box, or no Python block), leakage, collapse, "
        "genuine. Errors of ours are in no mode. Shares are of the wrong replies, with 95% intervals over questions.",
        f"Leakage: an answer, alias or subject of the facts with at least {least['leak_words']} words and {least['leak_characters']} "
        "characters stands in the reply as whole words, whatever the case, and neither in its prompt nor in any reply of the base "
        "model to the same benchmark.",
        f"Collapse: at most {least['collapse_characters']} characters and {least['collapse_newlines']} line breaks are left once the "
        f"answer clause (of at most {least['clause_characters']} characters) and the box are gone; for code, an answer clause or box in such "
        "a reply without a Python block, or beside functions that hold nothing but a docstring.",
    ]
    if result["in_domain"]:
        told.append(
            f"Cross-entity: the reply (its box, where it has one) states an answer or subject of another fact, of at least "
            f"{least['entity_characters']} characters, that its question does not name."
        )
    off: dict[str, list[str]] = {}
    for row in (row for row in result["benchmarks"] if row["leakage"] != "on"):
        off.setdefault(row["leakage"], []).append(f"{row['label']} on {title_of(row['benchmark'])}")
    told += [f"Leakage is {why}: {', '.join(rows)}." for why, rows in off.items()]
    for row in result["benchmarks"]:
        if row["passed_over"]:
            said = ", ".join(f'"{phrase}"' for phrase in row["passed_over"][:10])
            more = len(row["passed_over"]) - 10
            told.append(
                f"{row['label']} on {title_of(row['benchmark'])}: no evidence, since the base says it too: {said}"
                + (f" and {more} more." if more > 0 else ".")
            )
    old = [f"{row['label']}, {place_of(row)}: {row['old_answer']:,}" for row in result["in_domain"] if "old_answer" in row]
    if old:
        told.append(f"Replies with the answer from before the edit, which count as genuine: {'; '.join(old)}.")
    return [*told, *result["notes"]]


def place_of(row: Mapping[str, Any]) -> str:
    """What was asked: the benchmark, or the suite and its split."""
    whole = row["split"] == row["benchmark"]
    return title_of(row["benchmark"]) if whole else f"{row['benchmark']}: {row['split'].removeprefix('memorization/')}"


def _examples_shown(result: Mapping[str, Any]) -> Iterator[str]:
    for row in (row for block in _BLOCKS for row in _in_order(result[block])):
        for mode, some in row["examples"].items():
            for example in some:
                yield f"**{escaped(place_of(row))}, {escaped(row['label'])}, {mode}**: {escaped(example['key'])}"
                if "phrases" in example:
                    yield f"(leaked or crossed: {escaped(', '.join(example['phrases']))})"
                if "left" in example:
                    yield f"(left over: {escaped(repr(example['left']))})"
                yield fenced(example["reply"], "text")
