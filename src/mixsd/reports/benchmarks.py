"""What the scores of benchmarks do not say themselves: how the replies ended, what was asked and how, and what was not.

Accuracy alone hides why it fell. A reply is wrong, cannot be read, was cut short, or the judge failed on it, and beside the form
that was asked for stands the accuracy that also takes an answer in another form. A page holds a few replies, those first whose outcome
changed; all lie in the run folder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mixsd.evaluation.benchmarks.benchmark import LM_EVAL, is_benchmark, title_of
from mixsd.formats import Column, Row, Table, estimate_cell, known, number, p_text, plain, printable, without_paths
from mixsd.reports import methods
from mixsd.reports.rows import Model, headline_rows, measure_of, models_of
from mixsd.reports.schema import Report
from mixsd.statistics import Estimate

_MOST_WARNINGS = 5  # of one task of lm-eval
_SHARES = {"wrong": "wrong_share", "unparseable": "unparseable_share", "errors": "error_share", "truncated": "truncated_share"}


@dataclass(frozen=True)
class Ending:
    """How one model's replies to one benchmark ended: counts by name, None where one was not measured; truncated ones are among the others."""

    title: str
    model: Model
    counts: Mapping[str, int | None]
    lenient: Estimate | None


def endings(report: Report) -> list[Ending]:
    """How the replies ended, benchmark by benchmark, each model beside the base."""
    models = models_of(report)
    beside = iter(report.beside)
    sources = [next(beside).scores if model.role == "beside" else report.scores for model in models]
    found = []
    for suite in dict.fromkeys(score.suite for score in report.scores if score.final and is_benchmark(score.suite)):
        for model, listed in zip(models, sources, strict=True):
            whose = "base" if model.role == "base" else "tuned"
            scores = {score.metric: score for score in listed if score.key == (suite, suite, score.metric, whose, None)}
            if scores:
                replies = max((scores[metric].n for metric in ("error_share", "accuracy") if metric in scores), default=0)
                shares = {name: scores.get(metric) for name, metric in _SHARES.items()}
                counts = {name: round((score.value or 0) * score.n) if score else None for name, score in shares.items()}
                lenient = measure_of("accuracy_lenient").estimate(scores.get("accuracy_lenient"))
                found.append(Ending(title_of(suite), model, {"replies": replies, **counts}, lenient))
    return found


def endings_table(report: Report) -> Table | None:
    """The endings as a table; None where no benchmark was asked."""
    found = endings(report)
    if not found:
        return None
    heads = [Column("benchmark"), Column("model", width=12), *(Column(name, numeric=True) for name in found[0].counts)]
    rows = [
        Row(
            [item.title, item.model.label, *(number(count, 0) for count in item.counts.values()), estimate_cell(item.lenient)],
            own=item.model.role == "tuned",
        )
        for item in found
    ]
    caption = "how the replies ended; lenient: accuracy that also takes another form of answer"
    return Table([*heads, Column("lenient", "accuracy", numeric=True)], rows, caption=caption)


def tests(report: Report) -> list[tuple[str, str]]:
    """The p of McNemar's test on each benchmark's change, by title."""
    rows = [row for row in headline_rows(report) if row.metric == "accuracy" and known(row.tuned.p)]
    return [(row.label, p_text(row.tuned.p)) for row in rows]


def asked(report: Report, *, public: bool = False) -> list[tuple[str, str]]:
    """What was asked of each benchmark and of each task of lm-eval, and how, by title.

    Args:
        public: leave out where on this machine the data was.
    """
    return [
        (title_of(suite), _asked(values, public))
        for suite, values in report.asked.items()
        if is_benchmark(suite) or suite.startswith(LM_EVAL) or values.get("data")
    ]


def _asked(values: Mapping[str, Any], public: bool) -> str:
    parts = [_questions(values)]
    about = values.get("about") or {}
    samples, temperature, top_k = values.get("samples") or 1, values.get("temperature") or 0, values.get("top_k")
    if samples > 1:
        parts.append(f"{samples} replies to each")
    if temperature:
        parts.append(f"temperature {plain(temperature)}" + (f" among the {top_k} likeliest tokens" if top_k else ""))
    if values.get("tokens"):
        parts.append(f"at most {values['tokens']:,} tokens")
    shots = {task.get("num_fewshot") for task in (about.get("tasks") or {}).values()} - {None}
    if shots:
        parts.append(f"{', '.join(map(plain, sorted(shots, key=str)))} examples before each")
    if values.get("chat_template") is not None:
        parts.append(("with" if values["chat_template"] else "without") + " the chat template")
    if data := values.get("data") or about.get("data_hash"):
        where = str(values.get("where") or "")
        shown = where.removeprefix("hub: ").removesuffix(", in the cache") if where.startswith("hub: ") or not public else ""
        parts.append(f"data {str(data)[:12]}" + (f" ({shown})" if shown else ""))
    version = f" {about['lm_eval']}" if about.get("lm_eval") else ""
    parts.append(f"scorer {plain(values.get('scorer'))}{version}")
    if sandbox := values.get("sandbox"):
        parts.append("no sandbox" if is_weak(sandbox) else f"sandbox {plain(sandbox.get('kind'))}")
    return printable(", ".join(filter(None, parts)), keep="")


def _questions(values: Mapping[str, Any]) -> str:
    about = values.get("about") or {}
    tasks = (about.get("tasks") or {}).values()
    every = values.get("items") or sum(task.get("of") or 0 for task in tasks)
    taken = about.get("n") or min(filter(None, (values.get("limit"), values.get("items"))), default=0)
    if not every:
        return f"at most {values['limit']:,} questions" if values.get("limit") else ""
    return f"{taken:,} of {every:,} questions" if taken < every else f"all {every:,} questions"


def skipped(report: Report, *, public: bool = False) -> list[tuple[str, str]]:
    """The benchmarks that were to be asked and could not be, with the reason; `public` leaves out the paths of this machine."""
    found = []
    for name, why in report.skipped.items():
        title = title_of(name)
        text = without_paths(why) if public else why
        found.append((title, printable(text.removeprefix(title).lstrip(": "), keep="")))
    return found


def is_weak(sandbox: Mapping[str, Any]) -> bool:
    """Whether model-written code ran without anything between it and the machine."""
    return sandbox.get("kind") == "none"


def warnings(report: Report) -> list[str]:
    """What is to be known before the scores are read, the run's own warnings first."""
    found = list(report.warnings)
    for suite, values in report.asked.items():
        sandbox = values.get("sandbox") or {}
        if is_weak(sandbox):
            found.append(
                f"{title_of(suite)}: code that the model wrote ran without a sandbox. {sandbox.get('note') or ''}".rstrip()
            )
        about = values.get("about") or {}
        if undefined := about.get("undefined"):
            found.append(f"{title_of(suite)}: lm-eval gives no value of {', '.join(map(str, undefined))}")
        found += [f"{title_of(suite)}: {text}" for text in (about.get("warnings") or [])[:_MOST_WARNINGS]]
    return found


def lines(report: Report) -> list[str]:
    """What stands below the scores on a terminal: what was chosen, what it cost, the p of tests, what was asked and what was not."""
    told = [("chosen", methods.chosen_line(report)), ("cost", methods.cost_line(report))]
    found = [f"{name}: {printable(text)}" for name, text in told if text and methods.made_here(report)]
    tested = ", ".join(f"{title} {p}" for title, p in tests(report))
    found += [f"McNemar p: {tested}"] if tested else []
    found += [f"asked: {title}: {text}" for title, text in asked(report)]
    return found + [f"not asked: {title}: {why}" for title, why in skipped(report)]


MOST = 10
_SHOWN = ("reply", "outcome", "extracted", "reason", "truncated", "lenient")
Reply = Mapping[str, Any]


def chosen(base: Sequence[Reply], tuned: Sequence[Reply] | None, most: int = MOST) -> list[dict[str, Any]]:
    """At most `most` pairs of replies, those first whose outcome changed; `tuned` is None in each where only one model was asked.

    One kind does not crowd out the others: of what was lost and of what was gained, half the room each goes first.
    """
    others: Sequence[Reply | None] = [None] * len(base) if tuned is None else tuned
    ranked: dict[int, list[tuple[Reply, Reply | None]]] = {}
    for pair in zip(base, others, strict=True):
        ranked.setdefault(_rank(*pair), []).append(pair)
    half = most // 2
    first = [pair for rank in (0, 1) for pair in ranked.get(rank, [])[:half]]
    rest = [pair for rank in sorted(ranked) for pair in ranked[rank][half if rank < 2 else 0 :]]
    return [_shown(*pair) for pair in sorted([*first, *rest][:most], key=lambda pair: _rank(*pair))]


def _rank(base: Reply, tuned: Reply | None) -> int:
    right = [row["outcome"] == "correct" for row in (base, tuned) if row is not None]
    if len(right) == 2 and right[0] != right[1]:
        return 0 if right[0] else 1
    if tuned is not None and base["outcome"] != tuned["outcome"]:
        return 2
    return 4 if all(right) else 3


def _shown(base: Reply, tuned: Reply | None) -> dict[str, Any]:
    labels = list(base.get("labels") or [])
    return {"key": base["key"], "question": base.get("question"), "labels": labels, "base": _of(base), "tuned": _of(tuned)}


def _of(row: Reply | None) -> dict[str, Any] | None:
    return None if row is None else {name: row.get(name) for name in _SHOWN}
