"""Out of memory, said in the user's words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from mixsd.errors import UserError

# torch's allocators for the CPU and for MPS raise a bare RuntimeError.
_SIGNS = ("can't allocate memory", "out of memory")


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
