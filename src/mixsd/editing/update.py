"""The closed-form update: one layer's least squares, and its spreading over the layers.

For keys k_i (the input of down_proj at the subject's last token) that shall give r_i more than they do, among ordinary keys with
the second moment C that shall give what they did, the change of the matrix that is best in the sense of

    sum_i |D k_i - r_i|^2  +  weight * mean over ordinary keys |D k|^2

is D = R K^T (weight * C + K K^T)^-1. Going up through the layers, each takes an equal part of what is still missing at the last
one: missing / (number of layers from this one on). What a layer does not achieve is so left to the next, and the last takes all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mixsd.editing.moments import Moments
from mixsd.editing.parts import before_norm, down_projection, left_padded, read, reading
from mixsd.editing.subjects import EditPrompt
from mixsd.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TOKENS_PER_PASS = 4096  # padded


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
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    found: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
    for batch in _batches(order, rows):
        ids, mask = left_padded([rows[i] for i in batch], model.device)
        with reading(model, [layer], last) as seen:
            read(model, ids, mask)
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


def _batches(order: list[int], rows: list[list[int]]) -> list[list[int]]:
    batches: list[list[int]] = [[]]
    for i in order:  # ascending lengths: the newest sets the padded width
        if batches[-1] and (len(batches[-1]) + 1) * len(rows[i]) > TOKENS_PER_PASS:
            batches.append([])
        batches[-1].append(i)
    return batches
