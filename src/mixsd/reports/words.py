"""What a report says besides its scores, the same on the page, in the terminal and in the model card.

How the run's work is told depends on its method: one that trains on targets, one that answers anew at each step and one that edits do not
have the same words. Of benchmarks: how the replies ended (accuracy alone hides why it fell), what was asked and how, and what was not.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from mixsd.evaluation.benchmarks.benchmark import LM_EVAL, is_benchmark, title_of
from mixsd.formats import Column, Row, Table, estimate_cell, known, number, p_text, plain, printable, public_name, without_paths
from mixsd.methods import MethodSpec, known_method
from mixsd.reports.rows import headline_rows, measure_of, score_table, sources_of
from mixsd.reports.schema import Report
from mixsd.settings import Settings

_STATUSES = {
    "rollouts": {"accepted": "trained on", "unusable": "unusable"},
    "nothing": {"accepted": "edited", "rejected": "failed", "unusable": "unusable"},
}
_MAKING = ("Mixing", "Distillation", "Training", "Editing")  # groups of settings
_IN_WORDS = {
    "nll_token": {"top1": "the teacher's likeliest token", "sampled": "a token drawn from the teacher's distribution"},
    "kl_teacher": {"expert": "the expert conditional everywhere", "picked": "the conditional that was picked at a position"},
}


def method_of(report: Report) -> MethodSpec:
    """The method of a run."""
    return known_method(str(report.settings.get("method", "mixsd")))


def settings_shown(report: Report) -> dict[str, Any]:
    """The settings that had a part in the run: none of making a model where it made none."""
    if report.made_here:
        return report.settings
    groups = {name: field.json_schema_extra for name, field in Settings.model_fields.items()}
    making = {name for name, extra in groups.items() if isinstance(extra, dict) and extra.get("group") in _MAKING}
    return {name: value for name, value in report.settings.items() if name not in {*making, "method"}}


def statuses(report: Report) -> dict[str, str]:
    """What a fact's three ends are called in a run of this method; none is ever rejected where there are no targets."""
    return _STATUSES.get(method_of(report).trains_on) or {name: name for name in ("accepted", "rejected", "unusable")}


def summary(report: Report) -> str:
    """What was done to how many facts, in one sentence without the last full stop."""
    counts, steps, method = report.facts, report.training.steps, method_of(report)
    if report.alone:
        return "One model, evaluated as it is"
    if report.elsewhere:
        return "A model that was made elsewhere, evaluated beside its base"
    told = f"{counts.accepted} of {counts.asked} facts"
    if method.edits:
        return f"{told} were edited into the weights, without training"
    if method.on_policy:
        return f"Trained on {told}, answered anew at each of {plain(steps)} optimizer steps"
    return f"{told} became training targets" + ("" if steps is None else f", learnt in {steps} optimizer steps")


def objective(report: Report) -> list[tuple[str, str]]:
    """What was minimized, by name: the loss, and the rehearsal beside it; or what was edited."""
    settings, method, editing = report.settings, method_of(report), report.editing
    if method.edits:
        return [] if editing is None else [
            ("layers", plain(editing.layers)),
            ("weight of the second moments", plain(editing.weight)),
            ("tokens that they are taken over", number(editing.moment_tokens, 0)),
            ("facts", f"{editing.edited} edited, {editing.failed} failed, {editing.unusable} unusable"),
        ]  # fmt: skip
    loss = method.loss
    for name, words in _IN_WORDS.items():
        loss = loss.replace(f"{{{name}}}", words.get(settings.get(name, ""), plain(settings.get(name))))
    if method.distilled:
        by = "sequences' means" if settings.get("kl_reduction") == "sequence" else "tokens of a step"
        loss = loss.replace("{divergence}", f"{_divergence(settings)}; mean over all {by}")
    found = [("loss", loss)]
    if settings.get("rehearse"):
        by = f"the base's distributions ({_divergence(settings)})" if settings.get("rehearse_loss") == "kl" else "their NLL"
        share = f"{plain(settings['rehearse'])} of their tokens for each supervised one"
        found.append(("rehearsal", f"the base model's own replies to general prompts, {share}, by {by}"))
    return found


def _divergence(settings: Mapping[str, Any]) -> str:
    from mixsd.training.losses import Divergence

    return Divergence.of(Settings(**{name: value for name, value in settings.items() if name.startswith("kl")})).name


def choices(report: Report) -> list[tuple[str, str]]:
    """The learning rate and the checkpoint, by name, where one of several was taken."""
    training, found = report.training, []
    if training.rates and training.lr is not None:
        failed = sum("failed" in row for row in training.rates)
        text = f"{plain(training.lr)}, the best of {len(training.rates)}" + (f", {failed} not finite" if failed else "")
        found.append(("learning rate", text))
    # What is last was not chosen by anything but the number of steps.
    if training.chosen and report.settings.get("choose", "last") != "last":
        found.append(("checkpoint", f"step {training.chosen.step}, {plain(training.chosen.why)}"))
    return found


def chosen_line(report: Report) -> str:
    """What was chosen, in one line."""
    return "; ".join(f"{name} {text}" for name, text in choices(report))


def cost_line(report: Report) -> str:
    """Generated tokens and seconds, in one line; nothing where they were not counted."""
    cost = report.cost
    if cost is None:
        return ""
    parts = [f"{name} {number(count, 0)}" for name, count in cost.parts.items() if count]
    seconds = ", ".join(f"{name} {number(value, 0)} s" for name, value in cost.seconds.items())
    tokens = f"{number(cost.generated_tokens, 0)} tokens generated to learn from"
    return "; ".join(filter(None, (tokens + (f" ({', '.join(parts)})" if len(parts) > 1 else ""), seconds)))


_SHARES = {"wrong": "wrong_share", "unparseable": "unparseable_share", "errors": "error_share", "truncated": "truncated_share"}


def endings_table(report: Report) -> Table | None:
    """How the replies ended, benchmark by benchmark, each model beside the base; None where no benchmark was asked.

    A count is a dash where it was not measured; truncated replies are among the others.
    """
    rows = []
    sources = sources_of(report)
    for suite in dict.fromkeys(score.suite for score in report.scores if score.final and is_benchmark(score.suite)):
        for model, record, whose in sources:
            scores = {score.metric: score for score in record.scores if score.key == (suite, suite, score.metric, whose, None)}
            if not scores:
                continue
            replies = max((scores[metric].n for metric in ("error_share", "accuracy") if metric in scores), default=0)
            shares = [scores.get(metric) for metric in _SHARES.values()]
            counts = [round((score.value or 0) * score.n) if score else None for score in shares]
            lenient = estimate_cell(measure_of("accuracy_lenient").estimate(scores.get("accuracy_lenient")))
            texts = [title_of(suite), model.label, *(number(count, 0) for count in (replies, *counts))]
            rows.append(Row([*texts, lenient], own=model.role == "tuned"))
    heads = [Column("benchmark"), Column("model", width=12), *(Column(name, numeric=True) for name in ("replies", *_SHARES))]
    caption = "how the replies ended; lenient: accuracy that also takes another form of answer"
    return Table([*heads, Column("lenient", "accuracy", numeric=True)], rows, caption=caption) if rows else None


def asked(report: Report, *, public: bool = False) -> list[tuple[str, str]]:
    """What was asked of each benchmark and of each task of lm-eval, and how, by title.

    `public` leaves out where on this machine the data was.
    """
    return [
        (title_of(suite), _asked(values, values.get("about") or {}, public))
        for suite, values in report.asked.items()
        if is_benchmark(suite) or suite.startswith(LM_EVAL) or values.get("data")
    ]


def _asked(values: Mapping[str, Any], about: Mapping[str, Any], public: bool) -> str:
    """`values` are those of `asked.json`, `about` what lm-eval says of its task."""
    tasks = (about.get("tasks") or {}).values()
    every = values.get("items") or sum(task.get("of") or 0 for task in tasks)
    taken = about.get("n") or min(filter(None, (values.get("limit"), values.get("items"))), default=0)
    parts = [f"at most {values['limit']:,} questions"] if values.get("limit") else []
    if every:
        parts = [f"{taken:,} of {every:,} questions" if taken < every else f"all {every:,} questions"]
    if (values.get("samples") or 1) > 1:
        parts.append(f"{values['samples']} replies to each")
    if temperature := values.get("temperature"):
        likeliest = f" among the {values['top_k']} likeliest tokens" if values.get("top_k") else ""
        parts.append(f"temperature {plain(temperature)}{likeliest}")
    if values.get("tokens"):
        parts.append(f"at most {values['tokens']:,} tokens")
    if shots := {task.get("num_fewshot") for task in tasks} - {None}:
        parts.append(f"{', '.join(map(plain, sorted(shots, key=str)))} examples before each")
    if values.get("chat_template") is not None:
        parts.append(("with" if values["chat_template"] else "without") + " the chat template")
    if data := values.get("data") or about.get("data_hash"):
        where = str(values.get("where") or "")
        shown = where.removeprefix("hub: ").removesuffix(", in the cache") if where.startswith("hub: ") or not public else ""
        parts.append(f"data {str(data)[:12]}" + (f" ({shown})" if shown else ""))
    parts.append(f"scorer {plain(values.get('scorer'))}" + (f" {about['lm_eval']}" if about.get("lm_eval") else ""))
    if sandbox := values.get("sandbox"):
        parts.append("no sandbox" if sandbox.get("kind") == "none" else f"sandbox {plain(sandbox.get('kind'))}")
    return printable(", ".join(parts), keep="")


def skipped(report: Report, *, public: bool = False) -> list[tuple[str, str]]:
    """The benchmarks that were to be asked and could not be, with the reason; `public` leaves out the paths of this machine."""
    reasons = [(title_of(name), without_paths(why) if public else why) for name, why in report.skipped.items()]
    return [(title, printable(why.removeprefix(title).lstrip(": "), keep="")) for title, why in reasons]


_MOST_WARNINGS = 5  # of one task of lm-eval


def warnings(report: Report) -> list[str]:
    """What is to be known before the scores are read, the run's own warnings first."""
    found = list(report.warnings)
    for suite, values in report.asked.items():
        sandbox, about = values.get("sandbox") or {}, values.get("about") or {}
        told = []
        if sandbox.get("kind") == "none":
            told.append(f"code that the model wrote ran without a sandbox. {sandbox.get('note') or ''}".rstrip())
        if undefined := about.get("undefined"):
            told.append(f"lm-eval gives no value of {', '.join(map(str, undefined))}")
        found += [f"{title_of(suite)}: {text}" for text in (*told, *(about.get("warnings") or [])[:_MOST_WARNINGS])]
    return found


def headline(report: Report) -> Table:
    """The headline for a terminal, a line for each measure and model, with what became of the facts below it."""
    table = score_table(report, headline_rows(report), inline=True).long("measure and model")
    rows = table.rows or [Row(["nothing was measured", *[""] * 4])]
    if report.made_here:
        words = {"asked": "asked", **statuses(report)}
        caption = "facts: " + ", ".join(f"{getattr(report.facts, name)} {word}" for name, word in words.items())
    else:
        facts = f", {report.facts.asked} facts asked" if report.facts.asked else ""
        caption = f"evaluated only: {public_name(report.base.name)}{', alone' if report.alone else ' is the base'}{facts}"
    return replace(table, rows=rows, caption=caption)


def lines(report: Report) -> list[str]:
    """What stands below the scores on a terminal: what was chosen, what it cost, the p of tests, what was asked and what was not."""
    told = [("chosen", chosen_line(report)), ("cost", cost_line(report))] if report.made_here else []
    tested = [row for row in headline_rows(report) if row.metric == "accuracy" and known(row.tuned.p)]
    told.append(("McNemar p", ", ".join(f"{row.label} {p_text(row.tuned.p)}" for row in tested)))
    told += [("asked", f"{title}: {text}") for title, text in asked(report)]
    told += [("not asked", f"{title}: {why}") for title, why in skipped(report)]
    return [f"{name}: {printable(text)}" for name, text in told if text]


Reply = Mapping[str, Any]


def chosen(base: Sequence[Reply], tuned: Sequence[Reply] | None, most: int = 10) -> list[dict[str, Any]]:
    """At most `most` pairs of replies, those first whose outcome changed; `tuned` is None in each where only one model was asked.

    One kind does not crowd out the others: of what was lost and of what was gained, half the room each goes first.
    """
    others: Sequence[Reply | None] = [None] * len(base) if tuned is None else tuned
    ranked: list[list[tuple[Reply, Reply | None]]] = [[] for _ in range(5)]
    for pair in zip(base, others, strict=True):
        ranked[_rank(*pair)].append(pair)
    half = most // 2
    first = [*ranked[0][:half], *ranked[1][:half]]
    rest = [*ranked[0][half:], *ranked[1][half:], *ranked[2], *ranked[3], *ranked[4]]
    shown = sorted([*first, *rest][:most], key=lambda pair: _rank(*pair))
    about = [{name: one.get(name) for name in ("key", "question", "labels")} for one, _ in shown]
    return [row | {"base": _shown(one), "tuned": _shown(other)} for row, (one, other) in zip(about, shown, strict=True)]


def _rank(base: Reply, tuned: Reply | None) -> int:
    """Lost, gained, wrong in another way, wrong, right."""
    right = [row["outcome"] == "correct" for row in (base, tuned) if row is not None]
    if right in ([True, False], [False, True]):
        return 0 if right[0] else 1
    if tuned is not None and base["outcome"] != tuned["outcome"]:
        return 2
    return 4 if all(right) else 3


def _shown(row: Reply | None) -> Reply | None:
    return row and {name: row.get(name) for name in ("reply", "outcome", "extracted", "reason", "truncated", "lenient")}
