"""Divergences from hidden states, without ever holding all the logits: `loss.chunked_nll` for two distributions.

The student's head is applied a chunk at a time; a chunk's logits are freed after the forward pass and computed again in the
backward pass. The teacher's side comes in two forms: its hidden states and head, or its top k tokens and their
log-probabilities, computed earlier (`teacher_topk`), so that the teacher need not be in memory at all.

On the teacher's support the teacher's logits are reduced to the k outcomes before the student's are made, once, and only the
outcomes wait for the backward pass. The student's support and the full vocabulary need both sides' logits together, so a
chunk then covers half as many positions, and the teacher's head too is applied again in the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mixsd.decoding.picking import pick
from mixsd.decoding.requests import Sampling
from mixsd.errors import UserError
from mixsd.training.divergence import (
    Divergence,
    at_least_fp32,
    between,
    log_probs,
    log_probs_from_topk,
    token_divergence,
    top_ids,
)
from mixsd.training.loss import Head

_AT_ONE = Sampling({}, temperature=1.0)


@dataclass(frozen=True, slots=True)
class TeacherStates:
    """The teacher in memory: its hidden states (N, H) at the student's positions, and the head that makes them logits."""

    hidden: Tensor
    head: Head

    def logits(self, part: slice) -> Tensor:
        """The logits of a few positions, without a gradient."""
        with torch.no_grad():
            return self.head(self.hidden[part])


class TeacherTopK(NamedTuple):
    """The teacher remembered: its k likeliest tokens at each position, likeliest first.

    `ids` int32 (N, k); `logprobs` (N, k) in nats under the full softmax, fp32 (float64 for a float64 teacher).
    """

    ids: Tensor
    logprobs: Tensor


@torch.no_grad()
def teacher_topk(hidden: Tensor, head: Head, k: int, chunk: int) -> TeacherTopK:
    """Return the top k of `head(hidden)`, hidden (N, H), with at most `chunk` rows of logits at any time."""
    ids, logprobs = [], []
    for start in range(0, max(1, len(hidden)), chunk):  # without a position, one empty chunk that still knows its shape
        logits = at_least_fp32(head(hidden[start : start + chunk]))
        top = top_ids(logits, k)
        ids.append(top.int())
        logprobs.append(logits.gather(-1, top) - logits.logsumexp(-1, keepdim=True))
        del logits
    return TeacherTopK(torch.cat(ids), torch.cat(logprobs))


@torch.no_grad()
def teacher_sample(hidden: Tensor, head: Head, noise: Tensor, chunk: int) -> Tensor:
    """Draw a token (N,), int64, from the softmax of each row of `head(hidden)` by its number of `noise` (N,) in [0, 1)."""
    drawn = []
    for start in range(0, max(1, len(hidden)), chunk):
        logits = at_least_fp32(head(hidden[start : start + chunk]))
        drawn.append(pick(logits, noise[start : start + chunk], _AT_ONE))
    return torch.cat(drawn)


def chunked_divergence(
    hidden: Tensor, head: Head, teacher: TeacherStates | TeacherTopK, divergence: Divergence, chunk: int
) -> Tensor:
    """Return the divergence at each position (N,) of a student with `head(hidden)`, hidden (N, H): fp32 (float64 stays).

    At most `chunk` rows of logits, the student's and the teacher's together, exist at any time in the forward and in the
    backward pass (two rows where `chunk` is 1 and a position needs both sides at once).

    Raises:
        UserError: a remembered top k is not the support that `divergence` asks for.
    """
    _check(hidden, teacher, divergence)
    together = divergence.support != "teacher"
    positions = max(1, chunk // 2) if together else chunk
    starts = range(0, len(hidden), positions)
    values = []
    for start in starts:
        part = slice(start, start + positions)
        if isinstance(teacher, TeacherTopK):
            compute = _from_topk(head, teacher, part, divergence)
        elif together:
            compute = _from_both(head, teacher, part, divergence)
        else:
            compute = _from_outcomes(head, teacher, part, divergence)
        if start == starts[-1]:
            # The backward pass begins here: keeping this chunk's logits costs no more than computing them again.
            values.append(compute(hidden[part]))
        else:
            values.append(cast(Tensor, checkpoint(compute, hidden[part], use_reentrant=False, preserve_rng_state=False)))
    return torch.cat(values) if values else at_least_fp32(hidden.new_zeros(0))


# From a chunk of the student's hidden states to its divergences, one for each way to know the teacher.
_Compute = Callable[[Tensor], Tensor]


def _from_topk(head: Head, teacher: TeacherTopK, part: slice, divergence: Divergence) -> _Compute:
    ids, logprobs = teacher.ids[part].long(), teacher.logprobs[part].detach()

    def compute(rows: Tensor) -> Tensor:
        logits = at_least_fp32(head(rows))
        vocabulary = logits.shape[-1]
        if ids.shape[-1] != min(divergence.k, vocabulary):
            raise UserError(
                f"the teacher's top {ids.shape[-1]} tokens were kept, and {divergence.name} needs its top {divergence.k}"
            )
        return between(log_probs(logits, ids, divergence), log_probs_from_topk(logprobs, vocabulary, divergence), divergence)

    return compute


def _from_outcomes(head: Head, teacher: TeacherStates, part: slice, divergence: Divergence) -> _Compute:
    logits = at_least_fp32(teacher.logits(part))
    vocabulary, ids = logits.shape[-1], top_ids(logits, divergence.k)
    teacher_log_probs = log_probs(logits, ids, divergence)

    def compute(rows: Tensor) -> Tensor:
        student = at_least_fp32(head(rows))
        _same_vocabulary(student.shape[-1], vocabulary)
        return between(log_probs(student, ids, divergence), teacher_log_probs, divergence)

    return compute


def _from_both(head: Head, teacher: TeacherStates, part: slice, divergence: Divergence) -> _Compute:
    def compute(rows: Tensor) -> Tensor:
        return token_divergence(head(rows), teacher.logits(part), divergence)

    return compute


def _check(hidden: Tensor, teacher: TeacherStates | TeacherTopK, divergence: Divergence) -> None:
    if isinstance(teacher, TeacherTopK) and divergence.support != "teacher":
        raise UserError(f"{divergence.name} cannot be computed from the teacher's top k alone: it needs the teacher in memory")
    positions = len(teacher.ids) if isinstance(teacher, TeacherTopK) else len(teacher.hidden)
    if positions != len(hidden):
        raise ValueError(f"{len(hidden)} positions of the student and {positions} of the teacher")


def _same_vocabulary(student: int, teacher: int) -> None:
    if student != teacher:
        raise ValueError(f"the student's vocabulary has {student} tokens and the teacher's {teacher}")
