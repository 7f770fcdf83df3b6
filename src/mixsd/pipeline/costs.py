"""What an injection costs, as arithmetic: memory, disk and time from the work to do, the model's shape and the machine's speed.

Memory is an upper bound where replies may run to their limit. Activations, and everything about time, are estimates: the
constants below are round figures from measured runs of small Llama-like models.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from mixsd.decoding.continuous import tokens_per_pass
from mixsd.decoding.scoring import TOKENS_PER_PASS
from mixsd.evaluation.replies import SCORED_AT_ONCE
from mixsd.settings import Settings

REPLY = 48  # tokens assumed of a free reply to an evaluation question
_RUNTIME = 600 * 10**6  # bytes of the libraries themselves
_HEAD_ROWS = 512  # supervised places whose logits exist at once in training
_LAYER_SECONDS = 5e-4  # what a layer of a pass costs before any arithmetic, in the interpreter and in launches
_DISK_RATE = 500 * 10**6  # bytes written per second


@dataclass(frozen=True)
class Lengths:
    """Token counts of one kind of text: their mean and the longest."""

    mean: float
    longest: int

    @staticmethod
    def of(counts: Iterable[int]) -> Lengths:
        """Mean and longest of the counts; zeros where there are none."""
        known = list(counts) or [0]
        return Lengths(sum(known) / len(known), max(known))


@dataclass(frozen=True)
class Work:
    """What is to be done. `naive`, `expert` and `reference` are of the measured facts; `limit` is the longest reply in tokens.

    `unusable` gives the reason by id, of the measured facts; `attempts` is the number assumed per target; `questions` and
    `general` count the evaluation's questions and reference replies for one model; `asked_tokens` is a question's mean length.
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
    asked_tokens: float
    general: int
    limit: int

    @property
    def reply(self) -> float:
        """Expected tokens of a target: about those of its reference."""
        return min(self.reference.mean, self.limit)


@dataclass(frozen=True)
class Shape:
    """What memory and time depend on in a model.

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


@dataclass(frozen=True)
class Speed:
    """Seconds of a forward pass per parameter: once for reading the weights, and for each token in it."""

    read: float
    token: float

    def forward(self, shape: Shape, passes: float, tokens: float) -> float:
        """Seconds of `passes` forward passes over `tokens` tokens in all."""
        return passes * (shape.parameters * self.read + shape.layers * _LAYER_SECONDS) + tokens * shape.parameters * self.token


def memory(
    settings: Settings, work: Work, shape: Shape, *, item: int, train_item: int, on_cpu: bool
) -> dict[str, dict[str, int]]:
    """Bytes at the peak of each stage on its device, part by part.

    `item` is the bytes per weight in mixing and evaluation, `train_item` those of an activation in training.
    """

    def reading(width: int, scored: int, budget: int) -> dict[str, int]:
        # Either a decoding pass, or the logits of a scoring pass, which are read as fp32.
        prefill = tokens_per_pass(on_cpu=on_cpu) * (4 * shape.hidden + 3 * shape.inner + shape.vocabulary) * item
        logits = TOKENS_PER_PASS * scored // (width + scored) * shape.vocabulary * (4 if item == 4 else item + 4)
        return _with_total(
            # On a CPU the head is laid out anew beside the embeddings, where the two are one.
            weights=(shape.parameters + (shape.vocabulary * shape.hidden if on_cpu else 0)) * item,
            cache=max(budget, 2 * (width + work.limit) if budget else 0) * shape.layers * shape.cache_width * item,
            activations=max(prefill, logits),
            runtime=_RUNTIME,
        )

    budget = settings.token_budget
    longest = work.naive.longest + min(work.reference.longest, work.limit)
    rows = settings.micro_batch or settings.batch_size
    per_layer = 14 * shape.hidden + 4 * shape.inner
    kept = shape.layers * shape.hidden + per_layer if settings.gradient_checkpointing else shape.layers * per_layer
    head = 3 * min(_HEAD_ROWS, rows * min(work.reference.longest, work.limit)) * shape.vocabulary * 4
    autocast = 2 * shape.parameters if train_item < 4 else 0
    step = 4 * shape.trained + rows * longest * kept * train_item + head + autocast
    # Between steps a checkpoint is read back and compared in main memory (LoRA: with the unmerged weights kept aside).
    check = 4 * (shape.parameters + (shape.adapted if settings.lora else 0)) if on_cpu else 0
    return {
        "mixing": reading(work.expert.longest or 1, max(1, work.reference.longest), budget if settings.method == "mixsd" else 0),
        "training": _with_total(
            weights=4 * (shape.parameters + shape.adapters),
            optimizer=8 * shape.trained,
            gradients=4 * shape.trained,
            activations=max(step, check) - 4 * shape.trained,
            runtime=_RUNTIME,
        ),
        "evaluation": reading(work.naive.longest or 1, settings.forgetting_tokens, budget),
    }


def disk(settings: Settings, work: Work, shape: Shape) -> dict[str, int]:
    """Bytes in the run folder: every checkpoint holds fp32 weights, the newest one the optimizer's state too."""
    made = checkpoints(settings, work)
    kept = min(made, settings.keep_checkpoints or made)
    weights, state = 4 * shape.parameters, 8 * shape.trained + 4 * shape.adapters
    model = shape.parameters * shape.stored_item
    records = round(work.targets * (work.attempts + 1) * (work.naive.mean + work.reply) * 24) + 1000 * work.asked
    total = kept * weights + state + model + records
    # A checkpoint is whole before the one that it replaces goes.
    writing = min(made, kept + 1) * weights + min(made, 2) * state + records
    return {
        "checkpoints": kept * weights + state,
        "model": model,
        "records": records,
        "total": total,
        "peak": max(total, writing),
    }


def seconds(settings: Settings, work: Work, shape: Shape, decoding: Speed, training: Speed) -> dict[str, float]:
    """Expected seconds of each stage, at the speeds of the two precisions."""

    def replies(count: float, width: float, prompts: float, length: float, texts: int) -> float:
        """`count` decodings of `length` tokens, `prompts` tokens to read before, `texts` of up to `width` tokens at a time each."""
        rows = min(count, max(1, settings.token_budget // (texts * (width + length))))
        return decoding.forward(shape, count * length / max(rows, 1), prompts + texts * count * length)

    scored = work.asked * (work.naive.mean + work.reference.mean)
    mix = decoding.forward(shape, 1 + scored / TOKENS_PER_PASS, scored)
    if settings.method == "mixsd":
        prompts = work.targets * (work.naive.mean + work.expert.mean)
        mix += replies(work.targets * work.attempts, work.expert.mean, prompts, work.reply, 2)

    passes = settings.epochs * -(-work.targets // (settings.micro_batch or settings.batch_size))
    tokens = settings.epochs * work.targets * (work.naive.mean + work.reply)
    # Backward is twice forward, or once where the weights are frozen; AdamW goes over about ten tensors of their size.
    times = (2 if settings.lora else 3) + settings.gradient_checkpointing
    train = times * training.forward(shape, passes, tokens) + 10 * work.steps * shape.trained * decoding.read
    train += checkpoints(settings, work) * (4 * shape.parameters + 8 * shape.trained) / _DISK_RATE

    reply = min(REPLY, work.limit)
    each = replies(work.questions, work.asked_tokens, work.questions * work.asked_tokens, reply, 1)
    each += decoding.forward(shape, work.general / SCORED_AT_ONCE, work.general * (REPLY + settings.forgetting_tokens))
    sampled = replies(work.general, REPLY, work.general * REPLY, settings.forgetting_tokens, 1)
    stages = {"mix": mix, "train": train, "evaluate": 2 * each + sampled}
    return {name: round(value, 1) for name, value in {**stages, "total": sum(stages.values())}.items()}


def checkpoints(settings: Settings, work: Work) -> int:
    """How many checkpoints training writes."""
    return -(-work.steps // settings.checkpoint_every)


def _with_total(**parts: int) -> dict[str, int]:
    return {**parts, "total": sum(parts.values())}
