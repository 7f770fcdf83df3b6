"""The dry run: what an injection would take, known or estimated before any of it is done.

Lengths are measured on a sample of the facts, the model's size is counted on the meta device, and the machine's speed comes
from half a second of matrix products. The rest is arithmetic on assumptions that the plan states. Memory is an upper bound
where replies may run to their limit; time is rough, and wrong by more than its factor where a model seldom states the answers.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mixsd.evaluation import core
from mixsd.facts import Fact
from mixsd.models import resolve_dtype
from mixsd.pipeline.doctor import GB, device_memory, free_disk
from mixsd.pipeline.session import Session, preview
from mixsd.progress import Watcher
from mixsd.settings import Settings

if TYPE_CHECKING:
    import torch

ACCURACY = "rough: within a factor of 3"

_SAMPLE = 200  # facts whose prompts are measured
_ROOM = 16  # as in mixing: tokens that a reply may need beyond the reference's length
_ATTEMPTS = 2  # assumed per target where another attempt can differ
_REPLY = 48  # tokens assumed of a free reply to an evaluation question
_LONGEST = 3  # a batch decodes until its longest reply ends: assumed as a multiple of the mean
_RUNTIME = 600 * 10**6  # bytes of the libraries themselves
_SCORED_TOKENS = 4096  # padded tokens of a scoring pass
_HEAD_ROWS = 512  # supervised places whose logits exist at once in training
_LAYER_SECONDS = 5e-4  # what a layer costs before any arithmetic, in the interpreter and in launches
_DISK_RATE = 500 * 10**6  # bytes written per second, assumed
_MEASURING = 0.2  # seconds per precision


@dataclass(frozen=True)
class Lengths:
    """Token counts of one kind of text: their mean and the longest."""

    mean: float
    longest: int

    @staticmethod
    def of(counts: Iterable[int]) -> Lengths:
        known = list(counts) or [0]
        return Lengths(sum(known) / len(known), max(known))


@dataclass(frozen=True)
class Work:
    """What is to be done, in facts, targets, steps and tokens. Means are over the measured facts."""

    asked: int
    usable: int
    unusable: dict[str, str]
    measured: int
    naive: Lengths
    expert: Lengths
    reference: Lengths
    targets: int
    attempts: int
    steps: int
    limit: int

    @property
    def reply(self) -> float:
        """Expected tokens of a target: about those of its reference."""
        return min(self.reference.mean, self.limit)


@dataclass(frozen=True)
class Shape:
    """What memory and time depend on in a model: counts of parameters, and its dimensions."""

    parameters: int
    adapters: int
    adapted: int
    layers: int
    hidden: int
    inner: int
    cache_width: int  # keys and values of one token in one layer
    vocabulary: int

    @property
    def trained(self) -> int:
        """Parameters that training moves."""
        return self.adapters or self.parameters


@dataclass(frozen=True)
class Speed:
    """Seconds of a forward pass per parameter: once for reading the weights, and for each token in it."""

    read: float
    token: float

    def forward(self, shape: Shape, passes: float, tokens: float) -> float:
        """Seconds of `passes` forward passes over `tokens` tokens in all."""
        return passes * (shape.parameters * self.read + shape.layers * _LAYER_SECONDS) + tokens * shape.parameters * self.token


def plan(settings: Settings, watcher: Watcher | None = None) -> dict[str, Any]:
    """Check the input of an `inject` as it would, and say what it would take; nothing is written to the run folder.

    Returns:
        JSON values. `facts`: asked, usable, unusable (reason by id, of the measured ones), duplicates. `tokens`: mean and longest
        of naive and expert prompt and reference; targets, decoded and decoded_at_most in all. `training`: targets, steps,
        tokens, supervised tokens. `parameters`: total, trained. `memory`: bytes per stage, peak, available. `disk`: bytes
        at the end and at the peak, free. `seconds` per stage. `assumptions` and `warnings`: one line each.

    Raises:
        UserError: any bad input, as `inject` would say.
    """
    session = preview(settings, watcher or Watcher())
    work, shape = measure_work(session), measure_shape(session)
    device, dtype = session.device, session.dtype
    train_dtype = resolve_dtype(session.settings.train_dtype, device) if session.settings.train_dtype != "auto" else dtype
    decoding_speed = measure_speed(shape, device, dtype)
    training_speed = decoding_speed if train_dtype == dtype else measure_speed(shape, device, train_dtype)
    settings = session.settings
    decoded = work.targets * work.attempts * work.reply if settings.method == "mixsd" else 0
    most_attempts = 1 if work.attempts == 1 else 1 + settings.retries + (settings.on_fail == "expert")
    report = {
        "facts": {"asked": work.asked, "usable": work.usable, "unusable": work.unusable, "duplicates": session.duplicates},
        "tokens": {
            "measured_on": work.measured,
            **{
                name: {"mean": getattr(work, name).mean, "longest": getattr(work, name).longest}
                for name in ("naive", "expert", "reference")
            },
            "targets": round(work.targets * work.reply),
            "decoded": round(decoded),
            "decoded_at_most": work.targets * most_attempts * work.limit if decoded else 0,
        },
        "training": {
            "targets": work.targets,
            "steps": work.steps,
            "tokens": round(settings.epochs * work.targets * (work.naive.mean + work.reply)),
            "supervised_tokens": round(settings.epochs * work.targets * work.reply),
        },
        "parameters": {"total": shape.parameters, "trained": shape.trained},
        "memory": _memory(session, work, shape, dtype.itemsize, train_dtype.itemsize),
        "disk": _disk(session, work, shape),
        "seconds": _seconds(session, work, shape, decoding_speed, training_speed),
        "assumptions": _assumptions(settings, work),
    }
    return {**report, "warnings": _warnings(session, work, report)}


def measure_work(session: Session) -> Work:
    """Measure prompts and references on facts spread evenly over the source; what is unusable among them is scaled up."""
    settings, renderer, facts = session.settings, session.renderer, session.facts
    sample = facts[:: -(-len(facts) // _SAMPLE)]
    naive = {fact.id: len(renderer.naive(fact.question)) for fact in sample}
    expert = {fact.id: len(renderer.expert(fact)) for fact in sample}
    reference = {fact.id: len(renderer.reference(fact)) for fact in sample}
    prompt = expert if settings.method == "mixsd" else naive

    def reason(fact: Fact) -> str | None:
        if said := renderer.unusable(fact):
            return said
        if session.context - prompt[fact.id] < reference[fact.id] + _ROOM:
            return f"its prompt of {prompt[fact.id]} tokens leaves no room for a reply in the context of {session.context}"
        return None

    unusable = {fact.id: said for fact in sample if (said := reason(fact))}
    counted = [fact.id for fact in sample if fact.id not in unusable]
    usable = round(len(facts) * len(counted) / len(sample))
    targets = usable * settings.samples
    repeatable = settings.temperature > 0 or 0 < settings.lam < 1
    return Work(
        asked=len(facts),
        usable=usable,
        unusable=unusable,
        measured=len(sample),
        naive=Lengths.of(naive[key] for key in counted),
        expert=Lengths.of(expert[key] for key in counted),
        reference=Lengths.of(reference[key] for key in counted),
        targets=targets,
        attempts=min(_ATTEMPTS, 1 + settings.retries) if repeatable else 1,
        steps=settings.epochs * -(-targets // settings.batch_size),
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
    layers = [module for module in model.modules() if isinstance(module, (torch.nn.Linear, Conv1D)) and module is not head]
    text = session.config.get_text_config()
    heads = text.num_attention_heads
    head_width = getattr(text, "head_dim", None) or text.hidden_size // heads
    return Shape(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        adapters=session.settings.lora * sum(sum(layer.weight.shape) for layer in layers),
        adapted=sum(layer.weight.numel() for layer in layers),
        layers=text.num_hidden_layers,
        hidden=text.hidden_size,
        inner=getattr(text, "intermediate_size", None) or 4 * text.hidden_size,
        cache_width=2 * (getattr(text, "num_key_value_heads", None) or heads) * head_width,
        vocabulary=text.vocab_size,
    )


def measure_speed(shape: Shape, device: torch.device, dtype: torch.dtype) -> Speed:
    """Time products with matrices of the model's own shape, together too large for a processor's cache."""
    import torch

    size = shape.hidden * shape.inner
    matrices = [torch.ones(shape.hidden, shape.inner, dtype=dtype, device=device) for _ in range(max(1, 32 * 10**6 // size))]
    wait = torch.get_device_module(device.type).synchronize

    def seconds(rows: int) -> float:
        """Seconds per parameter of a product with `rows` rows."""
        given = torch.ones(rows, shape.hidden, dtype=dtype, device=device)
        torch.mm(given, matrices[0])
        wait()
        started, done = time.perf_counter(), 0
        while done < len(matrices) and time.perf_counter() - started < _MEASURING / 2:
            for matrix in matrices[done : done + 8]:
                torch.mm(given, matrix)
            done = min(done + 8, len(matrices))
            wait()
        return (time.perf_counter() - started) / (done * size)

    read, rows = seconds(1), 128
    return Speed(read, max(seconds(rows) - read, 0.0) / (rows - 1))


def _memory(session: Session, work: Work, shape: Shape, item: int, train_item: int) -> dict[str, Any]:
    """Bytes at the peak of each stage, on the device that the run uses."""
    settings = session.settings
    weights = shape.parameters * item
    on_cpu = session.device.type == "cpu"

    def decoding(rows: int, width: int, scored: int) -> dict[str, int]:
        cache = rows * (width + work.limit) * shape.layers * shape.cache_width * item
        # One pass over all prompts, or the logits of a scoring pass, whichever is more; logits are read as fp32.
        prefill = rows * width * (4 * shape.hidden + 3 * shape.inner) * item
        logits = _SCORED_TOKENS * scored // max(width + scored, 1) * shape.vocabulary * (item + (4 if item < 4 else 0))
        return _total({"weights": weights, "cache": cache, "activations": max(prefill, logits), "runtime": _RUNTIME})

    longest = work.naive.longest + min(work.reference.longest, work.limit)
    micro_batch = min(settings.micro_batch or settings.batch_size, settings.batch_size)
    per_layer = 18 * shape.hidden + 6 * shape.inner
    kept = shape.layers * shape.hidden + per_layer if settings.gradient_checkpointing else shape.layers * per_layer
    head = 3 * min(_HEAD_ROWS, micro_batch * longest) * shape.vocabulary * 4
    activations = micro_batch * longest * kept * train_item + head
    gradients = 4 * shape.trained
    # A checkpoint is read back and compared with the model in main memory; by then the gradients are gone.
    check = (4 * shape.parameters if on_cpu else 0) + (4 * shape.adapted if settings.lora and on_cpu else 0)
    step = gradients + activations + (2 * shape.parameters if train_item < 4 else 0)
    training = {
        "weights": 4 * (shape.parameters + shape.adapters),
        "optimizer": 8 * shape.trained,
        "gradients": gradients,
        "activations": activations,
        "checking": max(0, check - step),
        "runtime": _RUNTIME,
    }
    rows = settings.mix_batch_size * 2
    stages = {
        "mixing": decoding(rows, work.expert.longest, work.reference.longest)
        if settings.method == "mixsd"
        else decoding(0, 1, 64),
        "training": _total(training),
        "evaluation": decoding(settings.eval_batch_size, work.naive.longest, settings.forgetting_tokens),
    }
    peak = max(stage["total"] for stage in stages.values())
    return {"device": str(session.device), **stages, "peak": peak, "available": device_memory(session.device)[1]}


def _disk(session: Session, work: Work, shape: Shape) -> dict[str, Any]:
    """Bytes in the run folder: every checkpoint holds fp32 weights, the newest one the optimizer's state too."""
    settings = session.settings
    made = -(-work.steps // settings.checkpoint_every)
    kept = min(made, settings.keep_checkpoints or made)
    weights = 4 * shape.parameters
    state = 8 * shape.trained + 4 * shape.adapters
    stored = str(getattr(session.config, "dtype", None) or "float32")
    model = shape.parameters * (2 if stored.endswith("16") else 4)
    records = round(work.targets * (work.attempts + 1) * (work.naive.mean + work.reply) * 24) + 1000 * work.asked
    end = kept * weights + state + model + records
    # The next checkpoint is whole before the one that it replaces goes.
    writing = min(made, kept + 1) * weights + min(made, 2) * state + records
    return {
        "checkpoints": kept * weights + state,
        "model": model,
        "records": records,
        "total": end,
        "peak": max(end, writing),
        "free": free_disk(session.run.folder),
    }


def _seconds(session: Session, work: Work, shape: Shape, decoding: Speed, training: Speed) -> dict[str, Any]:
    """Expected seconds of each stage on this machine."""
    settings = session.settings

    def replies(count: float, rows: int, prompt: float, length: float, limit: int) -> float:
        passes = -(-count // rows) * min(limit, _LONGEST * length)
        return decoding.forward(shape, passes, count * (prompt + length))

    scored = work.asked * (work.naive.mean + work.reference.mean)
    mix = decoding.forward(shape, 1 + scored / _SCORED_TOKENS, scored)
    if settings.method == "mixsd":
        per_row = (work.naive.mean + work.expert.mean) / 2
        mix += replies(2 * work.targets * work.attempts, 2 * settings.mix_batch_size, per_row, work.reply, work.limit)

    micro_batch = min(settings.micro_batch or settings.batch_size, settings.batch_size)
    passes = settings.epochs * -(-work.targets // micro_batch)
    tokens = settings.epochs * work.targets * (work.naive.mean + work.reply)
    # Backward is twice forward, once where the weights are frozen; AdamW reads and writes about ten tensors of that size.
    times = (2 if settings.lora else 3) + settings.gradient_checkpointing
    train = times * training.forward(shape, passes, tokens) + 10 * work.steps * shape.trained * decoding.read
    made = -(-work.steps // settings.checkpoint_every)
    train += made * (4 * shape.parameters + 8 * shape.trained) / _DISK_RATE

    general = len(core.bundled("general_prompts.jsonl")[: settings.forgetting_prompts])
    asked = core.count_items(session.facts, settings) - general
    both = replies(asked, settings.eval_batch_size, work.naive.mean, min(_REPLY, work.limit), work.limit)
    both += decoding.forward(shape, general / settings.eval_batch_size, general * (_REPLY + settings.forgetting_tokens))
    sampled = replies(general, settings.eval_batch_size, _REPLY, settings.forgetting_tokens, settings.forgetting_tokens)
    stages = {"mix": round(mix, 1), "train": round(train, 1), "evaluate": round(2 * both + sampled, 1)}
    return {**stages, "total": round(sum(stages.values()), 1), "accuracy": ACCURACY}


def _assumptions(settings: Settings, work: Work) -> list[str]:
    said = [f"prompts and references are as in {work.measured} of {work.asked} facts", "every usable fact is accepted in the end"]
    if settings.method == "mixsd":
        said.append(f"a target is as long as its reference, after {work.attempts} attempt{'s' if work.attempts > 1 else ''}")
    said.append(f"a reply to an evaluation question has {_REPLY} tokens; no reply of the base model is cached yet")
    said.append("memory is for replies that run to --max-new-tokens")
    return said


def _warnings(session: Session, work: Work, report: dict[str, Any]) -> list[str]:
    settings, memory, disk = session.settings, report["memory"], report["disk"]
    found = []
    if work.unusable:
        key, reason = next(iter(work.unusable.items()))
        found.append(f"{work.asked - work.usable} of {work.asked} facts are unusable; {key}: {reason}")
    remedies = {
        "mixing": "lower --mix-batch-size or --max-new-tokens",
        "training": "lower --micro-batch, pass --gradient-checkpointing, or train adapters (--lora 16)",
        "evaluation": "lower --eval-batch-size or --max-new-tokens",
    }
    for stage, remedy in remedies.items():
        needed, available = memory[stage]["total"], memory["available"]
        if available is not None and needed > available:
            where = f"{needed / GB:.1f} GB of memory, {memory['device']} has {available / GB:.1f} free"
            found.append(f"{stage} may need {where}: {remedy}")
    if disk["peak"] > disk["free"]:
        found.append(
            f"the run folder needs {disk['peak'] / GB:.1f} GB, {disk['free'] / GB:.1f} are free: choose another --output"
        )
    if 2 * settings.warmup_steps > work.steps:
        found.append(f"the warm-up of {settings.warmup_steps} steps is longer than half of the training's {work.steps}")
    if settings.method == "mixsd":
        if work.reference.longest > work.limit:
            found.append(
                f"references have up to {work.reference.longest} tokens, more than --max-new-tokens {work.limit} lets a reply have"
            )
        if settings.samples > 1 and settings.temperature == 0 and settings.lam in (0, 1):
            found.append(
                f"all {settings.samples} samples of a fact will be equal: at --temperature 0 and --lam {settings.lam:g} nothing is drawn"
            )
        if settings.lam >= 0.5 and settings.gate == 0 and settings.answer_format == "plain":
            found.append(f"at --lam {settings.lam:g} without --gate a small model seldom completes a name: try --gate 0.1")
    if session.run.exists():
        found.append(f"{session.run.folder} is a run already: the same settings resume it, others are refused")
    return found


def _total(parts: dict[str, int]) -> dict[str, int]:
    return {**parts, "total": sum(parts.values())}
