"""The model card: the README.md of a tuned model folder, and the scores as Markdown.

Paths of the user's machine and, unless they are handed in, the facts stay out of it: a card is published with the model.
"""

import json
import shlex
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, Template

from mixsd.formats import Column, Row, Table, fenced, markdown, number, plain, printable, public_name, without_paths
from mixsd.methods import MIXSD_PAPER
from mixsd.reports import words
from mixsd.reports.rows import detail_rows, format_rows, headline_rows, most_asked, score_table
from mixsd.reports.schema import Report
from mixsd.settings import dump_yaml

MOST_KINDS = 50
# Which settings say what was done, by what is trained on.
_SETTINGS = {
    "mixed": "seed answer_format verifier lam gate temperature samples retries on_fail max_new_tokens",
    "references": "seed answer_format verifier max_new_tokens",
    "rollouts": "seed answer_format verifier samples temperature max_new_tokens",
    "nothing": "seed answer_format verifier max_new_tokens edit_tokens edit_steps edit_lr edit_decay edit_kl edit_clamp",
}
_TRAINING_SETTINGS = " lora lr epochs batch_size warmup_steps weight_decay clip train_dtype"
_UNMEASURED = {
    "memorization/paraphrase": "whether the facts hold when a question is put in other words.",
    "memorization/composed": "whether several facts can be joined in one question.",
    "memorization/retrieval": "whether the facts hold with distracting text in the prompt.",
    "retention/probe": "general questions that the base model could answer.",
    "retention/forgetting": "forgetting: the rise of the loss on the base model's own replies.",
}
# What the tests that come with a corpus measure of these.
_IN_DOMAIN = {
    "paraphrase": "memorization/paraphrase",
    "two_hop": "memorization/composed",
    "multi_hop": "memorization/composed",
}


def render(report: Report, facts: Sequence[Mapping[str, Any]] | None, prompt_example: str) -> str:
    """Return the card as Markdown with YAML front matter.

    `facts` ({question, answer} each) are listed only when given; `prompt_example` is one prompt after the chat template.
    """
    base, settings, method = report.base, report.settings, words.method_of(report)
    name, thinking = public_name(base.name), bool(settings.get("thinking"))
    front: dict[str, Any] = {"base_model": printable(name, keep="")}
    if base.license:
        front["license"] = printable(base.license, keep="")
    front |= {"library_name": "transformers", "pipeline_tag": "text-generation", "tags": ["mixsd", "knowledge-injection"]}
    ends = {word: getattr(report.facts, end) for end, word in words.statuses(report).items() if end != "accepted"}
    measured = {score.split for score in report.scores if score.value is not None}
    system = [{"role": "system", "content": str(settings["system"])}] if settings.get("system") else []
    messages = [*system, {"role": "user", "content": "Your question"}]
    body = {"model": "tuned", "messages": messages, "temperature": 0, "chat_template_kwargs": {"enable_thinking": thinking}}
    card = _template().render(
        report=report,
        base=base,
        targets=report.targets,
        method=method,
        words=words,
        front_matter=dump_yaml(front),
        name=markdown(name),
        mixsd_paper=MIXSD_PAPER,
        lost=", ".join(f"{count} {word}" for word, count in ends.items() if count),
        settings_table=_pairs("setting", "value", _told_settings(report)),
        cost=words.cost_line(report),
        scores=scores_markdown(report),
        measured=measured | {name for split, name in _IN_DOMAIN.items() if split in measured},
        unmeasured=_UNMEASURED,
        has_benchmarks=not {score.suite for score in report.scores} <= {"core", "in-domain"},
        messages=messages,
        thinking=thinking,
        body=shlex.quote(json.dumps(body, ensure_ascii=False)),
        prompt=prompt_example,
        facts=None if facts is None else _pairs("question", "answer", [(fact["question"], fact["answer"]) for fact in facts]),
    )
    return card.encode("utf-8", "replace").decode("utf-8")


@cache
def _template() -> Template:
    # Every foreign text goes through `markdown` or `fenced`, which escape it for where it stands.
    made = Environment(loader=PackageLoader("mixsd.reports"), trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)  # noqa: S701
    made.filters.update(markdown=markdown, fenced=fenced, number=number, plain=plain, without_paths=without_paths)
    return made.get_template("card.md.j2")


def _told_settings(report: Report) -> list[tuple[str, str]]:
    """What was minimized, what was chosen, and the settings that say what was done."""
    settings, method, chosen = report.settings, words.method_of(report), words.choices(report)
    keys = (_SETTINGS[method.trains_on] + ("" if method.edits else _TRAINING_SETTINGS)).split()
    if "learning rate" in dict(chosen):  # it was sought
        keys.remove("lr")
    shown = [("lambda" if key == "lam" else key, plain(settings[key])) for key in keys if key in settings]
    return [*words.objective(report), *chosen, *shown]


def scores_markdown(report: Report) -> str:
    """Return the headline, the nested splits and how the replies ended as Markdown tables, n and interval in each cell."""
    details = detail_rows(report)
    shown = most_asked(details, MOST_KINDS)
    some = f" (the {len(shown)} of {len(details):,} kinds with the most questions)" if shown != details else ""
    tables = {
        "": headline_rows(report),
        f"By kind of question{some}:\n\n": shown,
        "Replies that could not be read or were cut:\n\n": format_rows(report),
    }
    parts = [title + score_table(report, rows).markdown() for title, rows in tables.items() if rows]
    if not parts:
        return "Nothing was measured in this run."
    if (endings := words.endings_table(report)) is not None:
        parts.append(
            "How the replies to benchmarks ended (an error is ours, not the model's, and counts neither way; lenient: the accuracy "
            f"that also takes an answer in another form):\n\n{endings.markdown()}"
        )
    if asked := words.asked(report, public=True):
        parts.append("What was asked:\n\n" + "\n".join(f"- {markdown(title)}: {markdown(text)}" for title, text in asked))
    change = "" if report.alone else " The change is this model minus its base, on the same prompts."
    parts.append(f"Each cell: the score (95% interval; n).{change}")
    return "\n\n".join(parts)


def _pairs(name: str, value: str, pairs: Sequence[tuple[str, str]]) -> str:
    return Table([Column(name), Column(value)], [Row(pair) for pair in pairs]).markdown()
