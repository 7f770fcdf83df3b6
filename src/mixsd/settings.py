"""Every option of a run, its default and its meaning, in one place; and how config files are read.

The same name is the flag (`--max-new-tokens`), the key in a config file (`max_new_tokens`), the keyword in Python and the key in
`run.yaml`. `None` means "decided from the others", which `Settings.resolved` does; one that stays means "none" or "all", as its
option says. The defaults of the method and the training are the paper's.
"""

from __future__ import annotations

import math
import re
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from mixsd.errors import UserError, did_you_mean
from mixsd.formats import PLACEHOLDERS, placeholders
from mixsd.methods import CHOICES, MethodSpec, get_method, known_method

# Settings that say how or where to run, not what to compute: a rerun may change them. Benchmarks are asked again then.
EXECUTION = (
    *("offline", "require", "beside", "device", "backend", "token_budget", "shard", "facts_in_card", "suite"),
    *("data", "limit", "benchmark_tokens", "aime_samples", "allow_code_execution", "allow_weak_sandbox", "lm_eval_chat_template"),
)

_KL = "Distillation"
_REQUIREMENT = re.compile(r"^\s*([A-Za-z_][\w-]*)\s*(>=|<=|>|<)\s*(-?[0-9]*\.?[0-9]+(?:e-?[0-9]+)?)\s*$")


def _option(default: Any, description: str, group: str, choices: Sequence[str] = (), **limits: Any) -> Any:
    return Field(default, description=description, json_schema_extra={"group": group, "choices": list(choices)}, **limits)


class Settings(BaseModel):
    """The settings of one run. Unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True, protected_namespaces=(), allow_inf_nan=False)

    # What goes in and where it comes out.
    facts: str = _option(
        "",
        "Facts: a file (JSONL, CSV, TSV, Parquet, chat records), a folder (train.jsonl and tests beside it), a corpus (kgfact:small, "
        "kgfact:large, kgfunc, simpleqa:FILE, mquake:FILE), a data set's name, or 'demo'.",
        "Input",
    )
    corpus_seed: int = _option(0, "Seed of a generated or drawn corpus, such as kgfact:small.", "Input", ge=0, lt=2**63)
    model: str = _option("smollm2-135m", "Base model: a folder, a hub name, a .gguf file, or smollm2-135m (built in).", "Input")
    revision: str | None = _option(None, "Branch, tag or commit of a hub model. [default: the main branch]", "Input")
    output: str = _option("", "The run folder; a rerun with the same settings resumes in it.", "Input")
    method: str = _option(
        "mixsd",
        "What is trained on: mixed targets (mixsd; mixsd-kl with the expert's distribution), the references as they are (sft), the "
        "student's own replies under the expert's eye (opsd; opsd-nll on its best token). memit edits without training.",
        "Input",
        choices=CHOICES,
    )
    seed: int = _option(0, "Seed of every random number.", "Input", ge=0, lt=2**63)

    # Prompts.
    answer_format: Literal["plain", "boxed"] = _option("plain", "boxed adds the paper's step-by-step suffix and box.", "Prompts")
    system: str | None = _option(None, "System message for every prompt.", "Prompts")
    thinking: bool = _option(False, "Let a template that knows a thinking mode open it.", "Prompts")
    guidance: str | None = _option(
        None,
        "What the expert sees after the question; {reference}, {answer}, {statement} are filled in, {{ and }} are braces. "
        "[default: by corpus and format]",
        "Prompts",
    )
    verifier: str | None = _option(
        None,
        "Who accepts a reply: contains, boxed, exact, number, regex:PATTERN or package.module:function. "
        "[default: the corpus's own; else contains for plain, boxed for boxed]",
        "Prompts",
    )

    # Mixing.
    lam: float = _option(0.3, "Lambda: the share of naive positions. The default of mixsd-kl is 0.", "Mixing", ge=0, le=1)
    gate: float = _option(0.0, "Gate: a naive token needs this share of the expert's best probability.", "Mixing", ge=0, le=1)
    temperature: float = _option(0.0, "Temperature of mixing and rollouts; 0: argmax. The default of opsd is 1.", "Mixing", ge=0)
    top_k: int = _option(64, "At a temperature above 0, sample among this many tokens.", "Mixing", ge=1)
    samples: int = _option(1, "Targets, or rollouts each time, per fact. The default of opsd is 8.", "Mixing", ge=1)
    retries: int = _option(10, "Further attempts, with new coins, for a fact whose reply was not accepted.", "Mixing", ge=0)
    retry: Literal["restart", "from-break"] = _option("restart", "Anew, or from what broke the last attempt.", "Mixing")
    on_fail: Literal["drop", "expert", "canonical", "error"] = _option(
        "drop", "A fact never accepted: drop it, take a lambda-0 target, take the reference, or stop.", "Mixing"
    )
    max_new_tokens: int | None = _option(
        None, "Longest target or reply in tokens. [default: the corpus's own; else 256 for plain, 8192 for boxed]", "Mixing", ge=1
    )

    # Distillation: what the objectives of opsd, opsd-nll and mixsd-kl compare, and how. The defaults are those of the paper's runs.
    kl: Literal["forward", "reverse", "jsd"] = _option("forward", "forward (teacher || student), reverse, Jensen-Shannon.", _KL)
    kl_support: Literal["teacher", "student", "full"] = _option("teacher", "Whose likeliest tokens are compared; full: all.", _KL)
    kl_top_k: int = _option(64, "How many tokens are compared at each position.", "Distillation", ge=1)
    kl_tail: Literal["drop", "bucket"] = _option("drop", "All other tokens: dropped, or one more outcome.", "Distillation")
    kl_renormalize: bool = _option(True, "Rescale both sides to sum to one over the tokens compared.", "Distillation")
    kl_beta: float = _option(0.5, "The teacher's weight in the Jensen-Shannon divergence.", "Distillation", gt=0, lt=1)
    kl_reduction: Literal["token", "sequence"] = _option("token", "Mean over tokens, or over sequences' means.", "Distillation")
    kl_teacher: Literal["expert", "picked"] = _option("expert", "Of mixsd-kl: the expert or the one picked.", "Distillation")
    nll_token: Literal["top1", "sampled"] = _option("top1", "Of opsd-nll: the likeliest token, or one drawn.", "Distillation")

    # Training.
    lora: int = _option(0, "LoRA rank; 0 trains all weights.", "Training", ge=0)
    lr: float | Literal["auto"] | None = _option(
        None, "Learning rate; auto tries those of --lr-grid. [default: 1e-5 for all weights, 2e-4 for LoRA]", "Training"
    )
    lr_grid: list[float] = _option([1e-6, 2e-6, 5e-6, 1e-5, 2e-5, 5e-5, 1e-4], "What --lr auto tries. Repeatable.", "Training")
    lr_steps: int | None = _option(None, "Steps per rate of --lr auto. [default: all; the best is the result]", "Training", ge=1)
    epochs: int = _option(20, "Passes over the targets.", "Training", ge=1)
    batch_size: int = _option(16, "Targets per optimizer step.", "Training", ge=1)
    micro_batch: int | None = _option(None, "Targets per forward pass. [default: at most 8]", "Training", ge=1)
    warmup_steps: int = _option(20, "Steps of linear warm-up before the constant learning rate.", "Training", ge=0)
    weight_decay: float = _option(0.01, "AdamW's weight decay.", "Training", ge=0)
    clip: float = _option(1.0, "Largest gradient norm.", "Training", gt=0)
    checkpoint_every: int = _option(20, "Optimizer steps between checkpoints.", "Training", ge=1)
    keep_checkpoints: int = _option(1, "How many checkpoints are kept, newest first; 0 keeps all.", "Training", ge=0)
    score_checkpoints: bool = _option(False, "Measure memorization, validation and forgetting at each checkpoint.", "Training")
    score_questions: int = _option(256, "Facts asked at each checkpoint, at most; the same ones each time.", "Training", ge=1)
    choose: Literal["last", "paper"] = _option(
        "last", "Which checkpoint is the model: the last, or the paper's choice by training and validation score.", "Training"
    )
    rehearse: float = _option(0.0, "Rehearsal: tokens of the base's own replies per token of the targets.", "Training", ge=0)
    rehearse_tokens: int = _option(64, "Longest reply to rehearse, in tokens.", "Training", ge=1)
    rehearse_loss: Literal["nll", "kl"] = _option("nll", "Rehearse the base's tokens, or its distributions (kl).", "Training")
    gradient_checkpointing: bool = _option(False, "Recompute activations: less memory, about a third more time.", "Training")
    drop_overlong: bool = _option(False, "Drop targets longer than the context instead of stopping.", "Training")

    # Editing.
    edit_text: str | None = _option(
        None,
        "With memit: a file of ordinary text, paragraphs between blank lines, on which the weights' use is measured, to leave the "
        "rest in place. [default: none]",
        "Editing",
    )
    edit_tokens: int = _option(100_000, "Tokens of that text to read; at least as many as a layer has inputs.", "Editing", ge=1)
    edit_layers: str | None = _option(None, "Layers to edit, as 3-11 or 3,5,7. [default: the paper's, else by depth]", "Editing")
    edit_weight: float | None = _option(None, "How much that text weighs. [default: 15000, or by width]", "Editing", gt=0)
    edit_steps: int = _option(25, "Steps of seeking the hidden state from which the answer follows.", "Editing", ge=1)
    edit_lr: float = _option(0.5, "Their learning rate.", "Editing", gt=0)
    edit_decay: float = _option(1e-3, "Penalty on the length of the hidden state's change.", "Editing", ge=0)
    edit_kl: float = _option(0.0625, "Penalty on what it changes after '{subject} is a'.", "Editing", ge=0)
    edit_clamp: float = _option(4.0, "Longest change, as a multiple of the hidden state.", "Editing", gt=0)

    # Evaluation.
    suite: list[str] = _option(
        [],
        "What to ask: core, in-domain, a benchmark (mixsd benchmarks lists them), lm-eval:TASK; or quick (core and 50 questions of "
        "each benchmark at hand), paper (all, whole). Repeatable. [default: core, and in-domain where the facts come with tests]",
        "Evaluation",
    )
    paraphrases: int = _option(2, "Paraphrases asked of each fact: its own first, else ours.", "Evaluation", ge=0, le=10)
    forgetting_prompts: int | None = _option(None, "General prompts that measure forgetting. [default: all]", "Evaluation", ge=2)
    forgetting_tokens: int = _option(64, "Longest reply sampled from the base model to measure forgetting.", "Evaluation", ge=1)
    probe_questions: int | None = _option(None, "Questions of the general probe. [default: all]", "Evaluation", ge=2)

    # Benchmarks.
    data: str | None = _option(None, "Folder of the benchmarks' data. [default: $MIXSD_DATA, else the hub]", "Benchmarks")
    limit: int | None = _option(None, "Questions of each benchmark, at most. [default: all; with quick 50]", "Benchmarks", ge=1)
    benchmark_tokens: int | None = _option(None, "Longest reply, in tokens. [default: 8192; quick 1024]", "Benchmarks", ge=1)
    aime_samples: int | None = _option(None, "Replies to each problem of AIME. [default: 16; with quick 1]", "Benchmarks", ge=1)
    allow_code_execution: bool = _option(False, "Run what the model writes for HumanEval, in a sandbox.", "Benchmarks")
    allow_weak_sandbox: bool = _option(False, "Run it even where this machine cannot isolate it from your files.", "Benchmarks")
    lm_eval_chat_template: bool = _option(False, "Ask the tasks of lm-eval through the model's chat template.", "Benchmarks")

    # Machine and policy.
    device: str = _option("auto", "auto, cpu, cuda, cuda:N or mps.", "Machine")
    token_budget: int = _option(16_384, "Tokens of context in memory while decoding; more are faster.", "Machine", ge=1)
    backend: str = _option(
        "transformers", "Engine of mixing and evaluation: transformers, vllm (an extra) or package.module:function.", "Machine"
    )
    dtype: Literal["auto", "fp32", "bf16"] = _option(
        "auto", "Precision of mixing and evaluation. [auto: fp32 on CPU, bf16 on an accelerator]", "Machine"
    )
    train_dtype: Literal["auto", "fp32", "bf16"] = _option(
        "auto", "Precision of training; bf16 keeps fp32 weights under autocast. [auto: as dtype]", "Machine"
    )
    trust_remote_code: bool = _option(False, "Run code that comes with the model. Only for a source that you trust.", "Machine")
    shard: str | None = _option(None, "With mix and evaluate: only this part, such as 2/8. [default: all]", "Machine")
    offline: bool = _option(False, "Forbid the network; also where HF_HUB_OFFLINE is set.", "Machine")
    require: list[str] = _option([], "A condition such as 'memorization>=0.9'; exit code 3 when missed. Repeatable.", "Report")
    beside: list[str] = _option([], "Another run folder shown beside this one in the report. Repeatable.", "Report")
    facts_in_card: bool = _option(False, "List the facts in the model card.", "Report")

    @field_validator("*", mode="before")
    @classmethod
    def _no_surprises(cls, value: Any, info: ValidationInfo) -> Any:
        # YAML's `lora: yes` is true, which would count as 1.
        if isinstance(value, bool) and cls.model_fields[str(info.field_name)].annotation is not bool:
            raise ValueError("expected a value, not true or false")
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str) and not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
                raise ValueError("is not text (bytes that are not UTF-8)")
        return value

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_the_method(cls, values: Any) -> Any:
        return {**known_method(str(values.get("method", "mixsd"))).settings, **values} if isinstance(values, dict) else values

    @field_validator("method")
    @classmethod
    def _is_a_method(cls, value: str) -> str:
        get_method(value)
        return value

    @field_validator("lr", "lr_grid")
    @classmethod
    def _rates_are_positive(cls, value: Any) -> Any:
        rates = value if isinstance(value, list) else [value]
        if not rates or any(isinstance(rate, float) and not 0 < rate < math.inf for rate in rates):
            raise ValueError("a learning rate is a number above 0" if rates else "name at least one learning rate")
        return value

    @field_validator("require")
    @classmethod
    def _requirements_parse(cls, value: list[str]) -> list[str]:
        for text in value:
            parse_requirement(text)
        return value

    @field_validator("guidance")
    @classmethod
    def _guidance_names(cls, value: str | None) -> str | None:
        if value is not None:
            known = ", ".join(f"{{{name}}}" for name in PLACEHOLDERS)
            for name in placeholders(value):
                if name not in PLACEHOLDERS:
                    hint = did_you_mean(name, PLACEHOLDERS)
                    raise ValueError(f"unknown placeholder {{{name}}}{hint}; known: {known}; as plain text it is {{{{{name}}}}}")
            if not placeholders(value):
                raise ValueError(f"it shows the expert nothing: name one of {known} in it")
        return value

    @property
    def resolved(self) -> Settings:
        """A copy in which every `None` that stands for a number or a verifier is filled in."""
        boxed = self.answer_format == "boxed"
        values: dict[str, Any] = {
            "verifier": self.verifier or ("boxed" if boxed else "contains"),
            "max_new_tokens": self.max_new_tokens or (8192 if boxed else 256),
            "lr": self.lr or (2e-4 if self.lora else 1e-5),
            "score_checkpoints": self.score_checkpoints or self.choose == "paper" or self.lr == "auto",
            "choose": "paper" if self.lr == "auto" else self.choose,
            "micro_batch": min(self.micro_batch or 8, self.batch_size),
        }
        return self.model_copy(update=values)

    @property
    def spec(self) -> MethodSpec:
        """What the table of methods says of the method."""
        return get_method(self.method)

    @property
    def label(self) -> str:
        """The method, and of mixed targets what decides them."""
        if not self.spec.mixes:
            return self.spec.label
        gated = f", gate {self.gate:g}" if self.gate else ""
        warm = f", T {self.temperature:g}" if self.temperature else ""
        return f"{self.spec.label} lambda {self.lam:g}{gated}{warm}"

    def dump(self) -> dict[str, Any]:
        return self.model_dump()


def parse_requirement(text: str) -> tuple[str, str, float]:
    """Split 'memorization>=0.9' into its metric, comparison and number."""
    match = _REQUIREMENT.match(text)
    if match is None:
        raise UserError(f"{text!r} is not NAME>=NUMBER or NAME<=NUMBER")
    return match[1], match[2], float(match[3])


def build(values: Mapping[str, Any], source: str) -> Settings:
    """Make settings from plain values; all problems at once in one `UserError` that begins with `source`."""
    known = list(Settings.model_fields)
    problems = [f'unknown key "{key}"{did_you_mean(key, known)}' for key in values if key not in known]
    try:
        settings = Settings(**{key: value for key, value in values.items() if key in known})
    except ValidationError as error:
        # Behind the name: a place in a list, or which kind of value was tried; the first complaint will do.
        first: dict[str, Any] = {}
        for item in error.errors(include_url=False):
            first.setdefault(str(item["loc"][0]), item)
        for name, item in first.items():
            message, got = item["msg"].removeprefix("Value error, "), repr(item["input"])
            got = got if len(got) <= 80 else got[:77] + "..."
            problems.append(f"{name}: {message[0].lower() + message[1:]} (got {got})")
    if problems:
        raise UserError(f"{source}: " + "; ".join(problems))
    return settings


def dump_yaml(values: Mapping[str, Any]) -> str:
    """Plain values as YAML that is read back as it was, in their order."""

    options: dict[str, Any] = {"sort_keys": False, "width": 1000}
    text = str(yaml.safe_dump(dict(values), allow_unicode=True, **options))
    # PyYAML writes U+0085 as it is, and reads it as a line break.
    return str(yaml.safe_dump(dict(values), **options)) if "\x85" in text else text


def to_yaml(settings: Settings) -> str:
    """The settings as YAML with a heading per group."""
    text, before = "", None
    for name, field in Settings.model_fields.items():
        extra: Any = field.json_schema_extra  # a dict, see `_option`
        if extra["group"] != before:
            text += f"{chr(10) if before else ''}# {extra['group']}\n"
            before = extra["group"]
        text += dump_yaml({name: getattr(settings, name)})
    return text


def read_config(path: Path) -> dict[str, Any]:
    """Read a file's mapping; what its keys mean is for the caller to check.

    Raises `UserError`: it cannot be read, is not YAML or no mapping, or a key stands twice in one mapping.
    """
    try:
        values = yaml.load(path.read_text(encoding="utf-8-sig"), _StrictLoader)  # noqa: S506 - it is a safe loader
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such config file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error
    except yaml.YAMLError as error:
        where = getattr(error, "problem_mark", None)
        line = f" line {where.line + 1}:" if where else ""
        first = str(getattr(error, "problem", None) or error).splitlines()[0]
        raise UserError(f"{path}:{line} not valid YAML ({first})") from error
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except ValueError as error:
        # A date that no calendar has is met by Python's own constructor.
        raise UserError(f"{path}: not valid YAML ({error}); put text in quotes") from error
    values = {} if values is None else values
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise UserError(f"{path}: expected a mapping of settings, one 'key: value' per line")
    return values


class _StrictLoader(yaml.SafeLoader):
    """YAML lets the last one of two keys win, and the reader of the file believe in the first; here they are an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                number = key.start_mark.line + 1
                if key.value in lines:
                    raise UserError(f"line {number}: {key.value} stands in line {lines[key.value]} already; keep one")
                lines[key.value] = number
        return super().construct_mapping(node, deep)
