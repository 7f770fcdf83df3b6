"""Token NLL on the supervised places only (Eq. 5), without ever holding their logits all at once.

With 150,000 to 250,000 tokens in the vocabulary the logits outweigh everything else in a step. So the decoder gives hidden
states, and the head is applied to the supervised rows alone, a chunk at a time; a chunk's logits are freed after the forward
pass and computed again in the backward pass. The price is a second product with the head for every chunk but the last.

Taking the head apart from the model must not change its logits. What the known families do after the head (Gemma caps,
Cohere multiplies, Granite divides) is done here too, and `head_is_separable` compares with the model's own logits once, before
training. A model that fails is trained through its own dense logits: more memory, the same loss.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from mixsd.training.batches import UNSUPERVISED, Batch
from mixsd.training.divergence import at_least_fp32

Head = Callable[[Tensor], Tensor]


def chunked_nll(hidden: Tensor, head: Head, labels: Tensor, chunk: int) -> Tensor:
    """Return the NLL (N,) in nats of `labels` (N,) under `head(hidden)`, hidden (N, H): fp32 (float64 stays).

    At most `chunk` rows of logits exist at any time, in the forward and in the backward pass.
    """

    def nll(rows: Tensor, wanted: Tensor) -> Tensor:
        return functional.cross_entropy(at_least_fp32(head(rows)), wanted, reduction="none")

    starts = range(0, len(labels), chunk)
    values = []
    for start in starts:
        rows, wanted = hidden[start : start + chunk], labels[start : start + chunk]
        if start == starts[-1]:
            # The backward pass begins here: keeping this chunk's logits costs no more than computing them again.
            values.append(nll(rows, wanted))
        else:
            values.append(cast(Tensor, checkpoint(nll, rows, wanted, use_reentrant=False, preserve_rng_state=False)))
    return torch.cat(values) if values else at_least_fp32(hidden.new_zeros(0))


def decoder(model: PreTrainedModel) -> nn.Module:
    """The part of the model that turns ids into hidden states."""
    return cast(nn.Module, model.get_decoder())


def logit_head(model: PreTrainedModel) -> Head:
    """Return the map from hidden states (..., H) to the model's final logits (..., V)."""
    config = model.config.get_text_config()
    project = model.get_output_embeddings()
    multiply = getattr(config, "logit_scale", None)
    divide = getattr(config, "logits_scaling", None)
    cap = getattr(config, "final_logit_softcapping", None)

    def head(hidden: Tensor) -> Tensor:
        logits: Tensor = project(hidden)
        if multiply is not None:
            logits = logits * multiply
        if divide is not None:
            logits = logits / divide
        if cap is not None:
            logits = torch.tanh(logits / cap) * cap
        return logits

    return head


@torch.no_grad()
def head_is_separable(model: PreTrainedModel, batch: Batch) -> bool:
    """Whether decoder and head, taken apart, give the model's own logits at the supervised places of one batch."""
    training = model.training
    model.eval()
    try:
        supervised = batch.labels[:, 1:] != UNSUPERVISED
        expected = forward(model, batch).logits[:, :-1][supervised].float()
        try:
            found = logit_head(model)(forward(decoder(model), batch).last_hidden_state[:, :-1][supervised]).float()
        except torch.OutOfMemoryError:
            raise
        except (AttributeError, TypeError, RuntimeError):
            return False  # no such parts, or parts that do not fit together
        scale = max(1.0, expected.abs().max().item())
        return found.shape == expected.shape and (found - expected).abs().max().item() <= 1e-4 * scale
    finally:
        model.train(training)


def forward(module: nn.Module, batch: Batch) -> Any:
    """The output of a model, or of its decoder, for a padded batch."""
    # Models with relative positions (ALiBi) take none; they read the mask.
    accepted = inspect.signature(module.forward).parameters
    positions = {"position_ids": batch.position_ids} if "position_ids" in accepted else {}
    return module(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False, return_dict=True, **positions)
