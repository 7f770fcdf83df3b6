"""Log-probabilities of given continuations: one padded forward pass per batch, the head on the continuation's positions only."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TOKENS_PER_PASS = 4096  # padded


@torch.inference_mode()
def score(
    model: PreTrainedModel,
    pairs: Iterable[tuple[list[int], list[int]]],
    *,
    token_budget: int = TOKENS_PER_PASS,
    on_done: Callable[[int], None] = lambda count: None,
) -> list[list[float]]:
    """Natural-log probabilities of each continuation's tokens after its prompt, full softmax at T = 1.

    Args:
        pairs: (prompt ids, continuation ids), neither empty.
        token_budget: padded tokens per forward pass, which bounds the memory.
        on_done: told after each batch how many pairs it finished.

    Returns:
        One list of floats per pair, in the order given.
    """
    items = list(pairs)
    order = sorted(range(len(items)), key=lambda i: len(items[i][0]) + len(items[i][1]))
    result: list[list[float]] = [[] for _ in items]
    for batch in _batches(order, items, token_budget):
        for index, logprobs in zip(batch, _score_batch(model, [items[i] for i in batch]), strict=True):
            result[index] = logprobs
        on_done(len(batch))
    return result


def _batches(order: list[int], items: list[tuple[list[int], list[int]]], token_budget: int) -> Iterator[list[int]]:
    batch: list[int] = []
    for index in order:  # ascending lengths: the newest item is the longest, so it sets the padded width
        length = len(items[index][0]) + len(items[index][1])
        if batch and (len(batch) + 1) * length > token_budget:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def _score_batch(model: PreTrainedModel, pairs: list[tuple[list[int], list[int]]]) -> list[list[float]]:
    rows = [[*prompt, *continuation] for prompt, continuation in pairs]
    width = max(map(len, rows))
    # Left padding puts every row's end in the last column, so one slice of the logits holds all continuations.
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=model.device)
    input_ids = torch.tensor([[0] * (width - len(row)) + row for row in rows], device=model.device)
    positions = (mask.cumsum(dim=-1) - 1).clamp(min=0)
    longest = max(len(continuation) for _, continuation in pairs)
    logits = model(
        input_ids=input_ids, attention_mask=mask, position_ids=positions, use_cache=False, logits_to_keep=longest + 1
    ).logits
    result = []
    for row, (_, continuation) in enumerate(pairs):
        count = len(continuation)
        own = logits[row, -count - 1 : -1]
        own = own if own.dtype == torch.float64 else own.float()
        targets = torch.tensor(continuation, device=own.device).unsqueeze(-1)
        result.append(torch.log_softmax(own, dim=-1).gather(-1, targets).squeeze(-1).tolist())
    return result
