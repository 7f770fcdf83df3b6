"""From hidden states to losses: token NLL (Eq. 5) and the divergences, without ever holding all the logits.

The head is applied to the supervised rows alone, a chunk at a time; a chunk's logits are freed after the forward pass and computed
again in the backward pass. What the known families do after the head (Gemma caps, Cohere multiplies, Granite divides) is done here
too; a model that does more (`inseparable`) is trained through its own dense logits: more memory, the same loss.

"Top-k KL" means different things in different codebases, so every choice is a named setting of `Divergence`. Both sides are
brought to the same few outcomes (`log_probs`), then compared (`between`). Without renormalization the dropped tail makes a partial
sum: it can be negative, a KL of that kind still has a gradient where both sides are equal, and only the Jensen-Shannon divergence
keeps its minimum at the teacher.

A token that one side makes impossible (a logit of -inf) costs nothing where the other side rules it out too. Otherwise the
true KL is infinite; the zero then counts as a probability of e^-100, has no gradient, and training goes on.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from mixsd.decoding.requests import Sampling, pick
from mixsd.errors import UserError, did_you_mean
from mixsd.models.compat import text_config
from mixsd.settings import Settings
from mixsd.training.examples import UNSUPERVISED, Batch

Head = Callable[[Tensor], Tensor]
_Compute = Callable[[Tensor], Tensor]  # from a chunk of hidden states to one value for each


@dataclass(frozen=True)
class States:
    """Rows (N, H), one for each token of the examples' targets, in their order, and the head; row t predicts token t.

    `chunk` is how many rows of logits may exist at once.
    """

    rows: Tensor
    head: Head
    chunk: int

    @torch.no_grad()
    def logits(self, part: slice) -> Tensor:
        """The logits of a few rows, without a gradient."""
        return self.head(self.rows[part])


def chunked_nll(hidden: Tensor, head: Head, labels: Tensor, chunk: int) -> Tensor:
    """Return the NLL (N,) in nats of `labels` (N,) under `head(hidden)`, hidden (N, H): fp32 (float64 stays).

    At most `chunk` rows of logits exist at any time, in the forward and in the backward pass.
    """

    def computing(part: slice) -> _Compute:
        return lambda rows: functional.cross_entropy(at_least_fp32(head(rows)), labels[part], reduction="none")

    return _in_chunks(hidden, chunk, computing)


def _in_chunks(hidden: Tensor, chunk: int, computing: Callable[[slice], _Compute]) -> Tensor:
    """One value (N,) for each of the hidden states (N, H), `chunk` at a time; computed again in the backward pass."""
    values = []
    for start in range(0, len(hidden), chunk):
        part = slice(start, start + chunk)
        compute = computing(part)
        if start + chunk >= len(hidden):
            # The backward pass begins here: keeping this chunk's logits costs no more than computing them again.
            values.append(compute(hidden[part]))
        else:
            values.append(cast(Tensor, checkpoint(compute, hidden[part], use_reentrant=False, preserve_rng_state=False)))
    return torch.cat(values) if values else at_least_fp32(hidden.new_zeros(0))


def at_least_fp32(logits: Tensor) -> Tensor:
    """The logits in fp32; float64 stays."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def decoder(model: PreTrainedModel) -> nn.Module:
    """The part of the model that turns ids into hidden states."""
    return cast(nn.Module, model.get_decoder())


def logit_head(model: PreTrainedModel) -> Head:
    """Return the map from hidden states (..., H) to the model's final logits (..., V)."""
    config = text_config(model.config)
    project = model.get_output_embeddings()
    multiply, divide, cap = (getattr(config, name, None) for name in ("logit_scale", "logits_scaling", "final_logit_softcapping"))

    def head(hidden: Tensor) -> Tensor:
        logits: Tensor = project(hidden)
        if multiply is not None:
            logits = logits * multiply
        if divide is not None:
            logits = logits / divide
        return logits if cap is None else torch.tanh(logits / cap) * cap

    return head


@contextmanager
def evaluating(model: PreTrainedModel) -> Iterator[None]:
    """The model without dropout, for a while."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


@torch.no_grad()
def inseparable(model: PreTrainedModel, batch: Batch) -> str | None:
    """Why decoder and head, taken apart, do not give the model's own logits at the supervised places of a batch; None if they do."""
    body, head = model.get_decoder(), model.get_output_embeddings()
    if body is None or body is model or head is None:
        return "it has no decoder and head of their own"
    with evaluating(model):
        supervised = batch.labels[:, 1:] != UNSUPERVISED
        expected = forward(model, batch).logits[:, :-1][supervised].float()
        hidden = getattr(forward(body, batch), "last_hidden_state", None)
        if hidden is None or getattr(head, "in_features", hidden.shape[-1]) != hidden.shape[-1]:
            return "its head does not take what its decoder gives"
        found = logit_head(model)(hidden[:, :-1][supervised]).float()
        scale = max(1.0, expected.abs().max().item())
        same = found.shape == expected.shape and (found - expected).abs().max().item() <= 1e-4 * scale
        return None if same else "its head does more to the logits than is known here"


def forward(module: nn.Module, batch: Batch) -> Any:
    """The output of a model, or of its decoder, for a padded batch."""
    # Models with relative positions (ALiBi) take none; they read the mask.
    accepted = inspect.signature(module.forward).parameters
    positions = {"position_ids": batch.position_ids} if "position_ids" in accepted else {}
    return module(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False, return_dict=True, **positions)


Kl = Literal["forward", "reverse", "jsd"]
Support = Literal["teacher", "student", "full"]
Tail = Literal["drop", "bucket"]

_TOP_K = 64
_BETA = 0.5

# Logits at or below this are masks; adding or subtracting any real logit leaves it what it is, in fp32 and float64.
_IMPOSSIBLE = -1e38
_LOG_OF_ZERO = -100.0


@dataclass(frozen=True, slots=True)
class Divergence:
    """The settings of a token-level divergence between the teacher's distribution p and the student's q.

    `kl`: forward is KL(p || q), reverse is KL(q || p), jsd is beta KL(p || m) + (1 - beta) KL(q || m) with
    m = beta p + (1 - beta) q. `support`: the outcomes compared are the teacher's or the student's `k` likeliest tokens (all
    of them where the vocabulary is smaller) or the full vocabulary. `tail`: the mass off the support is dropped, or is one
    more outcome, the bucket. `renormalize`: p and q are rescaled to sum to one over the support (with the bucket, and over
    the full vocabulary, they do so already).

    Raises `UserError` for settings that contradict each other or would be ignored.
    """

    kl: Kl = "forward"
    support: Support = "teacher"
    k: int = _TOP_K
    tail: Tail = "drop"
    renormalize: bool = True
    beta: float = _BETA

    def __post_init__(self) -> None:
        for setting, known in (("kl", get_args(Kl)), ("support", get_args(Support)), ("tail", get_args(Tail))):
            if (value := getattr(self, setting)) not in known:
                raise UserError(f"{setting} is one of {', '.join(known)}, not {value!r}{did_you_mean(str(value), known)}")
        if self.k < 1:
            raise UserError(f"k is the number of tokens on the support, at least 1, not {self.k}")
        if self.kl == "jsd" and not 0 < self.beta < 1:
            raise UserError(f"beta lies between 0 and 1, not {self.beta}: for the ends use kl 'forward' and 'reverse'")
        if self.kl != "jsd" and self.beta != _BETA:
            raise UserError(f"beta ({self.beta}) weighs the two sides of the Jensen-Shannon divergence; kl is {self.kl!r}")
        if self.support == "full" and self.tail == "bucket":
            raise UserError("the full vocabulary leaves nothing for a bucket: use tail 'drop', or a top-k support")
        if self.support == "full" and self.k != _TOP_K:
            raise UserError(f"k ({self.k}) has no meaning on the full vocabulary: leave it out, or choose a top-k support")
        if self.k == 1 and self.support != "full" and self.tail == "drop" and self.renormalize:
            raise UserError("one token renormalized is certain on both sides, so this divergence is always 0: use a larger k")

    @classmethod
    def of(cls, settings: Settings) -> Divergence:
        """What the settings under Distillation name."""
        kl, support, k = settings.kl, settings.kl_support, settings.kl_top_k
        return cls(kl, support, k, settings.kl_tail, settings.kl_renormalize, settings.kl_beta)

    @property
    def name(self) -> str:
        """All of it in one line, for reports."""
        kl = f"Jensen-Shannon (beta {self.beta:g})" if self.kl == "jsd" else f"{self.kl} KL"
        if self.support == "full":
            return f"{kl}, full vocabulary"
        tail = "tail in a bucket" if self.tail == "bucket" else "tail dropped"
        scale = "" if self.tail == "bucket" else "renormalized, " if self.renormalize else "not renormalized, "
        return f"{kl}, {self.support}'s top {self.k}, {scale}{tail}"


def token_divergence(student_logits: Tensor, teacher_logits: Tensor, divergence: Divergence) -> Tensor:
    """Return the divergence (N,) of logits (N, V), in nats, fp32 (float64 stays). Only the student's logits get a gradient."""
    if student_logits.shape != teacher_logits.shape:
        raise ValueError(f"student logits {tuple(student_logits.shape)}, teacher logits {tuple(teacher_logits.shape)}")
    student, teacher = at_least_fp32(student_logits), at_least_fp32(teacher_logits.detach())
    ids = None if divergence.support == "full" else top_ids(student if divergence.support == "student" else teacher, divergence.k)
    return between(log_probs(student, ids, divergence), log_probs(teacher, ids, divergence), divergence)


def top_ids(logits: Tensor, k: int) -> Tensor:
    """The ids (N, k) of the k likeliest tokens, likeliest first; all V where k is larger."""
    return logits.detach().topk(min(k, logits.shape[-1]), dim=-1).indices


def log_probs(logits: Tensor, ids: Tensor | None, divergence: Divergence) -> Tensor:
    """One side's log-probabilities (N, k, or k + 1 with the bucket) of the tokens `ids` (N, k); None is the full vocabulary."""
    if ids is None:
        return _log_probs(logits)
    outcomes = logits.gather(-1, ids)
    if divergence.tail == "bucket":
        # Summed, not 1 minus the support's mass: that difference would be rounding noise for a peaked distribution.
        rest = logits.scatter(-1, ids, _IMPOSSIBLE).logsumexp(-1, keepdim=True)
        return _log_probs(torch.cat([outcomes, rest], dim=-1))
    return _log_probs(outcomes, None if divergence.renormalize else logits.logsumexp(-1, keepdim=True))


def log_probs_from_topk(logprobs: Tensor, vocabulary: int, divergence: Divergence) -> Tensor:
    """The teacher's side, as `log_probs` gives it, from its top k's log-probabilities (N, k) under the full softmax.

    The bucket is what they leave of one. In fp32 that cannot be told from less than 1e-7, and counts as no less.
    """
    outcomes = at_least_fp32(logprobs)
    if divergence.tail == "bucket":
        wide = outcomes if outcomes.device.type == "mps" else outcomes.double()  # mps has no float64
        rest = -torch.expm1(wide.logsumexp(-1, keepdim=True))
        log_rest = rest.clamp(min=torch.finfo(outcomes.dtype).eps).log().to(outcomes.dtype)
        if outcomes.shape[-1] >= vocabulary:
            log_rest = torch.full_like(log_rest, _IMPOSSIBLE)
        return _log_probs(torch.cat([outcomes, log_rest], dim=-1))
    return _log_probs(outcomes, None if divergence.renormalize else outcomes.new_zeros(()))


def between(student: Tensor, teacher: Tensor, divergence: Divergence) -> Tensor:
    """The divergence (N,) of log-probabilities over the same outcomes, both (N, K)."""
    if divergence.kl == "forward":
        return _kl(teacher, student)
    if divergence.kl == "reverse":
        return _kl(student, teacher)
    beta = divergence.beta
    mixture = torch.logaddexp(teacher + math.log(beta), student + math.log1p(-beta))
    return beta * _kl(teacher, mixture) + (1 - beta) * _kl(student, mixture)


def _kl(of: Tensor, to: Tensor) -> Tensor:
    return (of.exp() * (of - to)).sum(-1)


def _log_probs(outcomes: Tensor, normalizer: Tensor | None = None) -> Tensor:
    """Outcome logits less `normalizer`, by default their own; finite, with zero gradient at what is impossible."""
    outcomes = outcomes.clamp(min=_IMPOSSIBLE)
    logs = functional.log_softmax(outcomes, dim=-1) if normalizer is None else outcomes - normalizer
    return logs.masked_fill(outcomes <= _IMPOSSIBLE, _LOG_OF_ZERO)


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
    sampling = Sampling({}, temperature=1.0)
    parts = [slice(start, start + chunk) for start in range(0, max(1, len(hidden)), chunk)]
    return torch.cat([pick(at_least_fp32(head(hidden[part])), noise[part], sampling) for part in parts])


def chunked_divergence(hidden: Tensor, head: Head, teacher: States | TeacherTopK, divergence: Divergence, chunk: int) -> Tensor:
    """Return the divergence at each position (N,) of a student with `head(hidden)`, hidden (N, H): fp32 (float64 stays).

    At most `chunk` rows of logits, the student's and the teacher's together, exist at any time in the forward and in the
    backward pass (two at least where both sides are needed at once). A remembered top k that does not fit is a `UserError`.
    """
    together = divergence.support != "teacher"
    if isinstance(teacher, TeacherTopK) and together:
        raise UserError(f"{divergence.name} cannot be computed from the teacher's top k alone: it needs the teacher in memory")
    positions = len(teacher.ids if isinstance(teacher, TeacherTopK) else teacher.rows)
    if positions != len(hidden):
        raise ValueError(f"{len(hidden)} positions of the student and {positions} of the teacher")

    def computing(part: slice) -> _Compute:
        if together:
            assert isinstance(teacher, States)
            return lambda rows: token_divergence(head(rows), teacher.logits(part), divergence)
        return _on_teacher_support(head, teacher, part, divergence)

    return _in_chunks(hidden, max(1, chunk // 2) if together else chunk, computing)


def _on_teacher_support(head: Head, teacher: States | TeacherTopK, part: slice, divergence: Divergence) -> _Compute:
    vocabulary, known = None, None
    if isinstance(teacher, TeacherTopK):
        ids, logprobs = teacher.ids[part].long(), teacher.logprobs[part].detach()
    else:
        logits = at_least_fp32(teacher.logits(part))
        vocabulary, ids = logits.shape[-1], top_ids(logits, divergence.k)
        known = log_probs(logits, ids, divergence)

    def compute(rows: Tensor) -> Tensor:
        student = at_least_fp32(head(rows))
        width, kept = student.shape[-1], ids.shape[-1]
        if vocabulary not in (None, width):
            raise ValueError(f"the student's vocabulary has {width} tokens and the teacher's {vocabulary}")
        if kept != min(divergence.k, width):
            raise UserError(f"the teacher's top {kept} tokens were kept, and {divergence.name} needs its top {divergence.k}")
        side = log_probs_from_topk(logprobs, width, divergence) if known is None else known
        return between(log_probs(student, ids, divergence), side, divergence)

    return compute
