"""`analyze errors`: the error modes of finished runs side by side, the paper's Figures 4 to 13 (section 7.3, appendix E.3).

Runs are shown together only where they were asked the same. Their base stands once where it said the same in all of them. A cell of
the tables is the share of the wrong replies that have a mode, its interval and its count.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mixsd.analyse import numbers_cell, output_folder, source_paths
from mixsd.errors import UserError
from mixsd.evaluation import suites
from mixsd.evaluation.asked import MODELS, asked_file, asked_suites, comparable
from mixsd.evaluation.benchmarks.benchmark import title_of
from mixsd.evaluation.error_modes import IN_DOMAIN_MODES, MODES, THRESHOLDS
from mixsd.evaluation.tallies import Examined, Tally
from mixsd.formats import MISSING, Cell, Column, Row, Table, distinct, fenced, middle_clipped
from mixsd.formats import markdown as escaped
from mixsd.progress import Task, Watcher
from mixsd.run.folder import Run
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
        lenient: by the lenient judges, and an answer clause is as good as a box.
        data: a folder of the benchmarks' data, for the prompts; else where the run found it, else $MIXSD_DATA.

    Returns what is in errors.json: `judged` (strict or lenient), `thresholds`, `runs`, `benchmarks` and `in_domain` (one row for
    each model: counts, shares with n and interval, examples with their evidence), `notes`, the flat list `scores`, and `files`.
    Raises `UserError`: a folder is no evaluated run, one stands twice, or two were asked otherwise.
    """
    folders = source_paths(runs, "errors")
    opened = [Examined.open(Run(folder), data) for folder in folders]
    place = output_folder(folders, output)
    _check_alike(opened)
    labels = _labels(opened)
    result: dict[str, Any] = {
        "judged": "lenient" if lenient else "strict",
        "modes": list(MODES),
        "thresholds": asdict(THRESHOLDS),
        "runs": [
            {
                "label": label,
                "name": run.run.name,
                "method": run.settings.method,
                "lambda": run.settings.lam if run.settings.spec.mixes else None,
                "seed": run.settings.seed,
                "phrases": len(run.injected) if run.has_entities else 0,
            }
            for run, label in zip(opened, labels, strict=True)
        ],
        "benchmarks": [],
        "in_domain": [],
        "notes": [],
        "scores": [],
    }
    said: set[str] = set()  # by a base: one that says the same as one before is left out
    with (watcher or Watcher()).task("sorting replies", sum(len(asked_suites(run.run)) for run in opened)) as task:
        for examined, label in zip(opened, labels, strict=True):
            for block, tally in _tallies(examined, lenient, result["notes"], task):
                own = label
                if tally.model == MODELS[0] and not examined.alone:
                    same = digest([tally.suite, tally.split, [(row["key"], row["reply"], row["outcome"]) for row in tally.rows]])
                    if same in said:
                        continue
                    said.add(same)
                    known = any((row["benchmark"], row["split"]) == (tally.suite, tally.split) for row in result[block])
                    own = f"{BASE} of {label}" if known else BASE
                result[block].append(_row(tally, own, examined))
                result["scores"] += [{**score, "run": examined.run.name, "label": own} for score in tally.scores()]
                if tally.leakage.startswith("off: prompts unknown"):
                    result["notes"].append(f"{own}, {tally.suite}: leakage is {tally.leakage}; name its data with --data")
    if not (result["benchmarks"] or result["in_domain"]):
        raise UserError(f"{folders[0]}: was asked nothing whose errors could be sorted; evaluate it with --suite gsm8k, say")
    result["notes"] = list(dict.fromkeys(result["notes"]))
    files = [place / "errors.json", place / "errors.md"]
    for block, modes in (("benchmarks", MODES), ("in_domain", IN_DOMAIN_MODES)):
        bars = [{**row, "benchmark": place_of(row)} for row in result[block]]
        if any(row["wrong"] for row in bars):
            files += _draw(bars, modes, place / f"errors-{block.replace('_', '-')}")
    write_text(files[1], markdown(result))
    result["files"] = [str(path) for path in files]
    write_json(files[0], result)
    return result


def _tallies(examined: Examined, lenient: bool, notes: list[str], task: Task) -> Iterator[tuple[str, Tally]]:
    """The modes of a run's models, suite by suite, each with the block that it stands in."""
    benchmarks = examined.benchmarks()
    for suite in asked_suites(examined.run):
        if suite in benchmarks:
            for tally in examined.of_benchmark(suite, examined.rows(suite), lenient=lenient):
                yield "benchmarks", tally
        elif suite in (suites.CORE, suites.IN_DOMAIN):
            for tally in examined.of_facts(suite, examined.rows(suite)):
                yield "in_domain", tally
        else:
            notes.append(f"{suite} is left out: only replies that are generated freely have modes")
        task.advance()


def _check_alike(opened: Sequence[Examined]) -> None:
    """Refuse runs that were asked the same benchmark in another way, or whose models read other prompts."""
    first: dict[str, tuple[Examined, dict[str, Any], list[tuple[str, str]]]] = {}
    for examined in opened:
        told = asked_suites(examined.run)
        for suite in examined.benchmarks():
            asked = [(row["key"], row["prompt_hash"]) for row in examined.rows(suite)[MODELS[0]]]
            ways = comparable(told[suite])
            other, other_ways, other_asked = first.setdefault(suite, (examined, ways, asked))
            names = sorted(name for name in other_ways.keys() & ways.keys() if other_ways[name] != ways[name])
            if names or other_asked != asked:
                what = f"another {names[0]} (see {asked_file(examined.run, suite)})" if names else "other prompts"
                raise UserError(f"{examined.run.folder}: {suite} was asked with {what} than in {other.run.folder}")


def _labels(opened: Sequence[Examined]) -> list[str]:
    """A name for each run: its method and what it is known by, with the folder's name where that is not enough."""
    names = [run.run.name for run in opened]
    plain = [run.run.name if run.alone or run.run.events("tuned") else run.settings.label for run in opened]
    return distinct(f"{own} ({name})" if plain.count(own) > 1 else own for own, name in zip(plain, names, strict=True))


def _row(tally: Tally, label: str, examined: Examined) -> dict[str, Any]:
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
    for row, judged in ((row, judged) for row, judged in tally.judged if judged.mode == mode):
        if len(some) < _EXAMPLES and row["group"] not in some:
            told = {"key": row["key"], "reply": middle_clipped(row["reply"], _SHOWN), "truncated": row["truncated"]}
            phrases = {"phrases": list(judged.phrases)} if judged.phrases else {}
            some[row["group"]] = {**told, **phrases, **({"left": judged.left} if mode == "collapse" else {})}
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
    rows = _side_by_side(result[block])
    heads = [Column("asked what", width=16), Column("model", width=16)]
    heads += [Column(head, numeric=True) for head in ("replies", "wrong", *rows[0]["counts"])]
    heads += [Column("cut short", numeric=True, page_only=True), Column("leakage", page_only=True)]
    made = []
    for row in rows:
        leakage = row["leakage"].partition(":")[0] if "leakage" in row["counts"] else MISSING
        modes = {mode: numbers_cell(row["shares"][mode]["of_wrong"], n=f"{row['counts'][mode]:,}") for mode in row["counts"]}
        if leakage == "off" and row["wrong"]:
            modes["leakage"] = Cell("off")
        counts: list[Cell | str] = [f"{row['asked']:,}", f"{row['wrong']:,}", *modes.values(), f"{row['truncated']:,}"]
        made.append(Row([place_of(row), row["label"], *counts, leakage]))
    return Table(heads, made, f"{_BLOCKS[block]} ({result['judged']})")


def _side_by_side(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    order = list(dict.fromkeys((row["benchmark"], row["split"]) for row in rows))
    return sorted(rows, key=lambda row: order.index((row["benchmark"], row["split"])))


def notes(result: Mapping[str, Any]) -> list[str]:
    """What decided the modes, and what was off or left out."""
    least = result["thresholds"]
    told = [
        "Each wrong reply has the first mode that applies: format (nothing to judge: no box, or no Python block), leakage, collapse, "
        "genuine. Shares are of the wrong replies, with 95% intervals over questions.",
        f"Leakage: an answer, alias or subject of the facts with at least {least['leak_words']} words and {least['leak_characters']} "
        "characters stands in the reply as whole words, and neither in its prompt nor in any reply of the base to that benchmark.",
        f"Collapse: at most {least['collapse_characters']} characters and {least['collapse_newlines']} line breaks are left without the "
        f"answer clause (of at most {least['clause_characters']} characters) and the box; for code, such a clause or box in a reply "
        "without a Python block, or beside functions that hold nothing but a docstring.",
    ]
    if result["in_domain"]:
        told.append(
            "Cross-entity: the reply (its box, where it has one) states an answer or subject of another fact, of at least "
            f"{least['entity_characters']} characters, that its question does not name."
        )
    off: dict[str, list[str]] = {}
    for row in result["benchmarks"]:
        where = f"{row['label']} on {title_of(row['benchmark'])}"
        if row["leakage"] != "on":
            off.setdefault(row["leakage"], []).append(where)
        if row["passed_over"]:
            phrases = [f'"{phrase}"' for phrase in row["passed_over"]]
            more = f" and {len(phrases) - 10} more" if len(phrases) > 10 else ""
            told.append(f"{where}: no evidence, since the base says it too: {', '.join(phrases[:10])}{more}.")
    told += [f"Leakage is {why}: {', '.join(rows)}." for why, rows in off.items()]
    old = [f"{row['label']}, {place_of(row)}: {row['old_answer']:,}" for row in result["in_domain"] if "old_answer" in row]
    if old:
        told.append(f"Replies with the answer from before the edit, which count as genuine: {'; '.join(old)}.")
    return [*told, *result["notes"]]


def place_of(row: Mapping[str, Any]) -> str:
    """What was asked: the benchmark, or the suite and its split."""
    whole = row["split"] == row["benchmark"]
    return title_of(row["benchmark"]) if whole else f"{row['benchmark']}: {row['split'].removeprefix('memorization/')}"


def _examples_shown(result: Mapping[str, Any]) -> Iterator[str]:
    for row in (row for block in _BLOCKS for row in _side_by_side(result[block])):
        for mode, example in ((mode, example) for mode, some in row["examples"].items() for example in some):
            yield f"**{escaped(place_of(row))}, {escaped(row['label'])}, {mode}**: {escaped(example['key'])}"
            if "phrases" in example:
                yield f"(leaked or crossed: {escaped(', '.join(example['phrases']))})"
            if "left" in example:
                yield f"(left over: {escaped(repr(example['left']))})"
            yield fenced(example["reply"], "text")
