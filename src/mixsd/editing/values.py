"""The value of a subject: the hidden state at its last token from which the model goes on to say the target.

For the facts of one subject a single delta is sought that, added to the last edited layer's output at the subject's last token,
makes each fact's target likely behind every prefix:

    mean NLL per target token  +  kl_factor * KL(now || before) after "{subject} is a"  +  v_weight_decay * |delta|^2 / |h|^2

by Adam, delta held to clamp_norm_factor * |h| (h: that hidden state before). Facts of one subject share the delta because their
keys are all but the same, and a matrix gives one key one value: two deltas would be averaged in the update, and neither said.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from mixsd.editing.config import MemitConfig
from mixsd.editing.reader import Reader
from mixsd.editing.subjects import EditPrompt

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Value:
    """What the optimization found for the facts of one subject.

    `delta` (H,) is what is added to the hidden state. `before` and `reached`: each fact's summed log-probability (nats) of its
    target after its bare prompt, without and with delta; `said`: whether each target is what greedy decoding gives with delta.
    """

    delta: Tensor
    before: list[float]
    reached: list[float]
    said: list[bool]
    steps: int

    @property
    def finite(self) -> bool:
        """Whether everything in it is a number."""
        return bool(self.delta.isfinite().all() and torch.tensor([*self.before, *self.reached]).isfinite().all())


def optimize(
    model: PreTrainedModel, layer: int, prompts: Sequence[Sequence[EditPrompt]], essence: EditPrompt, config: MemitConfig
) -> Value:
    """Find the delta for the facts of one subject.

    Args:
        layer: the last layer to be edited, whose output the delta is added to.
        prompts: for each fact its prompts, the bare one first.
        essence: the prompt of `subjects.essence`.
    """
    with _held(model):
        # The last row of the first reader is the essence: one pass more would read all the weights again for a few tokens.
        readers = [Reader(model, layer, [*own, essence] if not number else own) for number, own in enumerate(prompts)]
        with torch.no_grad():
            before = [reader.bare(None)[0] for reader in readers]
            base = torch.log_softmax(readers[0].logits(None)[-1, -1], dim=-1)
        norm = torch.stack([reader.hidden[0].norm() for reader in readers]).mean()
        delta = torch.zeros_like(readers[0].hidden[0], requires_grad=True)
        optimizer = torch.optim.Adam([delta], lr=config.v_lr)
        steps = 0
        while steps < config.steps:
            optimizer.zero_grad()
            if _backward(readers, base, delta, norm, config) < config.stop_loss:
                break
            optimizer.step()
            steps += 1
            with torch.no_grad():
                delta.mul_((config.clamp_norm_factor * norm / delta.norm()).clamp(max=1.0))
        with torch.no_grad():
            reached, said = zip(*(reader.bare(delta) for reader in readers), strict=True)
    return Value(delta.detach(), before, list(reached), list(said), steps)


def _backward(readers: list[Reader], base: Tensor, delta: Tensor, norm: Tensor, config: MemitConfig) -> float:
    """Add the loss's gradient to delta's, one fact at a time; return the largest NLL among the facts."""
    worst = 0.0
    for number, reader in enumerate(readers):
        logits = reader.logits(delta)
        nll = -torch.stack([logprobs.mean() for logprobs in reader.target_logprobs(logits) if len(logprobs)]).mean()
        loss = nll / len(readers)
        if not number:
            now = torch.log_softmax(logits[-1, -1], dim=-1)
            drift = functional.kl_div(base, now, log_target=True, reduction="sum")
            loss = loss + config.kl_factor * drift + config.v_weight_decay * delta.square().sum() / norm.square()
        loss.backward()  # type: ignore[no-untyped-call]
        # What is no number must not pass for a small one.
        worst = max(worst, nll.item()) if nll.isfinite() else float("inf")
    return worst


@contextmanager
def _held(model: PreTrainedModel) -> Iterator[None]:
    """No gradient for the weights."""
    wanting = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in wanting:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in wanting:
            parameter.requires_grad_(True)
