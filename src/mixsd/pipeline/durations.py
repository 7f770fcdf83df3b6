"""How long an injection takes, as arithmetic from the work to do, the model's shape and the machine's speed. All of it is rough."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mixsd.decoding.scoring import TOKENS_PER_PASS
from mixsd.evaluation.replies import SCORED_AT_ONCE
from mixsd.pipeline import costs
from mixsd.pipeline.costs import PICKED_AT_ONCE, REPLY, Edit, Shape, Work
from mixsd.settings import Settings

_LAYER_SECONDS = 5e-4  # what a layer of a pass costs before any arithmetic, in the interpreter and in launches
_DISK_RATE = 500 * 10**6  # bytes written per second
_WIDE = 2  # a product in fp64 takes so many times one in fp32


@dataclass(frozen=True)
class Speed:
    """Seconds of a forward pass per parameter: once for reading the weights, and for each token in it."""

    read: float
    token: float

    def forward(self, shape: Shape, passes: float, tokens: float) -> float:
        """Seconds of `passes` forward passes over `tokens` tokens in all."""
        return passes * (shape.parameters * self.read + shape.layers * _LAYER_SECONDS) + tokens * shape.parameters * self.token


def seconds(settings: Settings, work: Work, shape: Shape, decoding: Speed, training: Speed) -> dict[str, Any]:
    """Expected seconds of each stage, at the speeds of the two precisions; `train_parts` says what `train` is made of."""
    clock = _Clock(settings, work, shape, decoding, training)
    parts = clock.train() if work.steps else {}
    stages = {
        "mix": clock.mix() if settings.has_targets else 0.0,
        "train": sum(parts.values()),
        "edit": clock.edit(work.edit) if work.edit else 0.0,
        "evaluate": clock.evaluate(),
    }
    return {
        **{name: round(value, 1) for name, value in {**stages, "total": sum(stages.values())}.items()},
        "train_parts": {name: rounded for name, value in parts.items() if (rounded := round(value, 1))},
    }


@dataclass(frozen=True)
class _Clock:
    """The stages of one run."""

    settings: Settings
    work: Work
    shape: Shape
    decoding: Speed
    training: Speed

    def mix(self) -> float:
        """The references are scored whatever the method."""
        work = self.work
        spent = self._scored_references()
        if self.settings.mixes:
            prompts = work.targets * (work.naive.mean + work.expert.mean)
            spent += self._replies(self.decoding, work.targets * work.attempts, work.expert.mean, prompts, work.reply, 2)
        return spent

    def train(self) -> dict[str, float]:
        """All trainings, part by part."""
        settings, work, shape = self.settings, self.work, self.shape
        runs = costs.trainings(settings, work)
        steps = sum(runs)
        repeated = settings.epochs * steps / work.steps
        passes = repeated * -(-work.sequences // (settings.micro_batch or settings.batch_size))
        tokens = repeated * work.sequences * (work.naive.mean + work.reply)
        made = sum(costs.checkpoints(settings, each) for each in runs)
        return {
            # AdamW goes over about ten tensors of the weights' size.
            "steps": self._learn(passes, tokens) + 10 * steps * shape.trained * self.decoding.read,
            "rollouts": self._rollouts(steps) if settings.on_policy else 0.0,
            "teacher": self._teacher(passes, repeated),
            "rehearsal": self._rehearsal(steps) if settings.rehearse else 0.0,
            "checkpoints": made * (4 * shape.parameters + 8 * shape.trained) / _DISK_RATE,
            "scoring": made * self._scoring() if settings.score_checkpoints else 0.0,
        }

    def edit(self, edit: Edit) -> float:
        """Second moments, values, update, and what the edited model says."""
        settings, work, shape = self.settings, self.work, self.shape
        depth = (edit.last + 1) / shape.layers  # reading for keys goes no further
        rows = 1 + edit.prefixes
        # The text is read up to the last layer, and each layer's product of keys is as wide as its matrix squared.
        passes = settings.edit_tokens / TOKENS_PER_PASS
        moments = depth * self.decoding.forward(shape, passes, settings.edit_tokens)
        moments += _WIDE * settings.edit_tokens * edit.layers * shape.inner**2 * self.decoding.token
        # Everything is read once; each step goes forward and backward through the layers above, from the subject on.
        length = edit.prompt.mean + edit.target.mean + edit.prefix_tokens * edit.prefixes / rows
        values = work.usable * self.decoding.forward(shape, 2, rows * length)
        steps = work.usable * settings.edit_steps
        values += 2 * (1 - depth) * self.decoding.forward(shape, steps, steps * rows * edit.behind.mean)
        read = work.usable * rows * length
        update = edit.layers * depth * self.decoding.forward(shape, read / TOKENS_PER_PASS, read)
        update += _WIDE * edit.layers * shape.inner**3 * self.decoding.token
        said = self.decoding.forward(shape, work.usable, work.usable * (edit.prompt.mean + edit.target.mean))
        return self._scored_references() + moments + values + update + said

    def evaluate(self) -> float:
        """Base and tuned model, and the reference replies of the base."""
        settings, work = self.settings, self.work
        each = self._answers(work.questions, work.asked_tokens, work.asked_reply) + self._forgetting(work.general)
        sampled = self._replies(self.decoding, work.general, REPLY, work.general * REPLY, settings.forgetting_tokens, 1)
        return 2 * each + sampled

    def _learn(self, passes: float, tokens: float) -> float:
        # Backward is twice forward, or once where the weights are frozen.
        times = (2 if self.settings.lora else 3) + self.settings.gradient_checkpointing
        return times * self.training.forward(self.shape, passes, tokens)

    def _rollouts(self, steps: int) -> float:
        work = self.work
        count = self.settings.epochs * work.rollouts / work.steps
        return steps * self._replies(self.training, count, work.naive.mean, count * work.naive.mean, work.reply, 1)

    def _teacher(self, passes: float, repeated: float) -> float:
        """What the teacher reads of the targets or rollouts, once or again at each step; with LoRA it is the student itself."""
        settings, work = self.settings, self.work
        tokens = work.sequences * (work.expert.mean + work.reply)
        if settings.method == "mixsd-kl" and settings.kl_teacher == "picked" and settings.lam:
            passes, tokens = 2 * passes, tokens + work.sequences * (work.naive.mean + work.reply)
        if costs.remembers_teacher(settings):
            return self.decoding.forward(self.shape, work.targets / PICKED_AT_ONCE, tokens)
        if settings.on_policy or settings.method == "mixsd-kl":
            return self._teaching.forward(self.shape, passes, repeated * tokens)
        return 0.0

    @property
    def _teaching(self) -> Speed:
        return self.training if self.settings.lora else self.decoding

    def _rehearsal(self, steps: int) -> float:
        """Decoding the replies, training on them, and where it is wanted the base's distributions on them."""
        settings, work = self.settings, self.work
        length, prompt = costs.rehearsal_reply(settings), work.rehearsal.mean
        per_step = settings.rehearse * costs.supervised(settings, work, steps) / steps / length
        passes = steps * -(-per_step // (settings.micro_batch or settings.batch_size))
        tokens = steps * per_step * (prompt + length)
        spent = self._learn(passes, tokens)
        if settings.rehearse_loss == "kl":
            spent += self._teaching.forward(self.shape, passes, tokens)
        if settings.on_policy:
            return spent + steps * self._replies(self._teaching, per_step, prompt, per_step * prompt, length, 1)
        count = work.steps * per_step
        return spent + self._replies(self.decoding, count, prompt, count * prompt, length, 1)

    def _scoring(self) -> float:
        """One checkpoint: it is read back and asked."""
        work = self.work
        load = 4 * self.shape.parameters / _DISK_RATE
        return load + self._answers(work.scored, work.naive.mean) + self._forgetting(work.references)

    def _answers(self, count: int, prompt: float, reply: float = REPLY) -> float:
        return self._replies(
            self.decoding, count, prompt, count * prompt, reply if reply > REPLY else min(reply, self.work.limit), 1
        )

    def _forgetting(self, count: int) -> float:
        return self.decoding.forward(self.shape, count / SCORED_AT_ONCE, count * (REPLY + self.settings.forgetting_tokens))

    def _scored_references(self) -> float:
        scored = self.work.asked * (self.work.naive.mean + self.work.reference.mean)
        return self.decoding.forward(self.shape, 1 + scored / TOKENS_PER_PASS, scored)

    def _replies(self, speed: Speed, count: float, width: float, prompts: float, length: float, texts: int) -> float:
        """`count` decodings of `length` tokens, `prompts` tokens to read before, `texts` of up to `width` tokens at a time each."""
        rows = min(count, max(1, self.settings.token_budget // (texts * (width + length))))
        return speed.forward(self.shape, count * length / max(rows, 1), prompts + texts * count * length)
