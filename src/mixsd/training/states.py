"""What a model makes of a batch at its supervised places: hidden states and the head that turns them into logits.

Every objective starts from these rows, so how they come about (padded, packed, or from a model that cannot be taken apart) is
decided here and nowhere else. For the last kind the rows are the model's own logits, and the head gives them back as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from mixsd.training.batches import UNSUPERVISED, Batch, collate
from mixsd.training.examples import Example
from mixsd.training.loss import Head, decoder, forward, head_is_separable, logit_head
from mixsd.training.packed import packed_states, packs

# Logits that may exist at once: 0.5 GB in fp32, which is 2,700 rows of a 49k vocabulary and 500 of a 256k one.
CHUNK_LOGITS = 2**27


@dataclass(frozen=True)
class States:
    """Rows (N, H), one for each token of the examples' targets, in their order; row t predicts token t.

    `chunk` is how many rows of logits may exist at once.
    """

    rows: Tensor
    head: Head
    chunk: int


class Reading:
    """How a model is read; what it can and cannot do is found out once, on `probe`."""

    def __init__(self, model: PreTrainedModel, probe: Example) -> None:
        self.dense = not head_is_separable(model, collate([probe]).to(model.device))
        self.packed = not self.dense and packs(model)

    def states(self, model: PreTrainedModel, examples: Sequence[Example]) -> States:
        """The states of `model`, plain or with adapters inside, at the places that predict the examples' targets."""
        if self.packed:
            return States(packed_states(model, examples), logit_head(model), _chunk(model))
        return padded_states(model, collate(examples).to(model.device), dense=self.dense)


def padded_states(model: PreTrainedModel, batch: Batch, *, chunk: int | None = None, dense: bool = False) -> States:
    """The states of a padded batch. `dense` goes through the model's own logits, for one whose head cannot be taken apart."""
    supervised = batch.labels[:, 1:] != UNSUPERVISED
    chunk = chunk or _chunk(model)
    if dense:
        return States(forward(model, batch).logits[:, :-1][supervised], _as_it_is, chunk)
    return States(forward(decoder(model), batch).last_hidden_state[:, :-1][supervised], logit_head(model), chunk)


def target_ids(examples: Sequence[Example], device: torch.device) -> Tensor:
    """The target tokens of the examples end to end, int64 (N,)."""
    return torch.tensor([token for example in examples for token in example.target_ids], device=device)


def _chunk(model: PreTrainedModel) -> int:
    """How many rows of logits may exist at once."""
    return max(1, CHUNK_LOGITS // model.config.get_text_config().vocab_size)


def _as_it_is(logits: Tensor) -> Tensor:
    return logits
