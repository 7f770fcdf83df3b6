"""The dry run: what an injection, or what is left of a sweep, would take before any of it is done.

Prompts and references are measured on a sample of the facts, and the model's size is counted on the meta device. The rest is
the arithmetic of `costs` on assumptions that the plan states.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict
from typing import Any

from mixsd.commands import costs
from mixsd.commands.costs import EditWork, Lengths, Shape, Work
from mixsd.commands.opening import open_checked
from mixsd.commands.sweep import State, Sweep
from mixsd.errors import UserError
from mixsd.evaluation.asked import examination
from mixsd.facts.fact import Fact
from mixsd.facts.records import bundled_records
from mixsd.models.doctor import GB, device_memory, free_disk
from mixsd.models.loading import resolve_dtype
from mixsd.progress import Watcher
from mixsd.run.session import Session
from mixsd.settings import Settings
from mixsd.targets.attempts import reply_limit

_SAMPLE = 200  # facts whose prompts are measured

_REMEDIES = {
    "mixing": "lower --token-budget or --max-new-tokens",
    "training": "lower --micro-batch, pass --gradient-checkpointing, or train adapters (--lora 16)",
    "scoring": "lower --token-budget, or leave out --score-checkpoints",
    "editing": "name fewer --edit-layers, or a smaller model",
    "evaluation": "lower --token-budget or --max-new-tokens",
}


def plan(settings: Settings, watcher: Watcher | None = None) -> dict[str, Any]:
    """Check the input of an `inject` as it would, and say what it would take; nothing is written to the run folder.

    Returns JSON values. `facts`: their counts, and the measured ones that are unusable. `tokens`: mean and longest of prompts and
    reference; what is decoded to train on. `training`: targets or rollouts of an epoch, steps of one training, and of all
    trainings (several with --lr auto) checkpoints and tokens. `editing`: what memit does. `evaluation`: of one model. `memory`:
    bytes by part for each stage (a total of 0 where the run has none). `disk`: bytes; `cache` is outside of the run folder.
    `assumptions` and `warnings`: one line each.
    Raises `UserError`: any bad input, as `inject` would say.
    """
    session = open_checked(settings, watcher or Watcher())
    settings, device, dtype = session.settings, session.device, session.dtype
    work, shape = measure_work(session), measure_shape(session)
    train_dtype = dtype if settings.train_dtype == "auto" else resolve_dtype(settings.train_dtype, device)
    stages = costs.memory(
        settings, work, shape, item=dtype.itemsize, train_item=train_dtype.itemsize, on_cpu=device.type == "cpu"
    )
    runs, parts = costs.trainings(settings, work), costs.decoded(settings, work)
    editing = None
    if work.edit:
        editing = {"facts": work.usable, "layers": work.edit.layers, "prompts": work.edit.prompts}
        editing |= {"text_tokens": settings.edit_tokens, "steps": settings.edit_steps}
    report = {
        "facts": {"asked": work.asked, "usable": work.usable, "unusable": work.unusable, "duplicates": session.duplicates},
        "tokens": {
            **{name: asdict(getattr(work, name)) for name in ("naive", "expert", "reference")},
            "targets": round(work.targets * work.reply),
            "decoded": sum(parts.values()),
            "decoded_parts": parts,
        },
        "training": {
            **{name: getattr(work, name) for name in ("targets", "rollouts", "steps")},
            "trainings": len(runs),
            "checkpoints": sum(costs.checkpoints(settings, work)),
            **costs.trained_tokens(settings, work),
        },
        "editing": editing,
        "evaluation": {"questions": work.questions, "decoded": round(work.questions * work.asked_reply)},
        "parameters": {"total": shape.parameters, "trained": shape.trained if work.steps else 0},
        "memory": {
            "device": str(device),
            **stages,
            "peak": max(stage["total"] for stage in stages.values()),
            "available": device_memory(device)[1],
        },
        "disk": {**costs.disk(settings, work, shape), "free": free_disk(session.run.folder)},
    }
    return {**report, "assumptions": _assumptions(settings, work), "warnings": _warnings(session, work, shape, report)}


def measure_work(session: Session) -> Work:
    """Measure prompts and references on facts spread evenly over the source; the share of unusable ones is scaled up."""
    settings, renderer, facts = session.settings, session.renderer, session.facts
    sample = facts[:: -(-len(facts) // _SAMPLE)]
    if settings.spec.edits:
        edit, reasons = _measure_edit(session, sample)
    else:
        edit, reasons = None, {fact.id: reply_limit(fact, renderer, settings, session.context)[1] for fact in sample}
    unusable = {key: reason for key, reason in reasons.items() if reason}
    counted = [fact for fact in sample if fact.id not in unusable]
    if not counted:
        key, said = next(iter(unusable.items()))
        raise UserError(f"no usable fact among the {len(sample)} looked at; the first one, {key}: {said}")
    usable = round(len(facts) * len(counted) / len(sample))
    made = usable * settings.samples
    # A step takes so many targets; of what is answered anew it takes so many facts.
    items = made if settings.spec.needs_targets else usable if settings.spec.on_policy else 0
    questions = [question for name in examination(session).names for question in examination(session).questions(name)]
    replies = Lengths.of(
        min(costs.REASONED_REPLY, question.max_new_tokens) if question.apart else costs.REPLY for question in questions
    )
    rehearsed = bundled_records("rehearsal_prompts.jsonl")[:_SAMPLE] if settings.rehearse else []
    return Work(
        asked=len(facts),
        usable=usable,
        unusable=unusable,
        measured=len(sample),
        naive=Lengths.of(len(renderer.naive(fact.question)) for fact in counted),
        expert=Lengths.of(len(renderer.expert(fact)) for fact in counted),
        reference=Lengths.of(len(renderer.reference(fact)) for fact in counted),
        targets=made if settings.spec.needs_targets else 0,
        attempts=costs.attempts(settings),
        steps=settings.epochs * -(-items // settings.batch_size),
        questions=len(questions),
        limit=min(settings.max_new_tokens or session.context, session.context),
        rollouts=made if settings.spec.on_policy else 0,
        rehearsal=Lengths.of(len(renderer.ids(item["prompt"])) for item in rehearsed),
        edit=edit,
        asked_reply=replies.mean or costs.REPLY,
    )


def _measure_edit(session: Session, sample: list[Fact]) -> tuple[EditWork, dict[str, str | None]]:
    """What memit does to a fact; and why facts cannot be edited in, by id."""
    from mixsd.editing.edits import UnusableError, edit_prompts, layers_of, of_settings

    config = of_settings(session.settings)
    longest = 0
    reasons: dict[str, str | None] = {}
    for fact in sample:
        try:
            (prompt,) = edit_prompts(fact, session.renderer, config, (), session.context)
        except UnusableError as error:
            reasons[fact.id] = str(error)
        else:
            reasons[fact.id] = None
            longest = max(longest, len(prompt.ids) + config.prefix_tokens + len(prompt.target))
    return EditWork(len(layers_of(config, session.config)), 1 + config.prefixes, longest), reasons


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


def _assumptions(settings: Settings, work: Work) -> list[str]:
    tries = f", accepted at attempt {work.attempts}" if settings.spec.mixes else ""
    return [
        f"prompts and references are as in {work.measured} of {work.asked} facts; what is trained on is as long as the references{tries}",
        f"a reply to an evaluation question has {work.asked_reply:.0f} tokens, one that is rehearsed at most {costs.REPLY}",
        "memory is for replies that run to --max-new-tokens; nothing is in the cache yet",
    ]


def _warnings(session: Session, work: Work, shape: Shape, report: dict[str, Any]) -> list[str]:
    memory, disk = report["memory"], report["disk"]
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
    found += _doubts(session.settings, work, shape)
    if session.run.exists():
        found.append(f"{session.run.folder} is a run already: the same settings resume it, others are refused")
    return found


def _doubts(settings: Settings, work: Work, shape: Shape) -> Iterator[str]:
    """What is said of settings that may not be meant."""
    if work.steps:
        shortest = costs.trainings(settings, work)[0]
        if 2 * settings.warmup_steps > shortest:
            yield f"the warm-up of {settings.warmup_steps} steps is longer than half of a training's {shortest}"
        if settings.spec.on_policy and settings.samples > 1 and settings.temperature == 0:
            yield f"all {settings.samples} rollouts of a fact will be equal: --temperature 0 draws nothing"
        if settings.choose == "paper" and (made := costs.checkpoints(settings, work)[-1]) < 3:
            yield f"the paper's rule has {made} checkpoint{'s' if made > 1 else ''} to choose from: lower --checkpoint-every"
        if settings.lr == "auto" and (settings.lr_steps or 0) >= work.steps:
            yield f"--lr-steps {settings.lr_steps} cuts nothing off {work.steps} steps, and trains the best rate twice: leave it out"
    if work.edit and settings.edit_tokens < shape.inner:
        yield f"--edit-tokens {settings.edit_tokens} is less than the {shape.inner} inputs of a layer: memit will refuse it"
    if settings.spec.mixes:
        if work.reference.longest > work.limit:
            yield f"the longest reference has {work.reference.longest} tokens, a reply at most {work.limit}: raise --max-new-tokens"
        if settings.samples > 1 and not costs.can_differ(settings):
            yield f"all {settings.samples} samples of a fact will be equal: --lam {settings.lam:g} at --temperature 0 draws nothing"
        if 0.5 <= settings.lam < 1 and settings.gate == 0 and settings.answer_format == "plain":
            yield f"at --lam {settings.lam:g} without --gate a small model seldom completes a name: try --gate 0.1"


def price(
    planned: Sweep, states: Mapping[str, State], *, only: Collection[str] = (), watcher: Watcher | None = None
) -> dict[str, Any]:
    """Say what is left of a sweep takes; runs that differ in their seed take the same.

    Returns `runs`, by name: bytes of `memory` at the peak, of `disk` in the end and `disk_at_peak`, `decoded_tokens` to train on
    and `trained_tokens`; `total`: of one run at a time beside those that are there; `warnings`.
    """
    watcher = watcher or Watcher()
    todo = [run for run in planned.chosen(only) if states[run.name] != "done"]
    found: dict[str, Any] = {}
    by_configuration: dict[str, dict[str, int]] = {}
    with watcher.task("estimating", len({run.configuration for run in todo})) as task:
        for run in todo:
            if run.configuration in by_configuration:
                continue
            found = plan(run.settings, watcher)
            by_configuration[run.configuration] = {
                "memory": found["memory"]["peak"],
                "disk": found["disk"]["total"],
                "disk_at_peak": found["disk"]["peak"],
                "decoded_tokens": found["tokens"]["decoded"],
                "trained_tokens": found["training"]["tokens"],
            }
            task.advance()
    runs = {run.name: by_configuration[run.configuration] for run in todo}
    total = dict.fromkeys(("memory", "disk", "disk_at_peak", "decoded_tokens", "trained_tokens"), 0)
    for cost in runs.values():
        total["memory"] = max(total["memory"], cost["memory"])
        total["disk_at_peak"] = max(total["disk_at_peak"], total["disk"] + cost["disk_at_peak"])
        for name in ("disk", "decoded_tokens", "trained_tokens"):
            total[name] += cost[name]
    if not runs:
        return {"runs": runs, "total": total, "warnings": []}
    # The memory and disk that are there are the same for all.
    available, free = found["memory"]["available"], found["disk"]["free"]
    warnings: list[str] = []
    if large := [name for name, cost in runs.items() if available is not None and cost["memory"] > available]:
        sizes = f"{available / GB:.1f} GB of memory that are free, the largest {total['memory'] / GB:.1f}"
        warnings.append(
            f"{len(large)} of {len(runs)} runs may need more than the {sizes}; `mixsd inject --dry-run` with one's settings says in which stage"
        )
    if total["disk_at_peak"] > free:
        sizes = f"{total['disk_at_peak'] / GB:.1f} GB of disk, {free / GB:.1f} are free"
        warnings.append(f"the sweep needs {sizes}: choose another --output, or lower keep_checkpoints")
    return {"runs": runs, "total": total, "warnings": warnings}
