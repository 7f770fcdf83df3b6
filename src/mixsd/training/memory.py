"""The main memory: given back after use, and running out of it said in the user's words."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch

from mixsd.errors import UserError

# torch's allocators for the CPU and for MPS raise a bare RuntimeError.
_SIGNS = ("can't allocate memory", "out of memory")


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
        if not (isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(words in str(error) for words in _SIGNS)):
            raise
        raise UserError(
            "out of memory in training: lower --micro-batch, pass --gradient-checkpointing, train adapters (--lora 16), "
            "or choose another --device"
        ) from error
