"""Which scores a reader sees, picked once from the flat score lists for the page, the terminal and the card.

A row is one measure, its entries are the models beside each other: the base, every run shown beside, this run. A split
nested in another one of its suite ("retention/probe/arithmetic" in "retention/probe") is a detail, everything else is
headline, so a new suite appears without a change here. What was measured of a checkpoint on the way is no row: it is drawn as a
curve (`checkpoint_curve`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from mixsd.reporting.formats import Unit, known, printable

Verdict = Literal["better", "worse", "unclear"]
Key = tuple[str, str, str]  # suite, split, metric


@dataclass(frozen=True)
class Measure:
    """What a metric's numbers mean: their unit, whether they are changes, which way is better, which metric is their change."""

    unit: Unit = "number"
    signed: bool = False
    better: Literal["higher", "lower", ""] = ""
    change: str | None = None


MEASURES: dict[str, Measure] = {
    "accuracy": Measure("share", better="higher", change="accuracy_delta"),
    "accuracy_delta": Measure("share", signed=True, better="higher"),
    "forgetting": Measure("nats", signed=True, better="lower"),
    "reference_nll": Measure("nats", better="lower", change="forgetting"),
    "unparseable_share": Measure("share", better="lower"),
    "truncated_share": Measure("share", better="lower"),
    "error_share": Measure("share", better="lower"),
    "old_answer_share": Measure("share", better="lower"),
    "other_answer_share": Measure("share", better="lower"),
}
_HEADLINE_METRICS = ("accuracy", "forgetting", "reference_nll")
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


@dataclass(frozen=True)
class Score:
    """One number with its n and its 95% interval; `value`, `low` and `high` are None where nothing was measured."""

    value: float | None
    n: int
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Column:
    """One model of the comparison: a unique `label`, the `method` that made it ("" for the base)."""

    label: str
    method: str
    role: Literal["base", "beside", "tuned"]


@dataclass(frozen=True)
class Entry:
    """What one model scored on one measure, and its change from the base where that was measured."""

    column: Column
    score: Score | None
    change: Score | None


@dataclass(frozen=True)
class Row:
    """One measure; `entries` has the order of `columns`: base first, this run's tuned model last."""

    suite: str
    split: str
    metric: str
    label: str
    meaning: str
    entries: tuple[Entry, ...]

    @property
    def measure(self) -> Measure:
        """Unit, sign and direction of the numbers."""
        return MEASURES[self.metric]

    @property
    def tuned(self) -> Entry:
        """This run's entry."""
        return self.entries[-1]

    def verdict(self, entry: Entry) -> Verdict | None:
        """Say whether the entry's change is an improvement; "unclear" where its interval holds zero or is missing."""
        change = entry.score if self.measure.signed else entry.change
        if change is None or not known(change.value):
            return None
        if change.low is None or change.high is None or change.low <= 0 <= change.high:
            return "unclear"
        return "better" if (change.low > 0) == (self.measure.better == "higher") else "worse"


def columns(report: Mapping[str, Any]) -> list[Column]:
    """Return the models of the comparison in their order; a label that occurs twice gets a number."""
    wanted: list[tuple[str, str, Literal["base", "beside", "tuned"]]] = [("base", "", "base")]
    wanted += [(str(run.get("name", "")), str(run.get("method", "")), "beside") for run in report.get("beside") or []]
    wanted += [(str(report.get("run", "")) or "tuned", str(report.get("method", "")), "tuned")]
    made: dict[str, Column] = {}
    for name, method, role in wanted:
        stem = label = printable(name, keep="") if method in ("", name) else printable(f"{name} ({method})", keep="")
        count = 1
        while label in made:
            count += 1
            label = f"{stem} #{count}"
        made[label] = Column(label, method, role)
    return list(made.values())


def headline_rows(report: Mapping[str, Any]) -> list[Row]:
    """Return the headline: memorization, retention, forgetting, then what other suites measured."""
    return _rows(report, _keys(report, _HEADLINE_METRICS, nested=False))


def detail_rows(report: Mapping[str, Any]) -> list[Row]:
    """Return accuracy per nested split, such as the probe by kind."""
    return _rows(report, _keys(report, ("accuracy",), nested=True))


def most_asked(rows: Sequence[Row], limit: int) -> list[Row]:
    """The rows with the most questions, in their order: a corpus may tell hundreds of kinds apart, of a few questions each."""
    scores = [row.tuned.score or row.entries[0].score for row in rows]
    chosen = sorted(range(len(rows)), key=lambda i: -(score.n if (score := scores[i]) else 0))[:limit]
    return [rows[i] for i in sorted(chosen)]


def format_rows(report: Mapping[str, Any]) -> list[Row]:
    """Return the shares of unparseable and truncated replies: a loss of format is not a loss of knowledge."""
    return _rows(report, _keys(report, _FORMAT_METRICS, nested=False))


def _keys(report: Mapping[str, Any], metrics: tuple[str, ...], *, nested: bool) -> list[Key]:
    scores = final_scores(report)
    splits = dict.fromkeys((item["suite"], item["split"]) for item in scores)
    present = {(item["suite"], item["split"], item["metric"]) for item in scores}
    chosen = [(suite, split) for suite, split in splits if (_parent(suite, split, splits) is not None) == nested]
    order = list(_SPLITS)
    chosen.sort(key=lambda pair: (pair[0] != "core", order.index(pair[1]) if pair[1] in order else _group(pair[1])))
    return [(*pair, metric) for pair in chosen for metric in metrics if (*pair, metric) in present]


def _group(split: str) -> float:
    # Splits without a place of their own: unknown memorization before the probe, everything else after it.
    return len(_SPLITS) - 1.5 if split.startswith("memorization/") else float(len(_SPLITS))


def _parent(suite: str, split: str, splits: Collection[tuple[str, str]]) -> str | None:
    ends = [place for place, character in enumerate(split) if character == "/"]
    return next((split[:end] for end in reversed(ends) if (suite, split[:end]) in splits), None)


def _rows(report: Mapping[str, Any], keys: list[Key]) -> list[Row]:
    own = _by_key(final_scores(report))
    sources = [(own, "base")]
    sources += [(_by_key(final_scores(run)), "tuned") for run in report.get("beside") or []]
    sources += [(own, "tuned")]
    models = columns(report)
    splits = {(suite, split) for suite, split, _, _ in own}
    rows = []
    for suite, split, metric in keys:
        change = MEASURES[metric].change
        entries = tuple(
            Entry(column, scores.get((suite, split, metric, model)), _change(scores, suite, split, change, column))
            for column, (scores, model) in zip(models, sources, strict=True)
        )
        label, meaning = _words(suite, split, metric, _parent(suite, split, splits))
        rows.append(Row(suite, split, metric, printable(label, keep=""), meaning, entries))
    return rows


def _change(
    scores: Mapping[tuple[str, str, str, str], Score], suite: str, split: str, metric: str | None, column: Column
) -> Score | None:
    return None if metric is None or column.role == "base" else scores.get((suite, split, metric, "tuned"))


def _words(suite: str, split: str, metric: str, parent: str | None) -> tuple[str, str]:
    where, meaning = (_SPLITS.get(split) if suite == "core" else None) or (f"{suite}: {split}", "correct replies")
    if metric in _FORMAT_METRICS:
        return f"{where}: {_METRIC_LABELS[metric][0]}", _METRIC_LABELS[metric][1]
    if metric in _METRIC_LABELS:
        label, meaning = _METRIC_LABELS[metric]
        return (label if (suite, split) == ("core", "retention/forgetting") else f"{suite}: {split}, {label}"), meaning
    if parent is not None:
        above = {"retention/probe": "Probe"}.get(parent, parent) if suite == "core" else f"{suite}: {parent}"
        return f"{above}, {split[len(parent) + 1 :]}", meaning
    return where, meaning


def final_scores(report: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The scores of the base and of the model that a run ended with."""
    return [item for item in report.get("scores") or [] if item.get("checkpoint") is None]


def _by_key(scores: Iterable[Mapping[str, Any]]) -> dict[tuple[str, str, str, str], Score]:
    return {
        (item["suite"], item["split"], item["metric"], item["model"]): Score(
            item.get("value"), item.get("n") or 0, item.get("low"), item.get("high")
        )
        for item in scores
    }
