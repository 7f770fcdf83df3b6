"""An engine that is transformers under another name, and says so."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from mixsd.decoding import engine
from mixsd.decoding.requests import Decoding
from mixsd.models import loading


def connect(folder: Path, *, device: str, dtype: str, trust_remote_code: bool) -> Callable[..., Iterator[Decoding]]:
    model = loading.load_to_read(
        folder, dtype=getattr(torch, dtype), device=torch.device(device), trust_remote_code=trust_remote_code
    )
    print(f"toy engine on {device} in {dtype}")

    def decode(take: Any, sampling: Any, *, wants_logprobs: Any, **options: Any) -> Iterator[Decoding]:
        return engine.decode(model, take, sampling, token_budget=2000, **options)

    return decode
