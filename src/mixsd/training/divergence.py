"""How far a student's next-token distributions are from a teacher's: one value per position, in nats.

"Top-k KL" means different things in different codebases, so every choice is a named setting of `Divergence`: the direction,
whose top k tokens are compared, what becomes of the rest of the mass, and whether both sides are rescaled to sum to one on
the tokens compared. The reduction is the caller's. The defaults are the convention of the paper's runs.

Both sides are brought to the same few outcomes (`log_probs`), then compared (`between`). Without renormalization the dropped
tail makes a partial sum: it can be negative, a KL of that kind still has a gradient where both sides are equal (it pulls mass
into or out of the support), and only the Jensen-Shannon divergence keeps its minimum at the teacher.

A token that one side makes impossible (a logit of -inf) costs nothing where the other side rules it out too. Otherwise the
true KL is infinite; the zero then counts as a probability of e^-100, has no gradient, and training goes on. Finite logits are
taken as they are, however extreme.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

from mixsd.errors import UserError, did_you_mean
from mixsd.settings import Settings

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
    more outcome, the bucket. `renormalize`: p and q are rescaled to sum to one over the support. With the bucket, and over
    the full vocabulary, they do so already and it changes nothing.

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
        return cls(
            kl=settings.kl,
            support=settings.kl_support,
            k=settings.kl_top_k,
            tail=settings.kl_tail,
            renormalize=settings.kl_renormalize,
            beta=settings.kl_beta,
        )

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
    """Return the divergence at each position (N,) of logits (N, V), in nats, fp32 (float64 stays).

    Only the student gets a gradient, and the choice of a student's top k gets none.
    """
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


def at_least_fp32(logits: Tensor) -> Tensor:
    """The logits in fp32; float64 stays."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _kl(of: Tensor, to: Tensor) -> Tensor:
    return (of.exp() * (of - to)).sum(-1)


def _log_probs(outcomes: Tensor, normalizer: Tensor | None = None) -> Tensor:
    """Outcome logits less `normalizer`, by default their own; finite, with zero gradient at what is impossible."""
    outcomes = outcomes.clamp(min=_IMPOSSIBLE)
    logs = functional.log_softmax(outcomes, dim=-1) if normalizer is None else outcomes - normalizer
    return logs.masked_fill(outcomes <= _IMPOSSIBLE, _LOG_OF_ZERO)
