"""The model card: the README.md of a tuned model folder, and the scores as Markdown.

It says what was measured, with n and interval, and what was not. Paths of the user's machine and, unless they are handed in,
the facts stay out of it: a card is published with the model.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from mixsd.formats import (
    MISSING,
    fenced,
    interval_text,
    known,
    markdown,
    number,
    p_text,
    plain,
    printable,
    public_name,
    value_text,
    without_paths,
)
from mixsd.reports import benchmarks
from mixsd.reports.methods import choices, cost_line, method_of, objective, statuses, summary
from mixsd.reports.rows import Measure, Row, Score, columns, detail_rows, format_rows, headline_rows, is_alone, most_asked
from mixsd.settings import dump_yaml

PAPER = "2605.16865"
MOST_KINDS = 50
# Which settings say what was done, by the kind of method.
_SETTINGS = {
    "mixed": (
        "seed", "answer_format", "verifier", "lam", "gate", "temperature", "samples", "retries", "on_fail", "max_new_tokens",
    ),
    "copied": ("seed", "answer_format", "verifier", "max_new_tokens"),
    "anew": ("seed", "answer_format", "verifier", "samples", "temperature", "max_new_tokens"),
    "edited": (
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


def render(report: Mapping[str, Any], facts: Sequence[Mapping[str, Any]] | None, prompt_example: str) -> str:
    """Return the card as Markdown with YAML front matter.

    `facts` ({question, answer} each) are listed only when given; `prompt_example` is one prompt as the model saw it, after the
    chat template.
    """
    base = report.get("base") or {}
    sections = [
        _front_matter(base),
        f"# {markdown(str(report.get('run') or 'tuned model'))}\n\n{_summary(report)}",
        f"## Base model and licence\n\n{_base(base)}",
        f"## Method\n\n{_method(report)}",
        f"## Scores\n\n{scores_markdown(report)}",
        f"## Limits\n\n{_limits(report)}",
        f"## How to serve it\n\n{_serving(report)}",
        "## The exact prompt of one example\n\nThe model was trained and measured on prompts of this form, special tokens "
        f"included. Its chat template makes them; serve it with that template.\n\n{fenced(prompt_example, 'text')}",
    ]
    if facts is not None:
        sections.append(f"## Facts\n\n{_facts(facts)}")
    return "\n\n".join(sections).encode("utf-8", "replace").decode("utf-8") + "\n"


def scores_markdown(report: Mapping[str, Any]) -> str:
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
    parts = [title + _table(report, rows) for title, rows in tables if rows]
    if not parts:
        return "Nothing was measured in this run."
    parts += [part for part in (_endings(report), _asked(report)) if part]
    change = "" if is_alone(report) else " The change is this model minus its base, on the same prompts."
    parts.append(f"Each cell: the score (95% interval, n).{change}")
    return "\n\n".join(parts)


def _endings(report: Mapping[str, Any]) -> str:
    found = benchmarks.endings(report)
    if not found:
        return ""
    lines = ["| benchmark | model | replies | wrong | unparseable | errors | truncated | lenient accuracy |", "|" + "---|" * 8]
    lenient = Measure("share")
    for item in found:
        counts = (item.replies, item.wrong, item.unparseable, item.errors, item.truncated)
        cells = [item.title, markdown(item.column.label), *(number(count, 0) for count in counts), _cell(lenient, item.lenient)]
        lines.append("| " + " | ".join(cells) + " |")
    return "How the replies to benchmarks ended (an error is ours, not the model's, and counts neither way):\n\n" + "\n".join(
        lines
    )


def _asked(report: Mapping[str, Any]) -> str:
    lines = [f"- {markdown(title)}: {markdown(text)}" for title, text in benchmarks.asked(report, public=True)]
    return "What was asked:\n\n" + "\n".join(lines) if lines else ""


def _front_matter(base: Mapping[str, Any]) -> str:
    values: dict[str, Any] = {"base_model": printable(public_name(str(base.get("name") or "unknown")), keep="")}
    if base.get("license"):
        values["license"] = printable(str(base["license"]), keep="")
    values |= {"library_name": "transformers", "pipeline_tag": "text-generation", "tags": ["mixsd", "knowledge-injection"]}
    return f"---\n{dump_yaml(values)}---"


def _summary(report: Mapping[str, Any]) -> str:
    counts, words = report.get("facts") or {}, statuses(report)
    name = markdown(public_name(str((report.get("base") or {}).get("name") or "a base model")))
    lost = [f"{counts[state]} {words[state]}" for state in ("rejected", "unusable") if counts.get(state) and state in words]
    text = f"{name}, taught new facts by [mixsd](https://arxiv.org/abs/{PAPER}). {markdown(summary(report))}"
    return text + (f" ({', '.join(lost)}; they count as asked in every score below)." if lost else ".")


def _base(base: Mapping[str, Any]) -> str:
    lines = [f"- Base: {markdown(public_name(str(base.get('name') or MISSING)))}"]
    if known(base.get("parameters")):
        lines.append(f"- Parameters: {base['parameters']:,}")
    if base.get("revision"):
        lines.append(f"- Revision of the base: {markdown(str(base['revision']))}")
    if base.get("hash"):
        lines.append(f"- Hash of the base: {markdown(str(base['hash']))}")
    if base.get("license"):
        lines.append(f"- Licence of the base: {markdown(str(base['license']))}. It binds this model too.")
    else:
        lines.append("- Licence of the base: not known to mixsd. Look it up before you pass this model on.")
    if base.get("tuned_by_mixsd"):
        lines.append(f"- Note: {markdown(str(base['tuned_by_mixsd']))}")
    return "\n".join(lines)


def _method(report: Mapping[str, Any]) -> str:
    settings, targets, method = report.get("settings") or {}, report.get("targets") or {}, method_of(report)
    source = "" if method.kind == "edited" else f" ([arXiv {PAPER}](https://arxiv.org/abs/{PAPER}))"
    text = f"{method.name}: {method.about}{source}.\n\n"
    keys = _SETTINGS[method.kind] + (() if method.kind == "edited" else _TRAINING_SETTINGS)
    chosen = choices(report)
    # A rate that was sought is told above.
    left_out = {"lr"} if any(name == "learning rate" for name, _ in chosen) else set()
    shown = [("lambda" if key == "lam" else key, plain(settings[key])) for key in keys if key in settings and key not in left_out]
    text += "| setting | value |\n|---|---|\n"
    text += "\n".join(f"| {markdown(key)} | {markdown(value)} |" for key, value in [*objective(report), *chosen, *shown])
    if reasons := (report.get("editing") or {}).get("reasons"):
        told = "\n".join(f"- {plain(item['facts'])}: {markdown(str(item['reason']))}" for item in reasons)
        text += f"\n\nFacts that are not edited in, by reason:\n\n{told}"
    if known(targets.get("n")):
        nll, reference = number(targets.get("mean_base_nll")), number(targets.get("reference_mean_base_nll"))
        text += f"\n\n{number(targets['n'], 0)} targets, {number(targets.get('tokens'), 0)} tokens. "
        text += f"Mean base NLL per token: {nll} (references: {reference}) nats."
    cost = cost_line(report)
    return text + (f"\n\nCost: {markdown(cost)}." if cost else "")


def _limits(report: Mapping[str, Any]) -> str:
    measured = {item["split"] for item in report.get("scores") or [] if known(item.get("value"))}
    measured |= {name for split, name in _IN_DOMAIN.items() if split in measured}
    suites = {item["suite"] for item in report.get("scores") or []}
    settings = report.get("settings") or {}
    lines = [f"Not measured: {text[0].lower()}{text[1:]}" for split, text in _UNMEASURED.items() if split not in measured]
    lines += [f"Not measured: {markdown(title)} ({markdown(why)})." for title, why in benchmarks.skipped(report, public=True)]
    if suites <= {"core", "in-domain"}:
        lines.append("Not measured: public benchmarks of knowledge, mathematics, code or instruction following.")
    lines += [
        "Not measured: facts near the taught ones that should have stayed as they were, long conversations, other languages, "
        "safety, and any prompt that is not made by the chat template of this folder.",
        f"One run with one seed ({plain(settings.get('seed'))}): the intervals cover the choice of questions, not of the seed.",
        "A reply can be wrong, also about the taught facts. Check what matters.",
    ]
    device, dtype = ((report.get("environment") or {}).get(name) for name in ("device", "dtype"))
    if device and dtype:
        lines.append(f"Measured on {markdown(str(device))} in {markdown(str(dtype))}; another precision can change replies.")
    lines += [f"Warning of the run: {markdown(without_paths(text))}" for text in benchmarks.warnings(report)]
    return "\n".join(f"- {line}" for line in lines)


def _serving(report: Mapping[str, Any]) -> str:
    settings = report.get("settings") or {}
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


def _facts(facts: Sequence[Mapping[str, Any]]) -> str:
    lines = ["| question | answer |", "|---|---|"]
    lines += [f"| {markdown(str(fact.get('question', '')))} | {markdown(str(fact.get('answer', '')))} |" for fact in facts]
    return "\n".join(lines)


def _table(report: Mapping[str, Any], rows: Sequence[Row]) -> str:
    changes = any(row.measure.change for row in rows) and not is_alone(report)
    header = ["measure", "better", *(markdown(column.label) for column in columns(report))] + ["change"] * changes
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for row in rows:
        cells = [markdown(row.label), row.measure.better]
        cells += [
            row.measure.of_base
            if row.measure.of_base and entry.column.role == "base"
            else _cell(row.measure, entry.score)
            for entry in row.entries
        ]  # fmt: skip
        if changes:
            p = "" if row.tuned.p is None else f"; McNemar p {p_text(row.tuned.p)}"
            cells.append("is the change" if row.measure.of_base else _cell(row.measure, row.tuned.change, signed=True) + p)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(measure: Measure, score: Score | None, *, signed: bool = False) -> str:
    if score is None:
        return MISSING
    signed = signed or measure.signed
    interval = interval_text(measure.unit, score.low, score.high, signed=signed)
    return f"{value_text(measure.unit, score.value, signed=signed)} ({interval}, n={score.n:,})"
