"""What the scores of benchmarks do not say themselves: how the replies ended, what was asked and how, and what was not.

Accuracy alone hides why it fell. A reply is wrong, cannot be read, was cut short, or the judge failed on it, and beside the form
that was asked for stands the accuracy that also takes an answer in another form.

Which replies to a benchmark a page shows: what the tuned model lost, what it gained, what is wrong in both, then the rest.

A page holds a few of them; all lie in the run folder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mixsd.evaluation.benchmarks.benchmark import LM_EVAL, title_of
from mixsd.evaluation.benchmarks.table import is_benchmark
from mixsd.formats import known, p_text, plain, printable, without_paths
from mixsd.reports.rows import Column, Score, columns, final_scores, headline_rows

_MOST_WARNINGS = 5  # of one task of lm-eval
_SHARES = {"wrong": "wrong_share", "unparseable": "unparseable_share", "errors": "error_share", "truncated": "truncated_share"}


@dataclass(frozen=True)
class Ending:
    """How one model's replies to one benchmark ended, as counts; `truncated` ones are among the others. None: not measured."""

    title: str
    column: Column
    replies: int
    wrong: int | None
    unparseable: int | None
    errors: int | None
    truncated: int | None
    lenient: Score | None


def endings(report: Mapping[str, Any]) -> list[Ending]:
    """How the replies ended, benchmark by benchmark, each model beside the base."""
    runs = {column.label: (report, column.role) for column in columns(report) if column.role != "beside"}
    beside = [column for column in columns(report) if column.role == "beside"]
    runs |= {column.label: (run, "tuned") for column, run in zip(beside, report.get("beside") or [], strict=True)}
    found = []
    for suite in dict.fromkeys(item["suite"] for item in final_scores(report)):
        if not is_benchmark(suite):
            continue
        for column in columns(report):
            source, model = runs[column.label]
            scores = {
                item["metric"]: item
                for item in final_scores(source)
                if (item["suite"], item["split"], item["model"]) == (suite, suite, model)
            }
            if scores:
                found.append(_ending(suite, column, scores))
    return found


def _ending(suite: str, column: Column, scores: Mapping[str, Mapping[str, Any]]) -> Ending:
    counts = {}
    for name, metric in _SHARES.items():
        item = scores.get(metric) or {}
        value, n = item.get("value"), item.get("n") or 0
        counts[name] = round(value * n) if known(value) else 0 if item else None
    asked = max((scores[metric].get("n") or 0 for metric in ("error_share", "accuracy") if metric in scores), default=0)
    lenient = scores.get("accuracy_lenient")
    score = Score(lenient.get("value"), lenient.get("n") or 0, lenient.get("low"), lenient.get("high")) if lenient else None
    return Ending(title_of(suite), column, asked, **counts, lenient=score)


def tests(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The p of McNemar's test on each benchmark's change, by title."""
    rows = [row for row in headline_rows(report) if row.metric == "accuracy" and known(row.tuned.p)]
    return [(row.label, p_text(row.tuned.p)) for row in rows]


def asked(report: Mapping[str, Any], *, public: bool = False) -> list[tuple[str, str]]:
    """What was asked of each benchmark and of each task of lm-eval, and how, by title.

    Args:
        public: leave out where on this machine the data was.
    """
    told = report.get("asked") or {}
    return [
        (title_of(suite), _asked(values, public))
        for suite, values in told.items()
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


def skipped(report: Mapping[str, Any], *, public: bool = False) -> list[tuple[str, str]]:
    """The benchmarks that were to be asked and could not be, with the reason; `public` leaves out the paths of this machine."""
    found = []
    for name, why in (report.get("skipped") or {}).items():
        title = title_of(name)
        text = without_paths(str(why)) if public else str(why)
        found.append((title, printable(text.removeprefix(title).lstrip(": "), keep="")))
    return found


def is_weak(sandbox: Mapping[str, Any]) -> bool:
    """Whether model-written code ran without anything between it and the machine."""
    return sandbox.get("kind") == "none"


def warnings(report: Mapping[str, Any]) -> list[str]:
    """What is to be known before the scores are read, the run's own warnings first."""
    found = [str(text) for text in report.get("warnings") or []]
    for suite, values in (report.get("asked") or {}).items():
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


def lines(report: Mapping[str, Any]) -> list[str]:
    """The p of the tests, what was asked and what was not, a line each, for a terminal."""
    tested = ", ".join(f"{title} {p}" for title, p in tests(report))
    found = [f"McNemar p: {tested}"] if tested else []
    found += [f"asked: {title}: {text}" for title, text in asked(report)]
    return found + [f"not asked: {title}: {why}" for title, why in skipped(report)]


MOST = 10
_SHOWN = ("reply", "outcome", "extracted", "reason", "truncated", "lenient")
Row = Mapping[str, Any]


def chosen(base: Sequence[Row], tuned: Sequence[Row] | None, most: int = MOST) -> list[dict[str, Any]]:
    """At most `most` pairs of replies, those first whose outcome changed; `tuned` is None in each where only one model was asked.

    One kind does not crowd out the others: of what was lost and of what was gained, half the room each goes first.
    """
    others: Sequence[Row | None] = [None] * len(base) if tuned is None else tuned
    ranked: dict[int, list[tuple[Row, Row | None]]] = {}
    for pair in zip(base, others, strict=True):
        ranked.setdefault(_rank(*pair), []).append(pair)
    half = most // 2
    first = [pair for rank in (0, 1) for pair in ranked.get(rank, [])[:half]]
    rest = [pair for rank in sorted(ranked) for pair in ranked[rank][half if rank < 2 else 0 :]]
    return [_shown(*pair) for pair in sorted([*first, *rest][:most], key=lambda pair: _rank(*pair))]


def _rank(base: Row, tuned: Row | None) -> int:
    right = [row["outcome"] == "correct" for row in (base, tuned) if row is not None]
    if len(right) == 2 and right[0] != right[1]:
        return 0 if right[0] else 1
    if tuned is not None and base["outcome"] != tuned["outcome"]:
        return 2
    return 4 if all(right) else 3


def _shown(base: Row, tuned: Row | None) -> dict[str, Any]:
    labels = list(base.get("labels") or [])
    return {"key": base["key"], "question": base.get("question"), "labels": labels, "base": _of(base), "tuned": _of(tuned)}


def _of(row: Row | None) -> dict[str, Any] | None:
    return None if row is None else {name: row.get(name) for name in _SHOWN}
