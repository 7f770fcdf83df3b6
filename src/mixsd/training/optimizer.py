"""AdamW and its schedule, with the paper's settings: betas (0.9, 0.95), eps 1e-8, linear warm-up, then constant.

The paper does not say which tensors decay; as is usual, matrices do and vectors (norms, biases) do not. The learning rate is a
pure function of the step, so there is no scheduler whose state a resumed run could lose.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch
from torch import Tensor, nn

from mixsd.errors import UserError

BETAS = (0.9, 0.95)
EPS = 1e-8


def learning_rate(step: int, *, lr: float, warmup_steps: int) -> float:
    """The learning rate of one optimizer step, counted from 1: lr * step / warmup_steps up to lr."""
    return lr * min(1.0, step / warmup_steps) if warmup_steps else lr


def make_optimizer(parameters: dict[str, nn.Parameter], *, lr: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW over two groups: tensors of two or more dimensions decay, the others do not."""
    matrices = [parameter for parameter in parameters.values() if parameter.dim() >= 2]
    vectors = [parameter for parameter in parameters.values() if parameter.dim() < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    fused = all(parameter.device.type in ("cpu", "cuda") for parameter in parameters.values())
    optimizer = torch.optim.AdamW([group for group in groups if group["params"]], lr=lr, betas=BETAS, eps=EPS, fused=fused)
    # As its first step would make them; made now they find their place before the activations take it, so the peak is lower.
    for parameter in parameters.values():
        optimizer.state[parameter] = {
            "step": torch.zeros((), dtype=torch.float32, device=parameter.device if fused else "cpu"),
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.zeros_like(parameter),
        }
    return optimizer


def optimizer_state(optimizer: torch.optim.Optimizer, parameters: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    """The optimizer's own tensors as 'parameter/field'."""
    states = {name: optimizer.state[parameter] for name, parameter in parameters.items()}
    return {f"{name}/{field}": tensor.detach() for name, state in states.items() for field, tensor in state.items()}


def give_back() -> None:
    """Hand what the C library has freed but kept back to the system, where it can: a checkpoint needs room after a step."""
    with suppress(OSError, AttributeError):  # glibc has it, others do not
        ctypes.CDLL(None).malloc_trim(0)


@contextmanager
def memory_errors() -> Iterator[None]:
    """Turn running out of memory, on a device or in the main memory, into a `UserError` that names the ways out."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        # torch's allocators for the CPU and for MPS raise a bare RuntimeError.
        bare = any(words in str(error) for words in ("can't allocate memory", "out of memory"))
        if not (isinstance(error, (MemoryError, torch.OutOfMemoryError)) or bare):
            raise
        raise UserError(
            "out of memory in training: lower --micro-batch, pass --gradient-checkpointing, train adapters (--lora 16), "
            "or choose another --device"
        ) from error
