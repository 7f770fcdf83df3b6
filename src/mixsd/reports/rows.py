"""Which scores a reader sees and what they mean, picked once from the flat score lists for the page, the terminal and the card.

A row is one measure, its entries are the models beside each other: the base, every run shown beside, this run. A split nested in
another one of its suite ("retention/probe/arithmetic" in "retention/probe") is a detail, everything else is headline.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from mixsd.evaluation.benchmarks.benchmark import LM_EVAL, is_benchmark, title_of
from mixsd.evaluation.scores import AVERAGE, HELD_OUT
from mixsd.formats import Cell, Column, Row, Table, distinct, estimate_cell, known, p_text, printable, public_name, value_text
from mixsd.reports.schema import Beside, Report, Score
from mixsd.statistics import Estimate, Unit

Better = Literal["higher", "lower", ""]
Key = tuple[str, str, str]  # suite, split, metric
OwnKey = tuple[str, str, str, str]  # and whose: base or tuned
DELTA = "_delta"


@dataclass(frozen=True)
class Measure:
    """What a metric's numbers mean.

    `signed`: they are changes. `change`: the metric that holds theirs. `of_base`: what the base has by definition; the numbers are then
    the change themselves.
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
    """What a metric's numbers mean; `higher_is_better` is what its task says of one that is not ours, which its name tells else."""
    if metric in MEASURES:
        return MEASURES[metric]
    name = metric.removesuffix(DELTA)
    signed, bare = name != metric, name.partition(",")[0]
    right = _RIGHT.fullmatch(bare) is not None
    if higher_is_better is None and (right or _LESS_IS_BETTER.fullmatch(bare)):
        higher_is_better = right
    better: Better = "" if higher_is_better is None else "higher" if higher_is_better else "lower"
    return Measure("share" if right else "number", signed, better, None if signed else metric + DELTA)


@dataclass(frozen=True)
class Model:
    """One model of the comparison, under a unique label."""

    label: str
    role: Literal["base", "beside", "tuned"]


@dataclass(frozen=True)
class Entry:
    """What one model scored on one measure, its change from the base where that was measured, and the p of McNemar's test on it."""

    model: Model
    score: Estimate | None
    change: Estimate | None = None
    p: float | None = None


_LEVEL = 0.05  # of the intervals, too


@dataclass(frozen=True)
class ScoreRow:
    """One measure; `entries` has the order of `models_of`: base first, this run's tuned model last."""

    suite: str
    metric: str
    label: str
    meaning: str
    measure: Measure
    entries: tuple[Entry, ...]

    @property
    def tuned(self) -> Entry:
        """This run's entry; the base's where that was evaluated alone."""
        return self.entries[-1]

    def verdict(self, entry: Entry) -> Literal["better", "worse", "unclear"] | None:
        """Say whether the entry's change is an improvement; None where there is no change, or neither direction is better.

        Where McNemar's test was made, it has to agree: with few changed pairs a bootstrap interval is too narrow.
        """
        change = entry.score if self.measure.signed else entry.change
        if change is None or not known(change.value) or not self.measure.better:
            return None
        if change.low is None or change.high is None or change.low <= 0 <= change.high or (entry.p or 0) > _LEVEL:
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
    return [Model(label, role) for label, (_, _, role) in zip(labels, wanted, strict=True)]


def sources_of(report: Report) -> list[tuple[Model, Report | Beside, Literal["base", "tuned"]]]:
    """The models, each with the record that holds its scores, and what it is called there."""
    beside = iter(report.beside)
    return [
        (model, next(beside) if model.role == "beside" else report, "base" if model.role == "base" else "tuned")
        for model in models_of(report)
    ]


_ROLES = {"base": "before", "beside": "beside", "tuned": "this run, after"}


def score_table(report: Report, rows: Sequence[ScoreRow], *, inline: bool = False) -> Table:
    """The rows as a table, a column for each model and one for this run's change; `inline`: changes beside what changed instead."""
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
        about = "; ".join(filter(None, (row.meaning, row.measure.way)))
        made.append(Row([*cells, *[_change_cell(row)] * changes], about))
    return Table(columns, made)


def _entry_cell(row: ScoreRow, entry: Entry, inline: bool) -> Cell:
    if row.measure.of_base and entry.model.role == "base":
        return Cell(row.measure.of_base, note="by definition")
    if entry.score is None:
        return estimate_cell(None, note="not measured")
    shown = inline or entry.model.role == "beside"
    changed = shown and entry.change is not None and known(entry.change.value)
    note = value_text(row.measure.unit, entry.change.value, signed=True) if changed and entry.change else ""
    verdict = row.verdict(entry) if shown or row.measure.signed else None
    return estimate_cell(entry.score, note=note, verdict=verdict or "")


def _change_cell(row: ScoreRow) -> Cell:
    if row.measure.of_base:
        return Cell("", note="is itself the change")
    entry = row.tuned
    if entry.change is None:
        return estimate_cell(None, note="not measured")
    note = "" if entry.p is None else f"McNemar p {p_text(entry.p)}"
    return estimate_cell(entry.change, note=note, verdict=row.verdict(entry) or "")


def headline_rows(report: Report) -> list[ScoreRow]:
    """Return the headline: memorization, retention, forgetting, the benchmarks and their average, then what other suites measured."""
    return _rows(report, ("accuracy", "drop", "retained", "forgetting", "reference_nll"), others=True)


def detail_rows(report: Report) -> list[ScoreRow]:
    """Return accuracy per nested split, such as the probe by kind."""
    return _rows(report, ("accuracy",), nested=True)


def format_rows(report: Report) -> list[ScoreRow]:
    """Return the shares of unparseable and truncated replies, save of benchmarks, which `words.endings_table` counts."""
    return [row for row in _rows(report, ("unparseable_share", "truncated_share")) if not is_benchmark(row.suite)]


def most_asked(rows: Sequence[ScoreRow], limit: int) -> list[ScoreRow]:
    """The rows with the most questions, in their order: a corpus may tell hundreds of kinds apart, of a few questions each."""
    scores = [row.tuned.score or row.entries[0].score or Estimate() for row in rows]
    chosen = sorted(range(len(rows)), key=lambda place: scores[place].n, reverse=True)[:limit]
    return [rows[place] for place in sorted(chosen)]


def _rows(report: Report, metrics: Sequence[str], *, nested: bool = False, others: bool = False) -> list[ScoreRow]:
    """A row for each place and metric; with `others`, of metrics too that are not ours and that are not the change of another."""
    measured: dict[tuple[str, str], list[str]] = {}
    for suite, split, metric in dict.fromkeys(score.key[:3] for score in report.scores if score.final):
        measured.setdefault((suite, split), []).append(metric)
    parents = {place: _parent(*place, measured) for place in measured}
    places = sorted((place for place, parent in parents.items() if (parent is not None) == nested), key=_order)
    keys = [(*place, metric) for place in places for metric in metrics if metric in measured[place]]
    if others:
        changes = {place: {metric + DELTA for metric in measured[place]} for place in places}
        keys += [
            (*place, metric)
            for place in places
            for metric in measured[place]
            if metric not in MEASURES and metric not in changes[place]
        ]
    sources = [
        (model, {score.key[:4]: score for score in record.scores if score.final}, whose)
        for model, record, whose in sources_of(report)
    ]
    rows = []
    for suite, split, metric in keys:
        tasks = report.asked.get(suite, {}).get("about", {}).get("tasks", {})  # as lm-eval has them
        measure = measure_of(metric, tasks.get(split, {}).get("higher_is_better", {}).get(metric.partition(",")[0]))
        entries = tuple(_entry(model, scores, (suite, split, metric, whose), measure) for model, scores, whose in sources)
        label, meaning = words_of(suite, split, metric, parents[suite, split])
        rows.append(ScoreRow(suite, metric, printable(label, keep=""), meaning, measure, entries))
    return rows


def _entry(model: Model, scores: Mapping[OwnKey, Score], key: OwnKey, measure: Measure) -> Entry:
    suite, split, metric, whose = key
    score = measure.estimate(scores.get(key))
    if whose == "base":
        return Entry(model, score)
    change = measure.estimate(scores.get((suite, split, measure.change, whose))) if measure.change else None
    before = scores.get((suite, split, metric, "base"))
    if change and score and before and metric not in MEASURES and score.low is None and score.n > 1:
        # What lm-eval makes of its samples, a perplexity say, is not their mean, and the mean of their changes is not its change.
        both = score.value is not None and before.value is not None
        change = replace(score, value=score.value - before.value) if both else None  # type: ignore[operator]
    tested = scores.get((suite, split, "mcnemar_p", whose)) if metric == "accuracy" else None
    return Entry(model, score, change and replace(change, signed=True), tested.value if tested else None)


_SPLITS = {
    "memorization/trained": ("Memorization, trained wording", "correct replies of all facts asked for"),
    "memorization/paraphrase": ("Memorization, paraphrase", "the same facts in other words"),
    "memorization/validation": ("Memorization, validation", "the same facts in wordings that choose a checkpoint"),
    "memorization/composed": ("Memorization, composed", "questions that join several facts"),
    "memorization/retrieval": ("Memorization, retrieval", "the fact among distractors"),
    "retention/probe": ("Retention, general probe", "general questions, correct replies"),
}
_METRICS = {
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
_RANKS = {"core": 0, HELD_OUT: 2}  # benchmarks and unknown suites between them, other people's tasks last


def _order(place: tuple[str, str]) -> tuple[int, float]:
    """Where a split stands; unknown memorization before the probe, what else has no place of its own after it."""
    suite, split = place
    splits = list(_SPLITS)
    unknown = len(splits) - 1.5 if split.startswith("memorization/") else float(len(splits))
    rank = 3 if suite.startswith(LM_EVAL) else _RANKS.get(suite, 1)
    return rank, splits.index(split) if split in splits else unknown


def _parent(suite: str, split: str, splits: Collection[tuple[str, str]]) -> str | None:
    ends = [place for place, character in enumerate(split) if character == "/"]
    return next((split[:end] for end in reversed(ends) if (suite, split[:end]) in splits), None)


def words_of(suite: str, split: str, metric: str, parent: str | None = None) -> tuple[str, str]:
    """The label of a row and what it means; `parent` is the split that its split is a part of."""
    if (suite, split) == (HELD_OUT, AVERAGE) and metric in _HELD_OUT:
        return _HELD_OUT[metric]
    if (suite, split) == ("core", "retention/forgetting") and metric in _METRICS:
        return _METRICS[metric]
    where, meaning = _place(suite, split, parent)
    if metric in _METRICS:
        label, meaning = _METRICS[metric]
        return f"{where}, {label}", meaning
    if metric not in MEASURES:
        return f"{where}, {metric}", "as lm-eval scores it" if suite.startswith(LM_EVAL) else ""
    return where, meaning


def _place(suite: str, split: str, parent: str | None) -> tuple[str, str]:
    """What a split is called, and what a share of it is of."""
    if suite == "core" and split in _SPLITS:
        return _SPLITS[split]
    whole = split if parent is None else parent
    if is_benchmark(suite) or suite.startswith(LM_EVAL):
        name = title_of(suite) if whole in (suite, suite.removeprefix(LM_EVAL)) else f"{title_of(suite)}: {whole}"
    elif suite == "core" and parent is not None:
        name = "Probe" if parent == "retention/probe" else parent
    else:
        name = f"{suite}: {whole}"
    return (name if parent is None else f"{name}, {split[len(parent) + 1 :]}"), "correct replies"
