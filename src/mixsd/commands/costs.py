"""What an injection takes in tokens, memory and disk, as arithmetic from the work to do and the model's shape.

Memory is an upper bound where replies may run to their limit. Activations are estimates, with round figures from measured runs of
small Llama-like models. Time is not estimated: it depends on more than arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from mixsd.decoding.continuous import tokens_per_pass
from mixsd.decoding.engine import TOKENS_PER_PASS
from mixsd.settings import Settings
from mixsd.training.choosing import FOLLOWING
from mixsd.training.states import CHUNK_LOGITS

REPLY = 48  # tokens assumed of a free reply to an evaluation question
REASONED_REPLY = 300  # and of one to a benchmark's, which is to be thought through
_RUNTIME = 600 * 10**6  # bytes of the libraries themselves
_ATTEMPTS = 3  # assumed per target where another attempt can differ


@dataclass(frozen=True)
class Lengths:
    """Token counts of one kind of text: their mean and the longest; zeros where there is none."""

    mean: float = 0.0
    longest: int = 0

    @staticmethod
    def of(counts: Iterable[int]) -> Lengths:
        known = list(counts) or [0]
        return Lengths(sum(known) / len(known), max(known))


@dataclass(frozen=True)
class EditWork:
    """What memit does to each usable fact: `layers` are changed; it is read in `prompts`, of at most `longest` tokens with the target."""

    layers: int
    prompts: int
    longest: int


@dataclass(frozen=True)
class Work:
    """What is to be done.

    `unusable` (reason by id), `naive`, `expert` and `reference` are of the measured facts; `limit` is the longest reply in tokens;
    `attempts` are assumed per target; `steps` are of one full training; `rollouts` are the student's replies in an epoch, where it
    trains on those; `questions` are for one model; `asked_reply` is assumed of a reply to one; `rehearsal` is of rehearsed prompts.
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
    rehearsal: Lengths = Lengths()
    edit: EditWork | None = None
    asked_reply: float = REPLY

    @property
    def reply(self) -> float:
        """Expected tokens of a target or a rollout: about those of the reference."""
        return min(self.reference.mean, self.limit)


@dataclass(frozen=True)
class Shape:
    """What memory depends on in a model. `adapters` is what LoRA adds, `adapted` the weights that it is merged into.

    `cache_width` counts the keys and values of one token in one layer; `stored_item` is the bytes of a weight on disk.
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

    @property
    def per_pass(self) -> int:
        """Numbers of a token in a layer of a pass without gradients."""
        return 4 * self.hidden + 3 * self.inner

    @property
    def per_layer(self) -> int:
        """Numbers of a token that a layer keeps for them."""
        return 14 * self.hidden + 4 * self.inner


def can_differ(settings: Settings) -> bool:
    """Whether another attempt, or another sample, can give another reply."""
    return settings.temperature > 0 or 0 < settings.lam < 1


def attempts(settings: Settings) -> int:
    """The attempts assumed per target; 1 where it is gated or another one would be the same."""
    return min(_ATTEMPTS, 1 + settings.retries) if settings.spec.mixes and can_differ(settings) and not settings.gate else 1


def trainings(settings: Settings, work: Work) -> list[int]:
    """The optimizer steps of each training, in their order: of one, of none where it edits, of several with --lr auto."""
    if not work.steps or settings.lr != "auto":
        return [work.steps] if work.steps else []
    rates = len(set(settings.lr_grid))
    if settings.lr_steps is None:
        return [work.steps] * rates
    return [min(settings.lr_steps, work.steps)] * rates + [work.steps]


def checkpoints(settings: Settings, work: Work) -> list[int]:
    """How many checkpoints each training writes."""
    return [-(-steps // settings.checkpoint_every) for steps in trainings(settings, work)]


def _supervised(settings: Settings, work: Work, steps: int, each: float) -> float:
    """Tokens of so many steps, `each` per target or rollout."""
    return settings.epochs * (work.targets + work.rollouts) * each * steps / work.steps if work.steps else 0.0


def decoded(settings: Settings, work: Work) -> dict[str, int]:
    """Tokens expected to be decoded to train on, by purpose."""
    steps = sum(trainings(settings, work))
    # What is rehearsed beside fixed targets is decoded once, for all trainings.
    rehearsing = steps if settings.spec.on_policy else work.steps
    return {
        "mixing": round(work.targets * work.attempts * work.reply) if settings.spec.mixes else 0,
        "rollouts": round(_supervised(settings, work, steps, work.reply)) if settings.spec.on_policy else 0,
        "rehearsal": round(settings.rehearse * _supervised(settings, work, rehearsing, work.reply)),
    }


def trained_tokens(settings: Settings, work: Work) -> dict[str, int]:
    """Over all trainings: tokens read, and of these the supervised and the rehearsed ones."""
    steps = sum(trainings(settings, work))
    own = _supervised(settings, work, steps, work.reply)
    rehearsed = settings.rehearse * own
    rehearsals = rehearsed / min(REPLY, settings.rehearse_tokens)
    prompts = _supervised(settings, work, steps, work.naive.mean) + rehearsals * work.rehearsal.mean
    return {"tokens": round(own + rehearsed + prompts), "supervised_tokens": round(own), "rehearsed_tokens": round(rehearsed)}


def _reads_teacher(settings: Settings) -> bool:
    """Whether the base model is read as it was while the student trains: a copy of it, or the adapters switched off."""
    distilled = settings.spec.distilled and settings.kl_support != "teacher"
    return settings.spec.on_policy or distilled or (settings.rehearse > 0 and settings.rehearse_loss == "kl")


def memory(
    settings: Settings, work: Work, shape: Shape, *, item: int, train_item: int, on_cpu: bool
) -> dict[str, dict[str, int]]:
    """Bytes at the peak of each stage on its device, part by part; a stage that the run does not have has a total of 0.

    `scoring` is what is done to a checkpoint between two steps. `item` is the bytes per weight in mixing and evaluation,
    `train_item` those of an activation in training.
    """
    # On a CPU the head is laid out anew beside the embeddings, where the two are one.
    copy = (shape.parameters + (shape.vocabulary * shape.hidden if on_cpu else 0)) * item
    prefill = tokens_per_pass(on_cpu=on_cpu) * (shape.per_pass + shape.vocabulary)

    def cache(width: int, limit: int) -> int:
        return max(settings.token_budget, 2 * (width + limit)) * shape.layers * shape.cache_width

    def reading(width: int, scored: int, limit: int | None) -> dict[str, int]:
        # Either a decoding pass, or the logits of a scoring pass, which are read as fp32.
        logits = TOKENS_PER_PASS * scored // (width + scored) * shape.vocabulary * (4 if item == 4 else item + 4)
        kept = 0 if limit is None else cache(width, limit) * item
        return {"weights": copy, "cache": kept, "activations": max(prefill * item, logits)}

    evaluating = reading(work.naive.longest or 1, settings.forgetting_tokens, work.limit)
    stages: dict[str, dict[str, int]] = {name: {} for name in ("mixing", "training", "scoring", "editing")}
    if settings.spec.needs_targets:
        limit = work.limit if settings.spec.mixes else None
        stages["mixing"] = reading(work.expert.longest or 1, max(1, work.reference.longest), limit)
    if work.steps:
        decoding = prefill + cache(work.naive.longest, work.limit) if settings.spec.on_policy else 0
        training = stages["training"] = _training(settings, work, shape, train_item, on_cpu, decoding * train_item)
        if _reads_teacher(settings) and not settings.lora:
            training["teacher"] = copy
        if settings.score_checkpoints:
            held: dict[str, int] = {name: training.get(name, 0) for name in ("weights", "optimizer", "teacher")}
            stages["scoring"] = {**evaluating, **held, "copy": copy}
    if work.edit:
        # One fact's values are sought at a time. While the text is read, there is a matrix for each layer; then four at a time, in
        # fp64, for the layer at hand, with what the layers were.
        square = 8 * shape.inner**2
        moments = max(work.edit.layers * square, 4 * square + 4 * work.edit.layers * shape.hidden * shape.inner)
        per_token = shape.layers * (shape.per_layer + 2 * shape.cache_width) + 3 * shape.vocabulary
        sought = 4 * work.edit.prompts * work.edit.longest * per_token
        stages["editing"] = {"weights": 4 * shape.parameters, "moments": moments, "activations": sought}
    stages["evaluation"] = evaluating
    return {
        name: {**parts, "runtime": _RUNTIME, "total": sum(parts.values()) + _RUNTIME} if parts else {"total": 0}
        for name, parts in stages.items()
    }


def _training(settings: Settings, work: Work, shape: Shape, item: int, on_cpu: bool, decoding: int) -> dict[str, int]:
    """`decoding`: bytes of decoding while the student trains, which is done before a step's gradients are there."""
    # The student may go on to the longest reply that it is allowed; a target is as long as its reference.
    reply = work.limit if settings.spec.on_policy else min(work.reference.longest, work.limit)
    rows = settings.micro_batch or settings.batch_size
    kept = shape.layers * shape.per_layer
    if settings.gradient_checkpointing:
        kept = shape.layers * shape.hidden + shape.per_layer
    head = 3 * min(CHUNK_LOGITS, rows * reply * shape.vocabulary) * 4
    autocast = 2 * shape.parameters if item < 4 else 0
    beside = rows * (work.expert.longest + reply) * shape.per_pass * item if _reads_teacher(settings) else 0
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


def disk(settings: Settings, work: Work, shape: Shape) -> dict[str, int]:
    """Bytes in the run folder: every checkpoint holds fp32 weights, the newest one the optimizer's state too.

    `cache` is what memit keeps outside of it, for other runs.
    """
    weights, state = 4 * shape.parameters, 8 * shape.trained + 4 * shape.adapters
    remembered = settings.spec.distilled and settings.spec.needs_targets and settings.kl_support == "teacher"
    parts = {
        "model": shape.parameters * shape.stored_item,
        "records": round(24 * work.targets * (work.attempts + 1) * (work.naive.mean + work.reply)) + 1000 * work.asked,
        "teacher": round(8 * min(settings.kl_top_k, shape.vocabulary) * work.targets * work.reply) if remembered else 0,
        "rehearsal": 0 if settings.spec.on_policy else 8 * decoded(settings, work)["rehearsal"],
    }
    if work.edit:
        parts["records"] += 22 * work.usable * shape.hidden

    def at_end(made: int) -> int:
        """Bytes of the checkpoints that a training leaves: the newest ones, and the chosen one."""
        kept = (settings.keep_checkpoints or made) + (settings.choose == "paper")
        return min(made, kept) * weights + state if made else 0

    def writing(made: int) -> int:
        """Bytes of checkpoints at the peak of a training: one is whole before the one that it replaces goes."""
        kept = settings.keep_checkpoints or made
        if settings.choose == "paper":
            # The best so far, and those whose followers are not all known.
            kept = max(kept, 1 + FOLLOWING) + 1
        return min(made, kept + 1) * weights + min(made, 2) * state

    made = checkpoints(settings, work) or [0]
    left = at_end(made[-1])
    # The best rate's checkpoints lie there while another is tried.
    peak = max(writing(made[-1]), at_end(made[0]) + writing(made[0]) if len(made) > 1 else 0)
    total = left + sum(parts.values())
    return {
        "checkpoints": left,
        **parts,
        "total": total,
        "peak": max(total, peak + total - left - parts["model"]),
        "cache": work.edit.layers * 8 * shape.inner**2 if work.edit else 0,
    }
