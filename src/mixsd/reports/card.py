"""The model card: the README.md of a tuned model folder, and the scores as Markdown.

It says what was measured, with n and interval, and what was not. Paths of the user's machine and, unless they are handed in,
the facts stay out of it: a card is published with the model.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from mixsd.formats import Column, Row, Table, fenced, markdown, number, plain, printable, public_name, without_paths
from mixsd.methods import MIXSD_PAPER
from mixsd.reports import benchmarks
from mixsd.reports.methods import choices, cost_line, method_of, objective, statuses, summary
from mixsd.reports.rows import detail_rows, format_rows, headline_rows, most_asked, score_table
from mixsd.reports.schema import BaseRecord, Report
from mixsd.settings import dump_yaml

MOST_KINDS = 50
# Which settings say what was done, by what is trained on.
_SETTINGS = {
    "mixed": (
        "seed", "answer_format", "verifier", "lam", "gate", "temperature", "samples", "retries", "on_fail", "max_new_tokens",
    ),
    "references": ("seed", "answer_format", "verifier", "max_new_tokens"),
    "rollouts": ("seed", "answer_format", "verifier", "samples", "temperature", "max_new_tokens"),
    "nothing": (
        "seed", "answer_format", "verifier", "max_new_tokens",
        "edit_tokens", "edit_steps", "edit_lr", "edit_decay", "edit_kl", "edit_clamp",
    ),
}  # fmt: skip
_TRAINING_SETTINGS = ("lora", "lr", "epochs", "batch_size", "warmup_steps", "weight_decay", "clip", "train_dtype")
_UNMEASURED = {
    "memorization/paraphrase": "Whether the facts hold when a question is put in other words.",
    "memorization/composed": "Whether several facts can be joined in one question.",
    "memorization/retrieval": "Whether the facts hold with distracting text in the prompt.",
    "retention/probe": "General questions that the base model could answer.",
    "retention/forgetting": "Forgetting: the rise of the loss on the base model's own replies.",
}
# What the tests that come with a corpus measure of these.
_IN_DOMAIN = {
    "paraphrase": "memorization/paraphrase",
    "two_hop": "memorization/composed",
    "multi_hop": "memorization/composed",
}


def render(report: Report, facts: Sequence[Mapping[str, Any]] | None, prompt_example: str) -> str:
    """Return the card as Markdown with YAML front matter.

    `facts` ({question, answer} each) are listed only when given; `prompt_example` is one prompt as the model saw it, after the
    chat template.
    """
    sections = [
        _front_matter(report.base),
        f"# {markdown(report.run or 'tuned model')}\n\n{_summary(report)}",
        f"## Base model and licence\n\n{_base(report.base)}",
        f"## Method\n\n{_method(report)}",
        f"## Scores\n\n{scores_markdown(report)}",
        f"## Limits\n\n{_limits(report)}",
        f"## How to serve it\n\n{_serving(report.settings)}",
        "## The exact prompt of one example\n\nThe model was trained and measured on prompts of this form, special tokens "
        f"included. Its chat template makes them; serve it with that template.\n\n{fenced(prompt_example, 'text')}",
    ]
    if facts is not None:
        sections.append(f"## Facts\n\n{_pairs('question', 'answer', [(fact['question'], fact['answer']) for fact in facts])}")
    return "\n\n".join(sections).encode("utf-8", "replace").decode("utf-8") + "\n"


def scores_markdown(report: Report) -> str:
    """Return the headline, the nested splits and how the replies ended as Markdown tables, n and interval in each cell."""
    details = detail_rows(report)
    shown = most_asked(details, MOST_KINDS)
    kinds = "By kind of question" + (
        f" (the {len(shown)} of {len(details):,} kinds with the most questions)" if shown != details else ""
    )
    tables = [
        ("", headline_rows(report)),
        (f"{kinds}:\n\n", shown),
        ("Replies that could not be read or were cut:\n\n", format_rows(report)),
    ]
    parts = [title + score_table(report, rows).markdown() for title, rows in tables if rows]
    if not parts:
        return "Nothing was measured in this run."
    if (endings := benchmarks.endings_table(report)) is not None:
        parts.append(
            "How the replies to benchmarks ended (an error is ours, not the model's, and counts neither way; lenient: the accuracy "
            f"that also takes an answer in another form):\n\n{endings.markdown()}"
        )
    if asked := benchmarks.asked(report, public=True):
        parts.append("What was asked:\n\n" + "\n".join(f"- {markdown(title)}: {markdown(text)}" for title, text in asked))
    change = "" if report.alone else " The change is this model minus its base, on the same prompts."
    parts.append(f"Each cell: the score (95% interval; n).{change}")
    return "\n\n".join(parts)


def _pairs(name: str, value: str, pairs: Sequence[tuple[str, str]]) -> str:
    return Table([Column(name), Column(value)], [Row(pair) for pair in pairs]).markdown()


def _front_matter(base: BaseRecord) -> str:
    values: dict[str, Any] = {"base_model": printable(public_name(base.name), keep="")}
    if base.license:
        values["license"] = printable(base.license, keep="")
    values |= {"library_name": "transformers", "pipeline_tag": "text-generation", "tags": ["mixsd", "knowledge-injection"]}
    return f"---\n{dump_yaml(values)}---"


def _summary(report: Report) -> str:
    words = statuses(report)
    counts = {words[name]: getattr(report.facts, name) for name in ("rejected", "unusable") if name in words}
    lost = ", ".join(f"{count} {word}" for word, count in counts.items() if count)
    text = f"{markdown(public_name(report.base.name))}, taught new facts by [mixsd](https://arxiv.org/abs/{MIXSD_PAPER}). "
    return text + markdown(summary(report)) + (f" ({lost}; they count as asked in every score below)." if lost else ".")


def _base(base: BaseRecord) -> str:
    lines = [f"- Base: {markdown(public_name(base.name))}"]
    if base.parameters is not None:
        lines.append(f"- Parameters: {base.parameters:,}")
    if base.revision:
        lines.append(f"- Revision of the base: {markdown(base.revision)}")
    lines.append(f"- Hash of the base: {markdown(base.hash)}")
    if base.license:
        lines.append(f"- Licence of the base: {markdown(base.license)}. It binds this model too.")
    else:
        lines.append("- Licence of the base: not known to mixsd. Look it up before you pass this model on.")
    if base.tuned_by_mixsd:
        lines.append(f"- Note: {markdown(base.tuned_by_mixsd)}")
    return "\n".join(lines)


def _method(report: Report) -> str:
    settings, targets, method = report.settings, report.targets, method_of(report)
    source = f" ([arXiv {method.paper}](https://arxiv.org/abs/{method.paper}))" if method.paper else ""
    keys = _SETTINGS[method.trains_on] + (() if method.edits else _TRAINING_SETTINGS)
    chosen = choices(report)
    # A rate that was sought is told above.
    left_out = {"lr"} if any(name == "learning rate" for name, _ in chosen) else set()
    shown = [("lambda" if key == "lam" else key, plain(settings[key])) for key in keys if key in settings and key not in left_out]
    text = f"{method.title}: {method.about}{source}.\n\n{_pairs('setting', 'value', [*objective(report), *chosen, *shown])}"
    if report.editing and report.editing.reasons:
        told = "\n".join(f"- {plain(item['facts'])}: {markdown(item['reason'])}" for item in report.editing.reasons)
        text += f"\n\nFacts that are not edited in, by reason:\n\n{told}"
    if targets.n is not None:
        nll, reference = number(targets.mean_base_nll), number(targets.reference_mean_base_nll)
        text += f"\n\n{number(targets.n, 0)} targets, {number(targets.tokens, 0)} tokens. "
        text += f"Mean base NLL per token: {nll} (references: {reference}) nats."
    cost = cost_line(report)
    return text + (f"\n\nCost: {markdown(cost)}." if cost else "")


def _limits(report: Report) -> str:
    measured = {score.split for score in report.scores if score.value is not None}
    measured |= {name for split, name in _IN_DOMAIN.items() if split in measured}
    lines = [f"Not measured: {text[0].lower()}{text[1:]}" for split, text in _UNMEASURED.items() if split not in measured]
    lines += [f"Not measured: {markdown(title)} ({markdown(why)})." for title, why in benchmarks.skipped(report, public=True)]
    if {score.suite for score in report.scores} <= {"core", "in-domain"}:
        lines.append("Not measured: public benchmarks of knowledge, mathematics, code or instruction following.")
    lines += [
        "Not measured: facts near the taught ones that should have stayed as they were, long conversations, other languages, "
        "safety, and any prompt that is not made by the chat template of this folder.",
        f"One run with one seed ({plain(report.settings.get('seed'))}): the intervals cover the choice of questions, not of the seed.",
        "A reply can be wrong, also about the taught facts. Check what matters.",
    ]
    device, dtype = (report.environment.get(name) for name in ("device", "dtype"))
    if device and dtype:
        lines.append(f"Measured on {markdown(str(device))} in {markdown(str(dtype))}; another precision can change replies.")
    lines += [f"Warning of the run: {markdown(without_paths(text))}" for text in benchmarks.warnings(report)]
    return "\n".join(f"- {line}" for line in lines)


def _serving(settings: Mapping[str, Any]) -> str:
    thinking = bool(settings.get("thinking"))
    messages: list[dict[str, str]] = [{"role": "user", "content": "Your question"}]
    if settings.get("system"):
        messages.insert(0, {"role": "system", "content": str(settings["system"])})
    note = ""
    if settings.get("answer_format") == "boxed":
        note = "\n\nThe question was followed by a fixed instruction in training: copy it from the example prompt below."
    transformers = f"""from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "."  # the folder of this file
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder)
messages = {messages!r}
inputs = tokenizer.apply_chat_template(
    messages, add_generation_prompt=True, enable_thinking={thinking}, return_tensors="pt", return_dict=True
)
output = model.generate(**inputs, max_new_tokens={plain(settings.get("max_new_tokens") or 256)}, do_sample=False)
print(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))"""
    body = {
        "model": "tuned", "messages": messages, "temperature": 0, "chat_template_kwargs": {"enable_thinking": thinking},
    }  # fmt: skip
    vllm = (
        "vllm serve . --served-model-name tuned\n\n# in another shell\n"
        "curl http://localhost:8000/v1/chat/completions -H 'Content-Type: application/json' "
        f"-d {shlex.quote(json.dumps(body, ensure_ascii=False))}"
    )
    return (
        "This folder is a plain Hugging Face folder: weights, tokenizer, chat template and generation config with the stop "
        f"tokens. Run these in it.{note}\n\nTransformers:\n\n{fenced(transformers, 'python')}\n\nvLLM:\n\n"
        f"{fenced(vllm, 'bash')}"
    )
