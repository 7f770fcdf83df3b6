"""Which scores a reader sees and what they mean, picked once from the flat score lists for the page, the terminal and the card.

A row is one measure, its entries are the models beside each other: the base, every run shown beside, this run. A split
nested in another one of its suite ("retention/probe/arithmetic" in "retention/probe") is a detail, everything else is
headline, so a new suite appears without a change here. What was measured of a checkpoint on the way is no row: it is drawn as a
curve (`pictures`). How the replies of a benchmark ended is a table of its own (`benchmarks`). A model that was evaluated
alone is the only column. A metric that is not ours, of a task of lm-eval say, is told by its name where that is known, and else is a
number of which no direction is better.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from mixsd.evaluation.benchmarks.benchmark import LM_EVAL, is_benchmark, title_of
from mixsd.evaluation.scores import AVERAGE, HELD_OUT
from mixsd.formats import Cell, Column, Row, Table, distinct, estimate_cell, known, p_text, printable, public_name, value_text
from mixsd.reports import methods
from mixsd.reports.schema import Report, Score
from mixsd.statistics import Estimate, Unit

Better = Literal["higher", "lower", ""]
DELTA = "_delta"


@dataclass(frozen=True)
class Measure:
    """What a metric's numbers mean.

    `signed`: they are changes, written with their sign. `change` is the metric that holds theirs. `of_base` is what the base has by
    definition, where it is not measured; the numbers are then the change themselves.
    """

    unit: Unit = "number"
    signed: bool = False
    better: Better = ""
    change: str | None = None
    of_base: str = ""

    @property
    def way(self) -> str:
        """Which way is better, in words; nothing where neither is."""
        return f"{self.better} is better" if self.better else ""

    def estimate(self, score: Score | None) -> Estimate | None:
        """A score as what it measures."""
        if score is None:
            return None
        return Estimate(score.value, score.low, score.high, score.n, self.unit, self.signed, over="")


MEASURES: dict[str, Measure] = {
    "accuracy": Measure("share", better="higher", change="accuracy_delta"),
    "accuracy_delta": Measure("share", signed=True, better="higher"),
    "accuracy_lenient": Measure("share", better="higher"),
    "drop": Measure("share", signed=True, better="lower", of_base="0"),
    "retained": Measure("share", better="higher", of_base="100%"),
    "mcnemar_p": Measure("number"),
    "forgetting": Measure("nats", signed=True, better="lower", of_base="0"),
    "reference_nll": Measure("nats", better="lower", change="forgetting"),
    **dict.fromkeys(
        ("wrong_share", "unparseable_share", "truncated_share", "error_share", "old_answer_share", "other_answer_share"),
        Measure("share", better="lower"),
    ),
}

# Metrics of lm-eval, whose names end in the filter that they were taken with ("acc,none").
_RIGHT = re.compile(r"(acc|exact_match)(_.*)?|accuracy|em")
_LESS_IS_BETTER = re.compile(r"(word_|byte_)?perplexity|bits_per_byte")


def measure_of(metric: str, higher_is_better: bool | None = None) -> Measure:
    """What a metric's numbers mean.

    Args:
        metric: its name in the scores.
        higher_is_better: what its task says of a metric that is not ours.
    """
    if metric in MEASURES:
        return MEASURES[metric]
    name = metric.removesuffix(DELTA)
    signed, bare = name != metric, name.partition(",")[0]
    right = _RIGHT.fullmatch(bare) is not None
    if higher_is_better is None and (right or _LESS_IS_BETTER.fullmatch(bare)):
        higher_is_better = right
    better: Better = "" if higher_is_better is None else "higher" if higher_is_better else "lower"
    return Measure("share" if right else "number", signed, better, None if signed else metric + DELTA)


Verdict = Literal["better", "worse", "unclear"]
Key = tuple[str, str, str]  # suite, split, metric
_HEADLINE_METRICS = ("accuracy", "drop", "retained", "forgetting", "reference_nll")
_FORMAT_METRICS = ("unparseable_share", "truncated_share")
_SPLITS = {
    "memorization/trained": ("Memorization, trained wording", "correct replies of all facts asked for"),
    "memorization/paraphrase": ("Memorization, paraphrase", "the same facts in other words"),
    "memorization/validation": ("Memorization, validation", "the same facts in wordings that choose a checkpoint"),
    "memorization/composed": ("Memorization, composed", "questions that join several facts"),
    "memorization/retrieval": ("Memorization, retrieval", "the fact among distractors"),
    "retention/probe": ("Retention, general probe", "general questions, correct replies"),
}
_METRIC_LABELS = {
    "forgetting": ("Forgetting", "rise of the reference loss, nats per token (Eq.\u00a02)"),
    "reference_nll": ("Reference NLL", "loss on the base model's own replies, nats per token"),
    "unparseable_share": ("unparseable", "replies without a readable answer"),
    "truncated_share": ("truncated", "replies cut at the longest length"),
}
_HELD_OUT = {
    "accuracy": ("Held-out average", "unweighted mean of the five benchmarks' accuracies"),
    "drop": ("Held-out drop", "the base's average minus this one"),
    "retained": ("Held-out retained", "share of the base's average that is left"),
}


_LEVEL = 0.05  # of the intervals, too


@dataclass(frozen=True)
class Model:
    """One model of the comparison: a unique `label`, and the `method` that made it ("" for the base)."""

    label: str
    method: str
    role: Literal["base", "beside", "tuned"]


@dataclass(frozen=True)
class Entry:
    """What one model scored on one measure, its change from the base where that was measured, and the p of McNemar's test on it."""

    model: Model
    score: Estimate | None
    change: Estimate | None
    p: float | None = None


@dataclass(frozen=True)
class ScoreRow:
    """One measure; `entries` has the order of `models_of`: base first, this run's tuned model last."""

    suite: str
    split: str
    metric: str
    label: str
    meaning: str
    measure: Measure
    entries: tuple[Entry, ...]

    @property
    def tuned(self) -> Entry:
        """This run's entry; the base's where that was evaluated alone."""
        return self.entries[-1]

    @property
    def about(self) -> str:
        """The meaning, and which way is better."""
        return "; ".join(filter(None, (self.meaning, self.measure.way)))

    def verdict(self, entry: Entry) -> Verdict | None:
        """Say whether the entry's change is an improvement; "unclear" where its interval holds zero or is missing.

        Where McNemar's test was made, it has to agree: with few changed pairs a bootstrap interval is too narrow. None where there
        is no change, or neither direction is better.
        """
        change = entry.score if self.measure.signed else entry.change
        if change is None or not known(change.value) or not self.measure.better:
            return None
        if change.low is None or change.high is None or change.low <= 0 <= change.high:
            return "unclear"
        if entry.p is not None and entry.p > _LEVEL:
            return "unclear"
        return "better" if (change.low > 0) == (self.measure.better == "higher") else "worse"


def models_of(report: Report) -> list[Model]:
    """Return the models of the comparison in their order; a label that occurs twice gets a number."""
    wanted: list[tuple[str, str, Literal["base", "beside", "tuned"]]] = [
        (public_name(report.base.name) if report.alone else "base", "", "base")
    ]
    wanted += [(run.name, run.method, "beside") for run in report.beside]
    if not report.alone:
        wanted.append((report.run or "tuned", "" if report.elsewhere else report.method, "tuned"))
    labels = distinct(printable(name if method in ("", name) else f"{name} ({method})", keep="") for name, method, _ in wanted)
    return [Model(label, method, role) for label, (_, method, role) in zip(labels, wanted, strict=True)]


_ROLES = {"base": "before", "beside": "beside", "tuned": "this run, after"}


def score_table(report: Report, rows: Sequence[ScoreRow], *, inline: bool = False) -> Table:
    """The rows as a table, a column for each model and one for this run's change.

    Args:
        inline: a change stands beside the number that changed, in place of a column of its own.
    """
    columns = [Column("measure")]
    columns += [
        Column(model.label, "evaluated alone" if report.alone else _ROLES[model.role], own=model.role == "tuned")
        for model in models_of(report)
    ]
    changes = not (inline or report.alone) and any(row.measure.change for row in rows)
    columns += [Column("change", "this run minus base")] * changes
    made = []
    for row in rows:
        cells = [Cell(row.label, note=row.measure.way), *(_entry_cell(row, entry, inline) for entry in row.entries)]
        made.append(Row([*cells, *[_change_cell(row)] * changes], row.about))
    return Table(columns, made)


def headline(report: Report) -> Table:
    """The headline for a terminal, a line for each measure and model, with what became of the facts below it."""
    table = score_table(report, headline_rows(report), inline=True).long("measure and model")
    rows = table.rows or [Row(["nothing was measured", *[""] * 4])]
    return replace(table, rows=rows, caption=_caption(report))


def _entry_cell(row: ScoreRow, entry: Entry, inline: bool) -> Cell:
    base = entry.model.role == "base"
    if row.measure.of_base and base:
        return Cell(row.measure.of_base, note="by definition")
    shown = inline or entry.model.role == "beside"
    changed = shown and entry.change is not None and known(entry.change.value)
    note = value_text(row.measure.unit, entry.change.value, signed=True) if changed and entry.change else ""
    verdict = row.verdict(entry) if shown or row.measure.signed else None
    return estimate_cell(entry.score, note=note if entry.score else "not measured", verdict=verdict or "")


def _change_cell(row: ScoreRow) -> Cell:
    if row.measure.of_base:
        return Cell("", note="is itself the change")
    entry = row.tuned
    note = "" if entry.p is None else f"McNemar p {p_text(entry.p)}"
    return estimate_cell(entry.change, note=note if entry.change else "not measured", verdict=row.verdict(entry) or "")


def _caption(report: Report) -> str:
    if not methods.made_here(report):
        asked = f", {report.facts.asked} facts asked" if report.facts.asked else ""
        return f"evaluated only: {public_name(report.base.name)}{', alone' if report.alone else ' is the base'}{asked}"
    words = {"asked": "asked", **methods.statuses(report)}
    return "facts: " + ", ".join(f"{getattr(report.facts, name)} {word}" for name, word in words.items())


def headline_rows(report: Report) -> list[ScoreRow]:
    """Return the headline: memorization, retention, forgetting, the benchmarks and their average, then what other suites measured."""
    return _rows(report, _keys(report, _HEADLINE_METRICS, nested=False, others=True))


def detail_rows(report: Report) -> list[ScoreRow]:
    """Return accuracy per nested split, such as the probe by kind."""
    return _rows(report, _keys(report, ("accuracy",), nested=True))


def most_asked(rows: Sequence[ScoreRow], limit: int) -> list[ScoreRow]:
    """The rows with the most questions, in their order: a corpus may tell hundreds of kinds apart, of a few questions each."""
    scores = [row.tuned.score or row.entries[0].score for row in rows]
    chosen = sorted(range(len(rows)), key=lambda i: -(score.n if (score := scores[i]) else 0))[:limit]
    return [rows[i] for i in sorted(chosen)]


def format_rows(report: Report) -> list[ScoreRow]:
    """Return the shares of unparseable and truncated replies: a loss of format is not a loss of knowledge.

    Those of benchmarks are counts in a table of their own.
    """
    return [row for row in _rows(report, _keys(report, _FORMAT_METRICS, nested=False)) if not is_benchmark(row.suite)]


def _keys(report: Report, metrics: tuple[str, ...], *, nested: bool, others: bool = False) -> list[Key]:
    """What there are rows of; with `others`, of metrics too that are not ours and that are not the change of another."""
    keys = dict.fromkeys(score.key[:3] for score in report.scores if score.final)
    splits = dict.fromkeys(key[:2] for key in keys)
    chosen = [(suite, split) for suite, split in splits if (_parent(suite, split, splits) is not None) == nested]
    order = list(_SPLITS)
    chosen.sort(key=lambda pair: (_rank(pair[0]), order.index(pair[1]) if pair[1] in order else _group(pair[1])))
    found = [(*pair, metric) for pair in chosen for metric in metrics if (*pair, metric) in keys]
    if not others:
        return found
    unknown: dict[tuple[str, str], list[str]] = {}
    for suite, split, metric in keys:
        is_change = metric.endswith(DELTA) and (suite, split, metric.removesuffix(DELTA)) in keys
        if metric not in MEASURES and not is_change:
            unknown.setdefault((suite, split), []).append(metric)
    return found + [(*pair, metric) for pair in chosen for metric in unknown.get(pair, ())]


def _rank(suite: str) -> int:
    """The average comes after the benchmarks that it is of, other people's tasks last."""
    return 0 if suite == "core" else 2 if suite == HELD_OUT else 3 if suite.startswith(LM_EVAL) else 1


def _group(split: str) -> float:
    # Splits without a place of their own: unknown memorization before the probe, everything else after it.
    return len(_SPLITS) - 1.5 if split.startswith("memorization/") else float(len(_SPLITS))


def _parent(suite: str, split: str, splits: Collection[tuple[str, str]]) -> str | None:
    ends = [place for place, character in enumerate(split) if character == "/"]
    return next((split[:end] for end in reversed(ends) if (suite, split[:end]) in splits), None)


def _rows(report: Report, keys: Iterable[Key]) -> list[ScoreRow]:
    own = _by_key(report.scores)
    sources = [(own, "base"), *((_by_key(run.scores), "tuned") for run in report.beside)]
    sources += [] if report.alone else [(own, "tuned")]
    models = models_of(report)
    splits = {(suite, split) for suite, split, _, _ in own}
    rows = []
    for suite, split, metric in keys:
        measure = measure_of(metric, _direction(report, suite, split, metric))
        entries = tuple(
            _entry(model, scores, (suite, split, metric, whose), measure)
            for model, (scores, whose) in zip(models, sources, strict=True)
        )
        label, meaning = words_of(suite, split, metric, _parent(suite, split, splits))
        rows.append(ScoreRow(suite, split, metric, printable(label, keep=""), meaning, measure, entries))
    return rows


def _entry(
    model: Model, scores: Mapping[tuple[str, str, str, str], Score], key: tuple[str, str, str, str], measure: Measure
) -> Entry:
    suite, split, metric, _ = key
    score = measure.estimate(scores.get(key))
    if model.role == "base":
        return Entry(model, score, None)
    change = measure.estimate(scores.get((suite, split, measure.change, "tuned"))) if measure.change else None
    before = scores.get((suite, split, metric, "base"))
    if change and score and before and metric not in MEASURES and score.low is None and score.n > 1:
        # What lm-eval makes of its samples, a perplexity say, is not their mean, and the mean of their changes is not its change.
        both = known(score.value) and known(before.value)
        change = replace(score, value=score.value - before.value) if both else None  # type: ignore[operator]
    tested = scores.get((suite, split, "mcnemar_p", "tuned")) if metric == "accuracy" else None
    return Entry(model, score, change and replace(change, signed=True), tested.value if tested else None)


def _direction(report: Report, suite: str, split: str, metric: str) -> bool | None:
    """Whether more is better of a metric, as lm-eval has it of its task."""
    tasks = report.asked.get(suite, {}).get("about", {}).get("tasks", {})
    value = tasks.get(split, {}).get("higher_is_better", {}).get(metric.partition(",")[0])
    return value if isinstance(value, bool) else None


def words_of(suite: str, split: str, metric: str, parent: str | None = None) -> tuple[str, str]:
    """The label of a row and what it means; `parent` is the split that its split is a part of."""
    if (suite, split) == (HELD_OUT, AVERAGE) and metric in _HELD_OUT:
        return _HELD_OUT[metric]
    where, meaning = _place(suite, split, parent)
    if metric not in MEASURES:
        return f"{where}, {metric}", "as lm-eval scores it" if suite.startswith(LM_EVAL) else ""
    if metric in _FORMAT_METRICS:
        return f"{where}: {_METRIC_LABELS[metric][0]}", _METRIC_LABELS[metric][1]
    if metric in _METRIC_LABELS:
        label, meaning = _METRIC_LABELS[metric]
        return (label if (suite, split) == ("core", "retention/forgetting") else f"{where}, {label}"), meaning
    return where, meaning


def _place(suite: str, split: str, parent: str | None) -> tuple[str, str]:
    """What a split is called, and what a share of it is of."""
    if suite == "core" and split in _SPLITS:
        return _SPLITS[split]
    whole = split if parent is None else parent
    if is_benchmark(suite):
        name = title_of(suite) if whole == suite else f"{title_of(suite)}: {whole}"
    elif suite.startswith(LM_EVAL):
        name = suite if suite == LM_EVAL + whole else f"{title_of(suite)}: {whole}"
    elif suite == "core" and parent == "retention/probe":
        name = "Probe"
    else:
        name = whole if suite == "core" and parent is not None else f"{suite}: {whole}"
    return (name if parent is None else f"{name}, {split[len(parent) + 1 :]}"), "correct replies"


def _by_key(scores: Iterable[Score]) -> dict[tuple[str, str, str, str], Score]:
    return {score.key[:4]: score for score in scores if score.final}
