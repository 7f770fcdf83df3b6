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

    `facts` ({question, answer} each) are listed only when given; `prompt_example` is one prompt as the model saw it, after the
    chat template.
    """
    sections = {
        "Base model and licence": _base(report),
        "Method": _method(report),
        "Scores": scores_markdown(report),
        "Limits": _limits(report),
        "How to serve it": _serving(report.settings),
        "The exact prompt of one example": "The model was trained and measured on prompts of this form, special tokens included. "
        f"Its chat template makes them; serve it with that template.\n\n{fenced(prompt_example, 'text')}",
    }
    if facts is not None:
        sections["Facts"] = _pairs("question", "answer", [(fact["question"], fact["answer"]) for fact in facts])
    parts = [_front_matter(report), f"# {markdown(report.run or 'tuned model')}", _summary(report)]
    parts += [f"## {title}\n\n{text}" for title, text in sections.items()]
    return "\n\n".join(parts).encode("utf-8", "replace").decode("utf-8") + "\n"


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


def _front_matter(report: Report) -> str:
    values: dict[str, Any] = {"base_model": printable(public_name(report.base.name), keep="")}
    if report.base.license:
        values["license"] = printable(report.base.license, keep="")
    values |= {"library_name": "transformers", "pipeline_tag": "text-generation", "tags": ["mixsd", "knowledge-injection"]}
    return f"---\n{dump_yaml(values)}---"


def _summary(report: Report) -> str:
    counts = {word: getattr(report.facts, name) for name, word in words.statuses(report).items() if name != "accepted"}
    lost = ", ".join(f"{count} {word}" for word, count in counts.items() if count)
    text = f"{markdown(public_name(report.base.name))}, taught new facts by [mixsd](https://arxiv.org/abs/{MIXSD_PAPER}). "
    return text + markdown(words.summary(report)) + (f" ({lost}; they count as asked in every score below)." if lost else ".")


def _base(report: Report) -> str:
    base = report.base
    licence = (
        f"{base.license}. It binds this model too."
        if base.license
        else "not known to mixsd. Look it up before you pass this model on."
    )
    values = {
        "Base": public_name(base.name),
        "Parameters": f"{base.parameters:,}" if base.parameters is not None else None,
        "Revision of the base": base.revision,
        "Hash of the base": base.hash,
        "Licence of the base": licence,
        "Note": base.tuned_by_mixsd,
    }
    return "\n".join(f"- {name}: {markdown(value)}" for name, value in values.items() if value)


def _method(report: Report) -> str:
    settings, targets, method = report.settings, report.targets, words.method_of(report)
    source = f" ([arXiv {method.paper}](https://arxiv.org/abs/{method.paper}))" if method.paper else ""
    keys = (_SETTINGS[method.trains_on] + ("" if method.edits else _TRAINING_SETTINGS)).split()
    chosen = dict(words.choices(report))
    # A rate that was sought is told as it was chosen.
    shown = [("lambda" if key == "lam" else key, plain(settings[key])) for key in keys
             if key in settings and not (key == "lr" and "learning rate" in chosen)]  # fmt: skip
    text = f"{method.title}: {method.about}{source}.\n\n{_pairs('setting', 'value', [*words.objective(report), *chosen.items(), *shown])}"
    if report.editing and report.editing.reasons:
        told = "\n".join(f"- {plain(item['facts'])}: {markdown(item['reason'])}" for item in report.editing.reasons)
        text += f"\n\nFacts that are not edited in, by reason:\n\n{told}"
    if targets.n is not None:
        nll, reference = number(targets.mean_base_nll), number(targets.reference_mean_base_nll)
        text += f"\n\n{number(targets.n, 0)} targets, {number(targets.tokens, 0)} tokens. "
        text += f"Mean base NLL per token: {nll} (references: {reference}) nats."
    cost = words.cost_line(report)
    return text + (f"\n\nCost: {markdown(cost)}." if cost else "")


def _limits(report: Report) -> str:
    measured = {score.split for score in report.scores if score.value is not None}
    measured |= {name for split, name in _IN_DOMAIN.items() if split in measured}
    unmeasured = [text for split, text in _UNMEASURED.items() if split not in measured]
    unmeasured += [f"{markdown(title)} ({markdown(why)})." for title, why in words.skipped(report, public=True)]
    if {score.suite for score in report.scores} <= {"core", "in-domain"}:
        unmeasured.append("public benchmarks of knowledge, mathematics, code or instruction following.")
    unmeasured.append(
        "facts near the taught ones that should have stayed as they were, long conversations, other languages, "
        "safety, and any prompt that is not made by the chat template of this folder."
    )
    lines = [f"Not measured: {text}" for text in unmeasured]
    lines += [
        f"One run with one seed ({plain(report.settings.get('seed'))}): the intervals cover the choice of questions, not of the seed.",
        "A reply can be wrong, also about the taught facts. Check what matters.",
    ]
    device, dtype = (report.environment.get(name) for name in ("device", "dtype"))
    if device and dtype:
        lines.append(f"Measured on {markdown(str(device))} in {markdown(str(dtype))}; another precision can change replies.")
    lines += [f"Warning of the run: {markdown(without_paths(text))}" for text in words.warnings(report)]
    return "\n".join(f"- {line}" for line in lines)


_TRANSFORMERS = """from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "."  # the folder of this file
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder)
messages = {messages!r}
inputs = tokenizer.apply_chat_template(
    messages, add_generation_prompt=True, enable_thinking={thinking}, return_tensors="pt", return_dict=True
)
output = model.generate(**inputs, max_new_tokens={tokens}, do_sample=False)
print(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))"""
_VLLM = """vllm serve . --served-model-name tuned

# in another shell
curl http://localhost:8000/v1/chat/completions -H 'Content-Type: application/json' -d {body}"""


def _serving(settings: Mapping[str, Any]) -> str:
    thinking = bool(settings.get("thinking"))
    system = [{"role": "system", "content": str(settings["system"])}] if settings.get("system") else []
    messages = [*system, {"role": "user", "content": "Your question"}]
    tokens = plain(settings.get("max_new_tokens") or 256)
    body = {"model": "tuned", "messages": messages, "temperature": 0, "chat_template_kwargs": {"enable_thinking": thinking}}
    transformers = fenced(_TRANSFORMERS.format(messages=messages, thinking=thinking, tokens=tokens), "python")
    vllm = fenced(_VLLM.format(body=shlex.quote(json.dumps(body, ensure_ascii=False))), "bash")
    boxed = settings.get("answer_format") == "boxed"
    note = (
        "\n\nThe question was followed by a fixed instruction in training: copy it from the example prompt below."
        if boxed
        else ""
    )
    return (
        "This folder is a plain Hugging Face folder: weights, tokenizer, chat template and generation config with the stop "
        f"tokens. Run these in it.{note}\n\nTransformers:\n\n{transformers}\n\nvLLM:\n\n{vllm}"
    )
