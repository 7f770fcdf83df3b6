"""The dry run: what an injection would take, known or estimated before any of it is done.

Prompts and references are measured on a sample of the facts, the model's size is counted on the meta device, and the machine's
speed comes from a fraction of a second of matrix products. The rest is the arithmetic of `costs` on assumptions that the
plan states. Time is rough; it is further off where a model seldom states the answers.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from mixsd import bundled
from mixsd.errors import UserError
from mixsd.evaluation import suites
from mixsd.loading import resolve_dtype
from mixsd.mixing.limits import reply_limit
from mixsd.pipeline import costs
from mixsd.pipeline.costs import Lengths, Shape, Speed, Work
from mixsd.pipeline.doctor import GB, device_memory, free_disk
from mixsd.pipeline.session import Session, preview
from mixsd.progress import Watcher
from mixsd.settings import Settings

if TYPE_CHECKING:
    import torch

ACCURACY = "rough: within a factor of 3"

_SAMPLE = 200  # facts whose prompts are measured
_ATTEMPTS, _GATED_ATTEMPTS = 3, 1  # assumed per target where another attempt can differ
_MEASURING = 0.1  # seconds per kind of product
_MEASURED = 32 * 10**6  # parameters to multiply with: more than a processor's cache holds
_CHUNK = 4  # matrices per timing

_REMEDIES = {
    "mixing": "lower --token-budget or --max-new-tokens",
    "training": "lower --micro-batch, pass --gradient-checkpointing, or train adapters (--lora 16)",
    "evaluation": "lower --token-budget or --max-new-tokens",
}


def plan(settings: Settings, watcher: Watcher | None = None) -> dict[str, Any]:
    """Check the input of an `inject` as it would, and say what it would take; nothing is written to the run folder.

    Returns:
        JSON values. `facts`: asked, usable, unusable (reason by id, of the measured ones), duplicates. `tokens`: mean and
        longest of naive and expert prompt and reference, on how many facts; targets, decoded and decoded_at_most over the
        whole run. `training`: targets, steps, tokens, supervised_tokens. `parameters`: total, trained. `memory`: the device,
        bytes by part for each stage, peak, available. `disk`: bytes by part, total at the end, peak, free. `seconds`: of each
        stage, total, accuracy. `assumptions` and `warnings`: one line each.

    Raises:
        UserError: any bad input, as `inject` would say.
    """
    session = preview(settings, watcher or Watcher())
    settings, device, dtype = session.settings, session.device, session.dtype
    work, shape = measure_work(session), measure_shape(session)
    train_dtype = dtype if settings.train_dtype == "auto" else resolve_dtype(settings.train_dtype, device)
    speed = measure_speed(shape, device, dtype)
    train_speed = speed if train_dtype == dtype else measure_speed(shape, device, train_dtype)
    stages = costs.memory(
        settings, work, shape, item=dtype.itemsize, train_item=train_dtype.itemsize, on_cpu=device.type == "cpu"
    )
    report = {
        "facts": {"asked": work.asked, "usable": work.usable, "unusable": work.unusable, "duplicates": session.duplicates},
        "tokens": _tokens(settings, work),
        "training": {
            "targets": work.targets,
            "steps": work.steps,
            "tokens": round(settings.epochs * work.targets * (work.naive.mean + work.reply)),
            "supervised_tokens": round(settings.epochs * work.targets * work.reply),
        },
        "parameters": {"total": shape.parameters, "trained": shape.trained},
        "memory": {
            "device": str(device),
            **stages,
            "peak": max(stage["total"] for stage in stages.values()),
            "available": device_memory(device)[1],
        },
        "disk": {**costs.disk(settings, work, shape), "free": free_disk(session.run.folder)},
        "seconds": {**costs.seconds(settings, work, shape, speed, train_speed), "accuracy": ACCURACY},
    }
    return {**report, "assumptions": _assumptions(settings, work), "warnings": _warnings(session, work, report)}


def measure_work(session: Session) -> Work:
    """Measure prompts and references on facts spread evenly over the source; the share of unusable ones is scaled up."""
    settings, renderer, facts = session.settings, session.renderer, session.facts
    sample = facts[:: -(-len(facts) // _SAMPLE)]
    naive = {fact.id: len(renderer.naive(fact.question)) for fact in sample}
    expert = {fact.id: len(renderer.expert(fact)) for fact in sample}
    reference = {fact.id: len(renderer.reference(fact)) for fact in sample}
    reasons = {fact.id: reply_limit(fact, renderer, settings, session.context)[1] for fact in sample}
    unusable = {key: reason for key, reason in reasons.items() if reason}
    counted = [fact.id for fact in sample if fact.id not in unusable]
    if not counted:
        key, said = next(iter(unusable.items()))
        raise UserError(f"no usable fact among the {len(sample)} looked at; the first one, {key}: {said}")
    usable = round(len(facts) * len(counted) / len(sample))
    targets = usable * settings.samples
    attempts = _GATED_ATTEMPTS if settings.gate else min(_ATTEMPTS, 1 + settings.retries)
    questions = [question for name in session.suites for question in suites.questions(name, session.material)]
    looked_at = questions[:: -(-len(questions) // _SAMPLE)] if questions else []
    general = len(bundled.records("general_prompts.jsonl")[: settings.forgetting_prompts]) if suites.CORE in session.suites else 0
    return Work(
        asked=len(facts),
        usable=usable,
        unusable=unusable,
        measured=len(sample),
        naive=Lengths.of(naive[key] for key in counted),
        expert=Lengths.of(expert[key] for key in counted),
        reference=Lengths.of(reference[key] for key in counted),
        targets=targets,
        attempts=attempts if _can_differ(settings) else 1,
        steps=settings.epochs * -(-targets // settings.batch_size),
        questions=len(questions),
        asked_tokens=sum(len(renderer.ids(question.user)) for question in looked_at) / max(len(looked_at), 1),
        general=general,
        limit=min(settings.max_new_tokens or session.context, session.context),
    )


def measure_shape(session: Session) -> Shape:
    """Build the model on the meta device, without its weights, and count."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.pytorch_utils import Conv1D

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(session.config, trust_remote_code=session.settings.trust_remote_code)
    head = model.get_output_embeddings()
    linear = [module for module in model.modules() if isinstance(module, (torch.nn.Linear, Conv1D)) and module is not head]
    text = session.config.get_text_config()
    heads = text.num_attention_heads
    head_width = getattr(text, "head_dim", None) or text.hidden_size // heads
    return Shape(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        adapters=session.settings.lora * sum(sum(layer.weight.shape) for layer in linear),
        adapted=sum(layer.weight.numel() for layer in linear),
        layers=text.num_hidden_layers,
        hidden=text.hidden_size,
        inner=getattr(text, "intermediate_size", None) or 4 * text.hidden_size,
        cache_width=2 * (getattr(text, "num_key_value_heads", None) or heads) * head_width,
        vocabulary=text.vocab_size,
        stored_item=2 if str(getattr(session.config, "dtype", None)).endswith("16") else 4,
    )


def measure_speed(shape: Shape, device: torch.device, dtype: torch.dtype) -> Speed:
    """Time products with matrices of the model's own shape, other ones each time as in the model; the best time counts."""
    import torch

    size = shape.hidden * shape.inner
    count = max(_CHUNK, min(shape.parameters, _MEASURED) // size)
    matrices = [torch.ones(shape.hidden, shape.inner, dtype=dtype, device=device) for _ in range(count)]
    wait = torch.get_device_module(device.type).synchronize

    def seconds(rows: int) -> float:
        """Seconds per parameter of a product with `rows` rows."""
        given = torch.ones(rows, shape.hidden, dtype=dtype, device=device)
        torch.mm(given, matrices[0])
        wait()
        best, end = float("inf"), time.perf_counter() + _MEASURING
        for start in range(0, len(matrices) - _CHUNK + 1, _CHUNK):
            started = time.perf_counter()
            for matrix in matrices[start : start + _CHUNK]:
                torch.mm(given, matrix)
            wait()
            now = time.perf_counter()
            best = min(best, now - started)
            if now > end:
                break
        return best / (_CHUNK * size)

    rows = 128
    read = seconds(1)
    return Speed(read, max(seconds(rows) - read, 0.0) / (rows - 1))


def _can_differ(settings: Settings) -> bool:
    """Whether another attempt, or another sample, can give another reply."""
    return settings.temperature > 0 or 0 < settings.lam < 1


def _tokens(settings: Settings, work: Work) -> dict[str, Any]:
    kinds = {"naive": work.naive, "expert": work.expert, "reference": work.reference}
    mixed = settings.method == "mixsd"
    most = (1 + settings.retries if _can_differ(settings) else 1) + (settings.on_fail == "expert")
    return {
        "measured_on": work.measured,
        **{name: {"mean": lengths.mean, "longest": lengths.longest} for name, lengths in kinds.items()},
        "targets": round(work.targets * work.reply),
        "decoded": round(work.targets * work.attempts * work.reply) if mixed else 0,
        "decoded_at_most": work.targets * most * work.limit if mixed else 0,
    }


def _assumptions(settings: Settings, work: Work) -> list[str]:
    attempts = f", and accepted at attempt {work.attempts}" if settings.method == "mixsd" else ""
    return [
        f"prompts and references are as in {work.measured} of {work.asked} facts",
        f"a target is as long as its reference{attempts}; every usable fact gets one",
        f"a reply to an evaluation question has {costs.REPLY} tokens; no reply of the base model is cached yet",
        "memory is for replies that run to --max-new-tokens",
    ]


def _warnings(session: Session, work: Work, report: dict[str, Any]) -> list[str]:
    settings, memory, disk = session.settings, report["memory"], report["disk"]
    found = []
    if work.unusable:
        key, reason = next(iter(work.unusable.items()))
        found.append(f"{work.asked - work.usable} of {work.asked} facts are unusable, among them {key}: {reason}")
    for stage, remedy in _REMEDIES.items():
        needed, available = memory[stage]["total"], memory["available"]
        if available is not None and needed > available:
            where = f"{needed / GB:.1f} GB of memory, {memory['device']} has {available / GB:.1f} GB free"
            found.append(f"{stage} may need {where}: {remedy}")
    if disk["peak"] > disk["free"]:
        sizes = f"{disk['peak'] / GB:.1f} GB of disk, {disk['free'] / GB:.1f} GB are free"
        found.append(f"the run folder needs {sizes}: choose another --output, or lower --keep-checkpoints")
    if 2 * settings.warmup_steps > work.steps:
        found.append(f"the warm-up of {settings.warmup_steps} steps is longer than half of the training's {work.steps}")
    if settings.method == "mixsd":
        found += _mixing_warnings(settings, work)
    if session.run.exists():
        found.append(f"{session.run.folder} is a run already: the same settings resume it, others are refused")
    return found


def _mixing_warnings(settings: Settings, work: Work) -> list[str]:
    found = []
    if work.reference.longest > work.limit:
        found.append(
            f"the longest reference has {work.reference.longest} tokens, a reply at most {work.limit}: raise --max-new-tokens"
        )
    if settings.samples > 1 and not _can_differ(settings):
        found.append(
            f"all {settings.samples} samples of a fact will be equal: --lam {settings.lam:g} at --temperature 0 draws nothing"
        )
    if 0.5 <= settings.lam < 1 and settings.gate == 0 and settings.answer_format == "plain":
        found.append(f"at --lam {settings.lam:g} without --gate a small model seldom completes a name: try --gate 0.1")
    return found
