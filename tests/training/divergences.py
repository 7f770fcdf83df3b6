"""The divergences under test in every mode, and what a test asks of one."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any, Literal

import torch

from mixsd.training.losses import Divergence, token_divergence

Mode = Literal["renormalized", "raw", "bucket"]
MODES: dict[Mode, dict[str, Any]] = {
    "renormalized": {"tail": "drop", "renormalize": True},
    "raw": {"tail": "drop", "renormalize": False},
    "bucket": {"tail": "bucket"},
}
KLS: list[dict[str, Any]] = [{"kl": "forward"}, {"kl": "reverse"}, {"kl": "jsd"}, {"kl": "jsd", "beta": 0.3}]
TOP_K = [
    Divergence(**kl, support=support, k=3, **mode) for kl, support, mode in product(KLS, ["teacher", "student"], MODES.values())
]
FULL = [Divergence(**kl, support="full") for kl in KLS]


def logs(*rows: Sequence[float], dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64).log().to(dtype)


def value_and_gradient(student: torch.Tensor, teacher: torch.Tensor, divergence: Divergence) -> tuple[torch.Tensor, torch.Tensor]:
    student = student.detach().clone().requires_grad_()
    values = token_divergence(student, teacher, divergence)
    (gradient,) = torch.autograd.grad(values.sum(), student)
    return values.detach(), gradient


def random_logits(rows: int, vocabulary: int, *, scale: float = 2.0, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, vocabulary, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * scale
