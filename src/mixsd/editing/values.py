"""The value of a subject, the hidden state from which the model goes on to say the target; and the closed-form update that gives it.

For the facts of one subject a single delta is sought that, added to the last edited layer's output at the subject's last token,
makes each fact's target likely behind every prefix:

    mean NLL per target token  +  kl_factor * KL(now || before) after "{subject} is a"  +  v_weight_decay * |delta|^2 / |h|^2

by Adam, delta held to clamp_norm_factor * |h| (h: that hidden state before). Facts of one subject share the delta because their
keys are all but the same, and a matrix gives one key one value: two deltas would be averaged in the update, and neither said.

For keys k_i (the input of down_proj at the subject's last token) that shall give r_i more than they do, among ordinary keys with
the second moment C that shall give what they did, the change D of the matrix minimizes

    sum_i |D k_i - r_i|^2  +  weight * mean over ordinary keys |D k|^2,    so  D = R K^T (weight * C + K K^T)^-1

Going up through the layers, each takes an equal part of what is still missing at the last one; what it does not achieve is left to
the next, and the last takes all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from mixsd.decoding.engine import TOKENS_PER_PASS
from mixsd.decoding.requests import padded_batches
from mixsd.editing.config import MemitConfig
from mixsd.editing.moments import Moments
from mixsd.editing.parts import Reader, before_norm, down_projection, read, reading
from mixsd.editing.subjects import EditPrompt
from mixsd.errors import UserError

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


def least_squares(moment: Tensor, weight: float, keys_ND: Tensor, residuals_NH: Tensor) -> Tensor:
    """The change (H, D) of a matrix that gives the residuals for the keys and little else; fp64 on the CPU.

    Raises:
        UserError: the second moment does not hold every direction.
    """
    keys, residuals = keys_ND.double().cpu(), residuals_NH.double().cpu()
    system = weight * moment + keys.T @ keys
    factor, failed = torch.linalg.cholesky_ex(system)
    if failed.item():
        raise UserError("memit: too little text for the second moments: they do not span the layer's inputs; give more of it")
    return residuals.T @ torch.cholesky_solve(keys.T, factor).T


def spread(
    model: PreTrainedModel,
    layers: Sequence[int],
    moments: Moments,
    weight: float,
    prompts: Sequence[Sequence[EditPrompt]],
    deltas_NH: Tensor,
    on_layer: Callable[[int], None] = lambda layer: None,
) -> dict[int, float]:
    """Change the layers' down_proj, in place, so that each fact's hidden state at the last one moves by its delta.

    A fact's key, and how far its hidden state has moved, are means over its prompts. Returns the size of each layer's change
    beside that of its matrix (Frobenius norms).
    """
    last = layers[-1]
    before_NH: Tensor | None = None
    changes = {}
    for number, layer in enumerate(layers):
        keys_ND, outputs_NH, now_NH = keys_of(model, layer, prompts, last)
        before_NH = now_NH if before_NH is None else before_NH
        share_NH = (deltas_NH - (now_NH - before_NH)) / (len(layers) - number)
        weights = down_projection(model, layer).weight
        wanted = before_norm(model, layer, outputs_NH, share_NH)
        change = least_squares(moments.matrix(layer), weight, keys_ND, wanted)
        changes[layer] = (change.norm() / weights.detach().double().norm().cpu()).item()
        with torch.no_grad():
            weights.add_(change.to(weights))
        on_layer(layer)
    return changes


def keys_of(
    model: PreTrainedModel, layer: int, prompts: Sequence[Sequence[EditPrompt]], last: int
) -> tuple[Tensor, Tensor, Tensor]:
    """For each fact, at its subject's last token, means over its prompts: the key (N, D) and the output (N, H) of the layer's
    down_proj, and the hidden state (N, H) that layer `last` gives."""
    projection = down_projection(model, layer)
    rows = [prompt.ids[: prompt.place + 1] for own in prompts for prompt in own]
    found: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
    for batch in padded_batches(list(map(len, rows)), TOKENS_PER_PASS):
        with reading(model, [layer], last) as seen:
            read(model, [rows[i] for i in batch])
        with torch.no_grad():
            keys = seen[layer][:, -1]
            for i, key, output, hidden in zip(batch, keys, projection(keys), seen["hidden"][:, -1], strict=True):
                found[i] = key, output, hidden
    ends = torch.tensor([len(own) for own in prompts]).cumsum(0).tolist()
    means = []
    for own, end in zip(prompts, ends, strict=True):
        of_fact = [found[i] for i in range(end - len(own), end)]
        means.append([torch.stack(parts).mean(dim=0) for parts in zip(*of_fact, strict=True)])
    keys_ND, outputs_NH, hidden_NH = (torch.stack(parts) for parts in zip(*means, strict=True))
    return keys_ND, outputs_NH, hidden_NH
