"""What an injection takes in tokens, memory and disk, as arithmetic from the work to do and the model's shape.

Memory is an upper bound where replies may run to their limit. Activations are estimates: the constants below are round figures
from measured runs of small Llama-like models. Time is not estimated: it depends on more than arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from mixsd.decoding.continuous import tokens_per_pass
from mixsd.decoding.engine import TOKENS_PER_PASS
from mixsd.settings import Settings
from mixsd.training.choosing import FOLLOWING
from mixsd.training.states import CHUNK_LOGITS

REPLY = 48  # tokens assumed of a free reply to an evaluation question
REASONED_REPLY = 300  # and of one to a benchmark's, which is to be thought through
PICKED_AT_ONCE = 8  # targets in one pass of the teacher whose likeliest tokens are written down
_RUNTIME = 600 * 10**6  # bytes of the libraries themselves
_ATTEMPTS, _GATED_ATTEMPTS = 3, 1  # assumed per target where another attempt can differ


@dataclass(frozen=True)
class Lengths:
    """Token counts of one kind of text: their mean and the longest."""

    mean: float = 0.0
    longest: int = 0

    @staticmethod
    def of(counts: Iterable[int]) -> Lengths:
        """Mean and longest of the counts; zeros where there are none."""
        known = list(counts) or [0]
        return Lengths(sum(known) / len(known), max(known))


@dataclass(frozen=True)
class Edit:
    """What memit does to each usable fact: `layers` are changed, up to layer `last`; it is read behind `prefixes` beginnings.

    `prompt` and `target` are the tokens of its bare prompt and its target; `behind` those from the subject's last one to the end
    of the target, which are read anew at each step.
    """

    layers: int
    last: int
    prefixes: int
    prefix_tokens: int
    prompt: Lengths
    target: Lengths
    behind: Lengths


@dataclass(frozen=True)
class Work:
    """What is to be done. `naive`, `expert` and `reference` are of the measured facts; `limit` is the longest reply in tokens.

    `unusable` gives the reason by id, of the measured facts; `attempts` is the number assumed per target; `steps` are those of
    one full training; `rollouts` are the student's replies in an epoch, where it trains on those and there are no targets.
    `questions` counts the evaluation's questions for one model, `scored` those of each checkpoint that is scored;
    `asked_reply` is the length assumed of a reply to one, `rehearsal` that of the prompts to rehearse.
    """

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
    questions: int
    limit: int
    rollouts: int = 0
    scored: int = 0
    rehearsal: Lengths = field(default_factory=Lengths)
    edit: Edit | None = None
    asked_reply: float = REPLY

    @property
    def reply(self) -> float:
        """Expected tokens of a target or a rollout: about those of the reference."""
        return min(self.reference.mean, self.limit)

    @property
    def sequences(self) -> int:
        """What is trained on in an epoch."""
        return self.targets + self.rollouts


@dataclass(frozen=True)
class Shape:
    """What memory depends on in a model.

    `parameters` counts a tied one once; `adapters` is what LoRA adds, `adapted` the weights that it is merged into;
    `cache_width` counts the keys and values of one token in one layer; `stored_item` is the bytes of a weight in the
    base model's own precision.
    """

    parameters: int
    adapters: int
    adapted: int
    layers: int
    hidden: int
    inner: int
    cache_width: int
    vocabulary: int
    stored_item: int

    @property
    def trained(self) -> int:
        """Parameters that training moves."""
        return self.adapters or self.parameters


def can_differ(settings: Settings) -> bool:
    """Whether another attempt, or another sample, can give another reply."""
    return settings.temperature > 0 or 0 < settings.lam < 1


def attempts(settings: Settings) -> int:
    """The attempts assumed per target."""
    if not settings.mixes or not can_differ(settings):
        return 1
    return _GATED_ATTEMPTS if settings.gate else min(_ATTEMPTS, 1 + settings.retries)


def trainings(settings: Settings, work: Work) -> list[int]:
    """The optimizer steps of each training, in their order: of one, of none where it edits, of several with --lr auto."""
    if not work.steps:
        return []
    if settings.lr != "auto":
        return [work.steps]
    rates = len(set(settings.lr_grid))
    if settings.lr_steps is None:
        return [work.steps] * rates
    return [min(settings.lr_steps, work.steps)] * rates + [work.steps]


def checkpoints(settings: Settings, steps: int) -> int:
    """How many checkpoints a training of so many steps writes."""
    return -(-steps // settings.checkpoint_every)


def supervised(settings: Settings, work: Work, steps: int, each: float | None = None) -> float:
    """Tokens that so many steps learn, besides the rehearsed ones; `each` per sequence, by default as many as are expected."""
    if not work.steps:
        return 0.0
    return settings.epochs * work.sequences * (work.reply if each is None else each) * steps / work.steps


def decoded(settings: Settings, work: Work, *, most: bool = False) -> dict[str, int]:
    """Tokens decoded to train on, by purpose: as many as are expected, or at most."""
    reply, tries = (float(work.limit), _most_attempts(settings)) if most else (work.reply, work.attempts)
    steps = sum(trainings(settings, work))
    # What is rehearsed beside fixed targets is decoded once, for all trainings.
    rehearsing = steps if settings.on_policy else work.steps
    rehearsal = settings.rehearse * supervised(settings, work, rehearsing, reply)
    if most and settings.rehearse:
        # A step may pass its number by a part of a reply, and look at one more.
        rehearsal += 2 * rehearsing * settings.rehearse_tokens
    return {
        "mixing": round(work.targets * tries * reply) if settings.mixes else 0,
        "rollouts": round(supervised(settings, work, steps, reply)) if settings.on_policy else 0,
        "rehearsal": round(rehearsal),
    }


def _most_attempts(settings: Settings) -> int:
    return (1 + settings.retries if can_differ(settings) else 1) + (settings.on_fail == "expert")


def rehearsal_reply(settings: Settings) -> int:
    """Tokens assumed of a reply of the base model that is rehearsed."""
    return min(REPLY, settings.rehearse_tokens)


def trained_tokens(settings: Settings, work: Work) -> dict[str, int]:
    """Over all trainings: tokens read, and of these the supervised and the rehearsed ones."""
    steps = sum(trainings(settings, work))
    own = supervised(settings, work, steps)
    rehearsed = settings.rehearse * own
    prompts = supervised(settings, work, steps, work.naive.mean) + rehearsed / rehearsal_reply(settings) * work.rehearsal.mean
    return {"tokens": round(own + rehearsed + prompts), "supervised_tokens": round(own), "rehearsed_tokens": round(rehearsed)}


def reads_teacher(settings: Settings) -> bool:
    """Whether the base model is read as it was while the student trains: a copy of it, or the adapters switched off."""
    distilled = settings.spec.distilled and settings.kl_support != "teacher"
    return settings.on_policy or distilled or (settings.rehearse > 0 and settings.rehearse_loss == "kl")


def remembers_teacher(settings: Settings) -> bool:
    """Whether the teacher's likeliest tokens are written down before the training, which then does without it."""
    return settings.spec.distilled and settings.has_targets and settings.kl_support == "teacher"


def memory(
    settings: Settings, work: Work, shape: Shape, *, item: int, train_item: int, on_cpu: bool
) -> dict[str, dict[str, int]]:
    """Bytes at the peak of each stage on its device, part by part; a stage that the run does not have has a total of 0.

    `preparing` is what the base model does once the targets are there, `scoring` what is done to a checkpoint between two steps.
    `item` is the bytes per weight in mixing and evaluation, `train_item` those of an activation in training.
    """
    # On a CPU the head is laid out anew beside the embeddings, where the two are one.
    copy = (shape.parameters + (shape.vocabulary * shape.hidden if on_cpu else 0)) * item
    budget = settings.token_budget
    prefill = tokens_per_pass(on_cpu=on_cpu) * (4 * shape.hidden + 3 * shape.inner + shape.vocabulary)

    def cache(width: int, limit: int) -> int:
        return max(budget, 2 * (width + limit)) * shape.layers * shape.cache_width

    def reading(width: int, scored: int, limit: int | None) -> dict[str, int]:
        # Either a decoding pass, or the logits of a scoring pass, which are read as fp32.
        logits = TOKENS_PER_PASS * scored // (width + scored) * shape.vocabulary * (4 if item == 4 else item + 4)
        return {
            "weights": copy,
            "cache": 0 if limit is None else cache(width, limit) * item,
            "activations": max(prefill * item, logits),
        }

    evaluating = reading(work.naive.longest or 1, settings.forgetting_tokens, work.limit)
    stages = {name: {"total": 0} for name in ("mixing", "preparing", "training", "scoring", "editing")}
    if settings.has_targets:
        limit = work.limit if settings.mixes else None
        stages["mixing"] = _run(**reading(work.expert.longest or 1, max(1, work.reference.longest), limit))
    if remembers_teacher(settings):
        pass_ = PICKED_AT_ONCE * (work.expert.longest + min(work.reference.longest, work.limit))
        states = pass_ * (4 * shape.hidden + 3 * shape.inner) * item + 2 * min(CHUNK_LOGITS, pass_ * shape.vocabulary) * 4
        stages["preparing"] = _run(weights=copy, cache=0, activations=states)
    if settings.rehearse and not settings.on_policy:
        rehearsing = _run(**reading(work.rehearsal.longest or 1, 0, settings.rehearse_tokens))
        stages["preparing"] = max(stages["preparing"], rehearsing, key=lambda stage: stage["total"])
    if work.steps:
        decoding = prefill + cache(work.naive.longest, work.limit) if settings.on_policy else 0
        training = _training(settings, work, shape, train_item, on_cpu, decoding * train_item)
        if reads_teacher(settings) and not settings.lora:
            training["teacher"] = copy
        stages["training"] = _run(**training)
        if settings.score_checkpoints:
            held = {name: training[name] for name in ("weights", "optimizer", "teacher") if name in training}
            stages["scoring"] = _run(**held, copy=copy, **{name: evaluating[name] for name in ("cache", "activations")})
    if work.edit:
        stages["editing"] = _run(**_editing(work.edit, shape))
    return {**stages, "evaluation": _run(**evaluating)}


def _training(settings: Settings, work: Work, shape: Shape, item: int, on_cpu: bool, decoding: int) -> dict[str, int]:
    """`decoding`: bytes of decoding while the student trains, which is done before a step's gradients are there."""
    # The student may go on to the longest reply that it is allowed; a target is as long as its reference.
    reply = work.limit if settings.on_policy else min(work.reference.longest, work.limit)
    rows = settings.micro_batch or settings.batch_size
    per_layer = 14 * shape.hidden + 4 * shape.inner
    kept = shape.layers * shape.hidden + per_layer if settings.gradient_checkpointing else shape.layers * per_layer
    head = 3 * min(CHUNK_LOGITS, rows * reply * shape.vocabulary) * 4
    autocast = 2 * shape.parameters if item < 4 else 0
    beside = rows * (work.expert.longest + reply) * (4 * shape.hidden + 3 * shape.inner) * item if reads_teacher(settings) else 0
    gradients = 4 * shape.trained
    step = gradients + rows * (work.naive.longest + reply) * kept * item + head + autocast + beside
    # Between steps a checkpoint is read back and compared in main memory (LoRA: with the unmerged weights kept aside).
    check = 4 * (shape.parameters + (shape.adapted if settings.lora else 0)) if on_cpu else 0
    return {
        "weights": 4 * (shape.parameters + shape.adapters),
        "optimizer": 8 * shape.trained,
        "gradients": gradients,
        "activations": max(step, check, decoding) - gradients,
    }


def _editing(edit: Edit, shape: Shape) -> dict[str, int]:
    """One fact's values are sought at a time; the update solves a system in fp64 for each layer."""
    square = 8 * shape.inner**2
    rows, above = edit.prefixes + 2, shape.layers - edit.last - 1
    read = rows * (edit.prompt.longest + edit.prefix_tokens + edit.target.longest) * shape.layers * shape.cache_width * 4
    kept = rows * edit.behind.longest * (above + 1) * (14 * shape.hidden + 4 * shape.inner) * 4
    logits = 3 * rows * edit.target.longest * shape.vocabulary * 4
    return {
        "weights": 4 * shape.parameters,
        # While the text is read, one matrix for each layer; then four at a time for the layer at hand, with what the layers were.
        "moments": max(edit.layers * square, 4 * square + 4 * edit.layers * shape.hidden * shape.inner),
        "activations": 2 * read + kept + logits,
    }


def disk(settings: Settings, work: Work, shape: Shape) -> dict[str, int]:
    """Bytes in the run folder: every checkpoint holds fp32 weights, the newest one the optimizer's state too.

    `cache` is what memit keeps outside of it, for other runs.
    """
    weights, state = 4 * shape.parameters, 8 * shape.trained + 4 * shape.adapters
    model = shape.parameters * shape.stored_item
    runs = trainings(settings, work)
    tokens = work.targets * (work.attempts + 1) * (work.naive.mean + work.reply)
    records = round(tokens * 24) + 1000 * work.asked
    if settings.score_checkpoints:
        records += 1000 * work.scored * sum(checkpoints(settings, steps) for steps in runs)
    if work.edit:
        records += round(work.usable * (22 * shape.hidden + 24 * (work.edit.prompt.mean + work.edit.target.mean)))
    parts = {
        "model": model,
        "records": records,
        "teacher": round(8 * min(settings.kl_top_k, shape.vocabulary) * work.targets * work.reply)
        if remembers_teacher(settings)
        else 0,
        "rehearsal": 0 if settings.on_policy else 8 * decoded(settings, work)["rehearsal"],
    }
    made = checkpoints(settings, runs[-1]) if runs else 0
    at_end = _kept(settings, made) * weights + state if made else 0
    total = at_end + sum(parts.values())
    writing = _written(settings, made, weights, state)
    if len(runs) > 1:
        # The best rate's checkpoints lie there while another is tried.
        tried = checkpoints(settings, runs[0])
        beside = _kept(settings, tried) * weights + state
        writing = max(writing, beside + _written(settings, tried, weights, state))
    return {
        "checkpoints": at_end,
        **parts,
        "total": total,
        "peak": max(total, writing + total - at_end - model),
        "cache": work.edit.layers * 8 * shape.inner**2 if work.edit else 0,
    }


def _kept(settings: Settings, made: int) -> int:
    """Checkpoints that a training leaves: the newest ones, and the chosen one."""
    kept = settings.keep_checkpoints or made
    return min(made, kept + (settings.choose == "paper"))


def _written(settings: Settings, made: int, weights: int, state: int) -> int:
    """Bytes of checkpoints at the peak of a training: one is whole before the one that it replaces goes."""
    kept = settings.keep_checkpoints or made
    if settings.choose == "paper":
        # The best so far, and those whose followers are not all known.
        kept = max(kept, 1 + FOLLOWING) + 1
    return min(made, kept + 1) * weights + min(made, 2) * state


def _run(**parts: int) -> dict[str, int]:
    return {**parts, "runtime": _RUNTIME, "total": sum(parts.values()) + _RUNTIME}
